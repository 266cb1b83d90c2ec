//! A provider's network without protection: the gateway forwards IPv4 and IPv6, and the internet has routes back, so
//! that whatever the firewall lets pass gets out and is answered.
//!
//! ```text
//! one   10.42.42.2 fd42::2 ─ p1 ┐
//!                               ├ br0  10.42.42.1 fd42::1 ┐
//! two   10.42.42.3 fd42::3 ─ p2 ┘                         │
//! three 10.43.0.3  fd43::3 ─────── r3  10.43.0.1  fd43::1 ├ gateway  11.0.0.1 2600:10::1 ── internet
//! four  10.43.0.4  fd43::4 ─────── r4  10.43.0.1  fd43::1 ┘
//! ```
//!
//! The listeners are plain sockets of the test. They get what the firewall redirects.

use super::namespace::{self, Namespace};
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use tempfile::TempDir;

/// What no guest may reach.
pub const EVIL: [&str; 2] = ["11.0.0.66", "2600:10::66"];

/// How long a socket waits for what must come.
const WAIT: Duration = Duration::from_secs(10);
/// How long it waits for what must not come: a packet takes microseconds here.
const SILENCE: Duration = Duration::from_millis(300);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The network.
pub struct Vmnet {
    /// On the bridge.
    pub one: Namespace,
    /// On the bridge.
    pub two: Namespace,
    /// Behind an interface of its own.
    pub three: Namespace,
    /// Behind an interface of its own.
    pub four: Namespace,
    /// Where the firewall is.
    pub gateway: Namespace,
    /// Counts what comes to it for [`EVIL`].
    pub internet: Namespace,
    dir: TempDir,
}

impl Vmnet {
    /// Builds the network. It fails without root.
    pub fn new() -> Vmnet {
        crate::rights::require();
        namespace::sweep();
        let stem = format!("{}{}-f{}", namespace::PREFIX, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let [one, two, three, four, gateway, internet] =
            Namespace::create(["1", "2", "3", "4", "gw", "in"].map(|name| format!("{stem}-{name}")));
        let dir = tempfile::Builder::new().prefix("outgate-fw-").tempdir().expect("a directory for the test");
        let net = Vmnet { one, two, three, four, gateway, internet, dir };
        net.wire();
        net
    }

    fn wire(&self) {
        let names = [&self.gateway, &self.one, &self.two, &self.three, &self.four, &self.internet].map(|n| n.name());
        let [gateway, one, two, three, four, internet] = names;
        let pairs = [("p1", one), ("p2", two), ("r3", three), ("r4", four), ("up0", internet)];
        let links = pairs.map(|(name, peer)| {
            format!("link add name {name} netns {gateway} type veth peer name eth0 netns {peer}\n")
        });
        namespace::batch(None, &links.concat());
        for (guest, net, last) in [(&self.one, 42, 2), (&self.two, 42, 3), (&self.three, 43, 3), (&self.four, 43, 4)] {
            let (v4, prefix) = if net == 42 { ("10.42.42", 24) } else { ("10.43.0", 32) };
            let mut lines = format!(
                "link set lo up\nlink set eth0 up\naddr add {v4}.{last}/{prefix} dev eth0\n\
                 addr add fd{net}::{last}/64 dev eth0 nodad\n"
            );
            if net == 43 {
                lines.push_str("route add 10.43.0.1 dev eth0\n");
            }
            lines.push_str(&format!("route add default via {v4}.1\nroute add default via fd{net}::1\n"));
            namespace::batch(Some(guest), &lines);
        }
        namespace::batch(
            Some(&self.gateway),
            "link set lo up\nlink add br0 type bridge\nlink set p1 master br0\nlink set p2 master br0\n\
             link set br0 up\nlink set p1 up\nlink set p2 up\nlink set r3 up\nlink set r4 up\nlink set up0 up\n\
             addr add 10.42.42.1/24 dev br0\naddr add fd42::1/64 dev br0 nodad\n\
             addr add 10.43.0.1/32 dev r3\naddr add fd43::1/128 dev r3 nodad\nroute add 10.43.0.3 dev r3\n\
             addr add 10.43.0.1/32 dev r4\naddr add fd43::1/128 dev r4 nodad\nroute add 10.43.0.4 dev r4\n\
             route add fd43::3 dev r3\nroute add fd43::4 dev r4\n\
             addr add 11.0.0.1/24 dev up0\naddr add 2600:10::1/64 dev up0 nodad\n",
        );
        namespace::batch(
            Some(&self.internet),
            "link set lo up\nlink set eth0 up\naddr add 11.0.0.66/24 dev eth0\naddr add 2600:10::66/64 dev eth0 nodad\n\
             route add 10.0.0.0/8 via 11.0.0.1\nroute add fd00::/8 via 2600:10::1\n",
        );
        self.gateway.run(|| {
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{path}"), "1").expect("forwarding is on in the gateway");
            }
            for tables in ["iptables", "ip6tables", "arptables"] {
                // Not there where br_netfilter is not loaded.
                let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{tables}"), "0");
            }
        });
        nft(
            &self.internet,
            "table inet seen { chain in { type filter hook prerouting priority -300; \
             ip daddr 11.0.0.66 counter; ip6 daddr 2600:10::66 icmpv6 type != { nd-neighbor-solicit, \
             nd-neighbor-advert } counter; ip6 daddr 2600:10::66 meta l4proto != ipv6-icmp counter; }; }",
        );
    }

