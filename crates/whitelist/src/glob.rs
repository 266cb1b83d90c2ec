//! Globs inside labels: checks a pattern, converts it to the form that the policy expects (lower case, A-labels),
//! and splits it for the public-suffix guard. The policy does the matching.

use super::report::{Fault, quote};
use super::subject::literal;
use outgate_policy::rule::Scope;
use outgate_proto::name::HostName;

/// The most names that the braces of a pattern may stand for.
pub(super) const MAX_EXPANSIONS: usize = 256;

/// Returns whether the text contains any glob syntax.
pub(super) fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', ']', '{', '}', ',', '!'])
}

/// Checks a pattern and converts it to canonical form.
pub(super) fn parse(text: &str, warnings: &mut Vec<Fault>) -> Result<String, Fault> {
    let text = text.strip_suffix('.').unwrap_or(text);
    check(text)?;
    let mut pattern = String::with_capacity(text.len());
    let mut at = 0;
    for label in text.split('.') {
        if at > 0 {
            pattern.push('.');
        }
        match (is_glob(label), label.is_ascii()) {
            (_, true) => pattern.push_str(&label.to_ascii_lowercase()),
            (false, false) => {
                let name = literal(label, warnings).map_err(|fault| fault.shifted(at))?;
                pattern.push_str(name.as_str());
            }
            (true, false) => {
                let message = "a glob in a label that is not ASCII";
                return Err(Fault::new(at, message, "write the label's A-label form (`xn--…`), without globs"));
            }
        }
        at += label.len() + 1;
    }
    check_lengths(&pattern)?;
    if expansions(&pattern) > MAX_EXPANSIONS {
        let message = format!("the braces stand for more than {MAX_EXPANSIONS} names");
        return Err(Fault::new(0, message, "write them on several lines"));
    }
    if pattern.starts_with("*.*.") {
        let stars = pattern.split('.').take_while(|label| *label == "*").count();
        let base = pattern.split('.').skip(stars).collect::<Vec<_>>().join(".");
        let message = format!("{} matches exactly {stars} labels in front", quote(text));
        warnings.push(Fault::new(0, message, format!("write `**.{base}` for one or more")));
    }
    Ok(pattern)
}

