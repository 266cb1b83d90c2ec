//! The options that may follow a rule in its line: `until=`, `owner=`, `note=`, `ech=`, `to=`, `wide=`, in any
//! order, each once. [`native`](super::native) decides what they mean together with the rule.

use super::native::{ends, odd_blank, skip_blanks};
use super::report::{Fault, quote};
use super::subject::parse_net;
use ipnet::IpNet;
use jiff::civil::Date;
use outgate_proto::enum_of_words;
use std::sync::Arc;

enum_of_words! {
    /// The options.
    enum OptionKey {
        Until = "until",
        Owner = "owner",
        Note = "note",
        Ech = "ech",
        To = "to",
        Wide = "wide",
    }
    /// Returns the word in front of `=`.
    fn word
}

/// The most ranges in one `to=`.
const MAX_TO: usize = 64;

/// The options of one rule.
#[derive(Debug, Default)]
pub(super) struct Options<'a> {
    pub(super) until: Option<Date>,
    pub(super) owner: Option<&'a str>,
    pub(super) note: Option<&'a str>,
    /// Position of `ech=allow`.
    pub(super) ech_at: Option<usize>,
    pub(super) to: Option<Arc<[IpNet]>>,
    /// Position of `to=`.
    pub(super) to_at: Option<usize>,
    /// `wide=yes`.
    pub(super) wide: bool,
}

/// Parses the options of `line` from byte `from` on. Also returns where the last item before a comment ends.
pub(super) fn parse(line: &str, from: usize) -> Result<(Options<'_>, usize), Fault> {
    let mut options = Options::default();
    let mut seen: [bool; OptionKey::ALL.len()] = Default::default();
    let mut end = from;
    loop {
        let at = skip_blanks(line, end)?;
        if ends(line, at) {
            return Ok((options, end));
        }
        if at == end {
            return Err(Fault::new(at, "a space is missing here", "put a space in front of each option"));
        }
        let option = split(line, at)?;
        let known = OptionKey::ALL.into_iter().zip(&mut seen).find(|(key, _)| key.word() == option.key);
        let key = match known {
            None => return Err(unknown(at, option.key)),
            Some((_, seen)) if *seen => {
                return Err(Fault::new(at, format!("`{}=` is there twice", option.key), "leave one of them out"));
            }
            Some((key, seen)) => {
                *seen = true;
                key
            }
        };
        set(&mut options, at, key, &option)?;
        end = option.end;
    }
}

struct Written<'a> {
    key: &'a str,
    value: &'a str,
    /// Where the value starts.
    value_at: usize,
    /// Where the option ends.
    end: usize,
}

/// Splits `key=value` or `key="value"`.
fn split(line: &str, at: usize) -> Result<Written<'_>, Fault> {
    let rest = line.get(at..).unwrap_or_default();
    let stop = rest.find(|c: char| c == '=' || c == '#' || c.is_whitespace()).unwrap_or(rest.len());
    let key = rest.get(..stop).unwrap_or_default();
    let Some(value) = rest.get(stop..).and_then(|rest| rest.strip_prefix('=')) else {
        return Err(not_an_option(at, key));
    };
    let value_at = at + stop + 1;
    if let Some(quoted) = value.strip_prefix('"') {
        let Some(length) = quoted.find('"') else {
            return Err(Fault::new(value_at, "the quote is not closed", "end the text with `\"`"));
        };
        let value = quoted.get(..length).unwrap_or_default();
        return Ok(Written { key, value, value_at: value_at + 1, end: value_at + length + 2 });
    }
    let length = value.find(|c: char| c == '#' || c.is_whitespace()).unwrap_or(value.len());
    if let Some(blank) = value.get(length..).and_then(|rest| rest.chars().next())
        && !matches!(blank, ' ' | '\t' | '#')
    {
        return Err(odd_blank(value_at + length, blank));
    }
    let value = value.get(..length).unwrap_or_default();
    Ok(Written { key, value, value_at, end: value_at + length })
}

fn not_an_option(at: usize, word: &str) -> Fault {
    let message = format!("unexpected {} after the rule", quote(word));
    if word.contains('.') {
        return Fault::new(at, message, "write one rule per line");
    }
    Fault::new(at, message, format!("{}; a comment starts with `#`", all_keys()))
}

fn unknown(at: usize, key: &str) -> Fault {
    let message = format!("unknown option {}", quote(key));
    let folded = key.to_ascii_lowercase();
    let nearest = OptionKey::ALL
        .map(OptionKey::word)
        .map(|known| (strsim::damerau_levenshtein(known, &folded), known))
        .into_iter()
        .min();
    match nearest {
        Some((distance, known)) if distance <= 2 && distance < known.len() => {
            Fault::new(at, message, format!("did you mean `{known}=`?"))
        }
        _ => Fault::new(at, message, all_keys()),
    }
}

/// Returns the sentence that names all options.
fn all_keys() -> String {
    let [first @ .., last] = OptionKey::ALL.map(|key| format!("`{}=`", key.word()));
    format!("the options are {} and {last}", first.join(", "))
}

fn set<'a>(options: &mut Options<'a>, at: usize, key: OptionKey, option: &Written<'a>) -> Result<(), Fault> {
    let value = option.value;
    if value.is_empty() {
        return Err(Fault::new(at, format!("`{}=` has no value", option.key), "give it one, or leave it out"));
    }
    let only = |wanted: &str| {
        if value == wanted {
            return Ok(());
        }
        let message = format!("{} is not a value of `{}=`", quote(value), option.key);
        Err(Fault::new(option.value_at, message, format!("the only one is `{}={wanted}`", option.key)))
    };
    match key {
        OptionKey::Until => {
            options.until = Some(date(value).ok_or_else(|| {
                let message = format!("{} is not a date", quote(value));
                Fault::new(option.value_at, message, "write year, month and day, as `until=2027-01-31`")
            })?)
        }
        OptionKey::Owner => options.owner = Some(value),
        OptionKey::Note => options.note = Some(value),
        OptionKey::Ech => {
            only("allow")?;
            options.ech_at = Some(at);
        }
        OptionKey::Wide => {
            only("yes")?;
            options.wide = true;
        }
        OptionKey::To => {
            options.to = Some(nets(value).map_err(|fault| fault.shifted(option.value_at))?);
            options.to_at = Some(at);
        }
    }
    Ok(())
}

/// Parses a date as `YYYY-MM-DD`, in no other notation.
fn date(text: &str) -> Option<Date> {
    let mut parts = text.split('-');
    let mut number = |length: usize| {
        let part = parts.next()?;
        let digits = part.len() == length && part.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| part.parse::<i16>().ok()).flatten()
    };
    let (year, month, day) = (number(4)?, number(2)?, number(2)?);
    if parts.next().is_some() {
        return None;
    }
    Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()
}

/// Parses ranges, separated by commas; IPv6 with or without brackets.
fn nets(text: &str) -> Result<Arc<[IpNet]>, Fault> {
    let mut nets = Vec::new();
    let mut at = 0;
    for part in text.split(',') {
        nets.push(parse_net(part).map_err(|fault| fault.shifted(at))?);
        at += part.len() + 1;
    }
    if nets.len() > MAX_TO {
        let message = format!("more than {MAX_TO} ranges in one `to=`");
        return Err(Fault::new(0, message, "join them into larger ones"));
    }
    nets.sort();
    nets.dedup();
    Ok(Arc::from(nets))
}
