//! Outgate from outside: the built binary in a world of network namespaces, judged by what guests,
//! origins and the DNS server see. [`world`] has the machinery; [`proof`] shows that it works without
//! outgate. Needs root; says so and skips without.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "a test that panics fails, as it should"
)]
#![allow(unreachable_pub, reason = "a test binary exports nothing; pub marks what a module offers the others")]

mod activation;
mod addresses;
mod admin_tls;
mod book;
mod bound;
mod br_netfilter;
mod bridge;
mod cli;
mod configuration;
mod confine;
mod conntrack;
mod dns;
mod exec;
mod fairness;
mod firewall;
mod golem;
mod golem_sync;
mod guests;
mod http;
mod http2;
mod limits;
mod log_failure;
mod names;
mod new_names;
mod other_firewalls;
mod overload;
mod pace;
mod ports;
mod proof;
mod proxy_tls;
mod races;
mod reference;
mod registered;
mod reload;
mod responses;
mod second;
mod service;
mod socks;
mod tls;
mod tour;
mod transparent;
mod troubles;
mod tunnel;
mod unconfigured;
mod upstream;
mod usage;
mod whole;
mod world;
