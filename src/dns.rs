//! The guests' resolver: the same policy and the same upstream as every flow's. What it answers it
//! remembers as bindings, by which raw protocols on transparent listeners are known.

pub mod bindings;

pub use bindings::Bindings;
