//! The configuration file as written: every value in its type, and where each is in the file. `checked` decides
//! what they mean together.

use super::document::{Entry, Node, Value};
use super::forms::Reader;
use super::keys::{
    Dial, Firewall, Golem, Guest, Guests, Interface, Limits, Listen, Log, Proof, Resolver, State, TABLES, Tls, Top,
    Whitelist,
};
use super::table::Section;
use std::ops::Range;

/// Every table of the file; those that it does not have are the defaults.
pub(super) struct Written {
    pub(super) top: Top,
    pub(super) listen: Listen,
    pub(super) tls: Tls,
    pub(super) whitelist: Whitelist,
    pub(super) resolver: Resolver,
    pub(super) dial: Dial,
    pub(super) firewall: Firewall,
    /// Each `[[interface]]`, and its place.
    pub(super) interface: Vec<(Range<usize>, Interface)>,
    pub(super) limits: Limits,
    pub(super) guests: Guests,
    /// Each `[[guest]]`, and its place.
    pub(super) guest: Vec<(Range<usize>, Guest)>,
    pub(super) golem: Golem,
    pub(super) log: Log,
    pub(super) proof: Proof,
    pub(super) state: State,
}

/// Reads a file. Reports and leaves out what cannot be read.
pub(super) fn read(document: &[Entry], reader: &mut Reader<'_>) -> Written {
    let is_table = |entry: &&Entry| TABLES.iter().any(|table| !table.name.is_empty() && table.name == entry.key);
    let section = |name, reader: &mut Reader<'_>| Section::new(name, section_of(document, name, reader));
    let top = document.iter().filter(|entry| !is_table(entry));
    Written {
        top: Top::read(Section::new("", top), reader),
        listen: Listen::read(section("listen", reader), reader),
        tls: Tls::read(section("tls", reader), reader),
        whitelist: Whitelist::read(section("whitelist", reader), reader),
        resolver: Resolver::read(section("resolver", reader), reader),
        dial: Dial::read(section("dial", reader), reader),
        firewall: Firewall::read(section("firewall", reader), reader),
        interface: read_list(document, "interface", ("an interface", "interfaces"), Interface::read, reader),
        limits: Limits::read(section("limits", reader), reader),
        guests: Guests::read(section("guests", reader), reader),
        guest: read_list(document, "guest", ("a guest", "guests"), Guest::read, reader),
        golem: Golem::read(section("golem", reader), reader),
        log: Log::read(section("log", reader), reader),
        proof: Proof::read(section("proof", reader), reader),
        state: State::read(section("state", reader), reader),
    }
}

fn section_of<'a>(document: &'a [Entry], name: &str, reader: &mut Reader<'_>) -> &'a [Entry] {
    let Some(entry) = document.iter().find(|entry| entry.key == name) else { return &[] };
    match &entry.node.value {
        Value::Table(inner) => inner,
        other => {
            let found = other.type_name();
            let remedy = format!("write `[{name}]` and its keys below");
            reader.problems.error(entry.span.clone(), format!("`{name}` is a section, not {found}; {remedy}"));
            &[]
        }
    }
}

/// Reads the tables of one name, of which there may be several. `what` is one of them, and `many` is all.
fn read_list<T>(
    document: &[Entry],
    name: &'static str,
    (what, many): (&str, &str),
    read: impl Fn(Section<'_>, &mut Reader<'_>) -> T,
    reader: &mut Reader<'_>,
) -> Vec<(Range<usize>, T)> {
    let Some(Node { span, value }) = document.iter().find(|entry| entry.key == name).map(|entry| &entry.node) else {
        return Vec::new();
    };
    let Value::List(tables) = value else {
        let message = format!("{many} are a list; write `[[{name}]]` with two brackets, once per {name}");
        reader.problems.error(span.clone(), message);
        return Vec::new();
    };
    let mut all = Vec::with_capacity(tables.len());
    for table in tables {
        match &table.value {
            Value::Table(inner) => all.push((table.span.clone(), read(Section::new(name, inner), reader))),
            _ => {
                let message = format!("{what} is a section; write `[[{name}]]` and its keys below");
                reader.problems.error(table.span.clone(), message);
            }
        }
    }
    all
}
