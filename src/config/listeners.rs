//! The `[listen]` section: where outgate listens. Two listeners must not share an address and port, and a listener
//! that strangers can reach causes a warning.

use super::diagnostic::Problems;
use super::raw::{Given, List, RawListen};
use super::{ListenSettings, Settings, values};
use crate::policy::Unknown;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The longest path of a unix socket, without the closing NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Checks the section; `defaults` applies to missing keys, and relative paths start from `folder`.
pub(super) fn check(
    raw: &RawListen,
    defaults: ListenSettings,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> ListenSettings {
    let proxy = addresses(&raw.proxy, 3128, problems).unwrap_or_else(|| silent(&defaults.proxy));
    let proxy_tls = addresses(&raw.proxy_tls, 3443, problems).unwrap_or_default();
    let transparent = addresses(&raw.transparent, 3129, problems).unwrap_or_default();
    let redirect = addresses(&raw.redirect, 3130, problems).unwrap_or_default();
    let dns = addresses(&raw.dns, 53, problems).unwrap_or_default();
    let udp = addresses(&raw.udp, 443, problems).unwrap_or_default();
    let admin = single(&raw.admin, 3190, problems).unwrap_or_else(|| silent(&defaults.admin));
    let admin_tls = single(&raw.admin_tls, 3191, problems).unwrap_or_default();

    let mut bound = Bound::default();
    bound.add("proxy", &proxy, &[Layer::Tcp], problems);
    bound.add("proxy_tls", &proxy_tls, &[Layer::Tcp], problems);
    bound.add("transparent", &transparent, &[Layer::Tcp], problems);
    bound.add("redirect", &redirect, &[Layer::Tcp], problems);
    bound.add("dns", &dns, &[Layer::Tcp, Layer::Udp], problems);
    bound.add("udp", &udp, &[Layer::Udp], problems);
    bound.add("admin", &admin, &[Layer::Tcp], problems);
    bound.add("admin_tls", &admin_tls, &[Layer::Tcp], problems);
    ListenSettings {
        proxy: plain(&proxy).collect(),
        proxy_tls: plain(&proxy_tls).collect(),
        transparent: plain(&transparent).collect(),
        redirect: plain(&redirect).collect(),
        dns: plain(&dns).collect(),
        udp: plain(&udp).collect(),
        admin: plain(&admin).next(),
        admin_tls: plain(&admin_tls).next(),
        control: check_control(&raw.control, defaults.control, folder, problems),
    }
}

/// Warns about listeners that more people can reach than the operator may have intended.
pub(super) fn warn_of_exposure(raw: &RawListen, settings: &Settings, problems: &mut Problems<'_>) {
    let open_to_all = settings.policy.guests.is_empty() && settings.policy.unknown == Unknown::Shared;
    // With an authority for clients, reaching the listener is not enough for access.
    let by_certificate = settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let inside = raw.proxy_tls.iter().filter(|_| !by_certificate);
    for item in raw.proxy.iter().chain(inside).flat_map(|list| list.get_ref()) {
        if let Ok(address) = item.get_ref().parse::<SocketAddr>()
            && open_to_all
            && is_exposed(address.ip())
        {
            problems.warn(
                item.span(),
                format!("whoever reaches {address} may use the proxy; declare guests with [[guest]] or listen on a private address"),
            );
        }
    }
    if let (Some(item), Some(address)) = (&raw.admin, settings.listen.admin)
        && !address.ip().is_loopback()
    {
        let remedy = "keep it on 127.0.0.1 unless guests cannot reach it";
        problems.warn(
            item.span(),
            format!("whoever reaches {address} can read metrics and what guests asked for; {remedy}"),
        );
    }
    let others = [&settings.listen.proxy_tls, &settings.listen.transparent, &settings.listen.redirect];
    let alone = others.into_iter().all(Vec::is_empty);
    if let Some(list) = raw.proxy.as_ref().filter(|list| list.get_ref().is_empty() && alone) {
        problems.warn(list.span(), "there is no listener for guests, so they reach nothing");
    }
}

/// A listener and its place in the file; no place if it is a default.
type Place = (SocketAddr, Option<Range<usize>>);

fn silent<'a>(defaults: impl IntoIterator<Item = &'a SocketAddr>) -> Vec<Place> {
    defaults.into_iter().map(|address| (*address, None)).collect()
}

fn plain(places: &[Place]) -> impl Iterator<Item = SocketAddr> {
    places.iter().map(|(address, _)| *address)
}

fn addresses(given: &List<String>, port: u16, problems: &mut Problems<'_>) -> Option<Vec<Place>> {
    let items = given.as_ref()?.get_ref();
    Some(items.iter().filter_map(|item| address(item, port, problems)).collect())
}

/// Reads at most one address; "" means none.
fn single(given: &Given<String>, port: u16, problems: &mut Problems<'_>) -> Option<Vec<Place>> {
    let item = given.as_ref()?;
    let none = item.get_ref().is_empty();
    Some(if none { Vec::new() } else { address(item, port, problems).into_iter().collect() })
}

fn address(item: &Spanned<String>, port: u16, problems: &mut Problems<'_>) -> Option<Place> {
    match values::listener(item.get_ref(), port) {
        Ok(address) => {
            if address.port() == 0 {
                problems.warn(item.span(), "port 0 lets the kernel choose, so the port differs after each start");
            }
            Some((address, Some(item.span())))
        }
        Err(wrong) => {
            problems.error(item.span(), wrong);
            None
        }
    }
}

fn check_control(
    given: &Given<String>,
    default: Option<PathBuf>,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Option<PathBuf> {
    let Some(item) = given else { return default };
    if item.get_ref().is_empty() {
        return None;
    }
    let path = folder.join(item.get_ref());
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        let limit = format!("a unix socket's path has at most {MAX_SOCKET_PATH} bytes, and this one has {length}");
        problems.error(item.span(), format!("{limit}; choose a shorter one"));
    } else if item.get_ref().ends_with('/') {
        problems.error(item.span(), "`control` is a folder; write the path of the socket itself");
    }
    Some(path)
}

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
    taken: Vec<(Layer, &'static str, Place)>,
}

impl Bound {
    fn add(&mut self, key: &'static str, places: &[Place], layers: &[Layer], problems: &mut Problems<'_>) {
        for (address, span) in places {
            let clashes = |layer: &Layer, other: &SocketAddr| layers.contains(layer) && overlap(*address, *other);
            let clash = self.taken.iter().find(|(layer, _, (other, _))| clashes(layer, other));
            if let Some((_, owner, (other, place))) = clash {
                let message = match (span, place) {
                    (Some(_), Some(place)) => {
                        format!(
                            "{address} overlaps with {other} of `{owner}` in line {}",
                            problems.line_of(place.start)
                        )
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
