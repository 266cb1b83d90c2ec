//! The `[firewall]` section, and how it fits the listeners: traffic from a guest interface needs a listener that
//! accepts it, or all of it is refused. And what the firewall gets of the other sections: it does not know them.

use super::forms::Item;
use super::keys::{Firewall, Guest, Interface};
use super::problems::Problems;
use super::{ListenSettings, Settings, values};
use crate::firewall::{
    BetweenGuests, CONTAINER_CONTROL, EnforcedLimits, FirewallSettings, GuestLimits, HOST_NETWORK, ListenerAddresses,
    Pin, PlanInput, STACKED_KINDS, Seal, fits,
};
use std::net::SocketAddr;
use std::ops::Range;

impl Settings {
    /// Returns what the firewall is planned from.
    pub fn plan_input(&self) -> PlanInput {
        PlanInput {
            firewall: self.firewall.clone(),
            listen: self.listen.for_firewall(),
            limits: self.limits_for_firewall(),
            guests: self.policy.guests.len(),
        }
    }

    /// Returns what identifies the firewall of these settings; `None` if the settings require no firewall.
    pub fn seal(&self) -> Option<Seal> {
        self.firewall.is_wanted().then(|| Seal::of(&self.firewall, &self.listen.for_firewall()))
    }

    /// Returns the part of `[limits]` and `[resolver]` that the kernel's rules use; `None` if there should be no
    /// rules.
    pub fn enforced_limits(&self) -> Option<EnforcedLimits> {
        self.firewall.is_wanted().then(|| EnforcedLimits::of(&self.firewall, &self.limits_for_firewall()))
    }

    fn limits_for_firewall(&self) -> GuestLimits {
        let limits = &self.limits;
        GuestLimits {
            dns_queries_per_second: limits.dns_queries_per_second,
            new_connections_per_second: limits.new_connections_per_second,
            requests_per_second: limits.requests_per_second,
            connections: limits.connections,
            total_connections: limits.total_connections,
            idle_timeout: limits.idle_timeout,
            resolver_timeout: self.resolver.timeout,
        }
    }
}

impl ListenSettings {
    /// Returns the listeners that the firewall directs guests to or lets them reach.
    pub fn for_firewall(&self) -> ListenerAddresses {
        ListenerAddresses {
            proxy: self.proxy.clone(),
            proxy_tls: self.proxy_tls.clone(),
            transparent: self.transparent.clone(),
            redirect: self.redirect.clone(),
            dns: self.dns.clone(),
            udp: self.udp.clone(),
        }
    }
}

/// Checks the section; `pins` are the guests that name an interface.
pub(super) fn check(
    given: &Firewall,
    interfaces: &[(Range<usize>, Interface)],
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
    let between_guests = check_interfaces(interfaces, &guest_interfaces, problems);
    FirewallSettings {
        guest_interfaces,
        host_users,
        allow_dhcp: given.allow_dhcp.value,
        allow_inbound_replies: given.allow_inbound_replies.value,
        pins,
        between_guests,
    }
}

/// Checks each `[[interface]]`: it must name what is a guests' interface.
fn check_interfaces(
    interfaces: &[(Range<usize>, Interface)],
    guest_interfaces: &[String],
    problems: &mut Problems,
) -> Vec<BetweenGuests> {
    let mut checked: Vec<BetweenGuests> = Vec::new();
    for (span, interface) in interfaces {
        let Some(named) = interface.name.span.clone() else {
            problems.error(span.clone(), "the interface has no name; write for example name = \"br-*\"");
            continue;
        };
        let Some(name) = interface.name.value.clone() else { continue };
        // A pattern is covered by one that is shorter.
        let covers = |pattern: &String| match name.strip_suffix('*') {
            Some(start) => pattern.ends_with('*') && fits(pattern, start),
            None => fits(pattern, &name),
        };
        if !guest_interfaces.iter().any(covers) {
            problems.error(
                named,
                format!(
                    "{name:?} is not covered by [firewall].guest_interfaces; name it there, or leave this table out"
                ),
            );
        } else if checked.iter().any(|other| other.interface == name) {
            problems.error(named, format!("an [[interface]] {name:?} is already there; leave one of them out"));
        } else {
            checked.push(BetweenGuests { interface: name, is_allowed: interface.between_guests.value });
        }
    }
    checked
}

/// Warns of guests that are one address of a container network: its other containers can use that address.
pub(super) fn warn_of_shared_networks(
    guests: &[(Range<usize>, Guest)],
    guest_interfaces: &[String],
    problems: &mut Problems,
) {
    let Some(network) = guest_interfaces.iter().find(|name| is_of_containers(name)) else { return };
    for (_, guest) in guests.iter().filter(|(_, guest)| guest.interface.value.is_none()) {
        for Item { value: net, span } in
            guest.addresses.value.iter().filter(|item| item.value.prefix_len() == item.value.max_prefix_len())
        {
            let address = net.addr();
            problems.warn(
                span.clone(),
                format!(
                    "in a network like {network:?} {address} is held to its container only while that runs: then another \
                     one there can use it; give this guest a network of its own, and name its range here"
                ),
            );
        }
    }
}

/// Returns whether a guest interface is by its name a bridge of Docker, Podman or CNI.
fn is_of_containers(name: &str) -> bool {
    ["docker", "br-", "podman", "cni"].iter().any(|start| name.starts_with(start))
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
    if [HOST_NETWORK, CONTAINER_CONTROL].contains(&interface) || values::is_interface(interface, true) {
        return Ok(text.to_owned());
    }
    let examples = format!("\"docker0\", \"macvlan@eth0\", \"{HOST_NETWORK}\" or \"{CONTAINER_CONTROL}\"");
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