    /// How many packets came to [`EVIL`].
    pub fn leaked(&self) -> u64 {
        counters(&self.internet, "inet", "seen").iter().map(|(_, packets)| packets).sum()
    }

    /// Fails if anything came to [`EVIL`].
    #[track_caller]
    pub fn assert_no_leaks(&self) {
        // All that was sent before arrives before the answer to this.
        assert_eq!(self.leaked(), 0, "packets of guests' that the internet saw");
    }

    /// Writes a configuration with listeners for everything but `redirect`; gives its path.
    pub fn config(&self, tables: &str) -> PathBuf {
        let listen = "proxy = [\"10.42.42.1:3128\", \"10.43.0.1:3128\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\n\
                      dns = [\"10.42.42.1:53\", \"[fd42::1]:53\"]\nadmin = \"0.0.0.0:3190\"";
        self.config_listening(listen, tables)
    }

    /// Writes a configuration.
    pub fn config_listening(&self, listen: &str, tables: &str) -> PathBuf {
        let root = self.dir.path().display();
        let path = self.dir.path().join("outgate.toml");
        let text = format!(
            "[listen]\n{listen}\ncontrol = \"{root}/control.sock\"\n[state]\ndir = \"{root}/state\"\n{tables}\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A path among the test's files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `outgate run` in the gateway as a user without privileges, with the configuration written last.
    pub fn daemon(&self, user: u32) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.arg("run").arg("--config").arg(self.path("outgate.toml")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(self.path("stderr")).unwrap());
        command.env_remove("NOTIFY_SOCKET").uid(user).gid(user);
        self.gateway.run(|| command.spawn()).expect("outgate runs")
    }

    /// `outgate firewall ACTION` with the configuration written last.
    pub fn firewall(&self, arguments: &[&str]) -> Output {
        let config = self.dir.path().join("outgate.toml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.arg("firewall").args(arguments).arg("--config").arg(config).stdin(Stdio::null());
        self.gateway.run(|| command.output()).expect("outgate runs")
    }

    /// Applies the firewall with these tables in the configuration; it must work.
    #[track_caller]
    pub fn apply(&self, tables: &str) -> String {
        self.config(tables);
        succeed(self.firewall(&["apply"]))
    }

    /// `outgate firewall status --json`, and whether it is in place.
    pub fn status(&self) -> (bool, Value) {
        let output = self.firewall(&["status", "--json"]);
        let answer = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.success(), answer)
    }

    /// How many packets the firewall's rules with this comment have counted.
    pub fn counted(&self, comment: &str) -> u64 {
        let tables = [counters(&self.gateway, "inet", "outgate"), counters(&self.gateway, "bridge", "outgate")];
        tables.iter().flatten().filter(|(rule, _)| rule.starts_with(comment)).map(|(_, packets)| packets).sum()
    }

    /// A listener for what TPROXY redirects, on port 3129 of both families: original destination and source
    /// of each connection. It answers every connection with "here\n".
    pub fn transparent(&self) -> Receiver<(SocketAddr, SocketAddr)> {
        self.transparent_in(&self.gateway)
    }

    /// The same in another namespace.
    pub fn transparent_in(&self, namespace: &Namespace) -> Receiver<(SocketAddr, SocketAddr)> {
        let (tell, told) = mpsc::channel();
        for address in ["0.0.0.0:3129", "[::]:3129"] {
            let listener = namespace.run(|| transparent_listener(address.parse().unwrap()));
            greet(listener, tell.clone());
        }
        told
    }

    /// An ordinary listener in the gateway that sends a greeting.
    pub fn listener(&self, address: &str) -> Receiver<(SocketAddr, SocketAddr)> {
        let (tell, told) = mpsc::channel();
        greet(self.gateway.run(|| TcpListener::bind(address)).unwrap(), tell);
        told
    }

    /// A DNS server that refuses every query, at 127.0.0.53 in the gateway.
    fn refusing_dns(&self) {
        let socket = self.gateway.run(|| UdpSocket::bind("127.0.0.53:53")).unwrap();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                refuse(&mut query[..length]);
                let _ = socket.send_to(&query[..length], from);
            }
        });
    }

    /// A substitute for a DNS server in the gateway: answers each datagram and connection with "answer".
    pub fn dns(&self, address: &str) {
        let (socket, listener) =
            self.gateway.run(|| (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap()));
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((_, from)) = socket.recv_from(&mut query) {
                let _ = socket.send_to(b"answer", from);
            }
        });
        greet(listener, mpsc::channel().0);
    }
}

