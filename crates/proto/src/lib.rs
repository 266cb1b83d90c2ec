//! Reads what guests and servers send, from bytes alone: no IO, no clock, no async.
//!
//! The words that everything else uses are here too: [`name`] and [`target`] say where a flow goes, [`source`] who asks,
//! and [`reason`] why the answer is no.

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

pub mod identify;
pub mod name;
pub mod reason;
pub mod source;
pub mod target;
mod words;
