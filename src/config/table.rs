//! What a row of the table of keys (`keys`) is, and the reader that goes by the rows.

use super::Settings;
use super::document::{self, Entry, Node, Value};
use super::forms::{Describe, Form, Reader};
use super::keys::TABLES;
use super::problems::{Problems, nearest};
use std::ops::Range;
use std::path::Path;

/// A table of the configuration, `[name]`.
pub(super) struct Table {
    /// Without brackets; "" for the top of the file.
    pub(super) name: &'static str,
    /// Whether there may be several, `[[name]]`.
    pub(super) is_list: bool,
    /// What it is for, in lines as they are written in `keys`.
    pub(super) help: &'static [&'static str],
    pub(super) rows: &'static [Row],
}

/// One key.
pub(super) struct Row {
    pub(super) table: &'static str,
    pub(super) key: &'static str,
    /// `table.key`.
    pub(super) path: &'static str,
    /// The default as TOML; [`NO_DEFAULT`] if the key has none.
    pub(super) default: &'static str,
    /// A value as TOML that shows the key better than its default; "" if there is none.
    pub(super) example: &'static str,
    /// The type and the range.
    pub(super) form: &'static dyn Describe,
    pub(super) effect: TakesEffect,
    /// What it does, in lines as they are written in `keys`.
    pub(super) help: &'static [&'static str],
}

/// The default of a key without one.
pub(super) const NO_DEFAULT: &str = "";

