//! Reads what guests and servers send, from bytes alone: no IO, no clock, no async.
//!
//! The words that everything else uses are here too: [`name`] and [`target`] say where a flow goes, [`source`] who asks,
//! and [`reason`] why the answer is no.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::string_slice,
        clippy::unreachable,
        reason = "a test that panics fails, as it should"
    )
)]

pub mod identify;
pub mod name;
pub mod reason;
pub mod source;
pub mod target;
mod words;
