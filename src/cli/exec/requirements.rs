//! Checks what is required before anything is created: root, a configuration that declares the command's interface
//! a guest's, and a listener that accepts its traffic. Each error names the remedy.

use super::pool::GATEWAY;
use super::run_names::{Names, PREFIX};
use crate::cli::Failure;
use crate::cli::bridge::{fits, is_guest_name};
use outgate::config::Settings;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

/// What the check found.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Requirements {
    /// The server in the command's resolv.conf; `None` if no listener accepts its queries.
    pub(in crate::cli) nameserver: Option<Ipv4Addr>,
    /// The configuration.
    pub(in crate::cli) settings: Settings,
}

impl Requirements {
    /// Checks whether a guest of this name can be created.
    pub(in crate::cli) fn find(config: Option<&Path>, name: &str) -> Result<Requirements, Failure> {
        if !is_guest_name(name) {
            return Err(Failure::Usage(format!("{name:?} is not a guest name: 1 to 64 of a-z A-Z 0-9 . _ -")));
        }
        if !outgate::system::is_root() {
            let why = "only root may create network namespaces; run it with sudo, and the command still runs as you";
            return Err(Failure::Failed(why.to_owned()));
        }
        let (settings, _) = Settings::load(config)?;
        if let Some(why) = uncovered(&settings, &Names::of(name).interface) {
            return Err(Failure::Failed(format!("{}: {why}", settings.file_of_key("guest_interfaces").display())));
        }
        if !reachable(&settings.listen.transparent).any(|_| true) {
            let why = "[listen].transparent has no IPv4 address that guests reach; set transparent = \
                       [\"0.0.0.0:3129\", \"[::]:3129\"] and restart the daemon";
            return Err(Failure::Failed(format!("{}: {why}", settings.file_of_key("transparent").display())));
        }
        let nameserver = reachable(&settings.listen.dns).next();
        let nameserver = nameserver.map(|address| if address.is_unspecified() { GATEWAY } else { address });
        Ok(Requirements { nameserver, settings })
    }
}

/// Returns the IPv4 addresses of these that are not loopback.
fn reachable(listeners: &[SocketAddr]) -> impl Iterator<Item = Ipv4Addr> {
    listeners.iter().filter_map(|listener| match listener.ip() {
        IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    })
}

/// Returns why no rule would cover packets from this interface.
fn uncovered(settings: &Settings, interface: &str) -> Option<String> {
    let patterns = &settings.firewall.guest_interfaces;
    if patterns.iter().any(|pattern| fits(pattern, interface)) {
        return None;
    }
    let all = patterns.iter().cloned().chain([format!("{PREFIX}*")]);
    let all: Vec<String> = all.map(|pattern| format!("\"{pattern}\"")).collect();
    Some(format!(
        "the command's interface, {interface}, is not a guest's; under [firewall] write guest_interfaces = [{}], then \
         `outgate firewall apply` and `systemctl reload outgate`",
        all.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_no_guests_is_told_with_the_line_to_write() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let mut settings = Settings::load(Some(empty.path())).unwrap().0;
        settings.firewall.guest_interfaces = vec!["br0".to_owned()];
        let why = uncovered(&settings, "og-00112233").unwrap();
        assert!(why.contains("guest_interfaces = [\"br0\", \"og-*\"]"), "{why}");
        settings.firewall.guest_interfaces.push("og-*".to_owned());
        assert_eq!(uncovered(&settings, "og-00112233"), None);
    }

    #[test]
    fn listeners_on_loopback_and_over_ipv6_are_of_no_use() {
        let listeners = ["127.0.0.1:53", "[::]:53", "10.0.0.1:53"].map(|text| text.parse().unwrap());
        assert_eq!(reachable(&listeners).collect::<Vec<_>>(), [Ipv4Addr::new(10, 0, 0, 1)]);
    }
}
