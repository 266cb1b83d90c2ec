//! Warns about valid rules that are broader than they look, that change nothing, that have ended or will end soon,
//! or that were never used. All findings are warnings, for an operator who has time to tidy up.

use super::parse::{self, Rule, canonical};
use super::read::Files;
use super::report::{Fault, Problems, Report, quote};
use super::used::UsedLines;
use ipnet::IpNet;
use jiff::civil::Date;
use outgate_files::diagnostic::{Diagnostic, Severity};
use outgate_policy::rule::{Effect, Ports, Reach, Scope, Subject, Terms};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How many days ahead an end is worth a warning.
const SOON: i64 = 14;

/// Resolvers that answer DNS over HTTPS: a guest that reaches one can avoid outgate's own DNS, though not its
/// control of connections.
const DOH: [&str; 12] = [
    "dns.google",
    "dns64.dns.google",
    "cloudflare-dns.com",
    "mozilla.cloudflare-dns.com",
    "chrome.cloudflare-dns.com",
    "one.one.one.one",
    "dns.quad9.net",
    "doh.opendns.com",
    "dns.adguard-dns.com",
    "dns.nextdns.io",
    "doh.cleanbrowsing.org",
    "doh.pub",
];
/// Outer names of Encrypted ClientHello: the client's real, hidden name can be any name behind them.
const ECH: [&str; 1] = ["cloudflare-ech.com"];

/// What is known beside the files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage<'u> {
    /// The rules that were used, as recorded by the daemon that runs on these very files; without it, nothing is
    /// reported about use.
    pub used: Option<&'u UsedLines>,
    /// Files that a guest names for itself: they apply to that guest alone, and are compared with no other file.
    pub apart: &'u [String],
}

/// Returns the warnings for a valid set, in file and line order, or the report of an invalid set.
pub fn lint(files: &Files, today: Date, usage: Usage<'_>) -> Result<Vec<Diagnostic>, Report> {
    let mut problems = files.problems().clone();
    let mut seen = Seen::default();
    for file in files.iter() {
        let name = file.shared_name();
        let group = group(&name, usage);
        let mut take = |rule: &Rule<'_>| {
            seen.note(&group, &name, rule);
            Ok(())
        };
        parse::file(file, today, &mut problems, &mut take);
    }
    if !problems.sound() {
        return Err(problems.report(files.dir()));
    }
    let (mut found, mut unused, mut needed) = (Problems::default(), Vec::new(), HashSet::new());
    for file in files.iter() {
        let name = file.shared_name();
        let group = group(&name, usage);
        let mut take = |rule: &Rule<'_>| {
            let (redundant, by) = seen.redundant(&group, &name, rule).unzip();
            needed.extend(by);
            if redundant.is_none() && never_used(&name, rule, today, usage) {
                let place = (Arc::clone(&name), rule.line);
                unused.push(Unused { place, effect: rule.terms.effect, source: Box::from(rule.source) });
            }
            for (message, remedy) in [broad(rule), dubious(rule), ending(rule, today), redundant].into_iter().flatten()
            {
                found.fault(&name, Severity::Warning, (rule.line, ""), Fault::new(0, message, remedy));
            }
            Ok(())
        };
        parse::file(file, today, &mut Problems::default(), &mut take);
    }
    // The rule that covers another must not be reported for removal along with the rule it covers.
    let since = usage.used.map_or(today, |used| jiff::tz::Offset::UTC.to_datetime(used.since()).date());
    for rule in unused.iter().filter(|rule| !needed.contains(&rule.place)) {
        let (file, line) = &rule.place;
        found.fault(file, Severity::Warning, (*line, ""), rule.fault(since));
    }
    let mut warnings = problems.into_warnings().map_err(|problems| problems.report(files.dir()))?;
    warnings.extend(found.into_warnings().map_err(|problems| problems.report(files.dir()))?);
    warnings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    Ok(warnings)
}

/// The text of a finding: message and remedy.
type Finding = Option<(String, String)>;

/// Returns the group of a file; files of one group apply to the same guests.
fn group(file: &Arc<str>, usage: Usage<'_>) -> Arc<str> {
    if usage.apart.iter().any(|apart| **apart == **file) { Arc::clone(file) } else { Arc::from("") }
}

fn broad(rule: &Rule<'_>) -> Finding {
    if rule.terms.effect == Effect::Deny {
        return None;
    }
    let remedy = "narrow it if you can".to_owned();
    match (&rule.subject, rule.terms.reach) {
        (Subject::Net(IpNet::V4(net)), _) if net.prefix_len() < 16 => {
            Some((format!("allows the whole of {net}, more than 65,536 addresses"), remedy))
        }
        (Subject::Net(IpNet::V6(net)), _) if net.prefix_len() < 32 => {
            Some((format!("allows the whole of {net}"), remedy))
        }
        (_, Reach::Tcp(Ports::ALL)) => Some(("allows raw bytes on every TCP port".to_owned(), remedy)),
        (_, Reach::Udp(Ports::ALL)) => Some(("allows every UDP port".to_owned(), remedy)),
        _ => None,
    }
}

