//! What a regex matches. It is parsed as syntax and never run on anything that a guest sent. The analysis finds
//! errors with their place, decides whether the regex stays within one owner's names, and constructs a matching
//! name of somebody else. The policy does the matching.
//!
//! The method: restrict the regex to the characters of names, look at the literals that every match must end in,
//! and ask the public-suffix guard about the part behind the first dot.

use super::public_suffix::{self, Depth, Wide};
use super::report::Fault;
use outgate_proto::name::HostName;
use regex_syntax::ast::{self, Ast};
use regex_syntax::hir::literal::{ExtractKind, Extractor, Literal};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look};

/// The deepest nesting accepted.
const NEST_LIMIT: u32 = 50;
/// How many literal endings are examined.
const LITERALS: usize = 512;
/// The longest name that is constructed.
const SAMPLE: usize = 253;
/// Size limit, in bytes, of the compiled regex when an example is tried.
const COMPILED: usize = 1 << 20;

/// How a regex is matched against a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matching {
    /// It must match the whole name (the native form).
    Whole,
    /// It is searched for in the name, case and white space ignored (Golem's).
    Search,
}

/// What is known of a regex.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// Set if it matches names of unrelated owners.
    pub(super) wide: Option<Wide>,
    /// It contains capitals, and was read as case-insensitive; the policy should do the same.
    pub(super) upper_case: bool,
    /// It matches no name.
    pub(super) matches_nothing: bool,
}

/// Analyses a regex; faults are at byte offsets within `text`.
pub(super) fn analyse(text: &str, matching: Matching) -> Result<Pattern, Fault> {
    let search = matching == Matching::Search;
    if !search && let Some((at, _)) = text.char_indices().find(|(_, c)| !c.is_ascii()) {
        let remedy = "names are compared in A-label form; write `xn--…`";
        return Err(Fault::new(at, "a character in a regex that is not ASCII", remedy));
    }
    let ast = parser(search).parse(text).map_err(|error| {
        let message = format!("regex: {}", error.kind());
        Fault::new(
            error.span().start.offset,
            message,
            "write a dot of the name as `\\.`; the syntax is that of Rust's regex crate",
        )
    })?;
    let letters = letters(&ast);
    let hir = translator(search || letters.upper_case).translate(text, &ast).map_err(|error| {
        Fault::new(error.span().start.offset, format!("regex: {}", error.kind()), "use simpler syntax")
    })?;
    if matches!(hir.kind(), HirKind::Empty) {
        let message = if search { "an empty regex, which matches every name" } else { "an empty regex" };
        return Err(Fault::new(0, message, "remove it"));
    }
    let names = restrict(&hir);
    let nothing = matches!(names.kind(), HirKind::Class(class) if class.is_empty());
    let mut wide = if nothing { None } else { breadth(&names, matching, letters.classes) };
    if let Some(wide) = &mut wide {
        wide.example = stranger(text, &names, matching, &wide.example).unwrap_or_default();
    }
    Ok(Pattern { wide, upper_case: letters.upper_case, matches_nothing: nothing })
}

/// Returns a name that a regex, already known to be too wide, matches, and that belongs to a different owner than
/// most of what it matches; empty if none is found. `first` is tried before others.
pub(super) fn example(text: &str, first: &str) -> String {
    let hir = parser(false).parse(text).ok().and_then(|ast| translator(false).translate(text, &ast).ok());
    hir.and_then(|hir| stranger(text, &restrict(&hir), Matching::Whole, first)).unwrap_or_default()
}

fn parser(search: bool) -> ast::parse::Parser {
    ast::parse::ParserBuilder::new().nest_limit(NEST_LIMIT).ignore_whitespace(search).build()
}

fn translator(folding: bool) -> regex_syntax::hir::translate::Translator {
    regex_syntax::hir::translate::TranslatorBuilder::new().case_insensitive(folding).build()
}

/// Properties that the syntax tree shows and the translated form does not.
#[derive(Default)]
struct Letters {
    /// A capital, inside or outside a class.
    upper_case: bool,
    /// A class of characters or a dot; alternatives of single letters become classes only later.
    classes: bool,
}

impl ast::Visitor for Letters {
    type Output = Letters;
    type Err = std::convert::Infallible;

