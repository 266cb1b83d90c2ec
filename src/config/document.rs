//! A configuration file as a tree of values, each with its place. The tables are walked by hand rather than derived,
//! because a derived reader stops at the first mistake and an operator wants to see all of them at once.

use super::problems::Problems;
use std::borrow::Cow;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Where it is, as [`Problems`] counts.
    pub(super) span: Range<usize>,
    pub(super) value: Value,
}

/// What the file says.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer {
        /// As it is written in decimal, or with its prefix.
        shown: String,
        /// `None` if it is too large.
        number: Option<i64>,
    },
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
    /// A type that no key has: a float or a date; its name.
    Other(&'static str),
}

/// The keys of a table.
pub(super) type Table = Vec<Entry>;

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key is.
    pub(super) span: Range<usize>,
    pub(super) node: Node,
}

impl Value {
    /// Returns the name of its type, as TOML has it.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Text(_) => "string",
            Value::Integer { .. } => "integer",
            Value::Boolean(_) => "boolean",
            Value::List(_) => "array",
            Value::Table(_) => "table",
            Value::Other(name) => name,
        }
    }
}

/// Reads a text whose first byte is at `base`. Reports what is not TOML, and leaves it out.
pub(super) fn parse(text: &str, base: usize, problems: &mut Problems) -> Table {
    let (document, errors) = DeTable::parse_recoverable(text);
    let errors = errors.iter().map(|error| (moved(error.span().unwrap_or_default(), base), error.message()));
    problems.syntax(errors);
    table(document.get_ref(), base)
}

fn table(table: &DeTable<'_>, base: usize) -> Table {
    let entry = |(key, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| Entry {
        key: key.get_ref().to_string(),
        span: moved(key.span(), base),
        node: node(value, base),
    };
    table.iter().map(entry).collect()
}

fn node(value: &Spanned<DeValue<'_>>, base: usize) -> Node {
    let span = moved(value.span(), base);
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => Value::Integer {
            shown: integer.to_string(),
            number: i64::from_str_radix(integer.as_str(), integer.radix()).ok(),
        },
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Array(items) => Value::List(items.iter().map(|item| node(item, base)).collect()),
        DeValue::Table(inner) => Value::Table(table(inner, base)),
        other => Value::Other(other.type_str()),
    };
    Node { span, value }
}

fn moved(span: Range<usize>, by: usize) -> Range<usize> {
    span.start.saturating_add(by)..span.end.saturating_add(by)
}

/// Returns the tables as TOML.
pub(super) fn to_toml(table: Table) -> String {
    of_table(table).to_string()
}

fn of_table(table: Table) -> toml::Table {
    table.into_iter().filter_map(|entry| Some((entry.key, of_value(entry.node.value)?))).collect()
}

/// Returns the value; nothing for what no key takes.
fn of_value(value: Value) -> Option<toml::Value> {
    Some(match value {
        Value::Text(text) => text.into(),
        Value::Integer { number, .. } => number?.into(),
        Value::Boolean(flag) => flag.into(),
        Value::List(items) => items.into_iter().filter_map(|item| of_value(item.value)).collect::<Vec<_>>().into(),
        Value::Table(table) => of_table(table).into(),
        Value::Other(_) => return None,
    })
}
