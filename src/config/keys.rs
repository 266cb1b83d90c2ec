//! The table of configuration keys: one row a key, with its type, range, default, when a change takes effect, and
//! what it does. The reader, the lists of known keys, the keys that require a restart, `packaging/outgate.toml`,
//! `docs/reference/configuration.md` and outgate.toml(5) all come from it, so a new key takes a row here and its use
//! in `checked`, `listeners`, `firewall` or `guests`.
//!
//! A doc comment above a row or table is text for the operator. Its first sentence has to stand alone. Defaults and
//! examples are TOML.

use super::forms::Reader;
use super::forms::{
    AccessLogSink, FilePath, Flag, Item, Limit, ListOf, Number, Optional, OrNone, Port, SocketPath, Text, Words,
};
use super::table::{Fixed, NO_DEFAULT, Row, Section, Setting, Table, TakesEffect, restart, tables};
use super::{firewall, guests, values};
use crate::account::{AccessLog, OnFailure};
use crate::golem::rules::Mode as Grant;
use crate::policy::{Mode, Unknown};
use crate::resolve::NameServer;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

tables! {
    /// What holds for all guests. These keys stand above all tables.
    "" as Top {
        /// What passes.
        /// Deny rules, the address floor, blocked ports, `ech` and limits hold in every mode.
        /// With `[golem].data_dir` the provider's rules.json sets the mode, and the key is an error.
        mode: Mode = { form: MODE, default: "\"whitelist\"", effect: TakesEffect::Reload };

        /// What happens to a TLS ClientHello with encrypted_client_hello, which hides the name it asks for.
        /// Browsers send it always; `ech=allow` on one rule is narrower.
        ech: bool = { form: ECH, default: "\"deny\"", effect: TakesEffect::Reload };
    }

    /// Where outgate listens. Listeners on IPv6 addresses accept no IPv4. Under systemd run
    /// `outgate listen apply` after a change: it makes the socket units follow.
    "listen" as Listen {
        /// HTTP forward proxy, CONNECT and SOCKS5 on one port; the first byte tells them apart.
        /// Guests must be able to reach it.
        proxy: Vec<Item<SocketAddr>> = {
            form: ListOf(PROXY), default: "[\"127.0.0.1:3128\"]", effect: restart!(listen.proxy),
            example: "[\"10.42.42.1:3128\"]",
        };

        /// The same as `proxy` inside TLS, for guests on another host.
        /// It requires `[tls]`. With `client_ca` there, a certificate says which `[[guest]]` it is, and that guest
        /// needs no addresses.
        proxy_tls: Vec<Item<SocketAddr>> = {
            form: ListOf(PROXY_TLS), default: "[]", effect: restart!(listen.proxy_tls), example: "[\"10.0.0.1:3443\"]",
        };

        /// Where `outgate firewall` brings guests' TCP (TPROXY), one address for each family.
        /// A family without one is refused to guests. It requires root at the start.
        transparent: Vec<Item<SocketAddr>> = {
            form: ListOf(TRANSPARENT), default: "[]", effect: restart!(listen.transparent),
            example: "[\"0.0.0.0:3129\", \"[::]:3129\"]",
        };

        /// Where `outgate firewall` brings TCP of `[firewall].host_users` (NAT), one address for each family.
        redirect: Vec<Item<SocketAddr>> = {
            form: ListOf(REDIRECT), default: "[]", effect: restart!(listen.redirect),
            example: "[\"127.0.0.1:3130\", \"[::1]:3130\"]",
        };

        /// The guests' resolver, UDP and TCP.
        /// Names that no rule could allow get NXDOMAIN and are never asked upstream. The firewall brings port 53
        /// here whatever server a guest asks. AAAA is answered where a listener for guests has an IPv6 address, and
        /// "no data" elsewhere. Where an interface has several addresses name one rather than `0.0.0.0`, or a reply may
        /// leave from another address of this machine.
        dns: Vec<Item<SocketAddr>> = {
            form: ListOf(DNS), default: "[]", effect: restart!(listen.dns), example: "[\"10.42.42.1:53\"]",
        };

        /// TPROXY for UDP.
        udp: Vec<Item<SocketAddr>> = { form: ListOf(UDP), default: "[]", effect: TakesEffect::Later("TPROXY for UDP") };

        /// Read-only HTTP: `/metrics`, `/healthz`, `/readyz` and a status page.
        /// It answers only to a Host that is an address or `localhost`.
        admin: Option<SocketAddr> = {
            form: OrNone(ADMIN), default: "\"127.0.0.1:3190\"", effect: restart!(listen.admin),
        };

        /// `/metrics`, `/healthz` and `/readyz` inside TLS, for a Prometheus on another host.
        /// It requires `[tls]`.
        admin_tls: Option<SocketAddr> = {
            form: OrNone(ADMIN_TLS), default: "\"\"", effect: restart!(listen.admin_tls),
            example: "\"10.0.0.1:3191\"",
        };

        /// The unix socket behind `outgate status`, `denied`, `flows`, `guest` and `whitelist reload`.
        /// Its mode is 0660; only root and the daemon's own user may change anything. Guests that were registered
        /// are kept beside it. `RUNTIME_DIRECTORY` goes before the default. A daemon that a user other than root
        /// starts by hand uses `$XDG_RUNTIME_DIR/outgate/control.sock`.
        control: Option<PathBuf> = {
            form: OrNone(SocketPath), default: "\"/run/outgate/control.sock\"", effect: restart!(listen.control),
        };
    }

    /// Certificate and key of the listeners inside TLS. The files are read again within two seconds when they
    /// change.
    "tls" as Tls {
        /// The certificate, PEM: outgate's own first, then those between it and its authority.
        certificate: Option<PathBuf> = {
            form: OrNone(FilePath), default: "\"\"", effect: restart!(table tls), example: "\"tls/outgate.crt\"",
        };

        /// The key of the certificate, PEM.
        key: Option<PathBuf> = {
            form: OrNone(FilePath), default: "\"\"", effect: restart!(table tls), example: "\"tls/outgate.key\"",
        };

        /// Certificates of authorities, PEM; clients of a listener inside TLS must then show a certificate of one
        /// of them.
        client_ca: Option<PathBuf> = {
            form: OrNone(FilePath), default: "\"\"", effect: restart!(table tls), example: "\"tls/guests-ca.crt\"",
        };
    }

    /// Where the lists are.
    "whitelist" as Whitelist {
        /// The folder with the `*.rules`, `*.lst` and `*.json` files.
        /// A missing one is an error. Only without a configuration file and without this folder the built-in list
        /// is used.
        dir: PathBuf = { form: FilePath, default: "\"/etc/outgate/whitelist\"", effect: restart!(whitelist_dir) };
    }

    /// How names are looked up, for guests and for outgate itself.
    "resolver" as Resolver {
        /// DNS servers, asked in this order, at most 8; empty: those of `/etc/resolv.conf`, which is looked at again
        /// every 5 s.
        /// Forms: `ip[:port]`, `tls://ip[:port]#name` (DNS over TLS, port 853) and
        /// `https://ip[:port]/dns-query#name` (DNS over HTTPS, port 443). The server's certificate must say `name`,
        /// and come from an authority that this machine trusts (`SSL_CERT_FILE` names others).
        servers: Vec<Item<NameServer>> = {
            form: ListOf(SERVER), default: "[]", effect: TakesEffect::Reload, example: "[\"9.9.9.9\", \"149.112.112.112\"]",
        };

        /// Names found in this file (hosts(5)) are not asked of a server.
        /// It is looked at again every 5 s.
        hosts_file: Option<PathBuf> = {
            form: OrNone(FilePath), default: "\"\"", effect: TakesEffect::Reload, example: "\"/etc/hosts\"",
        };

        /// How long to wait for a server.
        /// A dead one costs a guest at most twice this.
        timeout_ms: Duration = { form: WAIT_60_S, default: "2000", effect: TakesEffect::Reload };
    }

    /// How outgate connects to what guests ask for.
    "dial" as Dial {
        /// Addresses and ranges taken out of the address floor, for every rule.
        /// Private and special-purpose addresses are out of reach, whatever name leads there. `to=` on one rule is
        /// narrower.
        permit_addresses: Vec<Item<IpNet>> = {
            form: ListOf(NET), default: "[]", effect: TakesEffect::Reload, example: "[\"10.0.0.5/32\"]",
        };

        /// Ports that are refused unless the rule that decides names that very port.
        blocked_ports: Vec<Item<u16>> = { form: ListOf(Port), default: "[25, 465, 587]", effect: TakesEffect::Reload };

        /// How long connecting may take, for all addresses of a name together.
        connect_timeout_ms: Duration = { form: WAIT_600_S, default: "5000", effect: TakesEffect::Reload };
    }

    /// `outgate firewall apply` puts this in force, and only that. Apply again after a change of `[firewall]`,
    /// `[listen]` or `[[guest]]`. It requires no running daemon.
    "firewall" as Firewall {
        /// The interfaces by which guests' packets enter: bridges (not their ports) and interfaces of their own.
        /// What enters here goes through outgate or nowhere.
        guest_interfaces: Vec<Item<String>> = {
            form: ListOf(GUEST_INTERFACE), default: "[]", effect: TakesEffect::Apply, example: "[\"br0\", \"tap*\"]",
        };

        /// Bridges and taps that carry no guests, so that nobody is told that nothing guards them.
        /// Beside names: `macvlan@eth0` for what stands on eth0 and leaves past its rules, `host-network` for
        /// containers in it, `container-control` for guests that hold the socket of Docker or the like.
        not_guests: Vec<Item<String>> = {
            form: ListOf(NOT_GUEST), default: "[]", effect: TakesEffect::Reload, example: "[\"docker0\", \"macvlan@eth0\"]",
        };

        /// Users of this machine, by name or number, whose own connections go to `redirect` and queries to `dns`.
        /// Their other UDP and loopback traffic is refused. Not root, and not the user outgate runs as.
        host_users: Vec<Item<String>> = {
            form: ListOf(HOST_USER), default: "[]", effect: TakesEffect::Apply, example: "[\"ci\"]",
        };

        /// Let guests reach DHCP and router solicitation on this machine.
        allow_dhcp: bool = { form: Flag, default: "false", effect: TakesEffect::Apply };

        /// Let guests answer connections that came from outside (ssh into rented VMs).
        /// It opens a way out to anyone who can open a connection to a guest.
        allow_inbound_replies: bool = { form: Flag, default: "false", effect: TakesEffect::Apply };
    }

    /// What differs for one guests' interface, one table for each.
    "interface" as Interface (list) {
        /// The interface, or a pattern that ends in `*`; one that `[firewall].guest_interfaces` covers. Required.
        /// Of several that cover an interface the longest name decides, and a name goes before a pattern.
        name: Option<String> = {
            form: Optional(GUEST_INTERFACE), default: NO_DEFAULT, effect: TakesEffect::Apply, example: "\"br-*\"",
        };

        /// Whether guests of one bridge reach each other.
        /// With `allow` that opens, and nothing else: not another bridge, not this machine, no way out.
        between_guests: bool = {
            form: BETWEEN_GUESTS, default: "\"refuse\"", effect: TakesEffect::Apply, example: "\"allow\"",
        };
    }

    /// For each guest (undeclared ones: each address, in IPv6 each /64) unless the key says otherwise; 0 is no limit.
    /// Of each rate a second's worth may come at once. What comes over a rate waits for its turn, a second at most;
    /// only what would wait longer is refused.
    "limits" as Limits {
        /// Connections at once.
        connections: Option<u32> = { form: COUNT, default: "4096", effect: TakesEffect::Reload };

        /// New connections, DNS over TCP included.
        /// For `host_users` a change requires `outgate firewall apply` as well.
        new_connections_per_second: Option<u32> = { form: COUNT, default: "500", effect: TakesEffect::Reload };

        /// Plain-HTTP requests.
        /// A CONNECT does not count; it is one for each connection.
        requests_per_second: Option<u32> = { form: COUNT, default: "1000", effect: TakesEffect::Reload };

        /// DNS queries, whatever the answer.
        /// 512 may wait; over that the answer is SERVFAIL, and none in a flood. The firewall refuses a guest's
        /// datagrams to port 53 over this number, over 1000 at least: above that a change requires `outgate firewall
        /// apply` as well.
        dns_queries_per_second: Option<u32> = { form: COUNT, default: "5000", effect: TakesEffect::Reload };

        /// Names that DNS servers are asked for and that nobody has asked for before, over all listeners.
        /// Twenty seconds' worth may come at once, and 64 may wait. Names that outgate knows do not count, and asking
        /// again for one whose answer ran out counts a sixteenth.
        new_names_per_second: Option<u32> = { form: COUNT, default: "20", effect: TakesEffect::Reload };

        /// How long a connection may take from accept to the decision.
        handshake_timeout_ms: Option<Duration> = { form: HANDSHAKE, default: "10000", effect: TakesEffect::Reload };

        /// A connection on which nothing moved for this long is closed.
        /// `outgate firewall apply` makes the kernel keep its entries as long.
        idle_timeout_s: Option<Duration> = { form: YEAR, default: "3600", effect: TakesEffect::Reload };

        /// How long a server may take from the end of a plain-HTTP request to the head of its response.
        response_timeout_s: Option<Duration> = { form: YEAR, default: "300", effect: TakesEffect::Reload };

        /// Connections at once in the whole daemon; no guest gets more than a quarter of it.
        /// Each requires two file descriptors: where there are fewer, fewer connections are let in, and the start
        /// says so.
        total_connections: Option<u32> = { form: COUNT, default: "100000", effect: TakesEffect::Reload };

        /// Resident memory of the daemon in MiB, beside what systemd (`MemoryMax=`) or a container allows.
        /// From 70 % of it on the guests with most connections get no new ones, from 80 % nobody does, from 90 % the
        /// longest idle ones are closed.
        memory_mib: Option<u64> = { form: MEMORY, default: "0", effect: TakesEffect::Reload };
    }

    /// Guests that no `[[guest]]` declares.
    "guests" as Guests {
        /// What holds for sources that no `[[guest]]` declares and `outgate guest add` has not registered.
        /// Without this key: `shared`, but `none` as soon as any guest is declared.
        unknown: Unknown = { form: UNKNOWN, default: "\"shared\"", effect: TakesEffect::Reload };
    }

    /// One table for each guest, as many as there are.
    "guest" as Guest (list) {
        /// The guest's name, which is a metric label; required.
        name: Option<String> = {
            form: Optional(GUEST_NAME), default: NO_DEFAULT, effect: TakesEffect::Reload, example: "\"vm-7\"",
        };

        /// Addresses or ranges; each belongs to one guest.
        /// Required, except with `proxy_tls` and `client_ca`: then a guest may be known by its certificate alone.
        addresses: Vec<Item<IpNet>> = {
            form: ListOf(GUEST_ADDRESS), default: "[]", effect: TakesEffect::Reload, example: "[\"10.42.42.7\"]",
        };

        /// This guest's mode; without it, the one at the top of the file.
        mode: Option<Mode> = {
            form: Optional(MODE), default: NO_DEFAULT, effect: TakesEffect::Reload, example: "\"whitelist\"",
        };

        /// Only these files of `[whitelist].dir` hold for the guest; without it, all that no guest names.
        /// `deny` rules of every file hold for everyone.
        whitelist: Option<Vec<Item<String>>> = {
            form: Optional(ListOf(LIST_FILE)), default: NO_DEFAULT, effect: TakesEffect::Reload,
            example: "[\"vm-7.rules\"]",
        };

        /// A bridge port or an interface of the guest's own.
        /// The firewall holds it to these addresses, and these addresses to it; on a bridge to one MAC as well.
        interface: Option<String> = {
            form: OrNone(GUEST_PORT), default: "\"\"", effect: TakesEffect::Apply, example: "\"tap7\"",
        };
    }

    /// For a provider on Golem Network.
    "golem" as Golem {
        /// The data dir of ya-provider.
        /// Its domain_whitelist.json counts beside `[whitelist].dir`, and rules.json sets the mode of all guests but
        /// those with a `mode` of their own; both are watched.
        data_dir: Option<PathBuf> = {
            form: OrNone(FilePath), default: "\"\"", effect: TakesEffect::Restart(GOLEM_DATA_DIR),
            example: "\"/home/golem/.local/share/ya-provider\"",
        };

        /// What rules.json may grant at most.
        max_mode: Grant = { form: MAX_MODE, default: "\"all\"", effect: TakesEffect::Reload };
    }

    /// The access log, one JSON object a line.
    "log" as Log {
        /// Where the access log goes.
        /// A file is opened again on SIGHUP.
        access: AccessLog = {
            form: AccessLogSink, default: "\"stdout\"", effect: TakesEffect::Reload,
            example: "\"/var/log/outgate/access.log\"",
        };

        /// Leave out what was allowed.
        denied_only: bool = { form: Flag, default: "false", effect: TakesEffect::Reload };

        /// What happens to guests while the log has returned nothing but errors for 5 s (disk full, read-only or
        /// broken).
        /// A log that is slow does not count as such a failure.
        on_failure: OnFailure = { form: ON_FAILURE, default: "\"continue\"", effect: TakesEffect::Reload };
    }

    /// The proof, every half minute, that guests are guarded (`outgate-proof-net.service`).
    "proof" as Proof {
        /// URLs that guests must reach, 16 at most, tried in each round from every guests' interface.
        /// They need a rule in a list that holds for all guests. A server that does not answer them counts as a guest that
        /// is cut off.
        must_pass: Vec<Item<String>> = {
            form: ListOf(MUST_PASS), default: "[]", effect: TakesEffect::Reload, example: "[\"https://ipfs.io\"]",
        };
    }

    /// What outgate keeps over a restart.
    "state" as State {
        /// The folder for the last good list, which rules were used, and the names behind the addresses that guests
        /// were told.
        /// `STATE_DIRECTORY` goes before the default. A daemon that a user other than root starts by hand uses
        /// `$XDG_STATE_HOME/outgate`, or else `~/.local/state/outgate`.
        dir: PathBuf = { form: FilePath, default: "\"/var/lib/outgate\"", effect: restart!(state_dir) };
    }
}