fn dubious(rule: &Rule<'_>) -> Finding {
    let Subject::Name { base, .. } = &rule.subject else { return None };
    if rule.terms.effect == Effect::Deny {
        return None;
    }
    if DOH.contains(base) {
        let message = format!("`{base}` answers DNS over HTTPS, which lets guests look up names without outgate's DNS");
        return Some((message, "remove it unless it is intended".to_owned()));
    }
    if ECH.contains(base) {
        let message = format!("`{base}` is the outer name of Encrypted ClientHello; any site behind it would pass");
        return Some((message, "remove it".to_owned()));
    }
    None
}

fn ending(rule: &Rule<'_>, today: Date) -> Finding {
    let until = rule.terms.until.filter(|until| *until >= today)?;
    let days = until.duration_since(today).as_hours() / 24;
    (days <= SOON)
        .then(|| (format!("ends in {days} days, on {until}"), "give it a later date if it is still needed".to_owned()))
}

/// Returns whether no use of this rule is known although one would be recorded.
fn never_used(file: &str, rule: &Rule<'_>, today: Date, usage: Usage<'_>) -> bool {
    // An expired rule is reported as expired. A `deny` of addresses also applies to what names resolve to, and
    // refusals there are not recorded.
    let over = rule.terms.until.is_some_and(|until| until < today);
    let guards = rule.terms.effect == Effect::Deny && matches!(rule.subject, Subject::Net(_));
    !over && !guards && usage.used.is_some_and(|used| !used.contains(file, rule.line))
}

/// A rule that was never used, kept until it is known whether another rule needs it.
struct Unused {
    place: FileLine,
    effect: Effect,
    source: Box<str>,
}

impl Unused {
    fn fault(&self, since: Date) -> Fault {
        let did = match self.effect {
            Effect::Allow => "allowed",
            Effect::Deny => "refused",
        };
        let rule = quote(&self.source);
        let message = format!("{rule} was never used: it has {did} nothing since {since}, or since it was added");
        Fault::new(0, message, "remove it if it is not needed")
    }
}

/// File and line of a rule.
type FileLine = (Arc<str>, u32);

struct Suffix {
    scope: Scope,
    terms: Terms,
    place: FileLine,
}

/// The rules that can make others redundant, by group.
#[derive(Default)]
struct Seen {
    /// First place of each rule, by its canonical form.
    first: HashMap<(Arc<str>, Box<str>), FileLine>,
    /// Wildcards, by the name behind the wildcard.
    suffixes: HashMap<(Arc<str>, Box<str>), Vec<Suffix>>,
}

impl Seen {
    fn note(&mut self, group: &Arc<str>, file: &Arc<str>, rule: &Rule<'_>) {
        let place = (Arc::clone(file), rule.line);
        let text = canonical(&rule.subject, rule.terms).into_boxed_str();
        self.first.entry((Arc::clone(group), text)).or_insert_with(|| place.clone());
        if let Subject::Name { base, scope } = &rule.subject
            && *scope != Scope::Exact
        {
            let rules = self.suffixes.entry((Arc::clone(group), Box::from(*base))).or_default();
            rules.push(Suffix { scope: *scope, terms: rule.terms.clone(), place });
        }
    }

    /// Returns the finding for a rule that changes nothing, and the place of the rule that makes it redundant.
    fn redundant(&self, group: &Arc<str>, file: &Arc<str>, rule: &Rule<'_>) -> Option<((String, String), FileLine)> {
        let own = (Arc::clone(file), rule.line);
        let text = canonical(&rule.subject, rule.terms).into_boxed_str();
        if let Some(first) = self.first.get(&(Arc::clone(group), text)).filter(|first| **first != own) {
            let message = format!("the same rule is at {}:{}", first.0, first.1);
            return Some(((message, "remove one of them".to_owned()), first.clone()));
        }
        let Subject::Name { base, scope } = &rule.subject else { return None };
        let mut depth = 0;
        let mut above = Some(*base);
        while let Some(name) = above {
            let rules = self.suffixes.get(&(Arc::clone(group), Box::from(name))).map_or(&[][..], Vec::as_slice);
            for suffix in rules.iter().filter(|suffix| suffix.place != own && reaches(suffix.scope, *scope, depth)) {
                let at = format!("{}:{}", suffix.place.0, suffix.place.1);
                if suffix.terms.effect == rule.terms.effect && covers(&suffix.terms, rule.terms) {
                    let message = format!("{} is covered by {at}", quote(rule.source));
                    return Some(((message, "remove it".to_owned()), suffix.place.clone()));
                }
                if suffix.terms.effect == Effect::Deny && refuses(&suffix.terms, rule.terms) {
                    let message = format!("{} is always refused by {at}", quote(rule.source));
                    return Some(((message, "remove one of them".to_owned()), suffix.place.clone()));
                }
            }
            above = name.split_once('.').map(|(_, parent)| parent);
            depth += 1;
        }
        None
    }
}