/// The flags that make an answer of a query: QR, and RCODE 5 (RFC 1035 section 4.1.1).
fn refuse(query: &mut [u8]) {
    if let [_, _, flags, code, ..] = query {
        *flags |= 0x80;
        *code = *code & 0xf0 | 5;
    }
}

/// The output of a program that must have succeeded.
#[track_caller]
pub fn succeed(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    out.into_owned()
}

/// Runs a line of shell within a namespace; it must succeed.
#[track_caller]
pub fn shell(namespace: &Namespace, line: &str) -> String {
    succeed(namespace.run(|| Command::new("sh").args(["-c", line]).output()).expect("a shell"))
}

/// Runs nft(8) on a script; it must succeed.
#[track_caller]
pub fn nft(namespace: &Namespace, script: &str) {
    let mut command = Command::new("nft");
    command.arg(script);
    succeed(namespace.run(|| command.output()).expect("nftables is installed"));
}

/// Comment and packets of each counting rule of a table.
pub fn counters(namespace: &Namespace, family: &str, table: &str) -> Vec<(String, u64)> {
    let mut command = Command::new("nft");
    command.args(["-j", "list", "table", family, table]);
    let output = namespace.run(|| command.output()).expect("nftables is installed");
    let Ok(printed) = serde_json::from_slice::<Value>(&output.stdout) else { return Vec::new() };
    let rules = printed["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("rule"));
    let count = |rule: &Value| {
        let counter = rule["expr"].as_array()?.iter().find_map(|statement| statement.get("counter"))?;
        Some((rule["comment"].as_str().unwrap_or_default().to_owned(), counter["packets"].as_u64()?))
    };
    rules.filter_map(count).collect()
}

/// Connects; what the other side says first, or how it was refused.
pub fn connect(from: &Namespace, to: &str) -> io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = from.run(|| TcpStream::connect_timeout(&to, WAIT))?;
    hear(stream)
}

/// What the other side says, until it ends.
pub fn hear(mut stream: TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(WAIT))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Sends a datagram from a connected socket; the answer, or how it was refused. Silence is
/// [`io::ErrorKind::WouldBlock`].
pub fn ask(from: &Namespace, to: &str) -> io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = from.run(|| UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(WAIT))?;
    socket.send(b"query")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Sends three packets of an IP protocol, from an address of its own if one is given; whether the
/// answers are refusals is not checked.
pub fn send_raw(from: &Namespace, source: Option<&str>, to: &str, protocol: u8, payload: &[u8]) {
    let to: IpAddr = to.parse().unwrap();
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = from.run(|| Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol))))).unwrap();
    if let Some(source) = source {
        let source: IpAddr = source.parse().unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    }
    for _ in 0..3 {
        // The error may be that of the previous packet.
        let _ = socket.send_to(payload, &SockAddr::from(SocketAddr::from((to, 0))));
    }
}

/// Sends whatever a guest may try towards an address: TCP, UDP, ICMP, GRE, SCTP, an unknown protocol.
pub fn hammer(from: &Namespace, to: &str) {
    let v6 = to.contains(':');
    let at = |port: u16| if v6 { format!("[{to}]:{port}") } else { format!("{to}:{port}") };
    for port in [22, 80, 443, 3129] {
        let to: SocketAddr = at(port).parse().unwrap();
        let _ = from.run(|| TcpStream::connect_timeout(&to, SILENCE));
    }
    let socket = from.run(|| UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" })).unwrap();
    for port in [123, 443, 853, 5353] {
        let _ = socket.send_to(b"leak", at(port));
    }
    let echo: &[u8] = if v6 { &[128, 0, 0, 0, 0, 1, 0, 1] } else { &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1] };
    send_raw(from, None, to, if v6 { 58 } else { 1 }, echo);
    for protocol in [4, 41, 47, 50, 132, 200] {
        send_raw(from, None, to, protocol, &[0; 24]);
    }
}

