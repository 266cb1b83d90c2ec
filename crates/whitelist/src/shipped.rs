//! The default whitelist, compiled in: the files of the folder `whitelist/`.

use super::read::Files;

/// Name and content of each file.
pub const SHIPPED: &[(&str, &str)] = &[
    ("10-golem.rules", include_str!("../../../whitelist/10-golem.rules")),
    ("20-packages.rules", include_str!("../../../whitelist/20-packages.rules")),
];

impl Files {
    /// The default whitelist.
    pub fn shipped() -> Files {
        Files::from_memory(SHIPPED.iter().copied())
    }
}