/// Returns whether a wildcard of scope `outer` covers all that one of scope `inner` does, `depth` labels below.
fn reaches(outer: Scope, inner: Scope, depth: usize) -> bool {
    match (outer, depth) {
        (Scope::Exact, _) => false,
        (Scope::SelfAndBelow, _) => true,
        (Scope::Below, 0) => matches!(inner, Scope::Below | Scope::OneLabel),
        (Scope::Below, _) => true,
        (Scope::OneLabel, 0) => inner == Scope::OneLabel,
        (Scope::OneLabel, 1) => inner == Scope::Exact,
        (Scope::OneLabel, _) => false,
    }
}

/// Returns whether everything that `inner` allows is also allowed by `outer`, in the same way and for as long.
fn covers(outer: &Terms, inner: &Terms) -> bool {
    // Both are rules that allow. Taken apart, so that the compiler asks about a new field.
    let Terms { effect: _, reach, ech_allowed, to, until } = outer;
    let lasts = until.is_none_or(|end| inner.until.is_some_and(|inner| inner <= end));
    lasts && *ech_allowed >= inner.ech_allowed && *to == inner.to && reach_covers(*reach, inner.reach)
}

/// Returns whether a `deny` leaves nothing of an `allow`.
fn refuses(deny: &Terms, allow: &Terms) -> bool {
    let lasts = deny.until.is_none_or(|end| allow.until.is_some_and(|allowed| allowed <= end));
    lasts && reach_covers(deny.reach, allow.reach)
}