    fn finish(self) -> Result<Letters, Self::Err> {
        Ok(self)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        match ast {
            Ast::Literal(literal) => self.upper_case |= literal.c.is_ascii_uppercase(),
            Ast::Dot(_) | Ast::ClassUnicode(_) | Ast::ClassPerl(_) | Ast::ClassBracketed(_) => self.classes = true,
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), Self::Err> {
        self.upper_case |= match item {
            ast::ClassSetItem::Literal(literal) => literal.c.is_ascii_uppercase(),
            ast::ClassSetItem::Range(range) => range.start.c.is_ascii_uppercase() && range.end.c.is_ascii_uppercase(),
            _ => false,
        };
        Ok(())
    }
}

fn letters(ast: &Ast) -> Letters {
    match ast::visit(ast, Letters::default()) {
        Ok(letters) => letters,
        Err(never) => match never {},
    }
}

/// The characters of canonical names.
fn alphabet() -> ClassUnicode {
    let ranges = [('-', '.'), ('0', '9'), ('_', '_'), ('a', 'z')];
    ClassUnicode::new(ranges.map(|(first, last)| ClassUnicodeRange::new(first, last)))
}

/// Returns the regex without everything that no name can contain; it matches the same names.
fn restrict(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => {
            let sound = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
            if literal.0.iter().all(sound) { Hir::literal(literal.0.clone()) } else { Hir::fail() }
        }
        HirKind::Class(Class::Unicode(class)) => {
            let mut class = class.clone();
            class.intersect(&alphabet());
            Hir::class(Class::Unicode(class))
        }
        HirKind::Class(Class::Bytes(class)) => {
            let ranges = class.iter().map(|range| ClassUnicodeRange::new(range.start().into(), range.end().into()));
            let mut class = ClassUnicode::new(ranges);
            class.intersect(&alphabet());
            Hir::class(Class::Unicode(class))
        }
        HirKind::Look(Look::StartLF | Look::StartCRLF) => Hir::look(Look::Start),
        HirKind::Look(Look::EndLF | Look::EndCRLF) => Hir::look(Look::End),
        HirKind::Look(look) => Hir::look(*look),
        HirKind::Repetition(repetition) => {
            let sub = restrict(&repetition.sub);
            Hir::repetition(regex_syntax::hir::Repetition { sub: Box::new(sub), ..repetition.clone() })
        }
        HirKind::Capture(capture) => restrict(&capture.sub),
        HirKind::Concat(parts) => {
            let parts: Vec<Hir> = parts.iter().map(restrict).collect();
            let fails = |part: &Hir| matches!(part.kind(), HirKind::Class(class) if class.is_empty());
            if parts.iter().any(fails) { Hir::fail() } else { Hir::concat(parts) }
        }
        HirKind::Alternation(parts) => {
            let fails = |part: &Hir| matches!(part.kind(), HirKind::Class(class) if class.is_empty());
            Hir::alternation(parts.iter().map(restrict).filter(|part| !fails(part)).collect())
        }
    }
}

/// Returns whether the regex leaves a label open under which anybody may register names.
fn breadth(names: &Hir, matching: Matching, classes: bool) -> Option<Wide> {
    let properties = names.properties();
    let open_start = matching == Matching::Search && !properties.look_set_prefix().contains(Look::Start);
    let open_end = matching == Matching::Search && !properties.look_set_suffix().contains(Look::End);
    if open_end {
        return public_suffix::below("", Depth::Any);
    }
    // Spelled-out alternatives are a list of names; the members of a class are not.
    let mut extractor = Extractor::new();
    extractor.kind(ExtractKind::Suffix).limit_class(if classes { 1 } else { 64 }).limit_repeat(1);
    extractor.limit_literal_len(SAMPLE + 1).limit_total(LITERALS);
    let endings = extractor.extract(names);
    let Some(endings) = endings.literals() else {
        return public_suffix::below("", Depth::Any);
    };
    endings.iter().find_map(|ending| ending_breadth(ending, open_start))
}

fn ending_breadth(ending: &Literal, open_start: bool) -> Option<Wide> {
    if ending.is_exact() && !open_start {
        return None;
    }
    let text = std::str::from_utf8(ending.as_bytes()).unwrap_or_default();
    match text.split_once('.') {
        None => public_suffix::below("", Depth::Any),
        // No valid name ends like this.
        Some((_, base)) if HostName::parse(base).is_err() || base.ends_with('.') => None,
        Some((_, base)) => public_suffix::below(base, Depth::Any),
    }
}

