//! The whole system where guests know of no proxy: `outgate firewall apply` for real, `outgate run`,
//! forwarding on. Judged by what the internet and the guests' sockets saw.

mod address_bindings;
mod firewall_and_configuration;
mod guest_identity;
mod guest_traffic;
mod host_users;
mod no_other_way_out;
