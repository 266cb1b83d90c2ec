//! The native form, `*.rules`: one rule a line. Splits a line into `deny`, subject and options, and decides what
//! they mean together; [`subject`](super::subject) and [`options`](super::options) parse the parts.

use super::options::{self, Options};
use super::parse::{Context, Rule, lines};
use super::public_suffix;
use super::report::{Fault, quote};
use super::subject::{self, Owned};
use outgate_policy::rule::{Effect, Reach, Scope, Subject, Terms};
use outgate_proto::name::HostName;

/// The longest line, in bytes.
pub(super) const MAX_LINE: usize = 4096;

/// A rule taken from one line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) subject: Owned,
    pub(super) terms: Terms,
    /// The rule as written.
    pub(super) source: &'a str,
    pub(super) options: Options<'a>,
    /// Messages for the operator although the rule is valid.
    pub(super) warnings: Vec<Fault>,
}

/// Returns the terms of a host with nothing beside it.
pub(super) const fn plain_terms(effect: Effect, reach: Reach) -> Terms {
    Terms { effect, reach, ech_allowed: false, to: None, until: None }
}

/// Parses a whole file.
pub(super) fn parse(text: &str, context: &mut Context<'_>) {
    for (number, line) in lines(text) {
        if let Some((name, reach)) = plain_rule(line) {
            let subject = Subject::Name { base: name.as_str(), scope: Scope::Exact };
            let terms = &plain_terms(Effect::Allow, reach);
            let rule = Rule { line: number, subject, terms, source: line, owner: None, note: None };
            context.rule(line, &rule);
            continue;
        }
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some(parsed)) => pass_on(context, number, line, parsed),
            Err(fault) => context.error((number, line), fault),
        }
    }
}

fn pass_on(context: &mut Context<'_>, number: u32, line: &str, mut parsed: Line<'_>) {
    if let Some(until) = parsed.terms.until
        && until < context.today
    {
        let message = format!("the rule expired on {until} and allows nothing any more");
        parsed.warnings.push(Fault::new(0, message, "remove it, or give it a later date"));
    }
    for warning in parsed.warnings {
        context.warn((number, line), warning);
    }
    let Options { owner, note, .. } = parsed.options;
    let subject = parsed.subject.borrow();
    context.rule(line, &Rule { line: number, subject, terms: &parsed.terms, source: parsed.source, owner, note });
}

/// Parses the shape of nearly all lines of a long list: a name of several labels, perhaps with ports, and nothing
/// else. The result is that of [`parse_line`], in a third of the time.
fn plain_rule(line: &str) -> Option<(HostName, Reach)> {
    let (name, reach) = match line.bytes().position(|byte| byte == b':') {
        Some(at) => {
            let (name, ports) = line.split_at_checked(at)?;
            (name, Reach::Ports(subject::port_range(ports.get(1..)?).ok()?))
        }
        None => (line, Reach::Web),
    };
    let name = HostName::parse(name).ok()?;
    name.parent()?;
    Some((name, reach))
}

/// Parses one line (without its end); `None` for a blank line or a comment.
pub(super) fn parse_line(line: &str) -> Result<Option<Line<'_>>, Fault> {
    if line.len() > MAX_LINE {
        return Err(Fault::new(MAX_LINE, format!("the line is longer than {MAX_LINE} bytes"), "shorten it"));
    }
    let mut at = skip_blanks(line, 0)?;
    if ends(line, at) {
        return Ok(None);
    }
    let start = at;
    let mut effect = Effect::Allow;
    match word(line, at) {
        "deny" => {
            effect = Effect::Deny;
            at = skip_blanks(line, at + "deny".len())?;
            if ends(line, at) {
                return Err(Fault::new(at, "`deny` without a host", "write what to refuse, as `deny host`"));
            }
        }
        "allow" if !ends(line, skip_blanks(line, at + "allow".len())?) => {
            return Err(Fault::new(at, "a rule needs no word to allow", "leave out `allow`"));
        }
        _ => {}
    }
    let token = line.get(at..).unwrap_or_default();
    let length = subject::length(token).map_err(|fault| fault.shifted(at))?;
    let token = token.get(..length).unwrap_or_default();
    let parsed = subject::parse(token).map_err(|fault| fault.shifted(at))?;
    let (options, end) = options::parse(line, at + length)?;
    let source = line.get(start..end).unwrap_or_default();
    finish(parsed, (effect, at), options, source).map(Some)
}

