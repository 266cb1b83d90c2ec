use super::host::{Link, fits};
use super::{FirewallSettings, Host, Pin, Plan};
use crate::config::Settings;

fn settings(interfaces: &[&str]) -> Settings {
    let mut settings = Settings::default();
    settings.listen.transparent = vec!["0.0.0.0:3129".parse().unwrap()];
    settings.listen.dns = vec!["127.0.0.1:53".parse().unwrap(), "10.42.42.1:5353".parse().unwrap()];
    let pin = Pin {
        guest: "vm-7".to_owned(),
        interface: "tap7".to_owned(),
        addresses: vec!["10.42.42.7/32".parse().unwrap(), "fd42:0:0:7::/64".parse().unwrap()],
    };
    settings.firewall = FirewallSettings {
        guest_interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
        pins: vec![pin],
        ..FirewallSettings::default()
    };
    settings
}

fn host(matches_bridges: bool) -> Host {
    let link = |name: &str, is_bridge, master: Option<&str>| Link {
        name: name.to_owned(),
        is_bridge,
        master: master.map(str::to_owned),
        isolated: false,
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
        most_tracked: Some(1 << 18),
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
    let by_bridge = Plan::new(&settings(&["br0"]), &host(true));
    let script = by_bridge.ruleset();
    assert!(script.contains("meta ibrname { \"br0\" } counter drop"), "{script}");
    // Table inet needs the ports' names all the same, for what arrives on a port past its bridge.
    let (_, bridge) = script.split_once("table bridge outgate {").expect("there is a bridge table");
    assert!(!bridge.contains("\"tap1\""), "{script}");
    let by_port = Plan::new(&settings(&["br0"]), &host(false));
    let script = by_port.ruleset();
    assert!(!script.contains("ibrname"), "{script}");
    // tap7 is not there yet and will be a guest's; tap2 is a port of somebody else's bridge.
    assert!(script.contains("oifname { \"tap1\", \"tap7\" } counter drop"), "{script}");
    assert!(by_port.notes().iter().any(|note| note.contains("cannot match bridges")), "{:?}", by_port.notes());
}

#[test]
fn a_guest_interface_that_is_a_port_of_another_bridge_is_named_with_the_remedy() {
    let plan = Plan::new(&settings(&["tap*"]), &host(true));
    let note = plan.notes().iter().find(|note| note.starts_with("tap1 is a port of br0")).expect("it is told");
    assert!(note.contains("put \"br0\" into [firewall].guest_interfaces"), "{note}");
}

#[test]
fn queries_go_to_the_listener_that_guests_can_reach_and_what_has_none_is_told() {
    let plan = Plan::new(&settings(&["br0"]), &host(true));
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
    let script = Plan::new(&settings(&["br0"]), &host(true)).ruleset();
    assert!(script.contains("@th,64,64 0xfd42000000000007 return"), "{script}");
}

#[test]
fn routing_closes_each_interface_and_leaves_other_marks_alone() {
    let lines = Plan::new(&settings(&["br*", "tap9"]), &host(true)).routing_lines();
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
