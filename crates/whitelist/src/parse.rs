//! From the bytes of one file to rules, for every format: checks the text (UTF-8, control characters, a complete
//! last line), passes it to the parser of its format, and formats rules in canonical form.

use super::read::{Format, SourceFile};
use super::report::{Fault, Problems, is_invisible};
use super::{golem, native};
use jiff::civil::Date;
use outgate_files::diagnostic::Severity;
use outgate_policy::cooperate;
use outgate_policy::rule::{Effect, Ports, Reach, Scope, Subject, Terms};
use std::fmt::Write;
use std::sync::Arc;

/// One rule, borrowed from its file.
pub(super) struct Rule<'a> {
    /// Line, from 1.
    pub(super) line: u32,
    pub(super) subject: Subject<'a>,
    pub(super) terms: &'a Terms,
    /// As written, without a trailing comment.
    pub(super) source: &'a str,
    pub(super) owner: Option<&'a str>,
    pub(super) note: Option<&'a str>,
}

/// Accepts rules; a refusal becomes an error at the rule's line.
pub(super) type Take<'t> = &'t mut dyn FnMut(&Rule<'_>) -> Result<(), String>;

/// What the parser of a format works with.
pub(super) struct Context<'c> {
    /// Name of the file.
    pub(super) file: Arc<str>,
    /// Decides which rules are expired.
    pub(super) today: Date,
    /// Collects the findings.
    pub(super) problems: &'c mut Problems,
    /// Accepts the rules.
    pub(super) take: Take<'c>,
}

impl Context<'_> {
    /// Records an error in `line` (number and text).
    pub(super) fn error(&mut self, line: (u32, &str), fault: Fault) {
        self.problems.fault(&self.file, Severity::Error, line, fault);
    }

    /// Records a warning in `line` (number and text).
    pub(super) fn warn(&mut self, line: (u32, &str), fault: Fault) {
        self.problems.fault(&self.file, Severity::Warning, line, fault);
    }

    /// Passes a rule on.
    pub(super) fn rule(&mut self, line: &str, rule: &Rule<'_>) {
        if let Err(message) = (self.take)(rule) {
            self.error((rule.line, line), Fault::new(0, message, ""));
        }
    }
}

/// Parses one file.
pub(super) fn file(file: &SourceFile, today: Date, problems: &mut Problems, take: Take<'_>) {
    let mut context = Context { file: file.shared_name(), today, problems, take };
    let Some(text) = decode(file, &mut context) else { return };
    match file.format() {
        Format::Native => native::parse(text, &mut context),
        Format::Strict => golem::strict(text, &mut context),
        Format::Regex => golem::regex(text, &mut context),
        Format::Json => golem::json(text, &mut context),
        Format::ProviderRules => golem::rules(text, &mut context),
    }
}

/// Counts the lines that begin like a rule: with neither a blank nor a comment. The count means little for a JSON
/// file.
pub(super) fn count(text: &[u8]) -> usize {
    let begins = |pair: (&u8, &u8)| usize::from(*pair.0 == b'\n' && *pair.1 > b'#');
    let first = text.first().is_some_and(|byte| *byte > b'#');
    let rest = text.get(1..).unwrap_or_default();
    let pieces = cooperate::pieces(text).zip(rest.chunks(cooperate::PIECE));
    pieces.map(|(text, next)| text.iter().zip(next).map(begins).sum::<usize>()).sum::<usize>() + usize::from(first)
}

/// Returns the lines of a text with their numbers, without their line ends (LF or CRLF).
pub(super) fn lines(text: &str) -> impl Iterator<Item = (u32, &str)> {
    text.split_inclusive('\n').zip(1u32..).map(|(line, number)| {
        let line = line.strip_suffix('\n').unwrap_or(line);
        (number, line.strip_suffix('\r').unwrap_or(line))
    })
}

/// Returns the text of a file if it is sound; otherwise records the problem.
fn decode<'f>(file: &'f SourceFile, context: &mut Context<'_>) -> Option<&'f str> {
    let bytes = file.bytes();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default();
            let (number, line) = last_line(before);
            context.error((number, line), Fault::new(line.len(), "not UTF-8", "save the file as UTF-8"));
            return None;
        }
    };
    // Without a branch for each byte, the compiler can check several bytes at a time.
    let odd = |odd, byte: &u8| odd | (*byte < b' ' && *byte != b'\n' && *byte != b'\t') | (*byte >= 0x7f);
    let plain = !cooperate::pieces(bytes).any(|piece| piece.iter().fold(false, odd));
    let mut sound = plain || check_visible(text, context);
    // A truncated structured file does not parse. A truncated list of lines would parse, and its last line might
    // be the beginning of a longer one.
    if !matches!(file.format(), Format::Json | Format::ProviderRules) && !text.is_empty() && !text.ends_with('\n') {
        let (number, line) = last_line(text);
        let message = "the last line has no newline at its end, so it may be half written";
        context.error((number, line), Fault::new(line.len(), message, "end it with a newline"));
        sound = false;
    }
    sound.then_some(text)
}

