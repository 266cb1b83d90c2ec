use super::chains::{Hook, Packet, Tracked};
use super::*;
use std::process::Command;

#[test]
fn a_shell_hands_nft_the_name_of_an_interface_as_it_is_or_in_its_quotes() {
    for (interface, wanted) in [
        ("br0", "br0"),
        ("eth0.100", "eth0.100"),
        ("0tap", "\"0tap\""),
        ("tap*", "\"tap*\""),
        ("a;b", "\"a;b\""),
        ("it's", "\"it's\""),
    ] {
        let said = Command::new("sh").arg("-c").arg(format!("printf %s {}", for_nft(interface))).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), wanted);
    }
}

/// Returns a TCP packet from a guest behind br0 to the Internet, as `input` sees it.
fn packet() -> Packet {
    Packet {
        hook: Hook::Input,
        frame_of: None,
        input: "br0".to_owned(),
        output: String::new(),
        is_v6: false,
        is_udp: false,
        source: Some("10.42.42.2".parse().unwrap()),
        destination: Some("45.83.220.7".parse().unwrap()),
        source_port: 40_000,
        destination_port: 443,
        tracked: Tracked::Untracked,
        is_local: false,
    }
}

/// Returns whether the packet is dropped in these chains of iptables' filter table.
fn is_dropped(lines: &str, packet: &Packet) -> bool {
    let saved = format!("*nat\n:INPUT DROP [0:0]\n*filter\n{lines}\nCOMMIT\n");
    let tables = iptables::tables(&saved, "iptables", packet.is_v6);
    assert_eq!(tables.len(), 1);
    tables.iter().any(|(_, table)| table.bases.iter().any(|base| table.drops(base, packet)))
}

#[test]
fn what_is_not_understood_is_taken_to_let_the_packet_through() {
    for (rules, dropped) in [
        // An unknown condition drops nothing, and what it accepts may be accepted.
        ("-A INPUT -m statistic --mode random --probability 0.5 -j DROP", false),
        ("-A INPUT -m limit --limit 3/min -j ACCEPT\n-A INPUT -j DROP", false),
        ("-A INPUT -m limit --limit 3/min -j LOG\n-A INPUT -j DROP", true),
        ("-A INPUT -m set ! --match-set good src -j DROP", false),
        // The same for chains that it leads to.
        ("-A INPUT -m set --match-set good src -j own\n-A INPUT -j DROP\n-A own -j ACCEPT", false),
        ("-A INPUT -m set --match-set good src -j own\n-A INPUT -j DROP\n-A own -j REJECT", true),
        ("-A INPUT -m set --match-set good src -g own\n-A INPUT -j DROP\n-A own -j RETURN", true),
        ("-A INPUT -j own\n-A own -m set --match-set good src -j RETURN\n-A own -j DROP", false),
        ("-A INPUT -j own\n-A INPUT -j DROP\n-A own -m set --match-set good src -j RETURN\n-A own -j DROP", true),
        ("-A INPUT -j own\n-A INPUT -j DROP\n-A own -m set --match-set good src -j RETURN\n-A own -j ACCEPT", false),
        // An endless chain, and a missing one.
        ("-A INPUT -j own\n-A INPUT -j DROP\n-A own -j own", false),
        ("-A INPUT -j absent\n-A INPUT -j DROP", true),
        ("-A INPUT -j NFQUEUE --queue-num 1\n-A INPUT -j DROP", false),
        // Words in quotes are not rules.
        ("-A INPUT -m comment --comment \"a \\\" -j DROP\" -j ACCEPT\n-A INPUT -j DROP", false),
        // Values, and their negation.
        ("-A INPUT -p all -j DROP", true),
        ("-A INPUT ! -p udp -j DROP", true),
        ("-A INPUT -s 10.42.0.0/16,10.99.0.0/16 ! -d 10.0.0.0/8 -i b+ -p tcp -m tcp --dport :1023 -j DROP", true),
        ("-A INPUT -s 10.42.42.3/32 -j DROP", false),
        ("-A INPUT -p tcp -m tcp ! --sport 40000:50000 -j DROP", false),
        ("-A INPUT -o br0 -j DROP", false),
        ("-A FORWARD -j DROP", false),
        ("-A INPUT -m conntrack --ctstatus DNAT -j ACCEPT\n-A INPUT -j DROP", true),
        ("-A INPUT -m conntrack ! --ctstatus DNAT -j DROP", false),
    ] {
        let chains = ":INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:own - [0:0]";
        assert_eq!(is_dropped(&format!("{chains}\n{rules}"), &packet()), dropped, "{rules}");
    }
    // An unknown address may be any.
    let anybody = Packet { source: None, ..packet() };
    for (rule, dropped) in [("-s 10.42.42.0/24 -j DROP", false), ("-s 0.0.0.0/0 -j DROP", true)] {
        assert_eq!(is_dropped(&format!(":INPUT ACCEPT [0:0]\n-A INPUT {rule}"), &anybody), dropped, "{rule}");
    }
    let allowed = ":INPUT DROP [0:0]\n-A INPUT -s 10.42.42.0/24 -j ACCEPT";
    assert!(!is_dropped(allowed, &anybody));
}

#[test]
fn ufw_drops_what_is_for_no_address_of_the_machine_until_its_file_lets_guests_through() {
    // The chains as ufw 0.36 creates them from before.rules with its defaults.
    let ufw = |more: &str| {
        format!(
            ":INPUT DROP [0:0]\n:ufw-before-input - [0:0]\n:ufw-not-local - [0:0]\n:ufw-user-input - [0:0]\n\
             -A INPUT -j ufw-before-input\n-A ufw-before-input -i lo -j ACCEPT\n\
             -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A ufw-before-input -m conntrack --ctstate INVALID -j DROP\n\
             -A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT\n{more}\
             -A ufw-before-input -j ufw-not-local\n-A ufw-before-input -j ufw-user-input\n\
             -A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN\n\
             -A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN\n\
             -A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j LOG\n-A ufw-not-local -j DROP\n\
             -A ufw-user-input -i br0 -j ACCEPT"
        )
    };
    assert!(is_dropped(&ufw(""), &packet()));
    assert!(!is_dropped(&ufw("-A ufw-before-input -i br0 -j ACCEPT\n"), &packet()));
    let direct = Packet { is_local: true, ..packet() };
    assert!(!is_dropped(&ufw(""), &direct));
    assert!(is_dropped(&ufw(""), &Packet { input: "br1".to_owned(), ..direct }));
}
