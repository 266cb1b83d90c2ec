//! How much of the connection tracking table a guest or a host user can use at most, and whether that fits into
//! the table of this machine.

use super::{ENDED, HALF_ENDED, NAMES_TCP, TCP_RATE};
use crate::host::sysctl;
use crate::settings::{FirewallSettings, GuestLimits, PlanInput};

/// Minimum number of datagrams to port 53 that a guest may send a second, however low its limit is: the daemon
/// itself answers that the limit is exceeded.
const LEAST_QUERIES: u32 = 1000;
/// The same if the configuration sets no limit.
const UNLIMITED_QUERIES: u32 = 5000;
/// Minimum number of connections that a host user may begin a second, and the number if the configuration sets no
/// limit.
const LEAST_OPENED: u32 = 1000;
const UNLIMITED_OPENED: u32 = 10_000;
/// Seconds beyond `idle_timeout_s`, so that the daemon ends a connection before its entry expires.
const LONGER_THAN_IDLE: u64 = 300;
/// As long as the kernel's own (five days), if nothing ends idle connections.
const FOR_EVER: u64 = 432_000;

/// How much of the table a guest can use, from the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rations {
    /// Datagrams to port 53 a second.
    pub(crate) queries: u32,
    /// Lifetime, in seconds, of the entry of a query after its last packet: a later answer cannot reach a guest
    /// that asked another server.
    pub(crate) patience: u32,
    /// Maximum connections that the daemon has open for a guest.
    connections: u32,
    /// Connections that it may open for a guest in a second.
    opened: u32,
    /// Connections that a host user may begin in a second; 0 if there is none.
    pub(super) begun: u32,
    /// Seconds for which a connection may be idle.
    pub(super) idle: u64,
}

impl Rations {
    pub(crate) fn new(firewall: &FirewallSettings, limits: &GuestLimits) -> Rations {
        let resolver = limits.resolver_timeout;
        let queries = limits.dns_queries_per_second.unwrap_or(UNLIMITED_QUERIES).max(LEAST_QUERIES);
        let most = limits.total_connections.map_or(u32::MAX, |total| total / 4);
        let opened = limits.new_connections_per_second.max(limits.requests_per_second);
        let begun = limits.new_connections_per_second.map_or(UNLIMITED_OPENED, |rate| rate.saturating_mul(2));
        Rations {
            queries,
            // The time for a dead server, and for the answer of the next one.
            patience: u32::try_from(resolver.as_secs()).unwrap_or(u32::MAX).saturating_add(1).clamp(3, 120),
            connections: limits.connections.unwrap_or(most).min(most),
            opened: opened.unwrap_or(1000),
            begun: if firewall.host_users.is_empty() { 0 } else { begun.max(LEAST_OPENED) },
            idle: limits.idle_timeout.map_or(FOR_EVER, |idle| idle.as_secs().saturating_add(LONGER_THAN_IDLE)),
        }
    }

    /// Returns the values that the rules are made from, by their configuration key.
    pub(crate) fn in_rules(&self) -> [(&'static str, u64); 4] {
        [
            ("[limits].dns_queries_per_second", self.queries.into()),
            ("[limits].new_connections_per_second", self.begun.into()),
            ("[limits].idle_timeout_s", self.idle),
            ("[resolver].timeout_ms", self.patience.into()),
        ]
    }

    pub(super) fn burst(&self) -> u32 {
        self.queries / 4
    }

    /// Returns how many entries one host user can have at once; what the daemon has open for it counts as a
    /// guest's.
    fn a_user(&self) -> u64 {
        let queries = 2 * (u64::from(self.queries) * u64::from(self.patience) + u64::from(self.burst()));
        queries + u64::from(self.begun) * u64::from(HALF_ENDED) + u64::from(self.connections)
    }

    /// Returns how many entries one guest can have at once, including what the daemon has open for it.
    pub(crate) fn a_guest(&self) -> u64 {
        let seconds = |state: &str| NAMES_TCP.iter().find(|(name, _)| *name == state).map_or(0, |(_, s)| *s);
        let queries = u64::from(self.queries) * u64::from(self.patience) + u64::from(self.burst());
        let tcp = u64::from(TCP_RATE) * u64::from(seconds("established") + 1);
        let upstream = u64::from(self.connections) + u64::from(self.opened) * u64::from(ENDED);
        queries + tcp + upstream
    }
}

/// Returns a warning about the machine's table, one sentence. `guests`: their number; `largest`: how many entries
/// the table can hold, if known.
pub(crate) fn too_small(input: &PlanInput, guests: usize, largest: Option<u64>) -> Option<String> {
    let rations = Rations::new(&input.firewall, &input.limits);
    let users = input.firewall.host_users.len();
    let of = |each: u64, many: usize| each.saturating_mul(u64::try_from(many).unwrap_or(u64::MAX));
    let needed = of(rations.a_guest(), guests.max(1)).saturating_add(of(rations.a_user(), users));
    let largest = largest.filter(|largest| *largest < needed)?;
    let enough = needed.checked_next_power_of_two().unwrap_or(needed);
    Some(format!(
        "the kernel's connection tracking table has {largest} places, and {guests} guests and {users} host users at \
         their limits may need {needed}: write \"net.netfilter.nf_conntrack_max = {enough}\" into \
         /etc/sysctl.d/60-outgate.conf and \"nf_conntrack\" into /etc/modules-load.d/outgate.conf, and run `sysctl -w \
         net.netfilter.nf_conntrack_max={enough}`"
    ))
}

/// Returns how many entries the table can hold; `None` if there is no table yet.
pub(crate) fn largest() -> Option<u64> {
    sysctl("/proc/sys/net/netfilter/nf_conntrack_max")?.parse().ok()
}
