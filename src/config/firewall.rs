//! The `[firewall]` section, and how it fits the listeners: traffic from a guest interface needs a listener that
//! accepts it, or all of it is refused.

use super::forms::Item;
use super::keys::Firewall;
use super::problems::Problems;
use super::{ListenSettings, values};
use crate::firewall::{FirewallSettings, HOST_NETWORK, Pin, STACKED_KINDS, fits};
use std::net::SocketAddr;
use std::ops::Range;

/// Checks the section; `pins` are the guests that name an interface.
pub(super) fn check(
    given: &Firewall,
    pins: Vec<Pin>,
    listen: &ListenSettings,
    problems: &mut Problems,
) -> FirewallSettings {
    let mut guest_interfaces = Vec::new();
    for Item { value: name, span } in &given.guest_interfaces.value {
        if guest_interfaces.contains(name) {
            problems.warn(span.clone(), format!("{name:?} is listed twice"));
        } else {
            guest_interfaces.push(name.clone());
        }
    }
    let mut host_users = Vec::new();
    for Item { value: user, .. } in &given.host_users.value {
        if !host_users.contains(user) {
            host_users.push(user.clone());
        }
    }
    if let Some(span) = given.guest_interfaces.span.clone().filter(|_| !guest_interfaces.is_empty()) {
        check_guest_listeners(span, listen, problems);
    }
    if let Some(span) = given.host_users.span.clone().filter(|_| !host_users.is_empty())
        && listen.redirect.is_empty()
    {
        let remedy = "set [listen].redirect, for example [\"127.0.0.1:3130\", \"[::1]:3130\"]";
        problems.error(span, format!("without a `redirect` listener these users reach nothing; {remedy}"));
    }
    FirewallSettings {
        guest_interfaces,
        host_users,
        allow_dhcp: given.allow_dhcp.value,
        allow_inbound_replies: given.allow_inbound_replies.value,
        pins,
    }
}

/// Reads one of `guest_interfaces`.
pub(super) fn guest_interface(text: &str) -> Result<String, String> {
    if !values::is_interface(text, true) {
        return Err(format!("{text:?} is not a network interface; write for example \"br0\" or \"tap*\""));
    }
    if fits(text, "lo") {
        let why = "this matches \"lo\", which is this machine itself; for sockets of this machine use `host_users`";
        return Err(why.to_owned());
    }
    Ok(text.to_owned())
}

/// Reads one of `not_guests`.
pub(super) fn not_guest(text: &str) -> Result<String, String> {
    // `macvlan@eth0` names the stacked links on an interface.
    let standing = text.split_once('@').filter(|(kind, _)| STACKED_KINDS.contains(kind));
    let interface = standing.map_or(text, |(_, interface)| interface);
    if interface == HOST_NETWORK || values::is_interface(interface, true) {
        return Ok(text.to_owned());
    }
    let examples = format!("\"docker0\", \"macvlan@eth0\" or \"{HOST_NETWORK}\"");
    Err(format!("{text:?} is not a network interface; write for example {examples}"))
}

/// Reads one of `host_users`.
pub(super) fn host_user(text: &str) -> Result<String, String> {
    if !values::is_user(text) {
        return Err(format!("{text:?} is not a user's name or number"));
    }
    if matches!(text, "outgate" | "root" | "0") {
        let why = "outgate's own connections would come back to it";
        return Err(format!("{text:?} cannot be sent to `redirect`: {why}"));
    }
    Ok(text.to_owned())
}

fn check_guest_listeners(span: Range<usize>, listen: &ListenSettings, problems: &mut Problems) {
    let reachable = |list: &[SocketAddr]| list.iter().any(|address| !address.ip().is_loopback());
    if !reachable(&listen.transparent) {
        let remedy = "set [listen].transparent, for example [\"0.0.0.0:3129\", \"[::]:3129\"]";
        if [&listen.proxy, &listen.proxy_tls, &listen.dns].into_iter().any(|list| reachable(list)) {
            problems.warn(span.clone(), format!("guests reach only what they ask the proxy for; {remedy}"));
        } else {
            problems.error(span.clone(), format!("there is no listener that guests can reach; {remedy}"));
        }
    }
    if !reachable(&listen.dns) {
        let remedy = "set [listen].dns, for example [\"10.42.42.1:53\"]";
        let loopback = if listen.dns.is_empty() { "" } else { " (loopback is out of their reach)" };
        problems.warn(span, format!("guests have no DNS{loopback}: their queries are refused; {remedy}"));
    }
}
