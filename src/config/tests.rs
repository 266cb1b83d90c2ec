//! The configuration as an operator sees it: defaults, errors, warnings.

use super::keys::TABLES;
use super::*;
use crate::account::{AccessLog, OnFailure};
use crate::firewall::{BetweenGuests, GuestLimits, ListenerAddresses};
use crate::policy::Unknown;
use crate::resolve::NameServer;
use std::time::Duration;

const SHIPPED: &str = include_str!("../../packaging/outgate.toml");

/// Returns the shipped file with every default written out.
fn written_out() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key.to_owned(),
        _ => line.to_owned(),
    };
    SHIPPED.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn parse(text: &str) -> (Settings, Vec<String>) {
    let surroundings = Surroundings { uid: 1000, ..Surroundings::default() };
    let parsed = Settings::parse(&Sources::of(Path::new(CONFIG_FILE), text.to_owned()), &surroundings);
    let (settings, problems) = parsed.unwrap_or_else(|error| (Settings::default(), error.into_diagnostics()));
    let problems = problems.iter().map(|p| p.to_string().replace("/etc/outgate/outgate.toml", "f")).collect();
    (settings, problems)
}

fn problems(text: &str) -> Vec<String> {
    parse(text).1
}

#[track_caller]
fn sound(text: &str) -> Settings {
    let (settings, problems) = parse(text);
    assert_eq!(problems, [""; 0], "{text}");
    settings
}

#[test]
fn the_shipped_file_and_an_empty_one_are_the_defaults() {
    assert_eq!(sound(SHIPPED), Settings::default());
    assert_eq!(sound(&written_out()), Settings::default());
    assert_eq!(sound(""), Settings::default());
}

