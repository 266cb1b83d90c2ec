//! The public-suffix guard: does a pattern match names of unrelated owners? It does if an open label is directly
//! under a public suffix (of the ICANN or the private section of the Public Suffix List), or if the pattern
//! matches everything below a name that has such suffixes below it. The `psl` crate recognises suffixes but cannot
//! list them, so a table of our own holds the names above them.

use super::subject::Owned;
use super::{glob, pattern};
use outgate_policy::rule::Scope;
use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

/// Names that are not a public suffix but have some below them, one a line: the name and the nearest such suffix
/// relative to it. Made from the Public Suffix List by the test below.
const ANCESTORS: &str = include_str!("public_suffix/ancestors.txt");

/// What a pattern matches beyond one owner's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wide {
    /// The name under which anybody may register names; empty for the root.
    pub(super) base: String,
    /// A matching name of an unrelated owner; empty if none was found.
    pub(super) example: String,
}

impl fmt::Display for Wide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lets in names of unrelated owners")?;
        if !self.example.is_empty() {
            write!(f, ", such as `{}`", self.example)?;
        }
        Ok(())
    }
}

impl Wide {
    /// Returns how to narrow the pattern.
    pub(super) fn remedy(&self) -> String {
        let own = if self.base.is_empty() { "example.com" } else { &self.base };
        if self.base.is_empty() {
            format!("name the domain in full, as `*.{own}`")
        } else {
            format!("name the one below `{own}` that is meant")
        }
    }
}

/// How deep below a base names are matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// One label.
    One,
    /// Any number.
    Any,
}

/// Returns whether the subject of an allowing rule is too wide, and how.
pub(super) fn breadth(subject: &Owned) -> Option<Wide> {
    match subject {
        Owned::Net(_) => None,
        Owned::Every => below("", Depth::Any),
        Owned::Regex { wide, .. } => wide.clone(),
        Owned::Name { scope: Scope::Exact, .. } => None,
        Owned::Name { base, scope: Scope::OneLabel } => below(base.as_str(), Depth::One),
        Owned::Name { base, .. } => below(base.as_str(), Depth::Any),
        Owned::Glob { pattern, scope } => glob_breadth(pattern, *scope),
    }
}

fn glob_breadth(pattern: &str, scope: Scope) -> Option<Wide> {
    let labels: Vec<&str> = pattern.split('.').collect();
    let (tail, depth) = match labels.iter().rposition(|label| glob::is_open(label)) {
        None if scope == Scope::Exact => return None,
        None => (pattern.to_owned(), Depth::Any),
        Some(open) => {
            let deeper = open > 0 || scope != Scope::Exact;
            let tail = labels.iter().skip(open + 1).copied().collect::<Vec<_>>().join(".");
            (tail, if deeper { Depth::Any } else { Depth::One })
        }
    };
    let wide = glob::expand(&tail).iter().find_map(|base| below(base, depth))?;
    let example = pattern::example(&glob::regex(pattern, scope), &wide.example);
    Some(Wide { example, ..wide })
}

/// Returns whether names below `base` belong to unrelated owners, and an example.
pub(super) fn below(base: &str, depth: Depth) -> Option<Wide> {
    if base.is_empty() {
        return Some(Wide { base: String::new(), example: "anyone.example".to_owned() });
    }
    if is_public_suffix(base) {
        return Some(Wide { base: base.to_owned(), example: format!("anyone.{base}") });
    }
    let suffix = ancestors().get(base)?;
    let direct = !suffix.contains('.');
    let label = suffix.replace('*', "any");
    match depth {
        Depth::One if !direct => None,
        Depth::One => Some(Wide { base: base.to_owned(), example: format!("{label}.{base}") }),
        Depth::Any => Some(Wide { base: base.to_owned(), example: format!("anyone.{label}.{base}") }),
    }
}

