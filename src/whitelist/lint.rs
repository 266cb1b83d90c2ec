//! Placeholder while the parsers settle.
