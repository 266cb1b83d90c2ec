//! Outgate from outside: the built binary in a world of network namespaces. The tests check what guests, origins and
//! the DNS server see. [`world`] has the machinery; [`world_without_outgate`] shows that it works without outgate.
//! Most require root. Without it they are shown as ignored ([`rights`]).

#![allow(
    clippy::pedantic,
    clippy::restriction,
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    reason = "a test that panics fails, as it should"
)]
#![warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)]
#![allow(unreachable_pub, reason = "a test binary exports nothing; pub marks what a module offers the others")]

mod admin_tls;
mod book;
mod br_netfilter;
mod bridge;
mod cli;
mod configuration;
mod conntrack;
mod daemon_lifecycle;
mod declared_guests;
mod dns;
mod dns_bound_addresses;
mod encrypted_dns_servers;
mod exec;
mod fairness;
mod firewall;
mod golem;
mod golem_sync;
mod http;
mod http2;
mod limits;
mod log_failure;
mod new_name_limit;
mod other_firewalls;
mod overload;
mod privileges;
mod proof;
mod proxy_tls;
mod races;
mod reference;
mod registered_guests;
mod reload;
mod reload_time;
mod resolved_addresses;
mod responses;
mod rights;
mod second_host;
mod setup;
mod socket_activation;
mod socks;
mod target_names;
mod tls;
mod tour;
mod transparent;
mod troubles;
mod tunnel;
mod unconfigured;
mod unused_rules;
mod upstream_ports;
mod verify;
mod vm_network;
mod world;
mod world_without_outgate;
