//! One lookup from start to finish, and the sources of its answers: servers and hosts file. The files behind
//! them are watched for changes.

use super::answer::{Answer, Family, LookupError};
use super::cache::{InFlight, Outcome};
use super::hosts::Hosts;
use super::server::NameServer;
use super::upstream::{AddressKind, FAILURE_TTL, Upstreams};
use super::{ResolveSetupError, ResolverSettings};
use crate::files::{Stamp, stamp};
use crate::name::HostName;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

/// How much longer to wait for the other family once one has an answer.
const OTHER_FAMILY: Duration = Duration::from_millis(250);
/// How long a family's missing answer is accepted as a fact if the other family has an answer.
const LAME_FAMILY: Duration = Duration::from_secs(30);
/// After a stale answer was used, the time until the servers are asked for the name again (RFC 8767 §5).
const STALE_RETRY: Duration = Duration::from_secs(30);

/// Runs one lookup for both families at once. It publishes the outcome as soon as it is useful, and finishes
/// when it is complete. If the servers are silent or fail, `previous` is used, unless it is too old (RFC 8767).
/// It is published once a longer wait would cost the guest more than a stale answer.
pub(super) async fn look_up(
    upstreams: Arc<Upstreams>,
    name: HostName,
    in_flight: InFlight,
    previous: Option<Arc<Answer>>,
) {
    let mut v4 = carried(&previous, AddressKind::V4);
    let mut v6 = carried(&previous, AddressKind::V6);
    let spare = |kind| stand_in(&previous, kind);
    {
        let ask_v4 = upstreams.ask(&name, AddressKind::V4);
        let ask_v6 = upstreams.ask(&name, AddressKind::V6);
        tokio::pin!(ask_v4, ask_v6);
        let mut show_at = previous.as_ref().map(|_| Instant::now() + upstreams.stale_patience());
        let (mut shown, mut useful) = (false, false);
        while v4.is_none() || v6.is_none() {
            let waits_until = show_at.unwrap_or_else(Instant::now).into();
            tokio::select! {
                family = &mut ask_v4, if v4.is_none() => v4 = Some(family),
                family = &mut ask_v6, if v6.is_none() => v6 = Some(family),
                () = sleep_until(waits_until), if show_at.is_some() && !shown => {
                    shown = true;
                    in_flight.show(replaced(v4.clone(), v6.clone(), &spare).0);
                }
            }
            if !useful && [&v4, &v6].into_iter().flatten().any(is_of_use) {
                useful = true;
                let soon = Instant::now() + OTHER_FAMILY;
                show_at = Some(show_at.map_or(soon, |at| at.min(soon)));
            }
        }
    }
    let now = Instant::now();
    match replaced(v4.clone(), v6.clone(), &spare) {
        (Ok(answer), true) => in_flight.finish_stale(answer, now + STALE_RETRY),
        _ => {
            let lifetime = failure_lifetime(&v4, &v6, now);
            let (v4, v6) = (settled(v4.clone(), &v6, now), settled(v6, &v4, now));
            in_flight.finish(outcome(v4, v6), lifetime, now);
        }
    }
}

/// Returns the outcome, with `spare` for families that are missing or failed, and whether any spare was needed.
/// A name that does not exist any more gets none.
fn replaced(v4: Option<Family>, v6: Option<Family>, spare: &impl Fn(AddressKind) -> Option<Family>) -> (Outcome, bool) {
    let is_gone = [&v4, &v6].into_iter().flatten().any(|family| family.absence() == Some(LookupError::NoSuchName));
    let is_known = |family: &Family| family.absence().is_none_or(LookupError::is_knowledge);
    let mut needed = false;
    let mut fill = |family: Option<Family>, kind| match family {
        Some(family) if is_gone || is_known(&family) => Some(family),
        family => match spare(kind) {
            Some(spare) if !is_gone => {
                needed = true;
                Some(spare)
            }
            _ => family,
        },
    };
    let (v4, v6) = (fill(v4, AddressKind::V4), fill(v6, AddressKind::V6));
    (outcome(v4, v6), needed)
}

/// Returns one family of an earlier answer, if it may be used while no server answers.
fn stand_in(previous: &Option<Arc<Answer>>, kind: AddressKind) -> Option<Family> {
    previous.as_deref()?.family(kind).as_stale(Instant::now())
}

/// Returns a family of an earlier answer that is still fresh and need not be asked for.
fn carried(previous: &Option<Arc<Answer>>, kind: AddressKind) -> Option<Family> {
    let family = previous.as_deref()?.family(kind);
    family.is_fresh(Instant::now()).then(|| family.clone())
}

/// Whether to publish it before the other family has arrived: it has addresses, or the name does not exist.
fn is_of_use(family: &Family) -> bool {
    matches!(family.absence(), None | Some(LookupError::NoSuchName))
}

/// Extends how long a family's failure is remembered if the other family has addresses: the name works, and
/// asking again would make its flows wait.
fn settled(family: Option<Family>, other: &Option<Family>, now: Instant) -> Option<Family> {
    let works = other.as_ref().is_some_and(|other| other.absence().is_none());
    family.map(|family| match family.absence() {
        Some(why) if works && !why.is_knowledge() => Family::absent(why, now + LAME_FAMILY),
        _ => family,
    })
}