/// Returns a matching name that belongs to somebody else; each candidate is tried against the real regex.
fn stranger(text: &str, names: &Hir, matching: Matching, first: &str) -> Option<String> {
    let regex = match matching {
        Matching::Whole => regex::RegexBuilder::new(&format!(r"\A(?:{text})\z")).size_limit(COMPILED).build().ok()?,
        Matching::Search => {
            let mut builder = regex::RegexBuilder::new(text);
            builder.case_insensitive(true).ignore_whitespace(true).size_limit(COMPILED).build().ok()?
        }
    };
    let meant = sample(names, Choice { dots: Dots::All, least: 0, turn: 0 });
    let owner = public_suffix::registrable(&meant).filter(|_| HostName::parse(&meant).is_ok());
    let mut samples = vec![first.to_owned()];
    samples.extend(first.split_once('.').map(|(_, suffix)| suffix.to_owned()));
    for (least, turn) in [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)] {
        let dots = [Dots::All, Dots::None].into_iter().chain((0..8).map(Dots::Only));
        samples.extend(dots.map(|dots| sample(names, Choice { dots, least, turn })));
    }
    let dressed = samples.iter().flat_map(|sample| {
        [String::new(), "evil".to_owned(), "evil.".to_owned()].into_iter().flat_map(move |before| {
            ["", ".evil.example", "-evil.example", "evil.example"].map(|after| format!("{before}{sample}{after}"))
        })
    });
    let hostile = |name: &String| {
        HostName::parse(name).is_ok_and(|parsed| parsed.as_str() == name)
            && match public_suffix::registrable(name) {
                Some(other) => Some(other) != owner,
                // A public suffix that is itself a host, shared by everyone with names below it.
                None => name.contains('.'),
            }
            && regex.is_match(name)
    };
    dressed.into_iter().find(hostile)
}

/// What to choose where a class contains a dot and other characters.
#[derive(Clone, Copy)]
enum Dots {
    /// Always the dot.
    All,
    /// Never.
    None,
    /// The dot in the n-th such class only.
    Only(usize),
}

/// Which of the texts that a regex matches to construct.
#[derive(Clone, Copy)]
struct Choice {
    dots: Dots,
    /// Minimum rounds of each repetition.
    least: u32,
    /// Which alternative, and which character of a class.
    turn: usize,
}

/// Returns a text that the regex matches (look-arounds ignored).
fn sample(hir: &Hir, choice: Choice) -> String {
    let mut text = String::new();
    let mut seen = 0;
    push_sample(hir, choice, &mut seen, &mut text);
    text
}

fn push_sample(hir: &Hir, choice: Choice, seen: &mut usize, text: &mut String) {
    if text.len() > SAMPLE {
        return;
    }
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(Class::Bytes(_)) => {}
        HirKind::Literal(literal) => text.push_str(&String::from_utf8_lossy(&literal.0)),
        HirKind::Class(Class::Unicode(class)) => text.extend(pick(class, choice, seen)),
        HirKind::Repetition(repetition) => {
            let times = repetition.min.max(choice.least).min(repetition.max.unwrap_or(u32::MAX));
            for _ in 0..times {
                let before = text.len();
                push_sample(&repetition.sub, choice, seen, text);
                // A part that adds nothing still adds nothing when it is repeated.
                if text.len() == before || text.len() > SAMPLE {
                    return;
                }
            }
        }
        HirKind::Capture(capture) => push_sample(&capture.sub, choice, seen, text),
        HirKind::Concat(parts) => parts.iter().for_each(|part| push_sample(part, choice, seen, text)),
        HirKind::Alternation(parts) => {
            let part = parts.iter().cycle().nth(choice.turn);
            part.into_iter().for_each(|part| push_sample(part, choice, seen, text));
        }
    }
}

fn pick(class: &ClassUnicode, choice: Choice, seen: &mut usize) -> Option<char> {
    let holds = |wanted: char| class.iter().any(|range| range.start() <= wanted && wanted <= range.end());
    let ends = class.iter().flat_map(|range| [range.end(), range.start()]).filter(|end| *end != '.');
    let others: Vec<char> = ['x', 'a', '1', '0'].into_iter().filter(|c| holds(*c)).chain(ends).collect();
    let other = others.iter().cycle().nth(choice.turn).copied();
    if !holds('.') {
        return other;
    }
    let index = *seen;
    *seen += 1;
    let dot = match choice.dots {
        Dots::All => true,
        Dots::None => false,
        Dots::Only(only) => only == index,
    };
    if dot { Some('.') } else { other }
}
