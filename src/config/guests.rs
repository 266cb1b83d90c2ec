//! The `[[guest]]` sections: the names and addresses of guests. A name or address must belong to only one guest,
//! because a flow is judged as the guest whose address it comes from.

use super::diagnostic::Problems;
use super::raw::RawGuest;
use super::{checked, values};
use crate::firewall::Pin;
use crate::policy::{GuestSettings, Mode};
use ipnet::IpNet;
use std::collections::HashMap;
use std::ops::Range;

/// The metric label of all undeclared guests.
const OTHER: &str = "other";

/// Checks every guest; leaves out those that cannot be read. Also returns the guests that are bound to an
/// interface. `by_certificate`: a guest may have no address of its own.
pub(super) fn check(
    guests: &[RawGuest],
    by_certificate: bool,
    problems: &mut Problems<'_>,
) -> (Vec<GuestSettings>, Vec<Pin>) {
    let mut names: HashMap<String, u32> = HashMap::new();
    let mut taken = Taken::default();
    let mut checked = Vec::with_capacity(guests.len());
    let mut pins = Vec::new();
    for guest in guests {
        let name = check_name(guest, &mut names, problems);
        let label = name.clone().unwrap_or_else(|| "this guest".to_owned());
        let interface = check_interface(guest, problems);
        let needs_address = !by_certificate || guest.interface.is_some();
        let addresses = check_addresses(guest, &label, needs_address, &mut taken, problems);
        let mode = guest.mode.as_ref().and_then(|given| checked::mode(given, problems, &format!("guest {label}")));
        let files = check_files(guest, &label, mode, problems);
        if let Some(name) = name {
            if let Some(interface) = interface {
                pins.push(Pin { guest: name.clone(), interface, addresses: addresses.clone() });
            }
            checked.push(GuestSettings { name, addresses, mode, files, agreed: None });
        }
    }
    (checked, pins)
}

fn check_name(guest: &RawGuest, names: &mut HashMap<String, u32>, problems: &mut Problems<'_>) -> Option<String> {
    let Some(given) = &guest.name else {
        problems.error(guest.span.clone(), "the guest has no name; write for example name = \"vm-7\"");
        return None;
    };
    let name = given.get_ref();
    if !values::is_guest_name(name) {
        problems.error(given.span(), format!("{name:?} is not a guest name: 1 to 64 of a-z A-Z 0-9 . _ -"));
        return None;
    }
    if name == OTHER {
        problems.error(given.span(), "\"other\" stands for all undeclared guests in the metrics; choose another name");
        return None;
    }
    let line = problems.line_of(given.span().start);
    if let Some(first) = names.get(name) {
        problems
            .error(given.span(), format!("a guest {name:?} is already declared in line {first}; choose another name"));
        return None;
    }
    names.insert(name.clone(), line);
    Some(name.clone())
}

fn check_interface(guest: &RawGuest, problems: &mut Problems<'_>) -> Option<String> {
    let given = guest.interface.as_ref().filter(|given| !given.get_ref().is_empty())?;
    if values::is_interface(given.get_ref(), false) {
        return Some(given.get_ref().clone());
    }
    let text = given.get_ref();
    problems
        .error(given.span(), format!("{text:?} is not the name of a network interface; write for example \"tap7\""));
    None
}

fn check_addresses(
    guest: &RawGuest,
    label: &str,
    needed: bool,
    taken: &mut Taken,
    problems: &mut Problems<'_>,
) -> Vec<IpNet> {
    let given = guest.addresses.as_ref().map(|given| given.get_ref().as_slice()).unwrap_or_default();
    if given.is_empty() && needed {
        let span = guest.addresses.as_ref().map_or(guest.span.clone(), |given| given.span());
        problems
            .error(span, format!("{label} has no addresses, so no flow would belong to it; write addresses = [\"…\"]"));
    }
    let mut addresses = Vec::with_capacity(given.len());
    for item in given {
        match values::net(item.get_ref()) {
            Err(wrong) => problems.error(item.span(), wrong),
            Ok(net) if is_nobodys(net) => {
                problems.error(item.span(), format!("{net} cannot be a guest's address"));
            }
            Ok(net) => {
                taken.claim(net, label, item.span(), problems);
                addresses.push(net);
            }
        }
    }
    addresses
}