/// Returns whether `name` itself is a public suffix, or an unknown top-level domain.
pub(super) fn is_public_suffix(name: &str) -> bool {
    psl::suffix_str(name) == Some(name)
}

/// Returns the registered domain that `name` belongs to.
pub(super) fn registrable(name: &str) -> Option<&str> {
    psl::domain_str(name)
}

fn ancestors() -> &'static HashMap<&'static str, &'static str> {
    static TABLE: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let lines = ANCESTORS.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_once(' ')).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use outgate_proto::name::HostName;
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    const HEADER: &str = "\
# Names that are no public suffix but have public suffixes below them: name, nearest suffix relative to it.
# Derived from the Public Suffix List (https://publicsuffix.org/list/), which is subject to the terms of the
# Mozilla Public License, v. 2.0 (https://mozilla.org/MPL/2.0/); so is this file.
# Made from data/rules.txt of the psl crate in Cargo.lock, so that both agree. After an update of that crate:
#   OUTGATE_REGENERATE=1 cargo test -p outgate-whitelist public_suffix
";

    /// The list that the psl crate was made from; it is in the same package as the crate's sources.
    fn rules() -> String {
        let cargo = std::process::Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--offline", "--filter-platform"])
            .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
            .arg("--manifest-path")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .output()
            .unwrap();
        assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&cargo.stdout).unwrap();
        let psl = metadata["packages"].as_array().unwrap().iter().find(|package| package["name"] == "psl").unwrap();
        let manifest = PathBuf::from(psl["manifest_path"].as_str().unwrap());
        std::fs::read_to_string(manifest.with_file_name("data").join("rules.txt")).unwrap()
    }

    fn table(rules: &str) -> String {
        let mut ancestors: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for rule in rules.lines().filter(|rule| !rule.is_empty() && !rule.starts_with('!')) {
            let (star, name) = rule.strip_prefix("*.").map_or(("", rule), |name| ("*.", name));
            let rule = format!("{star}{}", HostName::parse_unicode(name).unwrap());
            for (at, _) in rule.match_indices('.') {
                let (below, name) = (&rule[..at], &rule[at + 1..]);
                if !is_public_suffix(name) {
                    let near = (below.split('.').count(), below.to_owned());
                    let best = ancestors.entry(name.to_owned()).or_insert_with(|| near.clone());
                    *best = near.min(best.clone());
                }
            }
        }
        let lines = ancestors.iter().map(|(name, (_, below))| format!("{name} {below}\n"));
        HEADER.to_owned() + &lines.collect::<String>()
    }

    #[test]
    fn the_table_of_ancestors_fits_the_list_of_the_psl_crate() {
        let fresh = table(&rules());
        if std::env::var_os("OUTGATE_REGENERATE").is_some() {
            std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/public_suffix/ancestors.txt"), fresh)
                .unwrap();
        } else {
            assert!(fresh == ANCESTORS, "run OUTGATE_REGENERATE=1 cargo test -p outgate-whitelist public_suffix");
        }
    }

    #[test]
    fn suffixes_of_both_sections_and_names_above_them_are_wide() {
        for base in ["com", "co.uk", "github.io", "s3.amazonaws.com", "workers.dev", "blob.core.windows.net", "test"] {
            assert!(below(base, Depth::One).is_some(), "{base}");
        }
        for base in ["amazonaws.com", "core.windows.net", "compute.amazonaws.com"] {
            assert!(below(base, Depth::Any).is_some(), "{base}");
        }
        for base in ["ipfs.io", "golem.network", "someone.github.io", "debian.org", "example.co.uk"] {
            assert!(below(base, Depth::Any).is_none(), "{base}");
        }
        assert!(below("xn--rland-uua.no", Depth::One).is_some());
    }

    #[test]
    fn the_stranger_named_is_really_one() {
        let example = below("amazonaws.com", Depth::Any).unwrap().example;
        assert_ne!(registrable(&example), Some("amazonaws.com"), "{example}");
    }
}
