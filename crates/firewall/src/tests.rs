use super::host::{Link, fits};
use super::{BetweenGuests, FirewallSettings, GuestLimits, Host, ListenerAddresses, Pin, Plan, PlanInput, Seal};
use std::time::Duration;

/// What the configuration sets by default; a test of `config` holds that it does.
const DEFAULTS: GuestLimits = GuestLimits {
    dns_queries_per_second: Some(5000),
    new_connections_per_second: Some(500),
    requests_per_second: Some(1000),
    connections: Some(4096),
    total_connections: Some(100_000),
    idle_timeout: Some(Duration::from_secs(3600)),
    resolver_timeout: Duration::from_secs(2),
};

fn input(interfaces: &[&str]) -> PlanInput {
    let pin = Pin {
        guest: "vm-7".to_owned(),
        interface: "tap7".to_owned(),
        addresses: vec!["10.42.42.7/32".parse().unwrap(), "fd42:0:0:7::/64".parse().unwrap()],
    };
    let firewall = FirewallSettings {
        guest_interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
        pins: vec![pin],
        ..FirewallSettings::default()
    };
    let listen = ListenerAddresses {
        proxy: vec!["127.0.0.1:3128".parse().unwrap()],
        transparent: vec!["0.0.0.0:3129".parse().unwrap()],
        dns: vec!["127.0.0.1:53".parse().unwrap(), "10.42.42.1:5353".parse().unwrap()],
        ..ListenerAddresses::default()
    };
    PlanInput { firewall, listen, limits: DEFAULTS, guests: 0 }
}

fn host(matches_bridges: bool) -> Host {
    let link = |name: &str, is_bridge, master: Option<&str>| Link {
        name: name.to_owned(),
        is_bridge,
        master: master.map(str::to_owned),
        ..Link::default()
    };
    let links = vec![
        link("br0", true, None),
        link("br1", true, None),
        link("tap1", false, Some("br0")),
        link("tap2", false, Some("br1")),
    ];
    Host {
        links,
        matches_bridges,
        has_ct_timeouts: true,
        has_arp_tables: true,
        most_tracked: Some(1 << 18),
        neighbours: vec![("net.ipv6.neigh.default.gc_thresh3", 1024)],
        filters_bridges: false,
        ipv6: true,
        default_routes: Vec::new(),
    }
}

#[test]
fn a_star_stands_for_any_ending() {
    assert!(fits("tap*", "tap7") && fits("tap*", "tap") && fits("br0", "br0"));
    assert!(!fits("tap*", "ta") && !fits("br0", "br01"));
}

#[test]
fn ports_are_told_by_their_bridge_where_the_kernel_can_and_one_by_one_where_it_cannot() {
    let by_bridge = Plan::new(&input(&["br0"]), &host(true));
    let script = by_bridge.ruleset();
    assert!(script.contains("meta ibrname { \"br0\" } counter drop"), "{script}");
    // Table inet needs the ports' names in any case, for packets that arrive on a port past its bridge.
    let (_, bridge) = script.split_once("table bridge outgate {").expect("there is a bridge table");
    assert!(!bridge.contains("\"tap1\""), "{script}");
    let by_port = Plan::new(&input(&["br0"]), &host(false));
    let script = by_port.ruleset();
    assert!(!script.contains("ibrname"), "{script}");
    // tap7 does not exist yet and will be a guest's; tap2 is a port of somebody else's bridge.
    assert!(script.contains("oifname @guest_ports counter drop"), "{script}");
    let (_, bridge) = script.split_once("table bridge outgate {").expect("there is a bridge table");
    assert!(bridge.contains("elements = { \"tap1\", \"tap7\" }"), "{script}");
    assert!(by_port.notes().iter().any(|note| note.contains("cannot match bridges")), "{:?}", by_port.notes());
}