/// Joins the parts of a rule and checks them against one another.
fn finish<'a>(
    parsed: subject::Parsed,
    (effect, at): (Effect, usize),
    options: Options<'a>,
    source: &'a str,
) -> Result<Line<'a>, Fault> {
    let mut warnings: Vec<Fault> = parsed.warnings.into_iter().map(|fault| fault.shifted(at)).collect();
    let reach = match (parsed.reach, effect) {
        (Reach::Web, Effect::Deny) => Reach::Everything,
        (reach, _) => reach,
    };
    if effect == Effect::Deny {
        if let Some(at) = options.ech_at {
            return Err(Fault::new(at, "`ech=allow` has no effect on a `deny`", "leave it out"));
        }
        if let Some(at) = options.to_at {
            let remedy = "leave it out; to deny addresses write `deny 192.0.2.0/24`";
            return Err(Fault::new(at, "`to=` has no effect on a `deny`", remedy));
        }
    } else if let Some(wide) = public_suffix::breadth(&parsed.subject) {
        let message = format!("{} {wide}", quote(source));
        if !options.wide {
            let remedy = format!("{}, or add `wide=yes` if it is intended", wide.remedy());
            return Err(Fault::new(at, message, remedy));
        }
        warnings.push(Fault::new(at, message, "`wide=yes` allows it"));
    }
    let terms =
        Terms { effect, reach, ech_allowed: options.ech_at.is_some(), to: options.to.clone(), until: options.until };
    Ok(Line { subject: parsed.subject, terms, source, options, warnings })
}

/// Returns whether the rest of the line is empty or a comment.
pub(super) fn ends(line: &str, at: usize) -> bool {
    line.get(at..).is_none_or(|rest| rest.is_empty() || rest.starts_with('#'))
}

/// Returns where the next thing in the line starts.
pub(super) fn skip_blanks(line: &str, from: usize) -> Result<usize, Fault> {
    let rest = line.get(from..).unwrap_or_default();
    let at = from + rest.len() - rest.trim_start_matches([' ', '\t']).len();
    match line.get(at..).and_then(|rest| rest.chars().next()) {
        Some(blank) if blank.is_whitespace() => Err(odd_blank(at, blank)),
        _ => Ok(at),
    }
}

/// Returns the fault for white space that is neither space nor tab.
pub(super) fn odd_blank(at: usize, blank: char) -> Fault {
    let message = format!("white space U+{:04X} that is not a plain space", u32::from(blank));
    Fault::new(at, message, "use plain spaces")
}

/// Returns the text from `at` to the next blank or comment.
pub(super) fn word(line: &str, at: usize) -> &str {
    let rest = line.get(at..).unwrap_or_default();
    rest.get(..rest.find([' ', '\t', '#']).unwrap_or(rest.len())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use outgate_policy::rule::Ports;
    use proptest::prelude::*;

    #[test]
    fn long_lists_take_the_short_way() {
        for (line, reach) in [
            ("ipfs.io", Reach::Web),
            ("IPFS.io.", Reach::Web),
            ("ipfs.io:8443", Reach::Ports(Ports { first: 8443, last: 8443 })),
            ("ipfs.io:8000-8100", Reach::Ports(Ports { first: 8000, last: 8100 })),
            ("a_b.ipfs.io:*", Reach::Ports(Ports::ALL)),
        ] {
            assert_eq!(plain_rule(line).map(|(_, reach)| reach), Some(reach), "{line}");
        }
    }

    proptest! {
        #[test]
        fn the_short_way_leads_to_the_same_rule(
            line in "[aB.-]{0,3}[a-z0-9_.:/#@ *\\[-]{0,12}(\\.(io|test|1|))?(:([0-9*-]{1,6}|44[23]|80-9[0-9]))?[ /#é.]?"
        ) {
            let Some((name, reach)) = plain_rule(&line) else { return Ok(()) };
            let parsed = parse_line(&line).map_err(|fault| TestCaseError::fail(format!("{line}: {fault:?}")))?;
            let parsed = parsed.ok_or_else(|| TestCaseError::fail(line.clone()))?;
            let Owned::Name { base, scope: Scope::Exact } = &parsed.subject else {
                return Err(TestCaseError::fail(format!("{line}: {parsed:?}")));
            };
            prop_assert_eq!(base, &name);
            prop_assert_eq!(&parsed.terms, &plain_terms(Effect::Allow, reach));
            prop_assert_eq!(parsed.source, line.as_str());
            prop_assert!(parsed.warnings.is_empty(), "{}: {:?}", line, parsed.warnings);
            prop_assert_eq!((parsed.options.owner, parsed.options.note), (None, None));
        }
    }
}
