//! `outgate verify`: tries every way out from where guests are, and says what came through. `network` makes guests and
//! a sentinel outside, `checks` has what is tried, `attempts` tries it from sockets in a guest's namespace, `capture`
//! and `packet` see what arrives where, `report` says what it means.

mod addresses;
mod attempts;
mod capture;
mod checks;
mod dns;
mod namespace;
mod network;
mod packet;
pub(in crate::cli) mod proof;
mod report;
mod sockets;
mod trial;

use super::ask::{Daemon, write_json};
use super::golem::probe;
use super::interrupt::Interrupt;
use super::{Config, Exit, Failure, Outcome, bridge};
use addresses::Family;
use attempts::Context;
use capture::{Capture, Filter};
use checks::{gateway, reachable, tasks, untried};
use clap::Args;
use ipnet::IpNet;
use network::{Guests, Network, Traces, Untried};
use outgate::config::Settings;
use outgate::firewall::{FirewallError, GuestEntry, Host, guest_entries};
use outgate::shell::quoted;
use outgate::system;
use outgate::text::printable;
use probe::attempt::Wanted;
use report::{OfConfig, Report, Row, State};
use serde_json::json;
use sockets::Sockets;
use std::io::{self, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use trial::Trial;

/// Between the starts of two attempts, so that they stay below a guest's limits.
const GAP: Duration = Duration::from_millis(25);
/// Maximum number of URLs.
const MAX_URLS: usize = 16;
/// The exit code after a signal, as in shells after SIGINT.
const INTERRUPTED: u8 = 130;

/// Try every way out as a guest, and say whether guests are guarded
///
/// For each guests' interface: puts two guests of its own behind it, and a sentinel outside to which this machine
/// routes. Tries from the first guest what must not get out (TCP, UDP, DNS of other servers, ping, other protocols,
/// spoofed sources, this machine's own ports, the other guest), counts what arrives at the sentinel, and asks outgate's
/// listeners for names that are refused. With --url it also requests URLs, which must be answered. Whatever else
/// reaches the sentinel is counted apart.
///
/// Changes nothing for the real guests, and neither list nor firewall. The guests have addresses of a network that
/// no route covers, 198.18.0.0/15 and 2001:2::/48 if they are free; while it runs they are registered with the daemon
/// as @verify-1 and @verify-2, whom no counter, log line or `outgate denied` has. A bridge gets two ports, a pattern (veth*) two interfaces whose names fit. For an interface of one guest (a tap by its name)
/// nothing can be tried.
///
/// A check is ok, a LEAK, FAILED or not applicable. Exit code 0 if guests of all interfaces are guarded, 1 if not,
/// 130 after a signal.
/// Requires root. Takes a few seconds for each interface.
///
/// --json prints one object: `guarded` (all of them), `interfaces` and `notes`. Each interface has `interface`,
/// `state` (guarded, open, cut_off, unreached, not_checked, not_applicable), `summary`, `other_packets` and `checks`; each check has
/// `check`, `family`, `url`, `expected`, `seen`, `result` (ok, leak, failed, not_applicable) and `reason`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate verify
  outgate verify --interface br0 --url https://ipfs.io
  outgate verify --json | jq -r '.interfaces[].checks[] | select(.result == \"leak\") | .check'")]
pub(super) struct Arguments {
    #[command(flatten)]
    daemon: Daemon,
    /// A guests' interface, or a pattern of guest_interfaces; may be given several times [default: all]
    #[arg(short, long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// What guests must reach; may be given several times
    #[arg(short, long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// A network for the addresses of guests and sentinel; once for each family [default: see above]
    #[arg(long = "range", value_name = "NETWORK")]
    ranges: Vec<IpNet>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What is to be verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    pub(super) daemon: &'a Daemon,
    /// Interfaces or patterns of `guest_interfaces`; empty for all.
    pub(super) interfaces: &'a [String],
    /// What guests must reach.
    pub(super) urls: &'a [String],
    /// Networks for the addresses, instead of the built-in ones.
    pub(super) ranges: &'a [IpNet],
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    let Arguments { daemon, interfaces, urls, ranges, json } = arguments;
    verify(&Order { daemon, interfaces, urls, ranges, json: *json }, out)
}

/// Verifies, and writes what was found: [`Exit::Good`] if guests of all interfaces are guarded, [`Exit::No`] if not.
///
/// # Errors
/// If nothing could be tried at all.
pub(super) fn verify(order: &Order<'_>, out: &mut dyn Write) -> Outcome {
    if order.urls.len() > MAX_URLS {
        return Err(Failure::Usage(format!(
            "{} URLs are too many; one run tries at most {MAX_URLS}",
            order.urls.len()
        )));
    }
    let urls = order.urls.iter().map(|url| probe::wanted(url)).collect::<Result<Vec<Wanted>, Failure>>()?;
    if !system::is_root() {
        let why = "only root may make the namespaces of guests; run it with sudo";
        return Err(Failure::Failed(why.to_owned()));
    }
    let (settings, _) = Settings::load(order.daemon.config.file())?;
    let settings = bridge::with_pins(&settings)?;
    if settings.firewall.guest_interfaces.is_empty() {
        return Err(FirewallError::NotWanted.into());
    }
    let host = Host::look()?;
    let all = guest_entries(&settings.firewall.guest_interfaces, &host);
    let entries = chosen(&all, order.interfaces)?;
    // So that everything is removed again.
    let stop = Interrupt::watch()?;
    let network = Network::make(order.daemon, settings, &all, host, order.ranges, Traces::of_verify())?;
    let notes = notes(&network);
    let mut reports = Vec::new();
    for entry in entries {
        match one(entry, &network, &urls, &stop, order) {
            Some(report) => reports.push(report),
            None => return Ok(Exit::Command(INTERRUPTED)),
        }
    }
    drop(network);
    tell(&reports, &notes, order.json, out)
}

/// Returns whether there is an interface to which guests can be added, so that something can be tried.
pub(super) fn is_applicable(config: &Config) -> Result<bool, Failure> {
    let (settings, _) = Settings::load(config.file())?;
    let entries = guest_entries(&settings.firewall.guest_interfaces, &Host::look()?);
    Ok(entries.iter().any(|entry| matches!(entry, GuestEntry::Bridge(_) | GuestEntry::Pattern(_))))
}

/// Returns what one must know to read the results.
fn notes(network: &Network) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(why) = &network.unregistered {
        notes.push(format!("the guests of this run are not registered with the daemon: {why}"));
    }
    for (family, path) in [(Family::V4, "ipv4/ip_forward"), (Family::V6, "ipv6/conf/all/forwarding")] {
        let forwarding = std::fs::read_to_string(format!("/proc/sys/net/{path}"));
        if network.of(family).is_ok() && forwarding.is_ok_and(|on| on.trim() == "0") {
            notes.push(format!("this machine forwards no {family} now; run this again once it does"));
        }
    }
    notes
}