#[test]
fn a_guest_interface_that_is_a_port_of_another_bridge_is_named_with_the_remedy() {
    let plan = Plan::new(&input(&["tap*"]), &host(true));
    let note = plan.notes().iter().find(|note| note.starts_with("tap1 is a port of br0")).expect("it is told");
    assert!(note.contains("put \"br0\" into [firewall].guest_interfaces"), "{note}");
}

#[test]
fn queries_go_to_the_listener_that_guests_can_reach_and_what_has_none_is_told() {
    let plan = Plan::new(&input(&["br0"]), &host(true));
    let script = plan.ruleset();
    assert!(script.contains("th dport 53 counter dnat ip to 10.42.42.1:5353"), "{script}");
    assert!(!script.contains("dnat ip6") && !script.contains("tproxy ip6"), "{script}");
    assert!(
        plan.notes().iter().any(|note| note.starts_with("IPv6: [listen].transparent has no IPv6")),
        "{:?}",
        plan.notes()
    );
}

#[test]
fn the_target_of_an_advertisement_is_compared_as_far_as_the_prefix_goes() {
    let script = Plan::new(&input(&["br0"]), &host(true)).ruleset();
    assert!(script.contains("@th,64,64 0xfd42000000000007 return"), "{script}");
}

#[test]
fn routing_closes_each_interface_and_leaves_other_marks_alone() {
    let lines = Plan::new(&input(&["br*", "tap9"]), &host(true)).routing_lines();
    for line in [
        "rule add pref 42 fwmark 0x1000000/0x7000000 iif lo lookup main",
        "rule add pref 43 fwmark 0x1000000/0x7000000 lookup 3129",
        "rule add pref 44 iif br0 prohibit",
        "rule add pref 44 iif br1 prohibit",
        "rule add pref 44 iif tap9 prohibit",
        "route replace local default dev lo table 3129",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}: {lines:#?}");
    }
    assert!(!lines.iter().any(|line| line.contains("pref 41")), "no answers leave unless that is asked for");
}

#[test]
fn tables_that_are_too_small_for_the_guests_are_told_with_the_line_to_write() {
    let notes = |connections: u64, neighbours: u64, guests: usize| {
        let input = PlanInput { guests, ..input(&["br0"]) };
        let tables = Host {
            most_tracked: Some(connections),
            neighbours: vec![("net.ipv6.neigh.default.gc_thresh3", neighbours)],
            ..host(true)
        };
        let plan = Plan::new(&input, &tables);
        plan.notes().iter().filter(|note| note.contains("places")).cloned().collect::<Vec<_>>()
    };
    // Ten guests at their default limits fit into the default tables of a machine with 4 GiB or more.
    assert_eq!(notes(1 << 18, 1024, 10), Vec::<String>::new());
    let small = notes(1 << 14, 1024, 10);
    assert!(small.iter().any(|note| note.contains("net.netfilter.nf_conntrack_max = 262144")), "{small:?}");
    let small = notes(1 << 20, 1024, 20);
    assert!(small.iter().any(|note| note.contains("net.ipv6.neigh.default.gc_thresh3 = 2048")), "{small:?}");
    assert_eq!(small.len(), 1, "{small:?}");
}

#[test]
fn a_guest_has_one_share_of_port_53_over_all_its_addresses_and_no_other_entry() {
    for matches_bridges in [true, false] {
        let script = Plan::new(&input(&["br0", "eth7"]), &host(matches_bridges)).ruleset();
        assert!(script.contains("ip saddr vmap { 10.42.42.7/32 : goto names_0 }"), "{script}");
        assert!(script.contains("ip6 saddr vmap { fd42:0:0:7::/64 : goto names_0 }"), "{script}");
        assert!(script.contains("iifname { \"br0\", \"eth7\" } goto untracked_of_guests"), "{script}");
        let (_, chain) = script.split_once("chain untracked_of_guests {").expect("there is one");
        let rules: Vec<&str> = chain.lines().skip(1).map(str::trim).take_while(|line| *line != "}").collect();
        assert!(rules.last().is_some_and(|rule| rule.starts_with("notrack ")), "{rules:?}");
        // A packet over a limit in a set is refused by the following rule, and so is one that finds no place in
        // it.
        let unlimited = script.lines().find(|line| line.contains("update @names_") && line.contains("rate over"));
        assert_eq!(unlimited, None);
    }
}

