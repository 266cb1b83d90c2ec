//! Golem's own files, read as yagna reads them, except for what would allow everything by accident: `*.lst` with
//! one host or one regex a line, and `domain_whitelist.json`. They name no ports ([`Reach::Golem`]). The
//! public-suffix guard only warns about them, since they come from elsewhere and their regexes are searched for,
//! not anchored.

use super::native::{MAX_LINE, plain_terms};
use super::parse::{Context, Rule, lines};
use super::pattern::{self, Matching};
use super::report::{Fault, quote};
use super::subject::literal;
use ipnet::IpNet;
use outgate_golem::rules::{self as provider, Mode, Outbound};
use outgate_policy::rule::{Effect, Reach, Scope, Subject, Terms};
use outgate_proto::target::Host;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

const TERMS: Terms = plain_terms(Effect::Allow, Reach::Golem);

/// Parses `strict.lst`: one exact host or address a line.
pub(super) fn strict(text: &str, context: &mut Context<'_>) {
    for (number, line) in lines(text) {
        if line.trim().is_empty() {
            context.warn((number, line), Fault::new(0, "a blank line", "remove it; it has no effect here"));
            continue;
        }
        strict_entry(context, (number, line), line);
    }
}

/// Parses `regex.lst`: one regex a line.
pub(super) fn regex(text: &str, context: &mut Context<'_>) {
    for (number, line) in lines(text) {
        regex_entry(context, (number, line), line);
    }
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    patterns: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    domain: Cow<'a, str>,
    #[serde(default, rename = "match")]
    matching: provider::Matching,
}

/// Parses `domain_whitelist.json`.
pub(super) fn json(text: &str, context: &mut Context<'_>) {
    let document: Document<'_> = match serde_json::from_str(text) {
        Ok(document) => document,
        Err(error) => return bad_json(text, &error, context),
    };
    let mut cursor = Cursor { text, at: 0, line: 1, line_at: 0 };
    for raw in document.patterns {
        let (number, column) = cursor.find(raw.get());
        // The entry takes the place of its line, since a document may be one line of any length; `indent` restores
        // the column.
        let indent = " ".repeat(column.min(MAX_LINE));
        match serde_json::from_str::<Entry<'_>>(raw.get()) {
            Ok(Entry { domain, matching: provider::Matching::Strict }) => {
                strict_entry(context, (number, &indent), &domain)
            }
            Ok(Entry { domain, matching: provider::Matching::Regex }) => {
                regex_entry(context, (number, &indent), &domain)
            }
            Err(error) => {
                let message = format!("not an entry of a whitelist: {}", without_place(&error));
                let remedy = r#"write `{"domain":"example.com","match":"strict"}`, or `"regex"`"#;
                context.error((number, &indent), Fault::new(indent.len(), message, remedy));
            }
        }
    }
}

/// Checks a provider's `rules.json`. It contains no hosts, only the guests' mode, which is read once the whole set
/// is valid.
pub(super) fn rules(text: &str, context: &mut Context<'_>) {
    match Outbound::parse(text.as_bytes()).map(|rules| rules.without_manifest()) {
        Err(error) => at_place_of(text, &error, "not valid rules of ya-provider", "let ya-provider write it", context),
        Ok(Mode::All) => {
            let message = "`everyone` is `all`: every guest without a mode of its own reaches every public address";
            let remedy = "set [golem].max_mode to \"whitelist\" if that is not intended";
            context.warn((1, ""), Fault::new(0, message, remedy));
        }
        Ok(Mode::None | Mode::Whitelist) => {}
    }
}

fn bad_json(text: &str, error: &serde_json::Error, context: &mut Context<'_>) {
    let remedy = r#"the form is `{"patterns":[{"domain":…,"match":…}]}`"#;
    at_place_of(text, error, "not valid JSON of a whitelist", remedy, context);
}

/// Reports an error in a multi-line document at the error's own line.
fn at_place_of(text: &str, error: &serde_json::Error, what: &str, remedy: &str, context: &mut Context<'_>) {
    let number = u32::try_from(error.line()).unwrap_or(u32::MAX).max(1);
    let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
    let message = format!("{what}: {}", without_place(error));
    let column = error.column().saturating_sub(1).min(line.len());
    let at = (0..=column).rev().find(|at| line.is_char_boundary(*at)).unwrap_or_default();
    context.error((number, line), Fault::new(at, message, remedy));
}

/// Returns serde_json's message without its own " at line 1 column 2", and cut: it may quote the file.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    quote(text).trim_matches('`').to_owned()
}

