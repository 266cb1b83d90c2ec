//! The `[listen]` section: where outgate listens. Two listeners must not share an address and port, and a listener
//! that strangers can reach causes a warning.

use super::forms::Item;
use super::keys::Listen;
use super::problems::Problems;
use super::table::Setting;
use super::{ListenSettings, Settings};
use crate::policy::Unknown;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;

/// Checks the section; `control` is the socket where the file names none.
pub(super) fn check(given: &Listen, control: PathBuf, problems: &mut Problems) -> ListenSettings {
    let mut bound = Bound::default();
    let mut list = |key, given: &Setting<Vec<Item<SocketAddr>>>, layers: &[Layer]| {
        let is_given = given.given().is_some();
        let places = given.value.iter().map(|item| (item.value, is_given.then(|| item.span.clone())));
        bound.add(key, &places.collect::<Vec<_>>(), layers, problems);
        given.value.iter().map(|item| item.value).collect()
    };
    let proxy = list("proxy", &given.proxy, &[Layer::Tcp]);
    let proxy_tls = list("proxy_tls", &given.proxy_tls, &[Layer::Tcp]);
    let transparent = list("transparent", &given.transparent, &[Layer::Tcp]);
    let redirect = list("redirect", &given.redirect, &[Layer::Tcp]);
    let dns = list("dns", &given.dns, &[Layer::Tcp, Layer::Udp]);
    let udp = list("udp", &given.udp, &[Layer::Udp]);
    let mut single = |key, given: &Setting<Option<SocketAddr>>| {
        let span = given.given().and(given.span.clone());
        let place: Vec<ListenAddress> = given.value.iter().map(|address| (*address, span.clone())).collect();
        bound.add(key, &place, &[Layer::Tcp], problems);
        given.value
    };
    let admin = single("admin", &given.admin);
    let admin_tls = single("admin_tls", &given.admin_tls);
    let control = given.control.given().cloned().unwrap_or(Some(control));
    ListenSettings { proxy, proxy_tls, transparent, redirect, dns, udp, admin, admin_tls, control }
}

/// Warns about listeners that more people can reach than the operator may have intended.
pub(super) fn warn_of_exposure(given: &Listen, settings: &Settings, problems: &mut Problems) {
    let open_to_all = settings.policy.guests.is_empty() && settings.policy.unknown == Unknown::Shared;
    // With an authority for clients, reaching the listener is not enough for access.
    let by_certificate = settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let inside = given.proxy_tls.value.iter().filter(|_| !by_certificate);
    let proxy = given.proxy.given().into_iter().flatten();
    for Item { value: address, span } in proxy.chain(inside) {
        if open_to_all && is_exposed(address.ip()) {
            problems.warn(
                span.clone(),
                format!("whoever reaches {address} may use the proxy; declare guests with [[guest]] or listen on a private address"),
            );
        }
    }
    if let (Some(span), Some(address)) = (&given.admin.span, settings.listen.admin)
        && !address.ip().is_loopback()
    {
        let remedy = "keep it on 127.0.0.1 unless guests cannot reach it";
        problems.warn(
            span.clone(),
            format!("whoever reaches {address} can read metrics and what guests asked for; {remedy}"),
        );
    }
    let others = [&settings.listen.proxy_tls, &settings.listen.transparent, &settings.listen.redirect];
    let alone = others.into_iter().all(Vec::is_empty);
    if let Some(span) =
        given.proxy.span.clone().filter(|_| given.proxy.value.is_empty() && !given.proxy.is_wrong() && alone)
    {
        problems.warn(span, "there is no listener for guests, so they reach nothing");
    }
}

/// The address of a listener and its span in the file; no span if it is a default.
type ListenAddress = (SocketAddr, Option<Range<usize>>);

/// Returns whether more than this machine and its private networks can reach the address.
fn is_exposed(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]);
            !(v4.is_loopback() || v4.is_private() || v4.is_link_local() || shared)
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Tcp,
    Udp,
}

/// The listeners seen so far.
#[derive(Default)]
struct Bound {
    taken: Vec<(Layer, &'static str, ListenAddress)>,
}

impl Bound {
    fn add(&mut self, key: &'static str, places: &[ListenAddress], layers: &[Layer], problems: &mut Problems) {
        for (address, span) in places {
            if let (0, Some(span)) = (address.port(), span) {
                problems.warn(span.clone(), "port 0 lets the kernel choose, so the port differs after each start");
            }
            let clashes = |layer: &Layer, other: &SocketAddr| layers.contains(layer) && overlap(*address, *other);
            let clash = self.taken.iter().find(|(layer, _, (other, _))| clashes(layer, other));
            if let Some((_, owner, (other, place))) = clash {
                let message = match (span, place) {
                    (Some(span), Some(place)) => {
                        let place = problems.place(place.start, span.start);
                        format!("{address} overlaps with {other} of `{owner}` in {place}")
                    }
                    (Some(_), None) => format!("{address} overlaps with {other}, the default of `{owner}`"),
                    (None, _) => format!("{other} overlaps with {address}, the default of `{key}`"),
                };
                let span = span.clone().or_else(|| place.clone()).unwrap_or_default();
                problems.error(span, format!("{message}; give one of them another port"));
            }
            self.taken.extend(layers.iter().map(|layer| (*layer, key, (*address, span.clone()))));
        }
    }
}

/// Returns whether the kernel would refuse the second of two listeners. Each family has its own unspecified
/// address (outgate's IPv6 listeners accept no IPv4), and port 0 never clashes.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}
