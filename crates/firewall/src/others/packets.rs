//! Sample packets on an honest guest's path, one for each direction and hook: those directed to the listeners, and
//! the listeners' answers. Their marks and many other properties are left open.

use super::chains::{Hook, Packet, Tracked};
use crate::addresses::interface_addresses;
use crate::host::Host;
use crate::plan::{FamilyListeners, Plan};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses on the Internet that no rule is likely to name.
const FAR: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::new(45, 83, 220, 7)), IpAddr::V6(Ipv6Addr::new(0x2a0e, 0xb107, 0x27f0, 0, 0, 0, 0, 7)));
/// The port of a client.
const CLIENT: u16 = 40_000;
/// Maximum number of bridge ports evaluated.
const MOST_PORTS: usize = 64;

/// A packet, and what is dropped if it is.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// `TCP to port 443` and the like.
    pub(super) what: String,
    pub(super) packet: Packet,
}

/// Returns the packets of guests behind this interface, for all families and listeners of the plan.
pub(super) fn of(plan: &Plan, host: &Host, interface: &str, addresses: &Addresses) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (listeners, is_v6) in [(&plan.v4, false), (&plan.v6, true)] {
        let path = Path {
            interface,
            guest: addresses.neighbour(interface, is_v6),
            own: addresses.own(interface, is_v6),
            is_v6,
        };
        path.add(listeners, &mut samples);
        if plan.allow_inbound_replies {
            let uplinks = host.default_routes.iter();
            samples.extend(uplinks.map(|uplink| path.replies(uplink)));
        }
    }
    let ports: Vec<&str> =
        host.ports_of(|bridge| bridge == interface).take(MOST_PORTS).map(|port| port.name.as_str()).collect();
    // Chains of bridges and of devices see the ports.
    let by_port = |sample: &Sample, port: &str| {
        let rename = |name: &String| if name.is_empty() { String::new() } else { port.to_owned() };
        let packet = &sample.packet;
        let (input, output) = (rename(&packet.input), rename(&packet.output));
        Sample {
            what: sample.what.clone(),
            packet: Packet { frame_of: Some(interface.to_owned()), input, output, ..packet.clone() },
        }
    };
    let framed: Vec<Sample> =
        samples.iter().flat_map(|sample| ports.iter().map(move |port| by_port(sample, port))).collect();
    samples.extend(framed);
    samples
}

/// The path between guests behind an interface and this machine, in one family.
struct Path<'p> {
    interface: &'p str,
    /// `None` for any address.
    guest: Option<IpAddr>,
    own: Option<IpAddr>,
    is_v6: bool,
}

impl Path<'_> {
    fn add(&self, listeners: &FamilyListeners, samples: &mut Vec<Sample>) {
        let far = if self.is_v6 { FAR.1 } else { FAR.0 };
        if listeners.transparent.is_some() {
            for port in [443, 80] {
                self.exchange(format!("TCP to port {port}"), far, port, None, false, samples);
            }
        } else {
            // If no traffic is redirected, guests connect to the listeners directly.
            for listener in listeners.open.iter().filter(|listener| !listener.udp) {
                let to = self.address_of(listener.address);
                let (what, port) = (format!("TCP to [listen].{}", listener.key), listener.address.port());
                self.exchange(what, to, port, None, false, samples);
            }
        }
        if let Some(dns) = listeners.dns {
            for is_udp in [true, false] {
                let what = if is_udp { "DNS over UDP" } else { "DNS over TCP" };
                self.exchange(what.to_owned(), far, 53, Some(dns), is_udp, samples);
            }
        }
    }

    /// Adds the first packet to this address and port at each hook, and the first answer. `brought`: the listener
    /// that NAT redirects it to, which makes it tracked.
    fn exchange(
        &self,
        what: String,
        to: IpAddr,
        port: u16,
        brought: Option<SocketAddr>,
        is_udp: bool,
        samples: &mut Vec<Sample>,
    ) {
        let (first, answer) = match brought {
            Some(_) => (Tracked::New, Tracked::Established),
            None => (Tracked::Untracked, Tracked::Untracked),
        };
        let asked = Packet {
            hook: Hook::Prerouting,
            frame_of: None,
            input: self.interface.to_owned(),
            output: String::new(),
            is_v6: self.is_v6,
            is_udp,
            source: self.guest,
            destination: Some(to),
            source_port: CLIENT,
            destination_port: port,
            tracked: first,
            is_local: brought.is_none() && Some(to) == self.own,
        };
        let (listener, port) = brought.map_or((to, port), |at| (self.address_of(at), at.port()));
        let arrived = Packet {
            hook: Hook::Input,
            destination: Some(listener),
            destination_port: port,
            is_local: asked.is_local || brought.is_some(),
            ..asked.clone()
        };
        let answered = Packet {
            hook: Hook::Output,
            input: String::new(),
            output: self.interface.to_owned(),
            source: Some(listener),
            source_port: port,
            destination: self.guest,
            destination_port: CLIENT,
            tracked: answer,
            is_local: false,
            ..asked.clone()
        };
        let ingress = Packet { hook: Hook::Ingress, tracked: Tracked::Untracked, ..asked.clone() };
        let packets = [ingress, asked, arrived, answered];
        samples.extend(packets.into_iter().map(|packet| Sample { what: what.clone(), packet }));
    }

    /// Returns an answer to a connection from outside.
    fn replies(&self, uplink: &str) -> Sample {
        let far = if self.is_v6 { FAR.1 } else { FAR.0 };
        let packet = Packet {
            hook: Hook::Forward,
            frame_of: None,
            input: self.interface.to_owned(),
            output: uplink.to_owned(),
            is_v6: self.is_v6,
            is_udp: false,
            source: self.guest,
            destination: Some(far),
            source_port: 443,
            destination_port: CLIENT,
            tracked: Tracked::Established,
            is_local: false,
        };
        Sample { what: "answers to connections from outside".to_owned(), packet }
    }

    fn address_of(&self, listener: SocketAddr) -> IpAddr {
        match self.own {
            Some(own) if listener.ip().is_unspecified() => own,
            _ => listener.ip(),
        }
    }
}

/// The addresses of this machine's interfaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses(Vec<(String, IpNet)>);

impl Addresses {
    /// Queries them; empty if that fails, since much can be determined without them.
    pub(super) fn look() -> Addresses {
        let all = interface_addresses().unwrap_or_default().into_iter().filter(|address| address.scope != "link");
        Addresses(all.map(|address| (address.interface, address.net)).collect())
    }

    fn net(&self, interface: &str, is_v6: bool) -> Option<IpNet> {
        self.0.iter().find(|(name, net)| name == interface && net.addr().is_ipv6() == is_v6).map(|(_, net)| *net)
    }

    fn own(&self, interface: &str, is_v6: bool) -> Option<IpAddr> {
        self.net(interface, is_v6).map(|net| net.addr())
    }

    /// Returns another address in the network of the interface's own.
    fn neighbour(&self, interface: &str, is_v6: bool) -> Option<IpAddr> {
        let net = self.net(interface, is_v6)?;
        net.hosts().take(4).find(|address| *address != net.addr())
    }
}