fn outcome(v4: Option<Family>, v6: Option<Family>) -> Outcome {
    let late = || Family::absent(LookupError::Timeout, Instant::now());
    let (v4, v6) = (v4.unwrap_or_else(late), v6.unwrap_or_else(late));
    match (v4.absence(), v6.absence()) {
        (Some(one), Some(other)) => Err(worse(one, other)),
        _ => Ok(Arc::new(Answer::new(v4, v6))),
    }
}

/// Returns the more informative of two reasons: that the name does not exist, then a failure, then NODATA,
/// which is the whole truth only if both families report it.
fn worse(one: LookupError, other: LookupError) -> LookupError {
    use LookupError::{NoAddresses, NoSuchName};
    match (one, other) {
        (NoSuchName, _) | (_, NoSuchName) => NoSuchName,
        (NoAddresses, other) => other,
        (one, _) => one,
    }
}

fn failure_lifetime(v4: &Option<Family>, v6: &Option<Family>, now: Instant) -> Duration {
    [v4, v6].into_iter().flatten().map(|family| family.ttl(now)).min().unwrap_or(FAILURE_TTL)
}

/// Where names are looked up, and the state of the files when they were read.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    settings: ResolverSettings,
    upstreams: Arc<Upstreams>,
    servers: Vec<NameServer>,
    hosts: Arc<Hosts>,
    resolv_conf: Stamp,
    hosts_file: Stamp,
}

impl Sources {
    pub(super) fn open(settings: &ResolverSettings) -> Result<Sources, ResolveSetupError> {
        Sources::read(settings, None)
    }

    /// Returns sources with other settings; unchanged servers keep their connections and health.
    pub(super) fn reopen(&self, settings: &ResolverSettings) -> Result<Sources, ResolveSetupError> {
        Sources::read(settings, Some(self))
    }

    /// Reads the changed files again; `None` if none changed.
    pub(super) fn refresh(&self) -> Result<Option<Sources>, ResolveSetupError> {
        let hosts_file = self.settings.hosts_file.as_deref().and_then(stamp);
        let resolv_conf = self.settings.servers.is_empty().then(|| stamp(Path::new(RESOLV_CONF))).flatten();
        if hosts_file == self.hosts_file && resolv_conf == self.resolv_conf {
            return Ok(None);
        }
        self.reopen(&self.settings).map(Some)
    }

    pub(super) fn upstreams(&self) -> &Arc<Upstreams> {
        &self.upstreams
    }

    pub(super) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    fn read(settings: &ResolverSettings, current: Option<&Sources>) -> Result<Sources, ResolveSetupError> {
        // Stamped before reading: the next check then notices a change in between.
        let hosts_file = settings.hosts_file.as_deref().and_then(stamp);
        let hosts = match &settings.hosts_file {
            Some(path) => {
                Hosts::read(path).map_err(|source| ResolveSetupError::Hosts { path: path.clone(), source })?
            }
            None => Hosts::default(),
        };
        let from_system = settings.servers.is_empty();
        let resolv_conf = from_system.then(|| stamp(Path::new(RESOLV_CONF))).flatten();
        let servers = if from_system { system_servers(Path::new(RESOLV_CONF)) } else { settings.servers.clone() };
        let kept = current.filter(|current| current.servers == servers && current.settings.timeout == settings.timeout);
        let upstreams = match kept {
            Some(current) => current.upstreams.clone(),
            None => {
                let upstreams = Upstreams::new(&servers, settings.timeout);
                Arc::new(upstreams.map_err(|error| ResolveSetupError::Client(error.to_string()))?)
            }
        };
        Ok(Sources { settings: settings.clone(), upstreams, servers, hosts: Arc::new(hosts), resolv_conf, hosts_file })
    }
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Returns the servers of resolv.conf(5), on port 53. Returns none, with an error in the log, if the file is
/// not usable: it comes and goes with the network, and outgate starts before that.
fn system_servers(path: &Path) -> Vec<NameServer> {
    let parsed = std::fs::read(path)
        .map_err(|error| error.to_string())
        .and_then(|text| hickory_resolver::system_conf::parse_resolv_conf(text).map_err(|error| error.to_string()));
    match parsed {
        Ok((config, _)) => {
            config.name_servers().iter().map(|server| NameServer::plain(SocketAddr::new(server.ip, 53))).collect()
        }
        Err(error) => {
            tracing::error!(
                file = %path.display(),
                error,
                "no DNS server can be read from this file, so lookups fail; add a nameserver line to it, or set \
                 [resolver].servers"
            );
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn servers_are_read_from_resolv_conf_and_nothing_else_is() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "search corp.example\nnameserver 11.0.0.53\noptions ndots:5\nnameserver 2a00::53").unwrap();
        let servers = system_servers(file.path());
        assert_eq!(servers, ["11.0.0.53:53", "[2a00::53]:53"].map(|server| NameServer::plain(server.parse().unwrap())));
    }

    #[test]
    fn a_resolv_conf_that_is_missing_or_names_no_server_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(system_servers(file.path()).is_empty());
        assert!(system_servers(Path::new("/nonexistent/resolv.conf")).is_empty());
    }
}
