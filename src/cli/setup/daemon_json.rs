//! `"dns"` in Docker's daemon.json(5): put in as text, so that everything else in the file stays byte for byte.

use outgate::diagnostic::{Diagnostic, Severity};
use outgate::firewall::docker::AskedFromHere;
use serde_json::Value;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;

/// What the file needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dns {
    /// Nothing: it names these servers, and containers ask them from their own network.
    Set(Vec<IpAddr>),
    /// This content.
    Put(String),
}

/// Returns what has to become of the file's content so that dockerd gives containers the server `address`. `None` is a
/// file that does not exist.
///
/// # Errors
/// A diagnostic with line and column if it is not a JSON object, or if its `"dns"` would have dockerd ask from this
/// machine's own network.
pub(super) fn with_dns(
    file: &Path,
    text: Option<&str>,
    address: IpAddr,
    from_here: &AskedFromHere,
) -> Result<Dns, Diagnostic> {
    let text = text.unwrap_or_default();
    // dockerd reads a file with this mark, serde_json does not.
    let (mark, body) = match text.strip_prefix('\u{feff}') {
        Some(body) => (text.len() - body.len(), body),
        None => (0, text),
    };
    if body.trim().is_empty() {
        return Ok(Dns::Put(format!("{{\n  \"dns\": [\"{address}\"]\n}}\n")));
    }
    let broken = |error: serde_json::Error| {
        let (line, column) = (u32::try_from(error.line()), u32::try_from(error.column()));
        let why = error.to_string();
        let why = why.split(" at line ").next().unwrap_or_default();
        problem(
            file,
            line.unwrap_or(0),
            column.unwrap_or(0).max(1),
            &format!("not JSON: {why}"),
            "correct it, dockerd cannot read it either",
        )
    };
    let value: Value = serde_json::from_str(body).map_err(broken)?;
    let at = |offset: usize, message: &str, remedy: &str| {
        let (line, column) = position(body, offset);
        problem(file, line, column, message, remedy)
    };
    if !value.is_object() {
        let start = body.len() - body.trim_start().len();
        return Err(at(start, "not a JSON object", "put { } around it; dockerd cannot read it either"));
    }
    let object = Object::of(body);
    let mut set = object.members.iter().filter(|member| member.key == "dns");
    let line = format!("\"dns\": [\"{address}\"]");
    let Some(first) = set.next() else {
        let whole = object.with(body, &line);
        return Ok(Dns::Put(format!("{}{whole}", text.get(..mark).unwrap_or_default())));
    };
    if let Some(second) = set.next() {
        return Err(at(second.start, "`dns` is set twice", "leave one of them out"));
    }
    let write = format!("write {line} there");
    let servers = value.get("dns").and_then(Value::as_array).map(|servers| {
        let read = |server: &Value| server.as_str().and_then(|server| server.parse::<IpAddr>().ok());
        servers.iter().map(read).collect::<Option<Vec<_>>>()
    });
    match servers.flatten() {
        Some(servers) if servers.is_empty() => Err(at(first.start, "`dns` names no server", &write)),
        Some(servers) => match servers.iter().find(|server| from_here.includes(**server)) {
            Some(server) => {
                let why = format!("{}, so containers' names go past outgate", asked_from_here(*server));
                Err(at(first.start, &why, &write))
            }
            None => Ok(Dns::Set(servers)),
        },
        None => Err(at(first.start, "`dns` is not a list of addresses", &write)),
    }
}

/// Returns `"bip"`, the address that dockerd gives docker0, if the file sets it.
pub(super) fn bip(text: &str) -> Option<IpAddr> {
    let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}')).ok()?;
    value.get("bip")?.as_str()?.split('/').next()?.parse().ok()
}

/// Says of a server that dockerd asks it from this machine's own network.
pub(super) fn asked_from_here(server: IpAddr) -> String {
    let why = if server.to_canonical().is_ipv6() && !server.is_loopback() && !server.is_unspecified() {
        "has an IPv6 address, and a container may have none"
    } else {
        "is this machine itself"
    };
    format!("{server} {why}: dockerd asks it from this machine's own network")
}

