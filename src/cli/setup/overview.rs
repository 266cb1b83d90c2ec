//! What is on this host: interfaces that may carry guests, what else has to do with them, and what guards them now.

use super::configuration::covers;
use super::daemon_json::{self, Dns};
use super::docker::{self, Docker};
use super::files;
use super::plan::{self, SERVICE, UNITS};
use super::record::Record;
use super::systemd;
use super::{Exit, Failure, Outcome, Paths};
use crate::cli::table;
use outgate::config::Settings;
use outgate::firewall::docker::AskedFromHere;
use outgate::firewall::{self, Host, Interface, Presence, fits, tool};
use outgate::text::printable;
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;

/// What `outgate setup` shows.
#[derive(Debug, Serialize)]
struct Overview {
    /// The configuration file; `None` if there is none.
    configuration: Option<PathBuf>,
    guest_interfaces: Vec<String>,
    /// `in_place`, `outdated`, `missing` or `unknown`.
    firewall: &'static str,
    units: Vec<Unit>,
    /// Whether setup changed something that `--undo` puts back.
    can_undo: bool,
    uplinks: Vec<String>,
    interfaces: Vec<Candidate>,
    docker: Option<DockerState>,
    /// Whether a DNS server of this host's has port 53, as dnsmasq of libvirt.
    dns_on_port_53: bool,
    dhcp_server: bool,
    other_firewalls: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Unit {
    name: &'static str,
    state: String,
    enabled: String,
}

/// An interface, or a pattern of some, by which guests' packets may enter.
#[derive(Debug, Serialize)]
struct Candidate {
    name: String,
    kind: &'static str,
    /// How many ports a bridge has.
    ports: usize,
    guarded: bool,
    /// The command that guards it.
    command: String,
}

#[derive(Debug, Serialize)]
struct DockerState {
    running: bool,
    file: PathBuf,
    /// Its servers for containers, or what is to be said of them.
    dns: String,
}

pub(super) fn show(paths: &Paths, json: bool, out: &mut dyn Write) -> Outcome {
    let overview = look(paths)?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&overview).map_err(std::io::Error::from)?)?;
    } else {
        overview.write(out)?;
    }
    Ok(Exit::Good)
}

fn look(paths: &Paths) -> Result<Overview, Failure> {
    let host = Host::look()?;
    let is_there = paths.config.exists();
    // The overview is of use while the configuration has errors too; `check` tells them.
    let settings = Settings::load_leniently(Some(&paths.config).filter(|_| is_there).map(PathBuf::as_path));
    let settings = settings.map(|(settings, _)| settings).unwrap_or_default();
    let presence = match settings.seal() {
        Some(seal) => firewall::presence(seal),
        None if firewall::is_any_there() => Presence::Outdated,
        None => Presence::Missing,
    };
    let guests = &settings.firewall.guest_interfaces;
    let has_systemd = systemd::is_init();
    let units = UNITS.into_iter().chain([SERVICE]).filter(|_| has_systemd);
    let found = Docker::look(&plan::docker_unit(has_systemd));
    let docker = found.is_installed.then(|| docker_state(&found));
    let mut interfaces: Vec<Candidate> = plan::candidates(&host)
        .into_iter()
        .map(|name| {
            let is_port = |port: &Interface<'_>| port.bridge == Some(name) && !port.is_probe;
            let ports = host.interfaces().filter(is_port).count();
            let is_bridge = host.interfaces().any(|interface| interface.name == name && interface.is_bridge);
            let guarded = presence.is_there() && guests.iter().any(|guest| fits(guest, name));
            let command = match outgate::config::guest_interface(name) {
                Ok(_) => plan::command([name]),
                Err(_) => "give it another name, with usual characters".to_owned(),
            };
            Candidate { name: name.to_owned(), kind: kind(name, is_bridge), ports, guarded, command }
        })
        .collect();
    if docker.is_some() {
        let guarded = presence.is_there()
            && ["docker0", "br-*"].iter().all(|name| guests.iter().any(|guest| covers(guest, name)));
        let kind = "all of Docker's, also later ones";
        // Where dockerd has not made it yet it is no interface that can be named.
        let is_there = host.interfaces().any(|interface| interface.name == "docker0");
        let command = plan::command([if is_there { "docker0" } else { "docker0*" }, "br-*"]);
        interfaces.push(Candidate { name: "br-*".to_owned(), kind, ports: 0, guarded, command });
    }
    Ok(Overview {
        configuration: is_there.then(|| paths.config.clone()),
        guest_interfaces: guests.clone(),
        firewall: match presence {
            Presence::InPlace => "in_place",
            Presence::Outdated => "outdated",
            Presence::Missing => "missing",
            Presence::Unknown => "unknown",
        },
        units: units.map(Unit::look).collect(),
        // Root alone may read it.
        can_undo: Record::read(&paths.record).is_ok_and(|record| record.is_some()),
        uplinks: host.uplinks().to_vec(),
        interfaces,
        docker,
        dns_on_port_53: ["/proc/net/udp", "/proc/net/udp6"].iter().any(|file| plan::is_bound(file, 53)),
        dhcp_server: plan::has_dhcp_server(),
        other_firewalls: other_firewalls(has_systemd),
    })
}

