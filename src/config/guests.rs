//! The `[[guest]]` sections: the names and addresses of guests. A name or address must belong to only one guest,
//! because a flow is judged as the guest whose address it comes from.

use super::checked;
use super::keys::Guest;
use super::problems::Problems;
use super::values;
use crate::firewall::Pin;
use crate::policy::{GuestSettings, Mode};
use ipnet::IpNet;
use std::collections::HashMap;
use std::ops::Range;

/// The metric label of all undeclared guests.
const OTHER: &str = "other";

/// Checks every guest, each with its place; leaves out those that cannot be read. Also returns the guests that are
/// bound to an interface. `by_certificate`: a guest may have no address of its own.
pub(super) fn check(
    guests: &[(Range<usize>, Guest)],
    by_certificate: bool,
    problems: &mut Problems,
) -> (Vec<GuestSettings>, Vec<Pin>) {
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut taken = Taken::default();
    let mut checked = Vec::with_capacity(guests.len());
    let mut pins = Vec::new();
    for (span, guest) in guests {
        let name = check_name(span, guest, &mut names, problems);
        let label = name.clone().unwrap_or_else(|| "this guest".to_owned());
        let needs_address = !by_certificate || guest.interface.span.is_some();
        if guest.addresses.value.is_empty() && !guest.addresses.is_wrong() && needs_address {
            let span = guest.addresses.span.as_ref().unwrap_or(span).clone();
            let why = format!("{label} has no addresses, so no flow would belong to it");
            problems.error(span, format!("{why}; write addresses = [\"…\"]"));
        }
        let addresses: Vec<IpNet> = guest.addresses.value.iter().map(|item| item.value).collect();
        for item in &guest.addresses.value {
            taken.claim(item.value, &label, item.span.clone(), problems);
        }
        let mode = guest.mode.value;
        if let Some(mode) = mode {
            checked::warn_of_mode(mode, &guest.mode.span, problems, &format!("guest {label}"));
        }
        let files = check_files(guest, &label, mode, problems);
        if let Some(name) = name {
            if let Some(interface) = guest.interface.value.clone() {
                pins.push(Pin { guest: name.clone(), interface, addresses: addresses.clone() });
            }
            checked.push(GuestSettings { name, addresses, mode, files, agreed: None });
        }
    }
    (checked, pins)
}

fn check_name(
    guest_span: &Range<usize>,
    guest: &Guest,
    names: &mut HashMap<String, usize>,
    problems: &mut Problems,
) -> Option<String> {
    let Some(span) = guest.name.span.clone() else {
        problems.error(guest_span.clone(), "the guest has no name; write for example name = \"vm-7\"");
        return None;
    };
    let name = guest.name.value.clone()?;
    if let Some(first) = names.get(&name) {
        let place = problems.place(*first, span.start);
        problems.error(span, format!("a guest {name:?} is already declared in {place}; choose another name"));
        return None;
    }
    names.insert(name.clone(), span.start);
    Some(name)
}

/// Reads a guest's name.
pub(super) fn name(text: &str) -> Result<String, String> {
    if !values::is_guest_name(text) {
        return Err(format!("{text:?} is not a guest name: 1 to 64 of a-z A-Z 0-9 . _ -"));
    }
    if text == OTHER {
        let why = "\"other\" stands for all undeclared guests in the metrics; choose another name";
        return Err(why.to_owned());
    }
    Ok(text.to_owned())
}

/// Reads one of a guest's addresses.
pub(super) fn address(text: &str) -> Result<IpNet, String> {
    let net = values::net(text)?;
    if is_nobodys(net) { Err(format!("{net} cannot be a guest's address")) } else { Ok(net) }
}

/// Reads a guest's interface.
pub(super) fn interface(text: &str) -> Result<String, String> {
    if values::is_interface(text, false) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not the name of a network interface; write for example \"tap7\""))
}

/// Reads the name of one of a guest's files.
pub(super) fn list_file(text: &str) -> Result<String, String> {
    if values::is_list_file(text) {
        return Ok(text.to_owned());
    }
    let remedy = "write the name of a .rules, .lst or .json file in [whitelist].dir, without a path";
    Err(format!("{text:?} is not a whitelist file; {remedy}"))
}

fn is_nobodys(net: IpNet) -> bool {
    net.addr().is_multicast() || (net.addr().is_unspecified() && net.prefix_len() == net.max_prefix_len())
}

/// Returns the addresses of a guest that is not in the configuration file, or everything that is wrong with its
/// name, addresses and interface.
pub(crate) fn identity(name: &str, addresses: &[String], interface: Option<&str>) -> Result<Vec<IpNet>, Vec<String>> {
    let mut wrong = Vec::new();
    if !values::is_guest_or_probe_name(name) || name == OTHER {
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

fn check_files(guest: &Guest, label: &str, mode: Option<Mode>, problems: &mut Problems) -> Option<Vec<String>> {
    let given = guest.whitelist.value.as_ref()?;
    if given.is_empty() && !guest.whitelist.is_wrong() && !matches!(mode, Some(Mode::All | Mode::Observe | Mode::None))
    {
        let message = format!("{label} has no whitelist file, so it reaches nothing; mode = \"none\" says so");
        problems.warn(guest.whitelist.span.clone().unwrap_or_default(), message);
    }
    Some(given.iter().map(|file| file.value.clone()).collect())
}

/// The address ranges already given to a guest, in order and without overlaps; each with the guest and its place.
#[derive(Default)]
struct Taken {
    ranges: std::collections::BTreeMap<std::net::IpAddr, (IpNet, String, usize)>,
}

impl Taken {
    fn claim(&mut self, net: IpNet, label: &str, span: Range<usize>, problems: &mut Problems) {
        // Two ranges are nested or disjoint, so a clash is with the last range that starts before the end of this
        // one.
        let before = self.ranges.range(..=net.broadcast()).next_back();
        if let Some((_, (other, owner, first))) = before
            && (other.contains(&net) || net.contains(other))
        {
            let which = if *other == net { String::new() } else { format!(", as part of {other}") };
            let whose = if owner == label {
                "twice in the same guest".to_owned()
            } else {
                format!("of {owner} ({}{which})", problems.place(*first, span.start))
            };
            problems.error(span, format!("{net} is already an address {whose}; an address belongs to one guest alone"));
            return;
        }
        self.ranges.insert(net.network(), (net, label.to_owned(), span.start));
    }
}