/// Returns the entries that the operator names, or all.
fn chosen<'a>(all: &'a [GuestEntry], names: &[String]) -> Result<Vec<&'a GuestEntry>, Failure> {
    if names.is_empty() {
        return Ok(all.iter().collect());
    }
    let mut chosen: Vec<&GuestEntry> = Vec::new();
    for name in names {
        let Some(entry) = all.iter().find(|entry| entry.covers(name)) else {
            let all: Vec<&str> = all.iter().map(GuestEntry::name).collect();
            return Err(Failure::Usage(format!(
                "{name} is not a guests' interface; [firewall].guest_interfaces has {}",
                all.join(", ")
            )));
        };
        if !chosen.contains(&entry) {
            chosen.push(entry);
        }
    }
    Ok(chosen)
}

/// Tries everything at one interface; `None` after a signal.
fn one(entry: &GuestEntry, network: &Network, urls: &[Wanted], stop: &Interrupt, order: &Order<'_>) -> Option<Report> {
    let name = entry.name();
    let before = network.sentinel.others();
    let guests = match network.guests(entry) {
        Ok(guests) => guests,
        Err(Untried::NotApplicable(why)) => return Some(Report::untried(name, State::NotApplicable, &why)),
        Err(Untried::Failed(why)) => return Some(Report::untried(name, State::NotChecked, &why)),
    };
    let config = of_config(order.daemon);
    match rows(network, &guests, urls, stop) {
        Ok(Some(rows)) => {
            let others = network.sentinel.others().saturating_sub(before);
            Some(Report::of(name, rows, others, network.has_daemon(), &config))
        }
        Ok(None) => None,
        Err(failure) => {
            let why = failure.to_string();
            Some(Report::untried(name, State::NotChecked, why.trim_start_matches("outgate: ")))
        }
    }
}