impl Unit {
    fn look(name: &'static str) -> Unit {
        let enabled = systemd::show(name, "UnitFileState");
        Unit { name, state: systemd::show(name, "ActiveState"), enabled }
    }
}

/// Whose interface it probably is, by the names that each program gives.
fn kind(name: &str, is_bridge: bool) -> &'static str {
    let begins = |prefixes: &[&str]| is_bridge && prefixes.iter().any(|prefix| name.starts_with(prefix));
    match name {
        _ if is_bridge && docker::carries_containers(name) => "Docker",
        _ if begins(&["podman", "cni-podman"]) => "Podman",
        _ if begins(&["virbr"]) => "libvirt",
        _ if begins(&["lxcbr", "lxdbr", "incusbr"]) => "LXC or Incus",
        _ if is_bridge => "bridge",
        _ => "tap",
    }
}

fn docker_state(found: &Docker) -> DockerState {
    let (running, file) = (found.runs(), found.file());
    let by_flags = found.servers();
    let dns = if by_flags.is_empty() {
        let text = files::read(&file).map(|content| content.map(|content| content.text));
        let address = docker::address(None);
        match text.map(|text| daemon_json::with_dns(&file, text.as_deref(), address, &AskedFromHere::default())) {
            Ok(Ok(Dns::Set(servers))) => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            Ok(Ok(Dns::Put(_))) => "none: setup writes it".to_owned(),
            Ok(Err(problem)) => problem.to_string(),
            Err(why) => why,
        }
    } else {
        format!("{}, by flags", by_flags.join(", "))
    };
    DockerState { running, file, dns }
}

/// Returns the firewalls of others, a line each.
fn other_firewalls(has_systemd: bool) -> Vec<String> {
    let mut found = Vec::new();
    let is_active = |unit: &str| has_systemd && systemd::show(unit, "ActiveState") == "active";
    let ufw = std::fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    if ufw.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes")) {
        found.push("ufw is enabled".to_owned());
    }
    if is_active("firewalld.service") {
        found.push("firewalld runs".to_owned());
    }
    match tool::json("nft", &["-j", "list", "chains"], "to list other rulesets") {
        Ok(listed) => found.extend(chains(&listed)),
        Err(_) => found.push("nftables: not shown, only root may look".to_owned()),
    }
    for file in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
        let names = std::fs::read_to_string(file).unwrap_or_default();
        if !names.trim().is_empty() {
            let program = if file.contains("ip6") { "ip6tables-legacy" } else { "iptables-legacy" };
            found.push(format!("{program} has the tables {}", names.split_whitespace().collect::<Vec<_>>().join(", ")));
        }
    }
    found
}

/// Returns the tables of others in what nft(8) lists, and which of their chains drop by default.
fn chains(listed: &Value) -> Vec<String> {
    let items = listed.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for chain in items.filter_map(|item| item.get("chain")) {
        let text = |key: &str| chain.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("table").starts_with("outgate") {
            continue;
        }
        let table = format!("{} {}", text("family"), text("table"));
        if !tables.iter().any(|(known, _)| *known == table) {
            tables.push((table.clone(), Vec::new()));
        }
        if text("policy") == "drop"
            && let Some((_, closed)) = tables.iter_mut().find(|(known, _)| *known == table)
        {
            closed.push(text("name").to_owned());
        }
    }
    let line = |(table, closed): (String, Vec<String>)| match closed.is_empty() {
        true => format!("nftables: table {table}"),
        false => format!("nftables: table {table}, which drops by default in {}", closed.join(", ")),
    };
    tables.into_iter().map(line).collect()
}