fn is_nobodys(net: IpNet) -> bool {
    net.addr().is_multicast() || (net.addr().is_unspecified() && net.prefix_len() == net.max_prefix_len())
}

/// Returns the addresses of a guest that is not in the configuration file, or everything that is wrong with its
/// name, addresses and interface.
pub(crate) fn identity(name: &str, addresses: &[String], interface: Option<&str>) -> Result<Vec<IpNet>, Vec<String>> {
    let mut wrong = Vec::new();
    if !values::is_guest_name(name) || name == OTHER {
        wrong.push(format!("{name:?} is not a guest name: 1 to 64 of a-z A-Z 0-9 . _ -, and not {OTHER:?}"));
    }
    if let Some(interface) = interface.filter(|interface| !values::is_interface(interface, false)) {
        wrong.push(format!("{interface:?} is not the name of a network interface"));
    }
    if addresses.is_empty() {
        wrong.push(format!("{name} has no address, so no flow would belong to it"));
    }
    let mut nets: Vec<IpNet> = Vec::with_capacity(addresses.len());
    for address in addresses {
        match values::net(address) {
            Err(why) => wrong.push(why),
            Ok(net) if is_nobodys(net) => wrong.push(format!("{net} cannot be a guest's address")),
            Ok(net) if nets.iter().any(|other| other.contains(&net) || net.contains(other)) => {
                wrong.push(format!("{net} is listed twice"));
            }
            Ok(net) => nets.push(net),
        }
    }
    if wrong.is_empty() { Ok(nets) } else { Err(wrong) }
}

fn check_files(guest: &RawGuest, label: &str, mode: Option<Mode>, problems: &mut Problems<'_>) -> Option<Vec<String>> {
    let given = guest.whitelist.as_ref()?;
    let mut files = Vec::with_capacity(given.get_ref().len());
    for item in given.get_ref() {
        let file = item.get_ref();
        if values::is_list_file(file) {
            files.push(file.clone());
        } else {
            let remedy = "write the name of a .rules, .lst or .json file in [whitelist].dir, without a path";
            problems.error(item.span(), format!("{file:?} is not a whitelist file; {remedy}"));
        }
    }
    if given.get_ref().is_empty() && !matches!(mode, Some(Mode::All | Mode::Observe | Mode::None)) {
        problems.warn(
            given.span(),
            format!("{label} has no whitelist file, so it reaches nothing; mode = \"none\" says so"),
        );
    }
    Some(files)
}

/// The address ranges already given to a guest, in order and without overlaps.
#[derive(Default)]
struct Taken {
    ranges: std::collections::BTreeMap<std::net::IpAddr, (IpNet, String, u32)>,
}

impl Taken {
    fn claim(&mut self, net: IpNet, label: &str, span: Range<usize>, problems: &mut Problems<'_>) {
        // Two ranges are nested or disjoint, so a clash is with the last range that starts before the end of this
        // one.
        let before = self.ranges.range(..=net.broadcast()).next_back();
        if let Some((_, (other, owner, line))) = before
            && (other.contains(&net) || net.contains(other))
        {
            let which = if *other == net { String::new() } else { format!(", as part of {other}") };
            let whose = if owner == label {
                "twice in the same guest".to_owned()
            } else {
                format!("of {owner} (line {line}{which})")
            };
            problems.error(span, format!("{net} is already an address {whose}; an address belongs to one guest alone"));
            return;
        }
        let line = problems.line_of(span.start);
        self.ranges.insert(net.network(), (net, label.to_owned(), line));
    }
}