const MODE: Words<Mode> = Words(&[
    ("whitelist", Mode::Whitelist, "what a rule allows"),
    (
        "observe",
        Mode::Observe,
        "everything, and what no rule allows is logged as \"observed\", to find out what a list needs",
    ),
    ("all", Mode::All, "everything, no list needed"),
    ("none", Mode::None, "nothing"),
]);
const ECH: Words<bool> =
    Words(&[("deny", false, "refuse it"), ("allow", true, "judge the outer name, which is all that shows")]);
const UNKNOWN: Words<Unknown> = Words(&[
    ("shared", Unknown::Shared, "the whitelist files that no guest names hold for them"),
    ("none", Unknown::None, "they are refused"),
]);
const BETWEEN_GUESTS: Words<bool> =
    Words(&[("refuse", false, "they do not"), ("allow", true, "they do, on this bridge")]);
const MAX_MODE: Words<Grant> = Words(&[
    ("all", Grant::All, "everything"),
    ("whitelist", Grant::Whitelist, "what the lists allow"),
    ("none", Grant::None, "nothing"),
]);
const ON_FAILURE: Words<OnFailure> = Words(&[
    ("continue", OnFailure::Continue, "they go on unrecorded"),
    (
        "refuse",
        OnFailure::Refuse,
        "everything new is refused until a line is written again; then a guest that can fill the disk can stop the service",
    ),
]);

