//! The forms that values have: how the value of a key is read, and how the reference describes it.

use super::document::{Node, Value};
use super::problems::Problems;
use super::values::{self, Zero};
use crate::account::AccessLog;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

/// How values are read.
pub(super) trait Form: Describe {
    /// What a value becomes.
    type Value;

    /// Reads the value of `key`; returns `None` after it has reported what is wrong.
    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value>;

    /// Returns the value of a key that the file does not have and whose row has no default.
    fn absent(&self) -> Option<Self::Value> {
        None
    }
}

/// How the reference describes values.
pub(super) trait Describe: Sync {
    /// Returns what the reference says of them.
    fn describe(&self) -> Description;
}

/// What the reference says of a form of values.
#[derive(Default)]
pub(super) struct Description {
    /// The type, for example "number"; what is between backquotes stands in the file as it is.
    pub(super) kind: String,
    /// The allowed range, if the type does not say it, for example "1 to 9".
    pub(super) range: Option<String>,
    /// The words that a value may be, each with its meaning, if only certain ones are allowed.
    pub(super) words: Vec<(&'static str, &'static str)>,
}

impl Description {
    fn new(kind: impl Into<String>) -> Description {
        Description { kind: kind.into(), ..Description::default() }
    }

    fn ranged(kind: &str, range: String) -> Description {
        Description { range: Some(range), ..Description::new(kind) }
    }
}

/// What reading needs beside the file.
pub(super) struct Reader<'r> {
    /// Where relative paths start.
    pub(super) folder: &'r Path,
    pub(super) problems: &'r mut Problems,
}

/// A value of a list, and its place.
#[derive(Clone, Debug)]
pub(super) struct Item<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// One of a few words; each with what it stands for and what it means.
pub(super) struct Words<T: 'static>(pub(super) &'static [(&'static str, T, &'static str)]);

impl<T: Copy + Sync> Form for Words<T> {
    type Value = T;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<T> {
        let text = text(key, node, reader)?;
        let words: Vec<(&str, T)> = self.0.iter().map(|(word, value, _)| (*word, *value)).collect();
        values::choice(key, text, &words).map_err(|wrong| reader.problems.error(node.span.clone(), wrong)).ok()
    }
}

impl<T: Sync> Describe for Words<T> {
    fn describe(&self) -> Description {
        let kind: Vec<String> = self.0.iter().map(|(word, _, _)| format!("`{word:?}`")).collect();
        let words = self.0.iter().map(|(word, _, meaning)| (*word, *meaning)).collect();
        Description { words, ..Description::new(kind.join(", ")) }
    }
}

/// True or false.
pub(super) struct Flag;

impl Form for Flag {
    type Value = bool;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<bool> {
        match &node.value {
            Value::Boolean(flag) => Some(*flag),
            other => reader.wrong(node, format!("`{key}` is true or false without quotes, not {}", other.type_name())),
        }
    }
}

impl Describe for Flag {
    fn describe(&self) -> Description {
        Description::new("`true` or `false`")
    }
}

/// A number within a range, of which 0 means nothing sensible.
pub(super) struct Number<T> {
    /// What is counted.
    pub(super) unit: &'static str,
    pub(super) range: RangeInclusive<u32>,
    pub(super) make: fn(u32) -> T,
}

impl<T> Form for Number<T> {
    type Value = T;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<T> {
        number(key, node, (&self.range, Zero::IsWrong), reader)?.map(self.make)
    }
}

impl<T> Describe for Number<T> {
    fn describe(&self) -> Description {
        Description::ranged(self.unit, format!("{} to {}", self.range.start(), self.range.end()))
    }
}

/// A number within a range, or 0 for no limit.
pub(super) struct Limit<T> {
    /// What is counted.
    pub(super) unit: &'static str,
    pub(super) range: RangeInclusive<u32>,
    pub(super) make: fn(u32) -> T,
}

impl<T> Form for Limit<T> {
    type Value = Option<T>;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<Option<T>> {
        number(key, node, (&self.range, Zero::IsNone), reader).map(|number| number.map(self.make))
    }
}

impl<T> Describe for Limit<T> {
    fn describe(&self) -> Description {
        Description::ranged(self.unit, format!("{} to {}, or 0 for none", self.range.start(), self.range.end()))
    }
}

/// A port.
pub(super) struct Port;

impl Form for Port {
    type Value = u16;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<u16> {
        let number = integer(key, node, reader)?;
        match u16::try_from(number) {
            Ok(port) if port != 0 => Some(port),
            _ => reader.wrong(node, format!("{number} is not a port; write a number from 1 to 65535")),
        }
    }
}

impl Describe for Port {
    fn describe(&self) -> Description {
        Description::ranged("port", "1 to 65535".to_owned())
    }
}

/// Text that is read further.
pub(super) struct Text<T> {
    /// What it is.
    pub(super) what: &'static str,
    /// Returns the value, or what is wrong and what to write instead.
    pub(super) read: fn(&str) -> Result<T, String>,
}

impl<T> Form for Text<T> {
    type Value = T;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<T> {
        (self.read)(text(key, node, reader)?).map_err(|wrong| reader.problems.error(node.span.clone(), wrong)).ok()
    }
}

impl<T> Describe for Text<T> {
    fn describe(&self) -> Description {
        Description::new(self.what)
    }
}

/// A path; a relative one starts from the folder of the configuration file.
pub(super) struct FilePath;

