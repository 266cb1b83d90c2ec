//! The whole system in [`Vmnet`]: `outgate run` and `outgate firewall apply` between guests without a proxy
//! setting, and an internet with origins, a DNS server for outgate and one that guests ask.

use super::client::{Get, Guest, Wire};
use super::client_hello::Hello;
use super::dns::{A, AAAA, Dns};
use super::namespace::{self, Namespace};
use super::origin::Internet;
use super::outgate::{Outgate, Setup};
use super::stub_resolver::{Reply, framed, query, read_framed, receive};
use super::vmnet::{self, Vmnet, counters, hammer, succeed};
use super::{CDN, DEAF, DNS, EVIL, GOOD, GOOD6, ODD};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// ODD over IPv6.
pub const ODD6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x10, 0, 0, 0, 0, 0, 0x30);
/// EVIL over IPv6.
pub const EVIL6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x10, 0, 0, 0, 0, 0, 0x66);
/// A server that guests have in their resolv.conf, and that would answer.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// The same over IPv6.
pub const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888);

/// Listeners for guests over both families.
const LISTEN: &str = "proxy = []\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\n\
                      dns = [\"10.42.42.1:53\", \"[fd42::1]:53\"]";

/// The network with everything except outgate.
pub struct GuardedNetwork {
    /// On the bridge, 10.42.42.2 and fd42::2.
    pub one: Guest,
    /// On the bridge, 10.42.42.3 and fd42::3.
    pub two: Guest,
    /// Behind r3, 10.43.0.3 and fd43::3.
    pub three: Guest,
    /// Behind r4, 10.43.0.4 and fd43::4.
    pub four: Guest,
    /// The origins and what they saw.
    pub internet: Internet,
    /// The server that outgate asks.
    pub dns: Dns,
    /// The server that guests ask: it answers EVIL to every name.
    pub stranger: Dns,
    /// The network below.
    pub net: Vmnet,
    stranger6: Dns,
}

impl GuardedNetwork {
    /// Builds it. It fails without root.
    pub fn new() -> GuardedNetwork {
        let net = Vmnet::new();
        let mut lines = String::new();
        for address in [GOOD, CDN, ODD, DNS, DEAF] {
            lines.push_str(&format!("addr add {address}/24 dev eth0\n"));
        }
        for last in ["10", "20", "30"] {
            lines.push_str(&format!("addr add 2600:10::{last}/64 dev eth0 nodad\n"));
        }
        lines.push_str(&format!("addr add {STRANGER}/32 dev eth0\naddr add {STRANGER6}/128 dev eth0 nodad\n"));
        namespace::batch(Some(&net.internet), &lines);
        namespace::batch(
            Some(&net.gateway),
            "route add default via 11.0.0.10\nroute add default via 2600:10::10 dev up0\n",
        );
        vmnet::nft(
            &net.internet,
            &format!(
                "table inet stranger {{ chain in {{ type filter hook prerouting priority -300; \
                 ip daddr {STRANGER} counter; ip6 daddr {STRANGER6} counter; }}; }}"
            ),
        );
        let guest = |namespace: &Namespace, address: [u8; 4]| Guest::new(namespace.handle(), address.into());
        let dns = Dns::start(&net.internet, DNS);
        let good6: Ipv6Addr = GOOD6.parse().expect("it is written right");
        for (name, v4, v6) in [("good.test", GOOD, Some(good6)), ("odd.test", ODD, Some(ODD6))] {
            let addresses: Vec<IpAddr> = std::iter::once(v4.into()).chain(v6.map(Into::into)).collect();
            dns.set(name, super::dns::Answer::Addresses(addresses, 60));
        }
        dns.set("cdn-ok.test", [CDN]);
        dns.set("shared.test", [ODD]);
        dns.set("only6.test", [good6]);
        dns.set("evil.test", [EVIL]);
        let (stranger, stranger6) = (Dns::start(&net.internet, STRANGER), Dns::start(&net.internet, STRANGER6));
        for stranger in [&stranger, &stranger6] {
            for name in ["good.test", "evil.test"] {
                stranger.set(name, super::dns::Answer::Addresses(vec![EVIL.into(), EVIL6.into()], 60));
            }
        }
        GuardedNetwork {
            one: guest(&net.one, [10, 42, 42, 2]),
            two: guest(&net.two, [10, 42, 42, 3]),
            three: guest(&net.three, [10, 43, 0, 3]),
            four: guest(&net.four, [10, 43, 0, 4]),
            internet: Internet::start(net.internet.handle()),
            dns,
            stranger,
            net,
            stranger6,
        }
    }

    /// A daemon and a firewall for all guests, with `rules`; neither is started or applied.
    pub fn setup(&self, rules: &str) -> Setup {
        self.bare(rules).listen(LISTEN).tables("[firewall]\nguest_interfaces = [\"br0\", \"r*\"]\n")
    }

    /// A daemon in the gateway, with `rules` and the default settings.
    pub fn bare(&self, rules: &str) -> Setup {
        Setup::within(Arc::new(self.net.gateway.handle()), rules)
    }

    /// Applies the firewall and starts the daemon.
    #[track_caller]
    pub fn start(&self, setup: Setup) -> Outgate {
        let mut outgate = setup.write();
        self.apply(&outgate);
        outgate.launch();
        outgate.await_ready();
        outgate
    }

