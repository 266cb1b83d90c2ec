//! Other firewalls on the machine: outgate reports correctly what they do to guests' packets, and the printed command
//! lets guests through. Each case is checked with a real connection.

use crate::world::vmnet::{Vmnet, hear, shell, succeed};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

/// Rules of somebody else's, and the chain that cuts guests off, if one does.
const RULES: &[(&str, Option<&str>)] = &[
    // Chains that drop everything that is not allowed.
    (
        "table inet a { chain c { type filter hook input priority 0; policy drop; ct state established accept; iifname lo accept; }; }",
        Some("c"),
    ),
    (
        "table inet a { chain c { type filter hook input priority 0; policy drop; tcp dport { 22, 80, 443 } accept; udp dport 53 accept; tcp dport 53 accept; meta l4proto ipv6-icmp accept; }; }",
        None,
    ),
    (
        "table inet a { chain c { type filter hook input priority 0; policy drop; tcp dport 22 accept; ip saddr 10.99.0.0/16 accept; meta l4proto { icmp, ipv6-icmp } accept; }; }",
        Some("c"),
    ),
    (
        "table inet a { chain c { type filter hook input priority 0; policy drop; ip saddr { 10.42.42.0/24, 10.43.0.0/16 } accept; ip6 saddr fd42::/16 accept; ip6 saddr fe80::/10 accept; }; }",
        None,
    ),
    (
        "table inet a { set in { type ifname; elements = { br0, r3, r4 }; }; chain c { type filter hook input priority 0; policy drop; iifname @in accept; }; }",
        None,
    ),
    (
        "table inet a { set in { type ifname; elements = { br9 }; }; chain c { type filter hook input priority 0; policy drop; iifname @in accept; meta l4proto ipv6-icmp accept; }; }",
        Some("c"),
    ),
    (
        "table inet a { chain c { type filter hook input priority 0; policy drop; iifname vmap { lo : accept, br0 : accept, r3 : accept, r4 : accept }; }; }",
        None,
    ),
    (
        "table inet a { chain no { meta l4proto tcp drop; }; chain c { type filter hook input priority 0; iifname vmap { lo : accept, br0 : jump no }; }; }",
        Some("c"),
    ),
    // Rules that drop by themselves.
    ("table inet a { chain c { type filter hook input priority 0; iifname br0 drop; }; }", Some("c")),
    (
        "table inet a { chain c { type filter hook input priority 0; iifname \"br*\" meta l4proto tcp counter reject with tcp reset; }; }",
        Some("c"),
    ),
    (
        "table inet a { chain c { type filter hook input priority 0; tcp dport { 22, 3128, 3129, 8000-9000 } drop; }; }",
        None,
    ),
    (
        "table inet a { chain c { type filter hook input priority 0; ct state invalid drop; ct state new drop; }; }",
        Some("c"),
    ),
    ("table inet a { chain c { type filter hook input priority 0; ct state { new, untracked } drop; }; }", Some("c")),
    ("table inet a { chain c { type filter hook input priority 0; iifname br0 accept; drop; }; }", None),
    (
        "table inet a { chain c { type filter hook input priority 0; fib daddr type != local meta l4proto tcp drop; }; }",
        Some("c"),
    ),
    (
        "table ip a { chain c { type filter hook input priority 0; ip daddr != 10.42.42.1 ip protocol tcp drop; }; }",
        Some("c"),
    ),
    ("table inet a { chain c { type filter hook prerouting priority -400; tcp dport 400-500 drop; }; }", Some("c")),
    (
        "table inet a { chain c { type filter hook prerouting priority -400; tcp sport 443 drop; ip daddr 10.0.0.0/8 drop; }; }",
        None,
    ),
    (
        "table inet a { chain c { type filter hook output priority 0; policy drop; ct state established,related accept; oifname lo accept; meta l4proto ipv6-icmp accept; }; }",
        Some("c"),
    ),
    (
        "table inet a { chain c { type filter hook output priority 0; policy drop; oifname { br0, r3, r4 } accept; }; }",
        None,
    ),
    ("table netdev a { chain c { type filter hook ingress device br0 priority 0; tcp dport 443 drop; }; }", Some("c")),
    (
        "table netdev a { chain c { type filter hook ingress device br0 priority 0; policy accept; tcp dport 444 drop; }; }",
        None,
    ),
    ("table bridge a { chain c { type filter hook input priority 0; ether type ip tcp dport 443 drop; }; }", Some("c")),
    ("table bridge a { chain c { type filter hook forward priority 0; policy drop; }; }", None),
    // By ways through other chains.
    (
        // As firewalld makes them.
        "table inet a { chain allow { tcp dport 22 ct state { new, untracked } accept; ip6 daddr fe80::/64 udp dport 546 accept; }; chain zone { jump allow; meta l4proto { icmp, ipv6-icmp } accept; reject with icmpx admin-prohibited; }; chain zones { goto zone; }; chain c { type filter hook input priority 10; policy accept; ct state { established, related } accept; ct status dnat accept; iifname lo accept; ct state invalid drop; jump zones; reject with icmpx admin-prohibited; }; }",
        Some("c"),
    ),
    (
        "table inet a { chain c { type filter hook input priority 0; tcp dport 443 ct mark != 7 drop; tcp dport 443 ct direction original drop; }; }",
        None,
    ),
    (
        "table inet a { chain zone { tcp dport 22 accept; reject with icmpx admin-prohibited; }; chain zones { goto zone; }; chain c { type filter hook input priority 10; ct state { established, related } accept; iifname lo accept; meta l4proto ipv6-icmp accept; jump zones; }; }",
        Some("c"),
    ),
    (
        "table inet a { chain zone { tcp dport 22 drop; return; }; chain zones { iifname br0 goto zone; drop; }; chain c { type filter hook input priority 10; iifname { r3, r4 } accept; jump zones; }; }",
        None,
    ),
];

