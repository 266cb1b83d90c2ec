//! The `[firewall]` section, and how it fits the listeners: traffic from a guest interface needs a listener that
//! accepts it, or all of it is refused.

use super::diagnostic::Problems;
use super::raw::Raw;
use super::{ListenSettings, values};
use crate::firewall::{FirewallSettings, HOST_NETWORK, Pin, STACKED_KINDS, fits};
use std::net::SocketAddr;
use std::ops::Range;
use toml::Spanned;

/// Checks the section; `pins` are the guests that name an interface.
pub(super) fn check(
    raw: &Raw,
    pins: Vec<Pin>,
    listen: &ListenSettings,
    problems: &mut Problems<'_>,
) -> FirewallSettings {
    let given = &raw.firewall;
    let flag = |key: &super::raw::Given<bool>| key.as_ref().is_some_and(|flag| *flag.get_ref());
    let mut settings = FirewallSettings {
        guest_interfaces: Vec::new(),
        host_users: Vec::new(),
        allow_dhcp: flag(&given.allow_dhcp),
        allow_inbound_replies: flag(&given.allow_inbound_replies),
        pins,
    };
    for item in given.guest_interfaces.iter().flat_map(|list| list.get_ref()) {
        let text = item.get_ref();
        if !values::is_interface(text, true) {
            problems.error(
                item.span(),
                format!(
                    "{text:?} is not a network interface; write for example \"br0\" or \
                                             \"tap*\""
                ),
            );
        } else if fits(text, "lo") {
            problems.error(
                item.span(),
                "this matches \"lo\", which is this machine itself; for sockets of this machine use `host_users`",
            );
        } else if settings.guest_interfaces.contains(text) {
            problems.warn(item.span(), format!("{text:?} is listed twice"));
        } else {
            settings.guest_interfaces.push(text.clone());
        }
    }
    for item in given.host_users.iter().flat_map(|list| list.get_ref()) {
        let text = item.get_ref();
        if !values::is_user(text) {
            problems.error(item.span(), format!("{text:?} is not a user's name or number"));
        } else if matches!(text.as_str(), "outgate" | "root" | "0") {
            let why = "outgate's own connections would come back to it";
            problems.error(item.span(), format!("{text:?} cannot be sent to `redirect`: {why}"));
        } else if !settings.host_users.contains(text) {
            settings.host_users.push(text.clone());
        }
    }
    if let Some(span) = span(&given.guest_interfaces).filter(|_| !settings.guest_interfaces.is_empty()) {
        check_guest_listeners(span, listen, problems);
    }
    if let Some(span) = span(&given.host_users).filter(|_| !settings.host_users.is_empty())
        && listen.redirect.is_empty()
    {
        let remedy = "set [listen].redirect, for example [\"127.0.0.1:3130\", \"[::1]:3130\"]";
        problems.error(span, format!("without a `redirect` listener these users reach nothing; {remedy}"));
    }
    settings
}

/// Checks `not_guests`.
pub(super) fn not_guests(raw: &Raw, problems: &mut Problems<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for item in raw.firewall.not_guests.iter().flat_map(|list| list.get_ref()) {
        // `macvlan@eth0` names the stacked links on an interface.
        let standing = item.get_ref().split_once('@').filter(|(kind, _)| STACKED_KINDS.contains(kind));
        let interface = standing.map_or(item.get_ref().as_str(), |(_, interface)| interface);
        if interface == HOST_NETWORK || values::is_interface(interface, true) {
            names.push(item.get_ref().clone());
        } else {
            let text = item.get_ref();
            let problem = format!(
                "{text:?} is not a network interface; write for example \"docker0\", \"macvlan@eth0\" or \
                 \"{HOST_NETWORK}\""
            );
            problems.error(item.span(), problem);
        }
    }
    names
}

fn check_guest_listeners(span: Range<usize>, listen: &ListenSettings, problems: &mut Problems<'_>) {
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

fn span<T>(given: &Option<Spanned<T>>) -> Option<Range<usize>> {
    given.as_ref().map(Spanned::span)
}