#[test]
fn the_shipped_file_shows_every_key_once() {
    let text = written_out();
    let document = toml::de::DeTable::parse(&text).unwrap();
    for row in TABLES.iter().flat_map(|table| table.rows) {
        let (section, key) = (row.table, row.key);
        let found = match section {
            "" => document.get_ref().get(key).is_some(),
            "guest" | "interface" => SHIPPED.contains(&format!("#   {key} = ")),
            _ => document.get_ref().get(section).is_some_and(|table| table.get_ref().get(key).is_some()),
        };
        assert!(found, "[{section}].{key}");
    }
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let settings = Settings::default();
    assert_eq!(settings.listen.proxy, ["127.0.0.1:3128".parse().unwrap()]);
    assert_eq!(settings.listen.admin, Some("127.0.0.1:3190".parse().unwrap()));
    assert_eq!(settings.listen.control.unwrap(), Path::new("/run/outgate/control.sock"));
    assert_eq!(settings.whitelist_dir.unwrap(), Path::new("/etc/outgate/whitelist"));
    assert_eq!(settings.resolver.timeout, Duration::from_millis(2000));
    assert_eq!(settings.dial.connect_timeout, Duration::from_millis(5000));
    assert_eq!(settings.policy.blocked_ports, [25, 465, 587]);
    assert_eq!(settings.limits.connections, Some(4096));
    assert_eq!(settings.limits.handshake_timeout, Some(Duration::from_millis(10_000)));
    assert_eq!(settings.limits.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(settings.limits.response_timeout, Some(Duration::from_secs(300)));
    assert_eq!(settings.state_dir, Path::new("/var/lib/outgate"));
}

#[test]
fn every_key_is_read() {
    let settings = sound(
        r#"
        mode = "none"
        ech = "allow"
        [listen]
        proxy = ["10.42.42.1:8080", "[::1]:8080"]
        admin = ""
        control = "control.sock"
        [whitelist]
        dir = "lists"
        [resolver]
        servers = ["9.9.9.9", "127.0.0.1:5353"]
        hosts_file = "/etc/hosts"
        timeout_ms = 500
        [dial]
        permit_addresses = ["10.0.0.5", "fd00:1::/32"]
        blocked_ports = [25, 25, 22]
        connect_timeout_ms = 1_000
        [limits]
        connections = 7
        new_connections_per_second = 0
        requests_per_second = 8
        dns_queries_per_second = 9
        new_names_per_second = 10
        handshake_timeout_ms = 1500
        idle_timeout_s = 0
        response_timeout_s = 20
        total_connections = 100
        memory_mib = 512
        [log]
        access = "access.log/a"
        on_failure = "refuse"
        denied_only = true
        [state]
        dir = "/s"
        "#,
    );
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
    assert_eq!(settings.policy.mode, Mode::None);
    assert!(settings.policy.ech_allowed);
    assert_eq!(settings.policy.blocked_ports, [25, 22]);
    assert_eq!(settings.listen.proxy, ["10.42.42.1:8080".parse().unwrap(), "[::1]:8080".parse().unwrap()]);
    assert_eq!(settings.listen.admin, None);
    assert_eq!(settings.listen.control.as_deref(), Some(Path::new("/etc/outgate/control.sock")));
    assert_eq!(settings.whitelist_dir.as_deref(), Some(Path::new("/etc/outgate/lists")));
    assert_eq!(
        settings.resolver.servers,
        ["9.9.9.9:53", "127.0.0.1:5353"].map(|server| NameServer::plain(server.parse().unwrap()))
    );
    assert_eq!(settings.resolver.hosts_file.as_deref(), Some(Path::new("/etc/hosts")));
    assert_eq!(settings.resolver.timeout, Duration::from_millis(500));
    assert_eq!(settings.floor_permitted, nets(&["10.0.0.5/32", "fd00:1::/32"]));
    assert_eq!(settings.dial.connect_timeout, Duration::from_secs(1));
    let limits = LimitSettings {
        connections: Some(7),
        new_connections_per_second: None,
        requests_per_second: Some(8),
        dns_queries_per_second: Some(9),
        new_names_per_second: Some(10),
        handshake_timeout: Some(Duration::from_millis(1500)),
        idle_timeout: None,
        response_timeout: Some(Duration::from_secs(20)),
        total_connections: Some(100),
        memory: Some(512 << 20),
    };
    assert_eq!(settings.limits, limits);
    assert_eq!(settings.log.access, AccessLog::File("/etc/outgate/access.log/a".into()));
    assert!(settings.log.denied_only);
    assert_eq!(settings.log.on_failure, OnFailure::Refuse);
    assert_eq!(settings.state_dir, Path::new("/s"));
}

#[test]
fn declared_guests_leave_nothing_to_strangers_unless_the_file_says_so() {
    let guest =
        "[[guest]]\nname = \"vm-7\"\naddresses = [\"10.42.42.7\", \"fd00::/64\"]\nwhitelist = [\"vm-7.rules\"]\n";
    let settings = sound(guest);
    assert_eq!(settings.policy.unknown, Unknown::None);
    let [vm] = settings.policy.guests.as_slice() else { panic!("{:?}", settings.policy.guests) };
    assert_eq!((vm.name.as_str(), vm.mode), ("vm-7", None));
    assert_eq!(vm.files.as_deref(), Some(["vm-7.rules".to_owned()].as_slice()));
    assert_eq!(settings.floor().guests, vm.addresses);
    assert_eq!(sound(&format!("{guest}[guests]\nunknown = \"shared\"")).policy.unknown, Unknown::Shared);
    assert_eq!(sound("").policy.unknown, Unknown::Shared);
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_the_file() {
    let text = r#"
mode = "whitlist"
[listen]
proxi = []
proxy = ["3128"]
[limits]
connections = "12"
idle_timeout_s = -1
[dial]
connect_timeout_ms = 0
blocked_ports = [0, 25]
[log]
access = "sdtout"
"#;
    assert_eq!(
        problems(text),
        [
            "f:2:8: `mode` is \"whitlist\"; did you mean \"whitelist\"? It is one of \"whitelist\", \"observe\", \"all\", \"none\"",
            "f:4:1: unknown key `proxi` in [listen]; did you mean `proxy`?",
            "f:5:10: \"3128\" is only a port; write \"127.0.0.1:3128\"",
            "f:7:15: `connections` is a number; write 12 without quotes",
            "f:8:18: `idle_timeout_s` is -1; write a number from 1 to 31536000, or 0 for none",
            "f:10:22: `connect_timeout_ms` is 0 (0 would leave no time at all); write a number from 1 to 600000",
            "f:11:18: 0 is not a port; write a number from 1 to 65535",
            "f:13:10: `access` is \"sdtout\"; write \"stdout\", \"journal\", \"off\" or a path with a slash in it",
        ]
    );
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_known_one() {
    for (text, hint) in [
        ("mod = \"all\"", "f:1:1: unknown key `mod`; did you mean `mode`?"),
        ("[limit]\nconnections = 1", "f:1:2: unknown key `limit`; did you mean `[limits]`?"),
        (
            "[limits]\nmode = \"none\"",
            "f:2:1: unknown key `mode` in [limits]; it belongs in the top of the file or [[guest]]",
        ),
        ("timeout_ms = 3", "f:1:1: unknown key `timeout_ms`; it belongs in [resolver]"),
        (
            "[log]\nblocked_port = 3",
            "f:2:1: unknown key `blocked_port` in [log]; the nearest known key is `blocked_ports` in [dial]",
        ),
        ("[log]\nqqq = 3", "f:2:1: unknown key `qqq` in [log]; the example in outgate.toml has all keys"),
        (
            "[[guest]]\nname='a'\naddress=['10.0.0.1']\naddresses=['10.0.0.1']",
            "f:3:1: unknown key `address` in [[guest]]; did you mean `addresses`?",
        ),
    ] {
        assert_eq!(problems(text), [hint], "{text}");
    }
}

#[test]
fn a_value_of_the_wrong_type_says_the_right_one() {
    for (text, hint) in [
        ("mode = 1", "f:1:8: `mode` is text in double quotes, not integer"),
        ("listen = 1", "f:1:1: `listen` is a section, not integer; write `[listen]` and its keys below"),
        ("[listen]\nproxy = \"127.0.0.1:1\"", "f:2:9: `proxy` is a list; write [\"127.0.0.1:1\"]"),
        ("[dial]\nblocked_ports = 25", "f:2:17: `blocked_ports` is a list; write [25]"),
        ("[dial]\nblocked_ports = [\"25\"]", "f:2:18: `blocked_ports` is a number; write 25 without quotes"),
        ("[log]\non_failure = \"stop\"", "f:2:14: `on_failure` is \"stop\"; it is one of \"continue\", \"refuse\""),
        ("[log]\ndenied_only = \"yes\"", "f:2:15: `denied_only` is true or false without quotes, not string"),
        ("[guest]\nname = \"a\"", "f:1:1: guests are a list; write `[[guest]]` with two brackets, once per guest"),
        ("[limits]\nconnections = 99999999999999999999", "f:2:15: the number of `connections` is too large"),
        (
            "[limits]\nconnections = 4294967296",
            "f:2:15: `connections` is 4294967296; write a number from 1 to 4294967295, or 0 for none",
        ),
    ] {
        assert_eq!(problems(text), [hint], "{text}");
    }
}

#[test]
fn a_file_that_is_no_toml_says_where_and_not_what_follows_from_it() {
    for (text, lines) in [
        ("mode = \"none", vec!["f:1:13: not TOML: "]),
        ("mode = none\nech = \"x\"", vec!["f:1:8: not TOML: "]),
        ("mode = \"none\"\nmode = \"all\"", vec!["f:2:1: not TOML: duplicate key"]),
        (
            "ech = 1\n\n[listen]\nproxy = [\"x\"\n[log]\nfoo = 1\n",
            vec!["f:1:7: `ech` is text", "f:4:10: \"x\" is", "f:5:1: not TOML: "],
        ),
        ("ech = a\n\n\nmode = b", vec!["f:1:7: not TOML: ", "f:4:8: not TOML: "]),
    ] {
        let found = problems(text);
        assert_eq!(found.len(), lines.len(), "{found:#?}");
        for (problem, start) in found.iter().zip(lines) {
            assert!(problem.starts_with(start), "{problem} for {text:?}");
        }
    }
    let surroundings = Surroundings::default();
    assert!(Settings::parse(&Sources::of(Path::new("f"), "mode = ".to_owned()), &surroundings).is_err());
}

#[test]
fn names_and_addresses_belong_to_one_guest() {
    let text = r#"
[[guest]]
name = "a"
addresses = ["10.0.0.0/24"]
[[guest]]
name = "a"
addresses = ["10.0.1.1"]
[[guest]]
name = "b"
addresses = ["10.0.0.7", "10.0.1.1", "10.0.2.1", "10.0.2.1"]
[[guest]]
name = "c"
addresses = ["0.0.0.0/0"]
[[guest]]
addresses = ["10.0.3.0"]
[[guest]]
name = "other"
[[guest]]
name = "vm 7"
addresses = ["10.0.4.1/8", "224.0.0.1"]
"#;
    assert_eq!(
        problems(text),
        [
            "f:6:8: a guest \"a\" is already declared in line 3; choose another name",
            "f:10:14: 10.0.0.7/32 is already an address of a (line 4, as part of 10.0.0.0/24); an address belongs to \
             one guest alone",
            "f:10:26: 10.0.1.1/32 is already an address of this guest (line 7); an address belongs to one guest alone",
            "f:10:50: 10.0.2.1/32 is already an address twice in the same guest; an address belongs to one guest alone",
            "f:13:14: 0.0.0.0/0 is already an address of b (line 10, as part of 10.0.2.1/32); an address belongs to \
             one guest alone",
            "f:14:1: the guest has no name; write for example name = \"vm-7\"",
            "f:16:1: this guest has no addresses, so no flow would belong to it; write addresses = [\"…\"]",
            "f:17:8: \"other\" stands for all undeclared guests in the metrics; choose another name",
            "f:19:8: \"vm 7\" is not a guest name: 1 to 64 of a-z A-Z 0-9 . _ -",
            "f:20:14: \"10.0.4.1/8\" has bits set beyond its length; write \"10.0.0.0/8\" or \"10.0.4.1/32\"",
            "f:20:28: 224.0.0.1/32 cannot be a guest's address",
        ]
    );
}

#[test]
fn two_listeners_on_one_address_and_port_are_refused() {
    let text = "[listen]\nproxy = [\"127.0.0.1:3128\", \"0.0.0.0:3128\", \"[::]:3128\"]\nadmin = \"127.0.0.1:3128\"\n[[guest]]\nname='a'\naddresses=['10.0.0.1']";
    assert_eq!(
        problems(text),
        [
            "f:2:28: 0.0.0.0:3128 overlaps with 127.0.0.1:3128 of `proxy` in line 2; give one of them another port",
            "f:3:9: 127.0.0.1:3128 overlaps with 127.0.0.1:3128 of `proxy` in line 2; give one of them another port",
        ]
    );
    let with_default = problems("[listen]\nproxy = [\"127.0.0.1:3190\"]");
    assert_eq!(
        with_default,
        ["f:2:10: 127.0.0.1:3190 overlaps with 127.0.0.1:3190, the default of `admin`; give one of them another port"]
    );
}

#[test]
fn functions_of_later_versions_are_refused_and_their_defaults_are_not() {
    let text = r#"
[listen]
udp = ["0.0.0.0:443"]
"#;
    let found = problems(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    for problem in found {
        assert!(problem.contains(" is not available in this version; leave it out"), "{problem}");
    }
}

#[test]
fn tls_takes_a_certificate_its_key_and_somebody_who_uses_them() {
    let pair = "[tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n";
    let tls = sound(&format!("[listen]\nadmin_tls = \"10.0.0.1:3191\"\n{pair}client_ca = \"/ca.pem\"")).tls.unwrap();
    assert!(tls.certificate.ends_with("c.pem") && tls.client_ca.unwrap() == Path::new("/ca.pem"));
    assert_eq!(sound("[tls]\ncertificate = \"\"\nkey = \"\"").tls, None);
    let with = |text: &str| sound(&format!("[listen]\nproxy_tls = [\"10.0.0.1:3443\"]\n{pair}{text}"));
    let only = format!("[listen]\nproxy = []\nproxy_tls = [\"127.0.0.1:3443\"]\n{pair}");
    assert!(problems(&only).is_empty(), "{:?}", problems(&only));
    assert!(with("").tls.is_some_and(|tls| tls.client_ca.is_none()));
    let named = with("client_ca = \"ca.pem\"\n[[guest]]\nname = \"vm-7\"");
    assert!(named.policy.guests[0].addresses.is_empty(), "its certificate is enough");
    let door = format!("[listen]\nproxy_tls = [\"10.0.0.1:3443\"]\n{pair}");
    let pinned = format!("{door}client_ca = \"ca.pem\"\n[[guest]]\nname = \"vm-7\"\ninterface = \"tap7\"");
    for (text, words) in [
        (&*format!("{door}[[guest]]\nname = \"vm-7\""), "vm-7 has no addresses"),
        (&*pinned, "vm-7 has no addresses"),
        ("[listen]\nproxy_tls = [\"10.0.0.1:3443\"]", "requires [tls].certificate and [tls].key"),
        ("[listen]\nproxy_tls = [\"0.0.0.0:3443\"]\n[tls]\ncertificate = \"c\"\nkey = \"k\"", "may use the proxy"),
        (pair, "no listener uses this"),
        ("[tls]\ncertificate = \"c\"", "set [tls].key"),
        ("[tls]\nkey = \"k\"", "set [tls].certificate"),
        ("[tls]\nclient_ca = \"a\"", "client_ca requires"),
        ("[listen]\nadmin_tls = \"10.0.0.1:3191\"", "requires [tls].certificate and [tls].key"),
    ] {
        assert!(problems(text).iter().any(|problem| problem.contains(words)), "{text}: {:?}", problems(text));
    }
}

#[test]
fn a_firewall_without_listeners_for_what_it_brings_is_told_which_to_set() {
    let found = problems("[firewall]\nguest_interfaces = [\"br0\"]");
    assert!(
        found[0].starts_with("f:2:20: there is no listener that guests can reach; set [listen].transparent"),
        "{found:?}"
    );
    assert!(found[1].contains("warning: guests have no DNS: their queries are refused; set [listen].dns"), "{found:?}");
    let listen = "[listen]\ntransparent = [\"0.0.0.0:3129\"]\ndns = [\"127.0.0.1:53\"]\n";
    let found = problems(&format!("{listen}[firewall]\nguest_interfaces = [\"br0\"]"));
    assert!(found.len() == 1 && found[0].contains("(loopback is out of their reach)"), "{found:?}");
    let found = problems(&format!("{listen}[firewall]\nhost_users = [\"ci\", \"root\"]"));
    assert!(found.iter().any(|p| p.contains("set [listen].redirect")), "{found:?}");
    assert!(found.iter().any(|p| p.contains("\"root\" cannot be sent to `redirect`")), "{found:?}");
    let found = problems(&format!("{listen}[firewall]\nguest_interfaces = [\"lo\", \"tap*\", \"tap*\"]"));
    assert!(found.iter().any(|p| p.contains("this matches \"lo\", which is this machine itself")), "{found:?}");
    assert!(found.iter().any(|p| p.contains("\"tap*\" is listed twice")), "{found:?}");
}

#[test]
fn the_firewall_gets_the_limits_listeners_and_guests_that_its_rules_depend_on() {
    // The tests of `outgate-firewall` assume these defaults.
    let defaults = GuestLimits {
        dns_queries_per_second: Some(5000),
        new_connections_per_second: Some(500),
        requests_per_second: Some(1000),
        connections: Some(4096),
        total_connections: Some(100_000),
        idle_timeout: Some(Duration::from_secs(3600)),
        resolver_timeout: Duration::from_secs(2),
    };
    assert_eq!(Settings::default().plan_input().limits, defaults);
    let input = sound(
        r#"
        [listen]
        proxy = ["10.42.42.1:1"]
        transparent = ["10.42.42.1:3"]
        redirect = ["127.0.0.1:4"]
        dns = ["10.42.42.1:5", "[fd42::1]:5"]
        [resolver]
        timeout_ms = 4500
        [firewall]
        guest_interfaces = ["br0"]
        [limits]
        dns_queries_per_second = 11
        new_connections_per_second = 12
        requests_per_second = 13
        connections = 14
        total_connections = 1500
        idle_timeout_s = 16
        [[guest]]
        name = "vm-7"
        addresses = ["10.42.42.7"]
        interface = "tap7"
        [[guest]]
        name = "vm-8"
        addresses = ["10.42.42.8"]
        "#,
    )
    .plan_input();
    let given = GuestLimits {
        dns_queries_per_second: Some(11),
        new_connections_per_second: Some(12),
        requests_per_second: Some(13),
        connections: Some(14),
        total_connections: Some(1500),
        idle_timeout: Some(Duration::from_secs(16)),
        resolver_timeout: Duration::from_millis(4500),
    };
    assert_eq!(input.limits, given);
    let listen = ListenerAddresses {
        proxy: vec!["10.42.42.1:1".parse().unwrap()],
        proxy_tls: Vec::new(),
        transparent: vec!["10.42.42.1:3".parse().unwrap()],
        redirect: vec!["127.0.0.1:4".parse().unwrap()],
        dns: vec!["10.42.42.1:5".parse().unwrap(), "[fd42::1]:5".parse().unwrap()],
        udp: Vec::new(),
    };
    assert_eq!(input.listen, listen);
    let pins: Vec<(&str, &str)> =
        input.firewall.pins.iter().map(|pin| (pin.guest.as_str(), pin.interface.as_str())).collect();
    assert_eq!((input.guests, pins), (2, vec![("vm-7", "tap7")]));
}

#[test]
fn a_providers_data_dir_sets_the_mode_under_the_ceiling() {
    let with = |max: &str| sound(&format!("[golem]\ndata_dir = \"d\"\n{max}"));
    let golem = with("").golem.unwrap();
    assert!(golem.data_dir.ends_with("d") && golem.max_mode == Grant::All);
    for (granted, ceiling, mode) in [
        (Grant::All, "", Mode::All),
        (Grant::Whitelist, "", Mode::Whitelist),
        (Grant::None, "", Mode::None),
        (Grant::All, "max_mode = \"whitelist\"", Mode::Whitelist),
        (Grant::None, "max_mode = \"whitelist\"", Mode::None),
        (Grant::All, "max_mode = \"none\"", Mode::None),
    ] {
        let rules = Outbound { everyone: granted, ..Outbound::default() };
        assert_eq!(with(ceiling).policy_with(Some(&rules)).mode, mode, "{granted:?} under {ceiling:?}");
    }
    assert_eq!(with("").policy_with(None).mode, Mode::Whitelist, "yagna's default");
    assert_eq!(parse("mode = \"observe\"").0.policy_with(Some(&Outbound::closed())).mode, Mode::Observe);
    let found = problems("mode = \"all\"\n[golem]\ndata_dir = \"d\"\nmax_mode = \"observe\"");
    assert!(found.iter().any(|p| p.contains("rules.json sets the mode")), "{found:?}");
    assert!(found.iter().any(|p| p.starts_with("f:4:12: `max_mode` is \"observe\"")), "{found:?}");
}

#[test]
fn functions_of_later_versions_are_checked_in_form_all_the_same() {
    let text = "[firewall]\nguest_interfaces = [\"a/b\"]\n[golem]\nmax_mode = \"some\"\n[listen]\nudp = [\"443\"]";
    let found = problems(text);
    assert!(found.iter().any(|p| p.starts_with("f:2:21: \"a/b\" is not a network interface")), "{found:?}");
    assert!(found.iter().any(|p| p.starts_with("f:4:12: `max_mode` is \"some\"")), "{found:?}");
    assert!(found.iter().any(|p| p.starts_with("f:6:8: \"443\" is only a port")), "{found:?}");
}

#[test]
fn what_is_sound_but_risky_is_a_warning() {
    for (text, warning) in [
        ("mode = \"all\"", "f:1:8: warning: mode \"all\" lets every guest reach"),
        (
            "[log]\naccess = \"off\"\non_failure = \"refuse\"",
            "f:3:14: warning: `on_failure` has no effect if `access` is \"off\"",
        ),
        ("mode = \"observe\"", "f:1:8: warning: mode \"observe\" lets every guest through"),
        ("[[guest]]\nname='a'\naddresses=['10.0.0.1']\nmode='all'", "f:4:6: warning: mode \"all\" lets guest a reach"),
        ("[[guest]]\nname='a'\naddresses=['10.0.0.1']\nwhitelist=[]", "f:4:11: warning: a has no whitelist file"),
        ("[listen]\nproxy = [\"0.0.0.0:3128\"]", "f:2:10: warning: whoever reaches 0.0.0.0:3128 may use the proxy"),
        ("[listen]\nproxy = [\"[2001:db8::1]:3128\"]", "f:2:10: warning: whoever reaches [2001:db8::1]:3128 may"),
        ("[listen]\nproxy = []", "f:2:9: warning: there is no listener for guests"),
        ("[listen]\nproxy = [\"127.0.0.1:0\"]", "f:2:10: warning: port 0 lets the kernel choose"),
        ("[listen]\nadmin = \"10.0.0.1:3190\"", "f:2:9: warning: whoever reaches 10.0.0.1:3190 can read"),
        ("[limits]\nhandshake_timeout_ms = 0", "f:2:24: warning: without a handshake timeout"),
        (
            "[limits]\ntotal_connections = 100",
            "f:2:21: warning: no guest gets more than a quarter of total_connections, so the limit is 25",
        ),
        ("[dial]\npermit_addresses = [\"0.0.0.0/0\"]", "f:2:21: warning: 0.0.0.0/0 opens most of the address floor"),
        ("[resolver]\nservers = [\"9.9.9.9\", \"9.9.9.9:53\"]", "f:2:23: warning: 9.9.9.9:53 is listed twice"),
    ] {
        let found = problems(text);
        assert!(found.len() == 1 && found[0].starts_with(warning), "{found:?}");
    }
    assert_eq!(problems("[listen]\nproxy = [\"10.42.42.1:3128\", \"100.64.0.1:3128\"]"), [""; 0]);
}

#[test]
fn paths_must_say_something_and_sockets_must_fit() {
    let long = "x".repeat(120);
    let found = problems(&format!("[listen]\ncontrol = \"/{long}\"\n[whitelist]\ndir = \"\"\n[state]\ndir = \"\""));
    assert_eq!(
        found,
        [
            "f:2:11: a unix socket's path has at most 107 bytes, and this one has 121; choose a shorter one",
            "f:4:7: `dir` is empty; write a path, or leave the key out for the default",
            "f:6:7: `dir` is empty; write a path, or leave the key out for the default",
        ]
    );
}

#[test]
fn a_change_says_what_takes_a_restart() {
    let old = sound("");
    let reloadable = "mode = \"none\"\nech = \"allow\"\n[limits]\nconnections = 1\n[log]\ndenied_only = true\n\
        [dial]\nconnect_timeout_ms = 1\n[resolver]\ntimeout_ms = 1\n[[guest]]\nname = \"a\"\naddresses = [\"10.0.0.1\"]";
    assert_eq!(old.restart_needed(&sound(reloadable)), [""; 0]);
    let fixed = "[listen]\nproxy = [\"127.0.0.1:1\"]\nadmin = \"\"\ncontrol = \"\"\n[whitelist]\ndir = \"/w\"\n[state]\ndir = \"/s\"";
    let keys = ["listen.proxy", "listen.admin", "listen.control", "whitelist.dir", "state.dir"];
    assert_eq!(old.restart_needed(&sound(fixed)), keys);
}

#[test]
fn a_guest_that_is_one_address_of_a_container_network_is_a_warning() {
    let of = |interface: &str, guest: &str| {
        let listen = "[listen]\ntransparent = [\"0.0.0.0:3129\"]\ndns = [\"0.0.0.0:53\"]\n";
        problems(&format!("{listen}[firewall]\nguest_interfaces = [\"{interface}\"]\n[[guest]]\nname = \"a\"\n{guest}"))
    };
    let is_told =
        |found: &[String]| found.iter().any(|text| text.contains("is held to its container only while that runs"));
    assert!(is_told(&of("br-*", "addresses = [\"172.18.0.5\"]")));
    assert!(is_told(&of("docker0", "addresses = [\"fd00::5\"]")));
    assert!(!is_told(&of("br-*", "addresses = [\"172.18.0.0/16\"]")));
    assert!(!is_told(&of("br0", "addresses = [\"172.18.0.5\"]")), "a bridge of virtual machines");
    assert!(!is_told(&of("br-*", "addresses = [\"172.18.0.5\"]\ninterface = \"veth7\"")), "its port is named");
}

#[test]
fn an_interface_that_no_guest_interface_covers_or_that_comes_twice_is_an_error() {
    let of = |guests: &str, tables: &str| {
        let listen = "[listen]\ntransparent = [\"0.0.0.0:3129\"]\ndns = [\"0.0.0.0:53\"]\n";
        format!("{listen}[firewall]\nguest_interfaces = [{guests}]\n{tables}")
    };
    let table = |name: &str| format!("[[interface]]\nname = \"{name}\"\nbetween_guests = \"allow\"\n");
    for (guests, name) in [("\"br-*\"", "br-*"), ("\"br-*\"", "br-a*"), ("\"br-*\"", "br-app"), ("\"br0\"", "br0")] {
        let settings = sound(&of(guests, &table(name)));
        let wanted = [BetweenGuests { interface: name.to_owned(), is_allowed: true }];
        assert_eq!(settings.firewall.between_guests, wanted, "{guests} {name}");
    }
    for (guests, name) in [("\"br-a*\"", "br-*"), ("\"br0\"", "br0*"), ("\"br0\"", "br1")] {
        let found = problems(&of(guests, &table(name)));
        assert!(found.iter().any(|text| text.contains("is not covered by [firewall].guest_interfaces")), "{found:?}");
    }
    let twice = problems(&of("\"br0\"", &(table("br0") + &table("br0"))));
    assert!(twice.iter().any(|text| text.contains("is already there")), "{twice:?}");
    let nameless = problems(&of("\"br0\"", "[[interface]]\nbetween_guests = \"allow\"\n"));
    assert!(nameless.iter().any(|text| text.contains("the interface has no name")), "{nameless:?}");
    let single = problems(&of("\"br0\"", "[interface]\nname = \"br0\"\n"));
    assert!(single.iter().any(|text| text.contains("write `[[interface]]` with two brackets")), "{single:?}");
}

#[test]
fn every_default_and_example_is_what_its_key_takes() {
    let guest = |keys: &str| format!("[[guest]]\nname = \"a\"\naddresses = [\"10.0.0.1\"]\n{keys}");
    for (table, row) in TABLES.iter().flat_map(|table| table.rows.iter().map(move |row| (table, row))) {
        for text in [row.default, row.example].into_iter().filter(|text| !text.is_empty()) {
            let line = format!("{} = {text}", row.key);
            let file = match table.name {
                "" => line,
                "interface" if row.key == "name" => format!("[[interface]]\n{line}"),
                "interface" => format!("[[interface]]\nname = \"br0\"\n{line}"),
                "guest" if row.key == "name" => format!("[[guest]]\n{line}\naddresses = [\"10.0.0.1\"]"),
                "guest" if row.key == "addresses" => continue,
                "guest" => guest(&line),
                name => format!("[{name}]\n{line}"),
            };
            // What a key needs of others is no matter here.
            let form = ["unknown key", "write ", "it is one of", "is text in", "is a list"];
            let wrong: Vec<String> = problems(&file)
                .into_iter()
                .filter(|problem| !problem.contains("warning: ") && form.iter().any(|words| problem.contains(words)))
                .collect();
            assert_eq!(wrong, [""; 0], "{file}");
        }
    }
}

#[test]
fn a_reload_keeps_what_takes_a_restart_and_takes_over_the_rest() {
    let pair = "[tls]\ncertificate = \"c\"\nkey = \"k\"\n[listen]\nproxy_tls = [\"127.0.0.1:1\"]\n";
    let golem = "[golem]\ndata_dir = \"/d\"\n";
    let old = sound(&format!("{pair}{golem}"));
    let new = sound(&format!(
        "{pair}admin = \"\"\ncontrol = \"\"\ndns = [\"127.0.0.1:2\"]\n[whitelist]\ndir = \"/w\"\n[state]\ndir = \"/s\"\n\
         [golem]\ndata_dir = \"/e\"\nmax_mode = \"none\"\n[limits]\nconnections = 7"
    ));
    let keys = ["listen.dns", "listen.admin", "listen.control", "whitelist.dir", "golem.data_dir", "state.dir"];
    assert_eq!(old.restart_needed(&new), keys);
    let reloaded = old.reloaded(new.clone());
    assert_eq!(old.restart_needed(&reloaded), [""; 0]);
    assert_eq!((&reloaded.listen, &reloaded.tls), (&old.listen, &old.tls));
    assert_eq!(reloaded.data_dir(), Some(Path::new("/d")));
    assert_eq!(reloaded.golem.as_ref().map(|golem| golem.max_mode), Some(Grant::None));
    assert_eq!(reloaded.limits, new.limits);
    // Whether there is a data dir, or a certificate, is part of what stays.
    let without = sound("");
    assert_eq!(without.restart_needed(&old), ["listen.proxy_tls", "tls", "golem.data_dir"]);
    assert_eq!(without.reloaded(old.clone()), without);
    assert_eq!(old.reloaded(without), old);
}

#[test]
fn a_named_file_must_be_there_and_readable() {
    let scratch = tempfile::tempdir().unwrap();
    let error = |path: &Path| Settings::load(Some(path)).unwrap_err().to_string();
    let missing = scratch.path().join("missing.toml");
    let text = error(&missing);
    assert!(text.starts_with(&format!("{}: No such file", missing.display())), "{text}");
    assert!(text.ends_with("name another file with --config"), "{text}");
    assert!(error(scratch.path()).contains("not a regular file"));
    let binary = scratch.path().join("binary.toml");
    std::fs::write(&binary, b"# x\n\xff").unwrap();
    assert!(error(&binary).ends_with("line 2 is not UTF-8; save the file as UTF-8"));
    let wrong = scratch.path().join("wrong.toml");
    std::fs::write(&wrong, "mode = 1\nech = 2").unwrap();
    assert_eq!(error(&wrong).lines().count(), 2);
    let bom = scratch.path().join("bom.toml");
    std::fs::write(&bom, "\u{feff}mode = \"none\"\r\nech = \"deny\"\r\n").unwrap();
    assert_eq!(Settings::load(Some(&bom)).unwrap().0.policy.mode, Mode::None);
}

#[test]
fn a_file_that_everybody_may_write_to_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("open.toml");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (_, warnings) = Settings::load(Some(&path)).unwrap();
    assert!(warnings[0].to_string().contains("warning: everyone on this machine may write"), "{warnings:?}");
}

#[test]
fn without_a_file_the_compiled_in_list_is_used_only_where_there_is_no_list_dir() {
    let scratch = tempfile::tempdir().unwrap();
    let surroundings =
        Surroundings { uid: 1000, xdg_runtime_dir: Some("/run/user/1000".into()), ..Surroundings::default() };
    let dir = scratch.path().join("whitelist");
    assert_eq!(Settings::without_file(&surroundings, &dir).whitelist_dir, None);
    std::fs::create_dir(&dir).unwrap();
    let settings = Settings::without_file(&surroundings, &dir);
    assert_eq!(settings.whitelist_dir, Some(dir));
    assert_eq!(settings.path, None);
    assert_eq!(settings.listen.control.unwrap(), Path::new("/run/user/1000/outgate/control.sock"));
}