/// Checks classes, braces and stars, and that every other character is allowed in a name.
fn check(text: &str) -> Result<(), Fault> {
    let mut rest = text;
    let mut in_braces = false;
    while let Some(character) = rest.chars().next() {
        let at = text.len() - rest.len();
        let mut used = character.len_utf8();
        match character {
            '*' if rest.starts_with("**") => {
                let remedy = "`**.` goes in front of a rule, for one or more labels; within a label write `*`";
                return Err(Fault::new(at, "`**` within a name", remedy));
            }
            '*' | '?' => {}
            '[' => used = check_class(rest).map_err(|fault| fault.shifted(at))?,
            '{' if in_braces => return Err(Fault::new(at, "braces within braces", "write them as one list")),
            '{' => {
                check_braces(rest).map_err(|fault| fault.shifted(at))?;
                in_braces = true;
            }
            '}' if in_braces => in_braces = false,
            ',' if in_braces => {}
            ',' => return Err(Fault::new(at, "a comma outside braces", "write one rule per line")),
            ']' | '}' => {
                return Err(Fault::new(
                    at,
                    format!("`{character}` without its opening bracket"),
                    "open it, or leave it out",
                ));
            }
            '!' => return Err(Fault::new(at, "a `!`", "to refuse names write a `deny` rule")),
            '.' if in_braces => {
                return Err(Fault::new(at, "a dot within braces", "write each name on a line of its own"));
            }
            '.' | '-' | '_' => {}
            _ if character.is_ascii_alphanumeric() || !character.is_ascii() => {}
            _ => {
                let message = format!("{} is not allowed in a host name", quote(&character.to_string()));
                return Err(Fault::new(at, message, "letters, digits, `-`, `_`, `.` and globs are allowed"));
            }
        }
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok(())
}

/// Checks the braces that `text` starts with.
fn check_braces(text: &str) -> Result<(), Fault> {
    let Some(close) = text.find('}') else {
        return Err(Fault::new(0, "the braces are not closed", "write `{a,b}`, without spaces"));
    };
    let inner = text.get(1..close).unwrap_or_default();
    if inner.split(',').any(str::is_empty) {
        return Err(Fault::new(0, "an empty alternative in braces", "write the name without it on a line of its own"));
    }
    Ok(())
}

/// Checks the class that `text` starts with; returns its length in bytes.
fn check_class(text: &str) -> Result<usize, Fault> {
    let Some(close) = text.find(']') else {
        return Err(Fault::new(0, "the class is not closed", "write `[0-9]`"));
    };
    let inner = text.get(1..close).unwrap_or_default();
    if inner.starts_with(['!', '^']) {
        let remedy = "list the allowed characters, as `[a-z0-9]`";
        return Err(Fault::new(1, "a negated class", remedy));
    }
    if inner.is_empty() {
        return Err(Fault::new(0, "an empty class", "list the allowed characters, as `[a-z0-9]`"));
    }
    let inner = inner.to_ascii_lowercase();
    let mut characters = inner.chars().peekable();
    while let Some(first) = characters.next() {
        let range = characters.peek() == Some(&'-') && characters.clone().nth(1).is_some();
        let last = if range {
            characters.next();
            characters.next().unwrap_or(first)
        } else {
            first
        };
        let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || (!range && matches!(c, '-' | '_'));
        let ordered = first <= last && first.is_ascii_digit() == last.is_ascii_digit();
        if !(sound(first) && sound(last) && ordered) {
            let message = format!("{} is not a class of characters of a name", quote(&format!("[{inner}]")));
            return Err(Fault::new(0, message, "write characters and ranges of `a-z`, `0-9`, `-` and `_`"));
        }
    }
    Ok(close + 1)
}

/// Checks the lengths of the labels, using the shortest names that the pattern matches.
fn check_lengths(pattern: &str) -> Result<(), Fault> {
    let mut choices = 1;
    for label in pattern.split('.') {
        choices = choices.max(alternatives(label));
    }
    for choice in 0..choices.min(MAX_EXPANSIONS) {
        let name = pattern.split('.').map(|label| sample(label, choice)).collect::<Vec<_>>().join(".");
        HostName::parse(&name).map_err(|error| Fault::new(0, error.to_string(), ""))?;
    }
    Ok(())
}

/// Returns a name that the label matches; `choice` selects the alternative of its braces.
fn sample(label: &str, choice: usize) -> String {
    let picked = pick(label, choice);
    let mut name = String::new();
    let mut class: Option<bool> = None;
    for character in picked.chars() {
        match (character, &mut class) {
            ('[', None) => {
                class = Some(false);
                name.push('a');
            }
            (']', Some(_)) => class = None,
            (_, Some(_)) => {}
            ('*' | '?', None) => name.push('a'),
            (plain, None) => name.push(plain),
        }
    }
    name
}

/// Returns the label with each of its braces replaced by one alternative.
fn pick(label: &str, choice: usize) -> String {
    let mut picked = String::new();
    let mut rest = label;
    while let Some((before, braces)) = rest.split_once('{') {
        picked.push_str(before);
        let (inner, after) = braces.split_once('}').unwrap_or((braces, ""));
        let count = inner.split(',').count().max(1);
        picked.push_str(inner.split(',').nth(choice % count).unwrap_or_default());
        rest = after;
    }
    picked.push_str(rest);
    picked
}

/// Returns the largest number of alternatives in one pair of braces of the label.
fn alternatives(label: &str) -> usize {
    label
        .split('{')
        .skip(1)
        .map(|braces| braces.split('}').next().unwrap_or_default().split(',').count())
        .max()
        .unwrap_or(1)
}

/// Returns how many texts the braces of a pattern stand for.
fn expansions(pattern: &str) -> usize {
    let braces = pattern.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or_default());
    braces.fold(1, |product: usize, inner| product.saturating_mul(inner.split(',').count()))
}

/// Returns whether the label matches more than the names that its braces list.
pub(super) fn is_open(label: &str) -> bool {
    label.contains(['*', '?', '['])
}

/// Returns every text that the braces of a pattern stand for, at most [`MAX_EXPANSIONS`].
pub(super) fn expand(pattern: &str) -> Vec<String> {
    let mut texts = vec![String::new()];
    let mut rest = pattern;
    loop {
        let (before, braces) = rest.split_once('{').map_or((rest, None), |(before, braces)| (before, Some(braces)));
        texts.iter_mut().for_each(|text| text.push_str(before));
        let Some(braces) = braces else { return texts };
        let (inner, after) = braces.split_once('}').unwrap_or((braces, ""));
        let joined = texts.iter().flat_map(|text| inner.split(',').map(move |one| format!("{text}{one}")));
        texts = joined.take(MAX_EXPANSIONS).collect();
        rest = after;
    }
}

/// Returns a regex for whole names that matches the same names as the pattern.
pub(super) fn regex(pattern: &str, scope: Scope) -> String {
    let label = "[a-z0-9_-]";
    let mut regex = match scope {
        Scope::Exact | Scope::OneLabel => String::new(),
        Scope::Below => format!(r"(?:{label}+\.)+"),
        Scope::SelfAndBelow => format!(r"(?:{label}+\.)*"),
    };
    let mut in_class = false;
    for character in pattern.chars() {
        match character {
            '[' | ']' => {
                in_class = character == '[';
                regex.push(character);
            }
            _ if in_class => regex.push(character),
            '*' => regex.push_str(&format!("{label}*")),
            '?' => regex.push_str(label),
            '.' => regex.push_str(r"\."),
            '{' => regex.push_str("(?:"),
            '}' => regex.push(')'),
            ',' => regex.push('|'),
            plain => regex.push(plain),
        }
    }
    regex
}