/// The same by iptables.
const COMMANDS: &[(&str, Option<&str>)] = &[
    ("-P INPUT DROP", Some("INPUT")),
    ("-A INPUT -i br0 -p tcp -j DROP", Some("INPUT")),
    ("-A INPUT -i br+ -p tcp -m tcp --dport 443 -m comment --comment \"no -j ACCEPT here\" -j REJECT", Some("INPUT")),
    ("-A INPUT -i br0 -p udp -m udp ! --dport 53 -j DROP", None),
    ("-A INPUT ! -i br0 -j DROP", None),
    ("-A INPUT -m addrtype ! --dst-type LOCAL -p tcp -j DROP", Some("INPUT")),
    ("-A INPUT -m conntrack --ctstate INVALID -j DROP", None),
    ("-A INPUT -m conntrack --ctstate INVALID,NEW -j DROP", Some("INPUT")),
    ("-A INPUT -m conntrack --ctstate UNTRACKED -j DROP", Some("INPUT")),
    ("-A INPUT -p tcp -m multiport --dports 22,8000:9000 -j DROP", None),
    ("-A INPUT -p tcp -m multiport --dports 22,400:500 -j DROP", Some("INPUT")),
    ("-A INPUT ! -s 10.42.42.0/24 -p tcp -j DROP", None),
    ("-A INPUT -s 10.42.42.0/24 -p tcp -j DROP", Some("INPUT")),
    ("-t mangle -A PREROUTING -i br0 -p tcp --dport 443 -j DROP", Some("PREROUTING")),
    ("-t raw -A PREROUTING -i br0 -p tcp --dport 444 -j DROP", None),
    ("-t raw -A OUTPUT -o br0 -p tcp --sport 443 -j DROP", Some("OUTPUT")),
    ("-P FORWARD DROP", None),
];

/// Only this interface, so that no rule has to name others.
const GUESTS: &str = "[firewall]\nguest_interfaces = [\"br0\"]\n";

fn warned(net: &Vmnet) -> String {
    let (_, status) = net.status();
    let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
    let drops =
        warnings.iter().filter_map(|warning| warning.as_str()).filter(|warning| warning.contains(" drops what "));
    drops.collect::<Vec<_>>().join("\n")
}

/// What is dropped is silent, and all else is answered at once.
const PATIENCE: Duration = Duration::from_millis(700);

/// Does a guest reach the listeners, by TCP to anywhere and by DNS?
fn reaches(net: &Vmnet) -> bool {
    let stream = net.one.run(|| TcpStream::connect_timeout(&"11.0.0.66:443".parse().unwrap(), PATIENCE));
    let socket = net.one.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"a question", "8.8.8.8:53").unwrap();
    stream.and_then(hear).is_ok_and(|said| said == "here\n") && socket.recv(&mut [0; 100]).is_ok()
}

/// Is what `firewall status` says of the chain what a connection of a guest's finds? Then runs what is printed.
#[track_caller]
fn check_traffic(net: &Vmnet, rules: &str, cuts: Option<&str>) {
    assert_eq!(reaches(net), cuts.is_none(), "what guests meet: {rules}");
    let said = warned(net);
    let Some(chain) = cuts else {
        assert_eq!(said, "", "{rules}");
        return;
    };
    assert!(said.contains(&format!("chain {chain} of table ")), "{rules}: {said}");
    for line in said.lines() {
        let remedy = line.split('`').nth(1).expect("a remedy").to_owned();
        shell(&net.gateway, &remedy);
    }
    assert_eq!(warned(net), "", "after its remedy: {rules}");
    assert!(reaches(net), "after its remedy: {rules}; {said}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_effect_of_other_nftables_rules_on_guests_is_reported_and_the_printed_line_lets_them_through() {
    let net = Vmnet::new();
    net.config(GUESTS);
    succeed(net.firewall(&["apply"]));
    let _brought = net.transparent();
    net.dns("10.42.42.1:53");
    for (rules, cuts) in RULES {
        shell(&net.gateway, &format!("nft '{rules}'"));
        check_traffic(&net, rules, *cuts);
        let family = rules.split(' ').nth(1).unwrap();
        shell(&net.gateway, &format!("nft delete table {family} a"));
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_effect_of_iptables_on_guests_is_reported_and_the_printed_line_lets_them_through() {
    let net = Vmnet::new();
    net.config(GUESTS);
    succeed(net.firewall(&["apply"]));
    let _brought = net.transparent();
    net.dns("10.42.42.1:53");
    let programs = [("iptables-nft", "of table ip "), ("iptables-legacy", "of iptables-legacy")];
    for (program, whose) in programs {
        for (command, cuts) in COMMANDS {
            shell(&net.gateway, &format!("{program} {command}"));
            if cuts.is_some() {
                assert!(warned(&net).contains(whose), "{program} {command}: {}", warned(&net));
            }
            // Which `iptables` this machine's administrator has chosen does not matter here.
            let chosen = program.contains("legacy") || shell(&net.gateway, "iptables -V").contains("nf_tables");
            assert!(chosen, "iptables is not iptables-nft here");
            check_traffic(&net, &format!("{program} {command}"), *cuts);
            for table in ["raw", "mangle", "filter"] {
                shell(&net.gateway, &format!("{program} -t {table} -F"));
            }
            shell(&net.gateway, &format!("{program} -P INPUT ACCEPT; {program} -P FORWARD ACCEPT"));
        }
    }
}