    /// `outgate firewall apply`; it must work.
    #[track_caller]
    pub fn apply(&self, outgate: &Outgate) {
        self.firewall(outgate, "apply");
    }

    /// `outgate firewall` with this action; it must work.
    #[track_caller]
    pub fn firewall(&self, outgate: &Outgate, action: &str) {
        let config = outgate.config();
        let mut command = outgate.command(&["firewall", action, "--config", config.to_str().unwrap()]);
        succeed(self.net.gateway.run(|| command.output()).expect("outgate runs"));
    }

    /// `outgate firewall status --json`, and whether it is in place.
    pub fn status(&self, outgate: &Outgate) -> (bool, serde_json::Value) {
        let config = outgate.config();
        let mut command = outgate.command(&["firewall", "status", "--json", "--config", config.to_str().unwrap()]);
        let output = self.net.gateway.run(|| command.output()).expect("outgate runs");
        (output.status.success(), serde_json::from_slice(&output.stdout).expect("it is JSON"))
    }

    /// Packets that came to the servers that guests ask.
    pub fn queries_at_stranger(&self) -> u64 {
        counters(&self.net.internet, "inet", "stranger").iter().map(|(_, packets)| packets).sum()
    }

    /// Neither EVIL nor the servers that guests ask got a packet.
    #[track_caller]
    pub fn assert_no_leaks(&self) {
        self.net.assert_no_leaks();
        assert_eq!(self.queries_at_stranger(), 0, "packets that came to servers which guests ask");
        assert_eq!((self.stranger.log(), self.stranger6.log()), (Vec::new(), Vec::new()));
    }

    /// For some seconds sends all that guests can send to EVIL, also hellos and requests that name it.
    pub fn storm(&self) {
        let give_up = Instant::now() + Duration::from_millis(800);
        std::thread::scope(|scope| {
            for guest in [&self.one, &self.two, &self.three, &self.four] {
                for evil in [IpAddr::from(EVIL), EVIL6.into()] {
                    scope.spawn(move || {
                        let to = evil.to_string();
                        while Instant::now() < give_up {
                            hammer(&guest.namespace, &to);
                            for (port, words) in [
                                (443, Hello::naming("evil.test").record()),
                                (80, b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n".to_vec()),
                            ] {
                                let to = SocketAddr::new(evil, port);
                                let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(300));
                                if let Ok(mut stream) = guest.namespace.run(connect) {
                                    let _ = stream.write_all(&words);
                                }
                            }
                        }
                    });
                }
            }
        });
        self.assert_no_leaks();
    }
}

impl Guest {
    /// Asks a server on the internet over UDP.
    #[track_caller]
    pub fn ask_at(&self, server: impl Into<IpAddr>, name: &str, kind: u16) -> Reply {
        let socket = self.udp_to(&SocketAddr::new(server.into(), 53).to_string());
        socket.send(&query(name, kind).bytes()).unwrap();
        receive(&socket).expect("a reply over UDP")
    }

    /// Asks a server on the internet over TCP.
    #[track_caller]
    pub fn ask_at_tcp(&self, server: impl Into<IpAddr>, name: &str, kind: u16) -> Reply {
        let server = SocketAddr::new(server.into(), 53);
        let mut stream = self.namespace.run(|| TcpStream::connect(server)).expect("a server accepts");
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.write_all(&framed(&query(name, kind).bytes())).unwrap();
        read_framed(&mut stream).expect("a reply over TCP")
    }

    /// The addresses of a name, asked of the servers in the guest's resolv.conf: of each family over
    /// that family.
    #[track_caller]
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let mut addresses = self.ask_at(STRANGER, name, A).addresses;
        addresses.extend(self.ask_at(STRANGER6, name, AAAA).addresses);
        addresses
    }

    /// Connects to an address of the internet.
    pub fn dial(&self, address: impl Into<IpAddr>, port: u16) -> io::Result<Wire> {
        Wire::dial(&self.namespace, SocketAddr::new(address.into(), port))
    }

    /// The status of an https GET to `address` for `name`.
    pub fn https(&self, address: impl Into<IpAddr>, name: &str) -> io::Result<u16> {
        Ok(self.dial(address, 443)?.tls(name)?.get(name, "/hi")?.status)
    }

    /// The alert that refuses TLS for `name` to `address`.
    pub fn tls_refusal(&self, address: impl Into<IpAddr>, name: &str) -> Option<u8> {
        let mut wire = self.dial(address, 443).ok()?;
        wire.say(Hello::naming(name).record());
        wire.alert()
    }

    /// The answer to a GET in clear for `name` at `address`.
    #[track_caller]
    pub fn http(&self, address: impl Into<IpAddr>, name: &str) -> super::http::Response {
        let mut wire = self.dial(address, 80).expect("the gateway takes it");
        wire.say(format!("GET /hi HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"));
        wire.hear("GET")
    }

    /// Whether a connection is refused by a reset, before or after it is established.
    pub fn is_reset(&self, address: impl Into<IpAddr>, port: u16) -> bool {
        let outcome = self.dial(address, port).and_then(|mut wire| wire.rest());
        outcome.is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
        })
    }
}
