//! The whole system where guests know of no proxy: `outgate firewall apply` for real, `outgate run`,
//! forwarding on. Judged by what the internet and the guests' sockets saw.

mod bindings;
mod config;
mod guests;
mod streams;
mod tight;
mod users;