/// Locates entries in the text that they are slices of, in one pass.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    line_at: usize,
}

impl Cursor<'_> {
    /// Returns the line of `part`, a slice of the text behind the last one found, and the number of characters in
    /// front of it.
    fn find(&mut self, part: &str) -> (u32, usize) {
        let to = part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr()).min(self.text.len());
        let passed = self.text.get(self.at..to).unwrap_or_default();
        if let Some(last) = passed.rfind('\n') {
            let lines = passed.bytes().filter(|byte| *byte == b'\n').count();
            self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
            self.line_at = self.at + last + 1;
        }
        self.at = to.max(self.at);
        let line = self.text.get(self.line_at..to).unwrap_or_default();
        (self.line, line.chars().take(MAX_LINE).count())
    }
}

/// Handles one exact host; `place` is the part of its line in front of the entry.
fn strict_entry(context: &mut Context<'_>, place: (u32, &str), entry: &str) {
    let before = column_of(place.1, entry);
    if let Some(address) = address(entry) {
        return emit(context, place, Subject::Net(IpNet::from(address)), entry);
    }
    let mut warnings = Vec::new();
    match literal(entry, &mut warnings) {
        Ok(name) => {
            for warning in warnings {
                context.warn(place, warning.shifted(before));
            }
            emit(context, place, Subject::Name { base: name.as_str(), scope: Scope::Exact }, entry);
        }
        Err(fault) => {
            let message = format!("{} is neither a host nor an address: {}", quote(entry), fault.message);
            let remedy = "write one exact host or address; comments, wildcards and ports are not allowed here";
            context.error(place, Fault::new(before, message, remedy));
        }
    }
}

fn address(entry: &str) -> Option<IpAddr> {
    match Host::parse(entry.as_bytes()) {
        Ok(Host::Addr(address)) => Some(address),
        Ok(Host::Name(_)) => None,
        Err(_) if entry.contains(':') => entry.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        Err(_) => None,
    }
}

/// Handles one regex of yagna's.
fn regex_entry(context: &mut Context<'_>, place: (u32, &str), entry: &str) {
    let before = column_of(place.1, entry);
    if entry.len() > MAX_LINE {
        let message = format!("the regex is longer than {MAX_LINE} bytes");
        return context.error(place, Fault::new(before, message, "shorten it"));
    }
    if entry.trim_start().is_empty() || entry.trim_start().starts_with('#') {
        let message = "a blank or comment line is an empty regex to yagna, and matches every name";
        return context.error(place, Fault::new(before, message, "remove it"));
    }
    // yagna does the same, which turns `\S` into `\s`.
    let folded = entry.to_lowercase();
    if let Some(class) = changed_class(entry) {
        let message = format!("to yagna `\\{class}` is `\\{}`: it lower-cases the regex", class.to_ascii_lowercase());
        context.warn(place, Fault::new(before, message, "write the class out, as in `[^0-9]`"));
    }
    let pattern = match pattern::analyse(&folded, Matching::Search) {
        Ok(pattern) => pattern,
        Err(mut fault) => {
            // In a JSON document an escape shifts what follows it, so the start of the entry is the best place to
            // report.
            fault.at = if before == 0 { fault.at } else { before };
            return context.error(place, fault);
        }
    };
    if pattern.matches_nothing {
        context
            .warn(place, Fault::new(before, format!("the regex {} matches no host name", quote(entry)), "remove it"));
    }
    if let Some(wide) = pattern.wide {
        let message = format!("the regex {} {wide}", quote(entry));
        let remedy = r"anchor it and escape its dots, as in `^name\.example\.com$`";
        context.warn(place, Fault::new(before, message, remedy));
    }
    emit(context, place, Subject::SearchRegex(&folded), entry);
}

/// Returns the first escape of a regex that means something else in lower case.
fn changed_class(regex: &str) -> Option<char> {
    let mut escaped = false;
    regex.chars().find(|character| {
        let found = escaped && matches!(character, 'A' | 'B' | 'D' | 'P' | 'S' | 'U' | 'W');
        escaped = !escaped && *character == '\\';
        found
    })
}

/// Returns where an entry starts: at the start of a line that is the entry, else behind the indent.
fn column_of(line: &str, entry: &str) -> usize {
    if line == entry { 0 } else { line.len() }
}

fn emit(context: &mut Context<'_>, place: (u32, &str), subject: Subject<'_>, source: &str) {
    let rule = Rule { line: place.0, subject, terms: &TERMS, source, owner: None, note: None };
    context.rule(place.1, &rule);
}