/// When a change of a key takes effect.
pub(super) enum TakesEffect {
    /// At the next reload.
    Reload,
    /// When `outgate firewall apply` runs next.
    Apply,
    /// When the daemon starts next; a reload keeps the old value.
    Restart(Fixed),
    /// Never: this version does not have the function, which has this name. The key is read and checked like all
    /// others and then refused, because a guard that silently ignores an instruction is worse than one that does
    /// not start.
    Later(&'static str),
}

/// The part of the settings that a running daemon keeps.
pub(super) struct Fixed {
    /// Whether the part is the whole table, and is reported as such.
    pub(super) is_table: bool,
    pub(super) differs: fn(&Settings, &Settings) -> bool,
    /// Copies the part from the first to the second.
    pub(super) keep: fn(&Settings, &mut Settings),
}

/// Makes the [`TakesEffect::Restart`] of one or more fields of [`Settings`].
macro_rules! restart {
    (table $($field:ident).+) => { restart!(@ true, $($field).+) };
    ($($field:ident).+) => { restart!(@ false, $($field).+) };
    (@ $is_table:literal, $($field:ident).+) => {
        TakesEffect::Restart(Fixed {
            is_table: $is_table,
            differs: |old, new| old.$($field).+ != new.$($field).+,
            keep: |old, new| new.$($field).+.clone_from(&old.$($field).+),
        })
    };
}

/// Makes the table of keys: `TABLES` with one [`Row`] a key, and for each table a struct with one [`Setting`] a
/// key. Doc comments become the help.
macro_rules! tables {
    ($(
        $(#[doc = $about:literal])*
        $name:literal as $struct:ident $(($list:ident))? {
            $(
                $(#[doc = $help:literal])*
                $key:ident: $type:ty = {
                    form: $form:expr, default: $default:expr, effect: $effect:expr $(, example: $example:literal)? $(,)?
                };
            )*
        }
    )*) => {
        /// Every table, in the order of the example file.
        pub(super) static TABLES: &[Table] = &[$(
            Table {
                name: $name,
                is_list: tables!(@is_list $($list)?),
                help: &[$($about),*],
                rows: &[$(
                    Row {
                        table: $name,
                        key: stringify!($key),
                        path: concat!($name, ".", stringify!($key)),
                        default: $default,
                        example: tables!(@example $($example)?),
                        form: &$form,
                        effect: $effect,
                        help: &[$($help),*],
                    }
                ),*],
            }
        ),*];

        $(
            pub(super) struct $struct {
                $(pub(super) $key: Setting<$type>,)*
            }

            impl $struct {
                /// Reads the table, and reports what is wrong and which keys are unknown.
                pub(super) fn read(mut section: Section<'_>, reader: &mut Reader<'_>) -> $struct {
                    let table = $struct { $($key: section.take(stringify!($key), &$form, reader),)* };
                    section.finish(reader.problems);
                    table
                }
            }
        )*
    };
    (@is_list list) => { true };
    (@is_list) => { false };
    (@example $example:literal) => { $example };
    (@example) => { "" };
}

pub(super) use {restart, tables};

/// The value of a key.
#[derive(Clone, Debug)]
pub(super) struct Setting<T> {
    /// As given, or the default where the key is absent or wrong. A list lacks its wrong elements.
    pub(super) value: T,
    /// Where the value is in the file, if the key is there, right or wrong.
    pub(super) span: Option<Range<usize>>,
    /// Whether `value` comes from the file.
    is_read: bool,
    is_wrong: bool,
}

impl<T> Setting<T> {
    /// Returns the value if it comes from the file, of a list what could be read of it.
    pub(super) fn given(&self) -> Option<&T> {
        self.is_read.then_some(&self.value)
    }

    /// Returns whether something is wrong with the value, which has been reported then.
    pub(super) fn is_wrong(&self) -> bool {
        self.is_wrong
    }
}

/// One table of the file, and which of its keys have not been read yet.
pub(super) struct Section<'a> {
    table: &'static Table,
    rest: Vec<&'a Entry>,
}

impl<'a> Section<'a> {
    pub(super) fn new(name: &str, entries: impl IntoIterator<Item = &'a Entry>) -> Section<'a> {
        Section { table: table(name), rest: entries.into_iter().collect() }
    }

    /// Reads a key of the table.
    pub(super) fn take<F: Form>(&mut self, key: &str, form: &F, reader: &mut Reader<'_>) -> Setting<F::Value> {
        let entry = self.rest.iter().position(|entry| entry.key == key).map(|at| self.rest.swap_remove(at));
        let errors = reader.problems.errors();
        let read = entry.and_then(|entry| form.read(key, &entry.node, reader));
        let span = entry.map(|entry| entry.node.span.clone());
        let (is_read, is_wrong) = (read.is_some(), reader.problems.errors() > errors);
        let row = row(self.table, key);
        let value = read.unwrap_or_else(|| default(row, form));
        if let (TakesEffect::Later(function), Some(span)) = (&row.effect, &span)
            && is_read
            && entry.is_some_and(|entry| !is_empty(&entry.node))
        {
            let key = format!("{}.{key}", bracketed(self.table));
            reader
                .problems
                .error(span.clone(), format!("{key} ({function}) is not available in this version; leave it out"));
        }
        Setting { value, span, is_read, is_wrong }
    }

    /// Reports what was not read.
    pub(super) fn finish(self, problems: &mut Problems) {
        for entry in self.rest {
            report_unknown(self.table, entry, problems);
        }
    }
}

/// Returns whether a list or text says nothing, as the default of a function that is not there.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::List(items) => items.is_empty(),
        Value::Text(text) => text.is_empty(),
        _ => false,
    }
}

/// Returns the default of a key.
#[expect(clippy::unreachable, reason = "a test reads every default")]
fn default<F: Form>(row: &Row, form: &F) -> F::Value {
    let Row { path, key, default: text, .. } = row;
    let written = format!("{key} = {text}");
    let mut problems = Problems::new(Path::new("the default"), &written);
    let entries = if *text == NO_DEFAULT { Vec::new() } else { document::parse(&written, 0, &mut problems) };
    let mut reader = Reader { folder: Path::new(""), problems: &mut problems };
    let read = entries.first().and_then(|entry| form.read(key, &entry.node, &mut reader));
    let Some(value) = read.or_else(|| form.absent()) else { unreachable!("{path} has the default {text:?}") };
    value
}

/// Returns the row of a key.
#[expect(clippy::unreachable, reason = "a test reads every key")]
fn row(table: &'static Table, key: &str) -> &'static Row {
    table.rows.iter().find(|row| row.key == key).unwrap_or_else(|| unreachable!("no key {key} in [{}]", table.name))
}

/// Returns the table of this name.
#[expect(clippy::unreachable, reason = "a test reads every table")]
fn table(name: &str) -> &'static Table {
    TABLES.iter().find(|table| table.name == name).unwrap_or_else(|| unreachable!("no table [{name}]"))
}

/// Returns what a running daemon keeps and in which `new` differs, as `table.key`.
pub(super) fn restart_needed(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let mut keys: Vec<&'static str> = Vec::new();
    for (row, fixed) in fixed() {
        if (fixed.differs)(old, new) {
            let name = if fixed.is_table { row.table } else { row.path };
            if !keys.contains(&name) {
                keys.push(name);
            }
        }
    }
    keys
}

/// Copies to `new` what a running daemon keeps of its `old` settings.
pub(super) fn keep_fixed(old: &Settings, new: &mut Settings) {
    fixed().for_each(|(_, fixed)| (fixed.keep)(old, new));
}

fn fixed() -> impl Iterator<Item = (&'static Row, &'static Fixed)> {
    TABLES.iter().flat_map(|table| table.rows).filter_map(|row| match &row.effect {
        TakesEffect::Restart(fixed) => Some((row, fixed)),
        TakesEffect::Reload | TakesEffect::Apply | TakesEffect::Later(_) => None,
    })
}

/// Reports a key that its table does not have.
pub(super) fn report_unknown(table: &Table, entry: &Entry, problems: &mut Problems) {
    let word = entry.key.as_str();
    let is_top = table.name.is_empty();
    let own = || table.rows.iter().map(|row| row.key);
    let elsewhere: Vec<String> =
        TABLES.iter().filter(|table| table.rows.iter().any(|row| row.key == word)).map(bracketed).collect();
    let place = if is_top { String::new() } else { format!(" in {}", bracketed(table)) };
    let hint = if !elsewhere.is_empty() {
        format!("; it belongs in {}", elsewhere.join(" or "))
    } else if is_top {
        let tables = TABLES.iter().filter(|table| !table.name.is_empty());
        match nearest(word, own().chain(tables.clone().map(|table| table.name))) {
            Some(near) if own().any(|key| key == near) => format!("; did you mean `{near}`?"),
            Some(near) => {
                let near = tables.clone().find(|table| table.name == near).map(bracketed).unwrap_or_default();
                format!("; did you mean `{near}`?")
            }
            None => nearest_anywhere(word),
        }
    } else {
        match nearest(word, own()) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => nearest_anywhere(word),
        }
    };
    problems.error(entry.span.clone(), format!("unknown key `{word}`{place}{hint}"));
}

/// Returns the nearest key of any table, for a word that resembles no key of its own table.
fn nearest_anywhere(word: &str) -> String {
    let all = || TABLES.iter().flat_map(|table| table.rows.iter().map(move |row| (table, row.key)));
    let near = nearest(word, all().map(|(_, key)| key));
    match near.and_then(|near| all().find(|(_, key)| *key == near)) {
        Some((table, key)) => format!("; the nearest known key is `{key}` in {}", bracketed(table)),
        None => "; the example in outgate.toml has all keys".to_owned(),
    }
}

/// Returns the name of a table as an operator writes it.
pub(super) fn bracketed(table: &Table) -> String {
    match table {
        Table { name: "", .. } => "the top of the file".to_owned(),
        Table { name, is_list: true, .. } => format!("[[{name}]]"),
        Table { name, .. } => format!("[{name}]"),
    }
}
