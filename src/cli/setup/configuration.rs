//! The configuration file that setup writes, `conf.d/50-setup.toml`: the keys that guard these interfaces, without those
//! that other files set already.

use outgate::config::{KeyPlace, Settings, Trial};
use outgate::diagnostic::{Diagnostic, Severity};
use outgate::firewall::fits;
use std::net::SocketAddr;
use std::path::Path;

/// The name of the file.
pub(super) const NAME: &str = "50-setup.toml";
const HEADER: &str = "\
# Written by `outgate setup`, which adds guests' interfaces here when it is run again; `outgate setup --undo` removes this
# file. It may also be edited or removed by hand: run `outgate listen apply` and `outgate firewall apply` then.
";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'w> {
    /// Names and patterns of guests' interfaces.
    pub(super) interfaces: &'w [String],
    /// Whether this machine has IPv6.
    pub(super) ipv6: bool,
    /// Where the guests' DNS listens.
    pub(super) dns: &'w [String],
    /// Whether this machine has a DHCP server, which guests may need.
    pub(super) dhcp: bool,
}

/// What has to become of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Configuration {
    /// Its text; `None` if nothing needs to be in it.
    pub(super) text: Option<String>,
    /// What the operator should know.
    pub(super) notes: Vec<String>,
}

/// Returns what has to be in the file. `others` are all other files, `settings` what they mean, and `before` the text
/// that setup wrote there earlier.
///
/// # Errors
/// Each key of another file that is in the way: its place, and the line to write there.
pub(super) fn text(
    others: &Trial,
    settings: &Settings,
    before: Option<&str>,
    wanted: Wanted<'_>,
) -> Result<Configuration, Vec<Diagnostic>> {
    let mut problems = Vec::new();
    let (mut listen, mut firewall, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    let families = |v4: &str, v6: &str| -> Vec<String> {
        std::iter::once(v4).chain(wanted.ipv6.then_some(v6)).map(str::to_owned).collect()
    };
    for (key, addresses, present) in [
        ("transparent", families("0.0.0.0:3129", "[::]:3129"), &settings.listen.transparent),
        ("dns", wanted.dns.to_vec(), &settings.listen.dns),
    ] {
        match others.place_of("listen", key) {
            None => listen.push(format!("{key} = {}", array(&addresses))),
            Some(_) if present.iter().any(|address| !address.ip().is_loopback()) => {}
            Some(place) => {
                let all: Vec<String> = present.iter().map(SocketAddr::to_string).chain(addresses).collect();
                let message = format!("`{key}` of [listen] is set here, and guests reach none of its addresses");
                problems.push(conflict(place, message, &format!("{key} = {}", array(&all))));
            }
        }
    }
    let key = "guest_interfaces";
    let add = |list: &mut Vec<String>, names: &[String]| {
        for name in names {
            if !list.iter().any(|known| covers(known, name)) {
                list.push(name.clone());
            }
        }
    };
    let mut interfaces = settings.firewall.guest_interfaces.clone();
    match others.place_of("firewall", key) {
        None => {
            interfaces = before.map(interfaces_of).unwrap_or_default();
            add(&mut interfaces, wanted.interfaces);
            firewall.push(format!("{key} = {}", array(&interfaces)));
        }
        Some(place) => {
            add(&mut interfaces, wanted.interfaces);
            if interfaces != settings.firewall.guest_interfaces {
                let names = wanted.interfaces.join(", ");
                let message = format!("`{key}` of [firewall] is set here, without {names}");
                problems.push(conflict(place, message, &format!("{key} = {}", array(&interfaces))));
            }
        }
    }
    if wanted.dhcp && !settings.firewall.allow_dhcp {
        match others.place_of("firewall", "allow_dhcp") {
            None => {
                firewall.push("allow_dhcp = true".to_owned());
                notes.push("this machine has a DHCP server; guests may ask it (allow_dhcp)".to_owned());
            }
            Some(place) => notes.push(format!(
                "{}:{}: guests get no lease of this machine's DHCP server: allow_dhcp is false",
                place.file.display(),
                place.line
            )),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let sections = [("listen", listen), ("firewall", firewall)];
    let sections = sections.iter().filter(|(_, lines)| !lines.is_empty());
    let body: String = sections.map(|(name, lines)| format!("\n[{name}]\n{}\n", lines.join("\n"))).collect();
    Ok(Configuration { text: (!body.is_empty()).then(|| format!("{HEADER}{body}")), notes })
}

/// Returns an error for what a file lacks that setup would write, where somebody changed it since.
pub(super) fn changed(file: &Path, lacking: &str) -> Diagnostic {
    let lines: Vec<&str> = lacking.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let message =
        format!("changed by hand since setup wrote it, so setup leaves it alone; write there: {}", lines.join(" | "));
    Diagnostic::whole_file(Severity::Error, file, message)
}

fn conflict(place: KeyPlace, message: String, line: &str) -> Diagnostic {
    let remedy = format!("write `{line}` there");
    Diagnostic { severity: Severity::Error, file: place.file, line: place.line, column: place.column, message, remedy }
}

/// Whether everything that `name` stands for is known as `known` already.
pub(super) fn covers(known: &str, name: &str) -> bool {
    match (known.strip_suffix('*'), name.strip_suffix('*')) {
        (Some(stem), Some(other)) => other.starts_with(stem),
        (None, Some(_)) => false,
        (_, None) => fits(known, name),
    }
}

/// Returns the guests' interfaces in a text that setup wrote.
pub(super) fn interfaces_of(text: &str) -> Vec<String> {
    let table: toml::Table = text.parse().unwrap_or_default();
    let names = table.get("firewall").and_then(|table| table.get("guest_interfaces")).and_then(toml::Value::as_array);
    names.into_iter().flatten().filter_map(toml::Value::as_str).map(str::to_owned).collect()
}

fn array(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| toml::Value::from(item.as_str()).to_string()).collect();
    format!("[{}]", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    struct Place(TempDir);

    impl Place {
        fn new(main: &str) -> Place {
            let place = Place(tempfile::tempdir().unwrap());
            fs::write(place.0.path().join("main.toml"), main).unwrap();
            place
        }

        /// What setup makes of it, and what the configuration then means.
        fn make(&self, interfaces: &[&str], before: Option<&str>, dhcp: bool) -> Result<Configuration, Vec<String>> {
            let interfaces: Vec<String> = interfaces.iter().map(|name| (*name).to_owned()).collect();
            let mut trial = Trial::read(Some(&self.0.path().join("main.toml"))).unwrap();
            let (settings, _) = trial.load().unwrap();
            let dns = ["0.0.0.0:1053", "[::]:1053"].map(str::to_owned);
            let wanted = Wanted { interfaces: &interfaces, ipv6: true, dns: &dns, dhcp };
            let folder = format!("{}/", self.0.path().display());
            let made = text(&trial, &settings, before, wanted)
                .map_err(|problems| problems.iter().map(|p| p.to_string().replace(&folder, "")).collect::<Vec<_>>())?;
            trial.put(&self.0.path().join("conf.d").join(NAME), made.text.as_deref());
            let (settings, problems) = trial.load().unwrap();
            assert!(!problems.iter().any(Diagnostic::is_error), "{problems:?}");
            for name in &interfaces {
                assert!(settings.firewall.guest_interfaces.iter().any(|known| covers(known, name)), "{settings:?}");
            }
            assert!(!settings.listen.transparent.is_empty() && !settings.listen.dns.is_empty());
            assert!(settings.firewall.allow_dhcp >= (dhcp && made.text.is_some()));
            Ok(made)
        }
    }

    #[test]
    fn what_is_missing_is_written_and_another_interface_is_added() {
        let place = Place::new("# nothing\n");
        let first = place.make(&["br0"], None, false).unwrap().text.unwrap();
        assert_eq!(
            first.strip_prefix(HEADER).unwrap(),
            "\n[listen]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\ndns = [\"0.0.0.0:1053\", \"[::]:1053\"]\n\n[firewall]\n\
             guest_interfaces = [\"br0\"]\n"
        );
        // Again: the same.
        assert_eq!(place.make(&["br0"], Some(&first), false).unwrap().text.as_ref(), Some(&first));
        let second = place.make(&["br-*", "br0", "br-0123456789ab"], Some(&first), true).unwrap();
        let text = second.text.unwrap();
        assert!(text.ends_with("guest_interfaces = [\"br0\", \"br-*\"]\nallow_dhcp = true\n"), "{text}");
        assert_eq!(second.notes.len(), 1);
    }

    #[test]
    fn keys_of_other_files_stay_there() {
        let place = Place::new("[listen]\ndns = [\"10.42.42.1:53\"]\n[firewall]\nguest_interfaces = [\"tap*\"]\n");
        let made = place.make(&["tap7"], None, false).unwrap().text.unwrap();
        assert_eq!(made.strip_prefix(HEADER).unwrap(), "\n[listen]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\n");
        let whole = "[listen]\ntransparent = [\"0.0.0.0:4000\"]\ndns = [\"10.42.42.1:53\"]\n[firewall]\nguest_interfaces = [\"tap7\"]\n";
        assert_eq!(Place::new(whole).make(&["tap7"], None, false), Ok(Configuration::default()));
    }

    #[test]
    fn a_key_in_the_way_is_told_with_the_line_to_write() {
        let place = Place::new(
            "[listen]\ntransparent = []\ndns = [\"127.0.0.1:5353\"]\n[firewall]\n  guest_interfaces = [\"tap7\"]\n",
        );
        let lines = place.make(&["br0"], None, false).unwrap_err();
        assert_eq!(
            lines,
            [
                "main.toml:2:1: `transparent` of [listen] is set here, and guests reach none of its addresses; write \
                 `transparent = [\"0.0.0.0:3129\", \"[::]:3129\"]` there",
                "main.toml:3:1: `dns` of [listen] is set here, and guests reach none of its addresses; write \
                 `dns = [\"127.0.0.1:5353\", \"0.0.0.0:1053\", \"[::]:1053\"]` there",
                "main.toml:5:3: `guest_interfaces` of [firewall] is set here, without br0; write \
                 `guest_interfaces = [\"tap7\", \"br0\"]` there",
            ]
        );
        // As printed.
        let main = place.0.path().join("main.toml");
        for line in lines {
            let (number, rest) = line.strip_prefix("main.toml:").unwrap().split_once(':').unwrap();
            let write = rest.split("write `").nth(1).unwrap().split('`').next().unwrap();
            let text = fs::read_to_string(&main).unwrap();
            let mut all: Vec<&str> = text.lines().collect();
            all[number.parse::<usize>().unwrap() - 1] = write;
            fs::write(&main, all.join("\n")).unwrap();
        }
        assert_eq!(place.make(&["br0"], None, false), Ok(Configuration::default()));
    }
}
