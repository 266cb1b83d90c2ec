//! Reads what guests and servers send, from bytes alone: no IO, no clock, no async.
//!
//! The words that everything else uses are here too: [`name`] and [`target`] say where a flow goes, [`source`] who asks,
//! and [`reason`] why the answer is no.

pub mod identify;
pub mod name;
pub mod reason;
pub mod source;
pub mod target;