/// Records every line that contains an invisible character, one finding a line. Returns whether there is none.
fn check_visible(text: &str, context: &mut Context<'_>) -> bool {
    let mut sound = true;
    for (number, line) in lines(text) {
        let hidden = |c: char| (c.is_control() && c != '\t') || is_invisible(c);
        if let Some((at, character)) = line.char_indices().find(|(_, c)| hidden(*c)) {
            let message = format!("control or invisible character U+{:04X}", u32::from(character));
            context.error((number, line), Fault::new(at, message, "remove it"));
            sound = false;
        }
    }
    sound
}

/// Returns number and text of the last line of `text`.
fn last_line(text: &str) -> (u32, &str) {
    let line = text.rsplit_once('\n').map_or(text, |(_, line)| line);
    let number = text.bytes().filter(|byte| *byte == b'\n').count();
    (u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1), line)
}

/// Formats a rule in canonical form: equal texts are equal rules. Golem's rules are written in the closest native
/// form.
pub(super) fn canonical(subject: &Subject<'_>, terms: &Terms) -> String {
    let mut text = String::new();
    let Terms { effect, reach, ech_allowed, to, until } = terms;
    if *effect == Effect::Deny {
        text.push_str("deny ");
    }
    let (scheme, ports) = match *reach {
        Reach::Web | Reach::Everything | Reach::Golem => ("", None),
        Reach::Ports(ports) => ("", Some(ports)),
        Reach::Http(ports) => ("http://", (ports != Ports { first: 80, last: 80 }).then_some(ports)),
        Reach::Https(ports) => ("https://", (ports != Ports { first: 443, last: 443 }).then_some(ports)),
        Reach::Tcp(ports) => ("tcp://", Some(ports)),
        Reach::Udp(ports) => ("udp://", Some(ports)),
        Reach::Quic(ports) => ("quic://", (ports != Ports { first: 443, last: 443 }).then_some(ports)),
    };
    text.push_str(scheme);
    push_subject(&mut text, subject);
    match ports {
        None => {}
        Some(Ports::ALL) => text.push_str(":*"),
        Some(Ports { first, last }) if first == last => _ = write!(text, ":{first}"),
        Some(Ports { first, last }) => _ = write!(text, ":{first}-{last}"),
    }
    if let Some(until) = until {
        _ = write!(text, " until={until}");
    }
    if *ech_allowed {
        text.push_str(" ech=allow");
    }
    for (index, net) in to.iter().flat_map(|nets| nets.iter()).enumerate() {
        _ = write!(text, "{}{net}", if index == 0 { " to=" } else { "," });
    }
    text
}

fn push_subject(text: &mut String, subject: &Subject<'_>) {
    let prefix = |scope: &Scope| match scope {
        Scope::Exact => "",
        Scope::OneLabel => "*.",
        Scope::Below => "**.",
        Scope::SelfAndBelow => ".",
    };
    match subject {
        Subject::Name { base, scope } => _ = write!(text, "{}{base}", prefix(scope)),
        Subject::Glob { pattern, scope } => _ = write!(text, "{}{pattern}", prefix(scope)),
        Subject::Regex(regex) => _ = write!(text, "/{regex}/"),
        Subject::SearchRegex(regex) => _ = write!(text, "search /{regex}/"),
        Subject::Net(net) if net.prefix_len() == net.max_prefix_len() => match net.addr() {
            std::net::IpAddr::V4(address) => _ = write!(text, "{address}"),
            std::net::IpAddr::V6(address) => _ = write!(text, "[{address}]"),
        },
        Subject::Net(ipnet::IpNet::V4(net)) => _ = write!(text, "{net}"),
        Subject::Net(ipnet::IpNet::V6(net)) => _ = write!(text, "[{}]/{}", net.addr(), net.prefix_len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_begin_like_a_rule_are_counted() {
        for (text, rules) in
            [("", 0), ("\n", 0), ("a.io\n", 1), ("# no\n\na.io\n\t\n*.b.io\n c.io\n", 2), ("[::1]:80\n.a", 2)]
        {
            assert_eq!(count(text.as_bytes()), rules, "{text:?}");
        }
        let long = "a.io\n".repeat(cooperate::PIECE);
        assert_eq!(count(long.as_bytes()), cooperate::PIECE);
        assert_eq!(count(&long.as_bytes()[..cooperate::PIECE + 1]), cooperate::PIECE.div_ceil(5));
    }
}