impl Form for FilePath {
    type Value = PathBuf;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<PathBuf> {
        match text(key, node, reader)? {
            "" => {
                let remedy = "write a path, or leave the key out for the default";
                reader.wrong(node, format!("`{key}` is empty; {remedy}"))
            }
            path => Some(reader.folder.join(path)),
        }
    }
}

impl Describe for FilePath {
    fn describe(&self) -> Description {
        Description::new("path")
    }
}

/// The path of a unix socket.
pub(super) struct SocketPath;

/// The longest path of a unix socket, without the closing NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

impl Form for SocketPath {
    type Value = PathBuf;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<PathBuf> {
        let text = text(key, node, reader)?;
        let path = reader.folder.join(text);
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            let limit = format!("a unix socket's path has at most {MAX_SOCKET_PATH} bytes, and this one has {length}");
            return reader.wrong(node, format!("{limit}; choose a shorter one"));
        }
        if text.ends_with('/') {
            return reader.wrong(node, format!("`{key}` is a folder; write the path of the socket itself"));
        }
        Some(path)
    }
}

impl Describe for SocketPath {
    fn describe(&self) -> Description {
        Description::ranged("path", format!("at most {MAX_SOCKET_PATH} bytes"))
    }
}

/// Where the access log goes.
pub(super) struct AccessLogSink;

impl Form for AccessLogSink {
    type Value = AccessLog;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<AccessLog> {
        match text(key, node, reader)? {
            "stdout" => Some(AccessLog::Stdout),
            "journal" => Some(AccessLog::Journal),
            "off" => Some(AccessLog::Off),
            path if path.contains('/') && !path.ends_with('/') => Some(AccessLog::File(reader.folder.join(path))),
            other => {
                let words = "write \"stdout\", \"journal\", \"off\" or a path with a slash in it";
                reader.wrong(node, format!("`{key}` is {other:?}; {words}"))
            }
        }
    }
}

impl Describe for AccessLogSink {
    fn describe(&self) -> Description {
        Description::new("`\"stdout\"`, `\"journal\"`, `\"off\"`, or a path with a slash in it")
    }
}

/// A list. Elements that cannot be read are reported and left out.
pub(super) struct ListOf<F>(pub(super) F);

impl<F: Form> Form for ListOf<F> {
    type Value = Vec<Item<F::Value>>;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<Vec<Item<F::Value>>> {
        let Value::List(items) = &node.value else {
            let remedy = match &node.value {
                Value::Text(text) if text.is_empty() => "write []".to_owned(),
                Value::Text(text) => format!("write [{text:?}]"),
                Value::Integer { shown, .. } => format!("write [{shown}]"),
                _ => "write it in square brackets".to_owned(),
            };
            return reader.wrong(node, format!("`{key}` is a list; {remedy}"));
        };
        let mut read = |item: &Node| Some(Item { value: self.0.read(key, item, reader)?, span: item.span.clone() });
        Some(items.iter().filter_map(&mut read).collect())
    }
}

impl<F: Describe> Describe for ListOf<F> {
    fn describe(&self) -> Description {
        let element = self.0.describe();
        Description { kind: format!("list of: {}", element.kind), ..element }
    }
}

/// Text of another form, or "" for none.
pub(super) struct OrNone<F>(pub(super) F);

impl<F: Form> Form for OrNone<F> {
    type Value = Option<F::Value>;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<Option<F::Value>> {
        match text(key, node, reader)? {
            "" => Some(None),
            _ => self.0.read(key, node, reader).map(Some),
        }
    }
}

impl<F: Describe> Describe for OrNone<F> {
    fn describe(&self) -> Description {
        let form = self.0.describe();
        Description { kind: format!("{}, or `\"\"` for none", form.kind), ..form }
    }
}

/// A key without a default.
pub(super) struct Optional<F>(pub(super) F);

impl<F: Form> Form for Optional<F> {
    type Value = Option<F::Value>;

    fn read(&self, key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<Option<F::Value>> {
        self.0.read(key, node, reader).map(Some)
    }

    fn absent(&self) -> Option<Option<F::Value>> {
        Some(None)
    }
}

impl<F: Describe> Describe for Optional<F> {
    fn describe(&self) -> Description {
        self.0.describe()
    }
}

impl Reader<'_> {
    /// Reports a value that cannot be read.
    fn wrong<T>(&mut self, node: &Node, message: String) -> Option<T> {
        self.problems.error(node.span.clone(), message);
        None
    }
}

fn text<'n>(key: &str, node: &'n Node, reader: &mut Reader<'_>) -> Option<&'n str> {
    match &node.value {
        Value::Text(text) => Some(text),
        other => reader.wrong(node, format!("`{key}` is text in double quotes, not {}", other.type_name())),
    }
}

fn integer(key: &str, node: &Node, reader: &mut Reader<'_>) -> Option<i64> {
    match &node.value {
        Value::Integer { number: Some(number), .. } => Some(*number),
        Value::Integer { number: None, .. } => reader.wrong(node, format!("the number of `{key}` is too large")),
        Value::Text(text) if text.parse::<i64>().is_ok() => {
            reader.wrong(node, format!("`{key}` is a number; write {text} without quotes"))
        }
        other => reader.wrong(node, format!("`{key}` is a whole number, not {}", other.type_name())),
    }
}

fn number(
    key: &str,
    node: &Node,
    (range, zero): (&RangeInclusive<u32>, Zero),
    reader: &mut Reader<'_>,
) -> Option<Option<u32>> {
    let read = values::number(key, integer(key, node, reader)?, range.clone(), zero);
    read.map_err(|wrong| reader.problems.error(node.span.clone(), wrong)).ok()
}
