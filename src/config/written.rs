//! The configuration file as written: every value in its type, and where each is in the file. `checked` decides
//! what they mean together.

use super::document::{Entry, Node, Value};
use super::forms::Reader;
use super::keys::{
    Dial, Firewall, Golem, Guest, Guests, Limits, Listen, Log, Resolver, State, TABLES, Tls, Top, Whitelist,
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
    pub(super) limits: Limits,
    pub(super) guests: Guests,
    /// Each `[[guest]]`, and its place.
    pub(super) guest: Vec<(Range<usize>, Guest)>,
    pub(super) golem: Golem,
    pub(super) log: Log,
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
        limits: Limits::read(section("limits", reader), reader),
        guests: Guests::read(section("guests", reader), reader),
        guest: read_guests(document, reader),
        golem: Golem::read(section("golem", reader), reader),
        log: Log::read(section("log", reader), reader),
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

fn read_guests(document: &[Entry], reader: &mut Reader<'_>) -> Vec<(Range<usize>, Guest)> {
    let Some(Node { span, value }) = document.iter().find(|entry| entry.key == "guest").map(|entry| &entry.node) else {
        return Vec::new();
    };
    let Value::List(guests) = value else {
        let message = "guests are a list; write `[[guest]]` with two brackets, once per guest";
        reader.problems.error(span.clone(), message);
        return Vec::new();
    };
    let mut read = Vec::with_capacity(guests.len());
    for guest in guests {
        match &guest.value {
            Value::Table(inner) => {
                read.push((guest.span.clone(), Guest::read(Section::new("guest", inner), reader)));
            }
            _ => {
                let message = "a guest is a section; write `[[guest]]` and its keys below";
                reader.problems.error(guest.span.clone(), message);
            }
        }
    }
    read
}