#[test]
fn a_kernel_without_tables_for_arp_gets_none() {
    let with = Plan::new(&input(&["br0", "eth7"]), &host(true)).ruleset();
    assert!(with.contains("table arp outgate {") && with.contains("iifname @guest_bridges accept"), "{with}");
    let links = vec![Link { name: "eth7".to_owned(), ..Link::default() }];
    let plan = Plan::new(&input(&["eth7"]), &Host { has_arp_tables: false, links, ..host(true) });
    assert!(!plan.ruleset().contains("table arp"), "{}", plan.ruleset());
    assert!(plan.notes().iter().any(|note| note.contains("CONFIG_NF_TABLES_ARP")), "{:?}", plan.notes());
}

/// Returns input in which the first guests' bridges differ.
fn with_between(interfaces: &[&str], between: &[(&str, bool)]) -> PlanInput {
    let mut input = input(interfaces);
    let entry =
        |(name, is_allowed): &(&str, bool)| BetweenGuests { interface: (*name).to_owned(), is_allowed: *is_allowed };
    input.firewall.between_guests = between.iter().map(entry).collect();
    input
}

#[test]
fn the_longest_name_decides_whether_guests_reach_each_other_and_a_name_goes_before_a_pattern() {
    let plan = |between: &[(&str, bool)]| Plan::new(&with_between(&["br*"], between), &host(true));
    let plans = [
        (plan(&[]), false, false),
        (plan(&[("br*", true)]), true, true),
        (plan(&[("br*", true), ("br0", false)]), false, true),
        (plan(&[("br0", true), ("br*", false)]), true, false),
        (plan(&[("b*", true), ("br*", false)]), false, false),
        (plan(&[("br1", true)]), false, true),
    ];
    for (plan, br0, br1) in plans {
        assert_eq!((plan.allows_between_guests("br0"), plan.allows_between_guests("br1")), (br0, br1), "{plan:?}");
    }
    let other = Plan::new(&with_between(&["br0"], &[("br*", true)]), &host(true));
    assert!(!other.allows_between_guests("br1"), "br1 is nobody's guest interface");
}

#[test]
fn only_where_guests_may_reach_each_other_there_are_rules_that_let_them() {
    for matches_bridges in [true, false] {
        let refusing = Plan::new(&with_between(&["br0", "br1"], &[("br0", false)]), &host(matches_bridges)).ruleset();
        let plain = Plan::new(&with_between(&["br0", "br1"], &[]), &host(matches_bridges)).ruleset();
        // The seal differs, since the configuration does.
        let unsealed = |script: &str| script.lines().filter(|line| !line.contains("by these outgate knows")).count();
        assert_eq!(unsealed(&refusing), unsealed(&plain));
        assert!(!refusing.contains("between_guests"), "{refusing}");
        let allowing = Plan::new(&with_between(&["br0", "br1"], &[("br0", true)]), &host(matches_bridges)).ruleset();
        let rule =
            if matches_bridges { "meta ibrname \"br0\" counter accept" } else { "iifname @open_ports counter accept" };
        assert!(allowing.contains(rule), "{allowing}");
        if !matches_bridges {
            assert!(allowing.contains("elements = { \"tap1\" }"), "{allowing}");
        }
        assert!(allowing.contains("iifname \"br0\" fib daddr . iif oif exists counter accept"), "{allowing}");
    }
}

#[test]
fn a_ruleset_that_an_earlier_version_applied_keeps_its_seal() {
    let seal = |input: &PlanInput| Seal::of(&input.firewall, &input.listen).address().to_string();
    // As version 0.1.0 computed it.
    assert_eq!(seal(&input(&["br0", "tap*"])), "127.78.77.112:22610");
    assert_ne!(seal(&with_between(&["br0", "tap*"], &[("br0", true)])), "127.78.77.112:22610");
}