fn reach_covers(outer: Reach, inner: Reach) -> bool {
    let holds = |outer: Ports, inner: Ports| {
        let within = outer.first <= inner.first && inner.last <= outer.last;
        // A rule that names one port lifts `blocked_ports` for it; a range does not.
        let lifts = inner.first == inner.last && !matches!(inner.first, 80 | 443);
        within && (outer == inner || !lifts)
    };
    let one = |port| Ports { first: port, last: port };
    match (outer, inner) {
        (outer, inner) if outer == inner => true,
        (Reach::Everything, _) => true,
        (Reach::Ports(ports) | Reach::Tcp(ports), Reach::Web) => holds(ports, one(80)) && holds(ports, one(443)),
        (Reach::Web, Reach::Http(ports)) => ports == one(80),
        (Reach::Web, Reach::Https(ports)) => ports == one(443),
        (Reach::Web, Reach::Ports(ports)) => ports == one(80) || ports == one(443),
        (Reach::Ports(outer), Reach::Ports(inner)) => holds(outer, inner),
        (Reach::Ports(ports), Reach::Http(inner)) => inner == one(80) && holds(ports, inner),
        (Reach::Ports(ports), Reach::Https(inner)) => inner == one(443) && holds(ports, inner),
        (Reach::Http(outer), Reach::Http(inner))
        | (Reach::Https(outer), Reach::Https(inner))
        | (Reach::Udp(outer), Reach::Udp(inner))
        | (Reach::Quic(outer), Reach::Quic(inner))
        | (Reach::Tcp(outer), Reach::Tcp(inner) | Reach::Ports(inner) | Reach::Http(inner) | Reach::Https(inner)) => {
            holds(outer, inner)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Date = Date::constant(2026, 11, 23);

    fn warnings(text: &str) -> Vec<String> {
        let files = Files::from_memory([("a.rules", text)]);
        lint(&files, TODAY, Usage::default()).unwrap().iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn says(text: &str, words: &str) {
        let warnings = warnings(text);
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{text}: {warnings:?}");
    }

    #[test]
    fn over_broad_rules_are_named() {
        says("*.com wide=yes\n", "unrelated owners");
        says("198.0.0.0/8\n", "whole of 198.0.0.0/8");
        says("tcp://good.test:*\n", "raw bytes on every TCP port");
        says("dns.google\n", "DNS over HTTPS");
        says("cloudflare-ech.com\n", "Encrypted ClientHello");
        assert!(warnings("deny dns.google\ndeny 0.0.0.0/0\n").is_empty());
    }

    #[test]
    fn rules_that_change_nothing_are_named() {
        says("good.test\nGOOD.test. note=x\n", "a.rules:2:1: warning: the same rule is at a.rules:1");
        says("www.good.test\n.good.test\n", "a.rules:1:1: warning: `www.good.test` is covered by a.rules:2");
        says("*.good.test\na.good.test\n", "a.rules:2:1");
        says("**.good.test\n*.a.good.test\n", "a.rules:2:1");
        says(".good.test:*\nhttps://a.good.test\n", "a.rules:2:1");
        says("deny .good.test\na.good.test\n", "always refused by a.rules:1");
    }

    #[test]
    fn rules_that_add_something_are_left_alone() {
        for text in [
            "*.good.test\ngood.test\n",
            "*.good.test\na.b.good.test\n",
            "**.good.test\ngood.test\n",
            ".good.test\na.good.test:8443\n",
            ".good.test:1-1024\na.good.test:25\n",
            ".good.test until=2027-06-01\na.good.test\n",
            ".good.test\na.good.test ech=allow\n",
            ".good.test\na.good.test to=10.0.0.5/32\n",
            ".good.test\ntcp://a.good.test:443\n",
            "deny .good.test:25\na.good.test\n",
        ] {
            assert_eq!(warnings(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn ends_are_told_in_time() {
        says("good.test until=2026-11-22\n", "expired on 2026-11-22");
        says("good.test until=2026-12-07\n", "ends in 14 days");
        assert!(warnings("good.test until=2026-12-08\n").is_empty());
    }

    #[test]
    fn a_guests_own_files_are_compared_with_no_others() {
        let files = Files::from_memory([("a.rules", ".good.test\n"), ("vm-7.rules", "a.good.test\n")]);
        assert_eq!(lint(&files, TODAY, Usage::default()).unwrap().len(), 1);
        let usage = Usage { apart: &["vm-7.rules".to_owned()], ..Usage::default() };
        assert!(lint(&files, TODAY, usage).unwrap().is_empty());
    }

    #[test]
    fn rules_nobody_used_are_named_where_use_is_known() {
        let rules = "a.test\nb.test\ndeny c.test\ndeny 203.0.113.7\nd.test until=2026-11-01\n";
        let found = unused(rules, &["a.test"]);
        assert_eq!(found.len(), 3, "{found:?}");
        let since = "since 2026-11-18, or since it was added; remove it if it is not needed";
        let never = |line, rule, did| {
            format!("a.rules:{line}:1: warning: `{rule}` was never used: it has {did} nothing {since}")
        };
        assert_eq!(found[..2], [never(2, "b.test", "allowed"), never(3, "deny c.test", "refused")]);
        assert!(found[2].contains("expired"));
    }

    #[test]
    fn whoever_follows_all_advice_at_once_loses_nothing_that_was_used() {
        // www.a.test is covered and .a.test covers it; the flow was only ever let through by both.
        let found = unused("www.a.test\n.a.test\nwww.b.test\n", &["www.a.test", "www.b.test"]);
        assert!(found.len() == 1 && found[0].contains("is covered by a.rules:2"), "{found:?}");
        // The covering rule is new, and no use of it was recorded yet.
        let found = unused("www.a.test\n.a.test\n", &[]);
        assert!(found.len() == 1 && found[0].contains("is covered by a.rules:2"), "{found:?}");
    }

    /// Returns the warnings after flows to these hosts were decided.
    fn unused(text: &str, hosts: &[&str]) -> Vec<String> {
        use outgate_policy::{Mode, Policy, PolicySettings, Unknown};
        use outgate_proto::identify::{Claim, Evidence};
        use outgate_proto::target::{Target, Transport};
        let files = Files::from_memory([("a.rules", text)]);
        let (rules, loaded) = crate::build(&files, TODAY).unwrap();
        let settings = PolicySettings {
            mode: Mode::Whitelist,
            ech_allowed: false,
            guests: Vec::new(),
            unknown: Unknown::Shared,
            blocked_ports: Vec::new(),
        };
        let policy = Policy::new(Arc::new(rules), settings).unwrap();
        for host in hosts {
            let claim = Claim {
                source: std::net::IpAddr::from([10, 0, 0, 1]).into(),
                target: Target::parse(host.as_bytes(), Some(443)).unwrap(),
                transport: Transport::Tcp,
                spoken: None,
                ech: false,
                evidence: Evidence::Sni,
            };
            assert!(policy.decide(&claim).is_ok(), "{host}");
        }
        let since = jiff::Timestamp::from_second(1_795_000_000).unwrap();
        let used = UsedLines::of(policy.rules(), loaded.fingerprint, since);
        let found = lint(&files, TODAY, Usage { used: Some(&used), apart: &[] }).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_shipped_lists_are_tidy() {
        assert_eq!(lint(&Files::shipped(), TODAY, Usage::default()).unwrap(), Vec::new());
    }
}