const PROXY: Text<SocketAddr> = Text { what: LISTENER, read: |text| values::listener(text, 3128) };
const PROXY_TLS: Text<SocketAddr> = Text { what: LISTENER, read: |text| values::listener(text, 3443) };
const TRANSPARENT: Text<SocketAddr> = Text { what: LISTENER, read: |text| values::listener(text, 3129) };
const REDIRECT: Text<SocketAddr> = Text { what: LISTENER, read: |text| values::listener(text, 3130) };
const DNS: Text<SocketAddr> = Text { what: LISTENER, read: |text| values::listener(text, 53) };
const UDP: Text<SocketAddr> = Text { what: LISTENER, read: |text| values::listener(text, 443) };
const ADMIN: Text<SocketAddr> = Text { what: LISTENER, read: |text| values::listener(text, 3190) };
const ADMIN_TLS: Text<SocketAddr> = Text { what: LISTENER, read: |text| values::listener(text, 3191) };
const LISTENER: &str = "address with port";
const SERVER: Text<NameServer> = Text { what: "DNS server", read: values::server };
const NET: Text<IpNet> = Text { what: "address or range", read: values::net };

const GUEST_INTERFACE: Text<String> =
    Text { what: "network interface, or pattern that ends in `*`", read: firewall::guest_interface };
