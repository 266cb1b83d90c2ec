//! Outgate guards the outgoing traffic of a compute provider's machine: a forward proxy that lets guests reach
//! what the operator's whitelist names, refuses the rest at once with its reason, and counts both.
//!
//! A connection's data flows through seven stages:
//!
//! ```text
//! accept -> identify -> policy -> resolve -> dial -> relay -> account
//! ```
//!
//! [`flow`] carries connections through them, and [`dns`] queries; nothing else does. [`services`] has what every
//! connection and query needs. The modules beside the path (configuration, whitelist files, admin) supply settings and
//! snapshots. Some modules are crates of their own and are passed on from here. `ARCHITECTURE.md` has the map and the
//! invariants.

#![cfg_attr(
    test,
    allow(
        clippy::pedantic,
        clippy::restriction,
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        reason = "a test that panics fails, as it should"
    ),
    warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)
)]

pub use outgate_files::{self as files, diagnostic, shell};
pub use outgate_firewall as firewall;
pub use outgate_golem as golem;
pub use outgate_policy as policy;
pub use outgate_policy::cooperate;
pub use outgate_proto::{identify, name, reason, source, target};
pub use outgate_whitelist as whitelist;

pub mod config;
pub mod daemon;

pub mod flow;

// The stages.
pub mod accept;
pub mod account;
pub mod dial;
pub mod relay;
pub mod resolve;

// Beside the path.
pub mod admin;
pub mod bindings;
pub mod control;
pub mod dns;
pub mod guest;
pub mod limits;
pub mod live;
pub mod proof;
pub mod registered_guests;
pub mod services;
pub mod system;
pub mod tls;

// Vocabulary that everything shares; these modules import none of our others.
pub mod endpoint;
pub mod listener;
pub mod lock;
pub mod semaphore;
pub mod text;
pub mod throttle;
pub mod trouble;

#[cfg(test)]
#[path = "../tests/it/rights.rs"]
mod rights;