fn problem(file: &Path, line: u32, column: u32, message: &str, remedy: &str) -> Diagnostic {
    let message = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Diagnostic { severity: Severity::Error, file: file.to_owned(), line, column, message, remedy: remedy.to_owned() }
}

/// Returns line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (u32, u32) {
    let before = text.get(..offset).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// A key and its value at the top of the object.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    key: String,
    /// Where the key begins.
    start: usize,
    /// Where the value ends.
    end: usize,
}

/// Where things are in a text that is a JSON object.
#[derive(Debug)]
struct Object {
    /// Where it begins, behind the brace.
    start: usize,
    /// Where the closing brace is.
    end: usize,
    members: Vec<Member>,
}

impl Object {
    /// For a text that serde_json accepts as an object.
    fn of(text: &str) -> Object {
        let mut object = Object { start: 0, end: text.len(), members: Vec::new() };
        let mut depth = 0_usize;
        let mut string: Option<usize> = None;
        let mut is_escaped = false;
        // The last string at the top, the key once a colon follows, and the key whose value is being read.
        let mut last: Option<Range<usize>> = None;
        let mut key: Option<Range<usize>> = None;
        // Where the last character was that belongs to a value.
        let mut end = 0;
        for (at, c) in text.char_indices() {
            let next = at + c.len_utf8();
            if let Some(start) = string {
                match c {
                    _ if is_escaped => is_escaped = false,
                    '\\' => is_escaped = true,
                    '"' => {
                        (string, end) = (None, next);
                        if depth == 1 && key.is_none() {
                            last = Some(start..next);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match c {
                '"' => string = Some(at),
                '{' | '[' => {
                    depth += 1;
                    if depth == 1 {
                        object.start = next;
                    }
                }
                ':' if depth == 1 => key = last.take(),
                ',' | '}' if depth == 1 => {
                    if let Some(key) = key.take() {
                        let name = text.get(key.clone()).unwrap_or_default();
                        let name = serde_json::from_str(name).unwrap_or_default();
                        object.members.push(Member { key: name, start: key.start, end });
                    }
                    if c == '}' {
                        (object.end, depth) = (at, 0);
                    }
                }
                '}' | ']' => (depth, end) = (depth.saturating_sub(1), next),
                c if c.is_ascii_whitespace() => {}
                _ => end = next,
            }
        }
        object
    }

    /// Returns the text with one more member behind the last one, written as that one is.
    fn with(&self, text: &str, line: &str) -> String {
        let within = text.get(self.start..self.end).unwrap_or_default();
        let (at, put) = match (self.members.first(), self.members.last()) {
            (Some(first), Some(last)) => {
                let before = text.get(self.start..first.start).unwrap_or_default();
                let put = match before.rsplit_once('\n') {
                    Some((above, indent)) => {
                        let end = if above.ends_with('\r') { "\r\n" } else { "\n" };
                        format!(",{end}{indent}{line}")
                    }
                    None => format!(", {line}"),
                };
                (last.end, put)
            }
            _ => (self.start, format!("\n  {line}{}", if within.contains('\n') { "" } else { "\n" })),
        };
        let (before, after) = (text.get(..at).unwrap_or_default(), text.get(at..).unwrap_or_default());
        format!("{before}{put}{after}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(text: &str) -> Result<Dns, String> {
        let address = "172.17.0.1".parse().unwrap();
        with_dns(Path::new("/etc/docker/daemon.json"), Some(text), address, &AskedFromHere::default())
            .map_err(|error| error.to_string())
    }

    fn text(text: &str) -> String {
        match put(text) {
            Ok(Dns::Put(text)) => text,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn everything_else_stays_byte_for_byte() {
        let fresh = "{\n  \"dns\": [\"172.17.0.1\"]\n}\n";
        for (before, after) in [
            ("", fresh),
            (" \n", fresh),
            ("{}", "{\n  \"dns\": [\"172.17.0.1\"]\n}"),
            ("{\n}\n", "{\n  \"dns\": [\"172.17.0.1\"]\n}\n"),
            ("{\"debug\": true}\n", "{\"debug\": true, \"dns\": [\"172.17.0.1\"]}\n"),
            (
                "{\n    \"log-driver\":   \"local\" ,\n    \"log-opts\": {\"max-size\": \"10m\", \"dns\": \"x\"}\n}",
                "{\n    \"log-driver\":   \"local\" ,\n    \"log-opts\": {\"max-size\": \"10m\", \"dns\": \"x\"},\n    \"dns\": [\"172.17.0.1\"]\n}",
            ),
            ("{\r\n\t\"mtu\": 1400\r\n}\r\n", "{\r\n\t\"mtu\": 1400,\r\n\t\"dns\": [\"172.17.0.1\"]\r\n}\r\n"),
            (
                "{ \"labels\": [\"a}\\\"],\", \"dns\"],\n\"é\": null\n\n}",
                "{ \"labels\": [\"a}\\\"],\", \"dns\"],\n\"é\": null, \"dns\": [\"172.17.0.1\"]\n\n}",
            ),
            ("\u{feff}{\"a\":-1.5e3}", "\u{feff}{\"a\":-1.5e3, \"dns\": [\"172.17.0.1\"]}"),
        ] {
            let after_found = text(before);
            assert_eq!(after_found, after, "{before:?}");
            let found: Value = serde_json::from_str(after_found.trim_start_matches('\u{feff}')).unwrap();
            assert_eq!(found["dns"][0], "172.17.0.1");
            // What was put in is then there.
            assert_eq!(put(&after_found), Ok(Dns::Set(vec!["172.17.0.1".parse().unwrap()])));
        }
    }

    /// An object read back without the new key is the one of before, whatever it looks like.
    #[test]
    fn any_object_keeps_its_meaning() {
        let mut runner = proptest::test_runner::TestRunner::default();
        let leaf = "[ -~é\\n\\\\\"]{0,6}";
        let tree = proptest::collection::btree_map(leaf, proptest::collection::vec(leaf, 0..3), 0..4);
        runner
            .run(&tree, |tree| {
                let mut tree = serde_json::to_value(tree).unwrap();
                tree.as_object_mut().unwrap().remove("dns");
                for before in [tree.to_string(), format!("{tree:#}")] {
                    let mut after: Value = serde_json::from_str(&text(&before)).unwrap();
                    assert!(after.as_object_mut().unwrap().remove("dns").is_some());
                    assert_eq!(after, tree);
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_place() {
        for (text, wanted) in [
            ("{\n  \"debug\": true,\n", "3:1: not JSON: EOF while parsing a value; correct it"),
            ("{\n  \"debug\": true,\n}\n", "3:1: not JSON: trailing comma; correct it"),
            ("{} x", "1:4: not JSON: trailing characters; correct it"),
            ("// mine\n{}", "1:1: not JSON: expected value; correct it"),
            ("\n [1]", "2:2: not a JSON object; put { } around it"),
            ("{\n \"dns\": []}", "2:2: `dns` names no server; write \"dns\": [\"172.17.0.1\"] there"),
            ("{\"dns\": [\"10.0.0.1\", \"127.0.0.53\"]}", "1:2: 127.0.0.53 is this machine itself: dockerd asks "),
            ("{\"dns\": [\"::ffff:127.0.0.1\"]}", "1:2: ::ffff:127.0.0.1 is this machine itself: dockerd asks "),
            ("{\"dns\": [\"::1\"]}", "1:2: ::1 is this machine itself: dockerd asks "),
            ("{\"dns\": \"10.0.0.1\"}", "1:2: `dns` is not a list of addresses; write "),
            ("{\"dns\": [7]}", "1:2: `dns` is not a list of addresses; write "),
            ("{\"dns\": [\"10.0.0.1\"], \"dns\": []}", "1:23: `dns` is set twice; leave one"),
        ] {
            let error = put(text).unwrap_err();
            let rest = error.strip_prefix("/etc/docker/daemon.json:").unwrap();
            assert!(rest.starts_with(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn servers_of_the_operator_stay() {
        let servers = |text| put(text).unwrap();
        assert_eq!(servers("{\"dns\": [\"10.0.0.1\"]}"), Dns::Set(vec!["10.0.0.1".parse().unwrap()]));
        assert_eq!(bip("{\"bip\": \"10.9.0.1/24\"}"), Some("10.9.0.1".parse().unwrap()));
        assert_eq!(bip("{}"), None);
    }
}