const NOT_GUEST: Text<String> = Text {
    what: "network interface, pattern that ends in `*`, `macvlan@interface` and the like, `host-network` or `container-control`",
    read: firewall::not_guest,
};
const MUST_PASS: Text<String> = Text { what: "URL of http or https", read: values::must_pass };
const HOST_USER: Text<String> = Text { what: "user's name or number", read: firewall::host_user };
const GUEST_NAME: Text<String> = Text { what: "1 to 64 of a-z A-Z 0-9 . _ -", read: guests::name };
const GUEST_ADDRESS: Text<IpNet> = Text { what: "address or range", read: guests::address };
const GUEST_PORT: Text<String> = Text { what: "network interface", read: guests::interface };
const LIST_FILE: Text<String> = Text { what: "name of a .rules, .lst or .json file", read: guests::list_file };

const COUNT: Limit<u32> = Limit { unit: "number", range: 1..=u32::MAX, make: |number| number };
const HANDSHAKE: Limit<Duration> = Limit { unit: MILLISECONDS, range: 1..=600_000, make: milliseconds };
const YEAR: Limit<Duration> =
    Limit { unit: "seconds", range: 1..=365 * 86_400, make: |s| Duration::from_secs(s as u64) };
const MEMORY: Limit<u64> = Limit { unit: "MiB", range: 1..=u32::MAX, make: |mib| u64::from(mib) << 20 };
const WAIT_60_S: Number<Duration> = Number { unit: MILLISECONDS, range: 1..=60_000, make: milliseconds };
const WAIT_600_S: Number<Duration> = Number { unit: MILLISECONDS, range: 1..=600_000, make: milliseconds };
const MILLISECONDS: &str = "milliseconds";

fn milliseconds(number: u32) -> Duration {
    Duration::from_millis(number.into())
}

/// `max_mode` may change while the daemon runs, the data dir and whether there is one may not.
const GOLEM_DATA_DIR: Fixed = Fixed {
    is_table: false,
    differs: |old, new| old.data_dir() != new.data_dir(),
    keep: |old, new| match (&old.golem, &mut new.golem) {
        (Some(old), Some(new)) => new.data_dir.clone_from(&old.data_dir),
        (old, new) => new.clone_from(old),
    },
};