impl Overview {
    fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let listed = |names: &[String], none: &str| {
            if names.is_empty() { none.to_owned() } else { printable(&names.join(", ")) }
        };
        let yes = |is: bool, yes: &str, no: &str| if is { yes.to_owned() } else { no.to_owned() };
        let file = self.configuration.as_ref().map(|file| file.display().to_string());
        let mut facts = vec![
            ("configuration", file.unwrap_or_else(|| "none".to_owned())),
            ("guest_interfaces", listed(&self.guest_interfaces, "none")),
            ("firewall", self.firewall.replace('_', " ")),
        ];
        for unit in &self.units {
            facts.push((
                unit.name,
                format!("{}, {}", unit.state, yes(unit.enabled.is_empty(), "not installed", &unit.enabled)),
            ));
        }
        if self.units.is_empty() {
            facts.push(("systemd", "does not run this machine".to_owned()));
        }
        facts.push(("this host's way out", listed(&self.uplinks, "no default route")));
        match &self.docker {
            Some(docker) => {
                let state = yes(docker.running, "runs", "does not run");
                facts.push(("Docker", format!("{state}; \"dns\" of {}: {}", docker.file.display(), docker.dns)));
            }
            None => facts.push(("Docker", "not installed".to_owned())),
        }
        facts.push(("port 53 of this host", yes(self.dns_on_port_53, "taken", "free")));
        facts.push(("DHCP server", yes(self.dhcp_server, "on this host", "none on this host")));
        facts.push(("other firewalls", listed(&self.other_firewalls, "none")));
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in &facts {
            writeln!(out, "{name:<width$}  {}", printable(value))?;
        }
        writeln!(out)?;
        if self.interfaces.is_empty() {
            writeln!(
                out,
                "no bridge or tap exists; for those that come later: outgate setup --guest-interface 'tap*'"
            )?;
        } else {
            let row = |found: &Candidate| {
                let ports = if found.ports == 0 { "-".to_owned() } else { found.ports.to_string() };
                let guarded = yes(found.guarded, "yes", "no");
                let command = if found.guarded { "-".to_owned() } else { printable(&found.command) };
                vec![printable(&found.name), found.kind.to_owned(), ports, guarded, command]
            };
            let rows: Vec<Vec<String>> = self.interfaces.iter().map(row).collect();
            table::write(out, &["INTERFACE", "WHAT", "PORTS", "GUARDED", "TO GUARD IT"], &rows)?;
        }
        if self.can_undo {
            writeln!(out, "\n`outgate setup --undo` puts back what was there before setup")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_of_others_are_told_with_the_chains_that_drop() {
        let chain = |family: &str, table: &str, name: &str, policy: Option<&str>| {
            let mut chain = json!({ "family": family, "table": table, "name": name });
            if let Some(policy) = policy {
                chain["policy"] = policy.into();
            }
            json!({ "chain": chain })
        };
        let listed = json!({ "nftables": [
            { "metainfo": { "version": "1" } },
            chain("ip", "filter", "INPUT", Some("drop")),
            chain("ip", "filter", "FORWARD", Some("drop")),
            chain("ip", "filter", "DOCKER", None),
            chain("inet", "outgate", "forwarded", Some("accept")),
            chain("inet", "mine", "c", Some("accept")),
        ] });
        assert_eq!(
            chains(&listed),
            ["nftables: table ip filter, which drops by default in INPUT, FORWARD", "nftables: table inet mine"]
        );
    }

    #[test]
    fn interfaces_are_told_by_their_names() {
        for (name, is_bridge, wanted) in [
            ("docker0", true, "Docker"),
            ("br-0123456789ab", true, "Docker"),
            ("br0", true, "bridge"),
            ("virbr0", true, "libvirt"),
            ("podman1", true, "Podman"),
            ("incusbr0", true, "LXC or Incus"),
            ("tap7", false, "tap"),
            ("virbr0-nic", false, "tap"),
        ] {
            assert_eq!(kind(name, is_bridge), wanted, "{name}");
        }
    }
}