/// Returns how commands name the configuration of this one.
fn of_config(daemon: &Daemon) -> String {
    let named = daemon.config.file().filter(|_| !daemon.config.is_of_environment());
    let config: Option<String> = named.map(|file| format!(" --config {}", quoted(&file.to_string_lossy())));
    let text: OfConfig<'_> = config.as_deref().unwrap_or_default();
    text.to_owned()
}

/// Runs all tasks of an interface, and joins what they saw with what arrived; `None` after a signal.
fn rows(network: &Network, guests: &Guests, urls: &[Wanted], stop: &Interrupt) -> Result<Option<Vec<Row>>, Failure> {
    let both: Vec<addresses::Addresses> =
        Family::BOTH.iter().filter_map(|family| network.of(*family).as_ref().ok().copied()).collect();
    let [_, of_second, of_first] = Filter::of(&both, network.own.clone());
    let answers = Capture::start(&guests.first, of_first, Arc::clone(&network.round))?;
    let second = Capture::start(&guests.second, of_second, Arc::clone(&network.round))?;
    let trial = Trial {
        tasks: tasks(network, urls.len()).into_iter().map(|task| (task, untried(task, network, guests))).collect(),
        contexts: Family::BOTH.map(|family| context(network, guests, urls, family).map(Arc::new)),
        captures: [&network.sentinel, &second, &answers],
        namespace: Some(guests.first.clone()),
        urls,
        gap: GAP,
    };
    trial.run(stop)
}

/// Returns what attempts of a family require; `None` if it has no addresses.
fn context(network: &Network, guests: &Guests, urls: &[Wanted], family: Family) -> Option<Context> {
    let addresses = network.of(family).as_ref().ok().copied()?;
    let of_interface = own_addresses(&guests.entry);
    let gateway = gateway(family, &of_interface, addresses.host);
    let services = || Some((TcpListener::bind((gateway, 0)).ok()?, UdpSocket::bind((gateway, 0)).ok()?));
    Some(Context {
        proxy: reachable(&network.settings.listen.proxy, family).next(),
        admin_port: network.settings.listen.admin.map(|admin| admin.port()),
        sockets: Arc::new(Sockets::Made),
        round: Arc::clone(&network.round),
        addresses,
        share_link: guests.share_link,
        gateway,
        services: services(),
        urls: urls.to_vec(),
    })
}

/// Returns the addresses of an interface; none if they cannot be listed.
fn own_addresses(interface: &str) -> Vec<IpAddr> {
    let all = outgate::firewall::interface_addresses().unwrap_or_default().into_iter();
    all.filter(|address| address.interface == interface).map(|address| address.net.addr()).collect()
}

fn tell(reports: &[Report], notes: &[String], json: bool, out: &mut dyn Write) -> Outcome {
    let is = |report: &Report, state: State| report.state == state;
    let guarded = reports.iter().any(|report| is(report, State::Guarded))
        && reports.iter().all(|report| is(report, State::Guarded) || is(report, State::NotApplicable));
    if json {
        let interfaces = serde_json::to_value(reports).map_err(io::Error::from)?;
        write_json(&json!({ "guarded": guarded, "interfaces": interfaces, "notes": notes }), out)?;
    } else {
        notes.iter().try_for_each(|note| writeln!(out, "note: {}", printable(note)))?;
        for (n, report) in reports.iter().enumerate() {
            if n > 0 {
                writeln!(out)?;
            }
            report.write(out)?;
        }
    }
    Ok(if guarded { Exit::Good } else { Exit::No })
}