/// Runs a Python program within a namespace; for frames that no socket would send.
#[track_caller]
pub fn python(namespace: &Namespace, program: &str) -> String {
    let mut command = Command::new("python3");
    command.args(["-c", program]);
    succeed(namespace.run(|| command.output()).expect("python3 is installed"))
}

/// Lists and state for a daemon without privileges, and the configuration's lines about them.
pub fn for_nobody(net: &Vmnet) -> String {
    std::fs::create_dir(net.path("lists")).unwrap();
    std::fs::set_permissions(net.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(net.path("state")).unwrap();
    for path in ["", "state"] {
        std::os::unix::fs::chown(net.path(path), Some(65534), Some(65534)).unwrap();
    }
    net.refusing_dns();
    format!(
        "[whitelist]\ndir = \"{}\"\n[log]\naccess = \"off\"\n[resolver]\nservers = [\"127.0.0.53\"]\n",
        net.path("lists").display()
    )
}

/// The listeners of such a daemon.
pub const WITH_ADMIN: &str = "proxy = [\"10.42.42.1:3128\"]\nadmin = \"127.0.0.1:3190\"";

/// Status and body of what the admin listener answers.
pub fn admin(net: &Vmnet, path: &str) -> String {
    let program = format!(
        "import urllib.request, urllib.error\ntry:\n r = urllib.request.urlopen('http://127.0.0.1:3190{path}')\n\
         except urllib.error.HTTPError as error:\n r = error\nexcept OSError as error:\n print(error)\n raise SystemExit\n\
         print(r.status, r.read().decode())"
    );
    python(&net.gateway, &program)
}

/// Sends frames that a bridge hands up as its port's own, and some for everybody: datagrams to port
/// 5300 of the gateway's from `v4` and `v6`, and echo requests as if from [`EVIL`].
#[track_caller]
pub fn frames_for_the_port(from: &Namespace, v4: &str, v6: &str) {
    python(from, &format!("ME = '{v4}', '{v6}'\nEVIL = '{}', '{}'\n{FRAMES}", EVIL[0], EVIL[1]));
}

const FRAMES: &str = "
import socket, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
mac = s.getsockname()[4]
packed = lambda address: socket.inet_pton(socket.AF_INET6 if ':' in address else socket.AF_INET, address)
def checksum(data):
    total = sum(struct.unpack('!%dH' % ((len(data) + 1) // 2), data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total >> 16) + (total & 0xffff)
    return struct.pack('!H', ~total & 0xffff)
def packet(source, to, protocol, payload, at):
    a, b = packed(source), packed(to)
    # The checksum of an ICMP message of IPv4 has no pseudo header.
    pseudo = b'' if protocol == 1 else a + b + struct.pack('!II', len(payload), protocol)
    payload = payload[:at] + checksum(pseudo + payload) + payload[at + 2:]
    if ':' in to:
        return b'\\x86\\xdd', struct.pack('!IHBB', 6 << 28, len(payload), protocol, 64) + a + b + payload
    head = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + a + b
    return b'\\x08\\x00', head[:10] + checksum(head) + head[12:] + payload
datagram = struct.pack('!HHHH', 7000, 5300, 12, 0) + b'leak'
packets = [packet(ME[':' in to], to, 17, datagram, 6)
           for to in ('10.42.42.1', '11.0.0.1', 'fd42::1', '2600:10::1', '255.255.255.255', '224.0.0.1', 'ff02::1')]
packets.append(packet(EVIL[0], '10.42.42.1', 1, b'\\x08' + bytes(7) + b'leak', 2))
packets.append(packet(EVIL[1], 'fd42::1', 58, b'\\x80' + bytes(7) + b'leak', 2))
for to in ('0180c2000000', '0180c2000002', '0180c2000003', '0180c200000e', 'ffffffffffff'):
    for kind, body in packets:
        # As it is, and with a priority tag (IEEE 802.1Q: VLAN 0 is none).
        for tag in (b'', b'\\x81\\x00\\x00\\x00'):
            s.send(bytes.fromhex(to) + mac + tag + kind + body)
";

fn transparent_listener(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    } else {
        socket.set_only_v6(true).unwrap();
        socket.set_ip_transparent_v6(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket.listen(64).unwrap();
    socket.into()
}

fn greet(listener: TcpListener, tell: mpsc::Sender<(SocketAddr, SocketAddr)>) {
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = tell.send((stream.local_addr().unwrap(), from));
            let _ = stream.write_all(b"here\n");
        }
    });
}
