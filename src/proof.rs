//! The running proof that guests are guarded: what `outgate-proof-net.service` writes about the last round of each
//! interface, and the daemon, `outgate status` and `outgate proof` read. Root alone writes the file, so neither a
//! guest nor the daemon can claim a round that did not happen.

use crate::config::SYSTEM_CONTROL;
use outgate_proto::enum_of_words;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder of the proof.
pub const FOLDER: &str = "/run/outgate-proof";
/// The file in it.
pub const FILE_NAME: &str = "rounds.json";
/// Time between the starts of two rounds, give or take [`JITTER`].
pub const EVERY: Duration = Duration::from_secs(30);
/// How much earlier or later a round may start, so that those of many hosts do not keep step.
pub const JITTER: Duration = Duration::from_secs(5);
/// A round that is older proves nothing any more.
pub const OLD: Duration = Duration::from_secs(120);
/// The largest file, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// The version of its form.
const VERSION: u64 = 1;

enum_of_words! {
    /// One thing that is tried, for each family.
    pub enum Check {
        /// A query to the DNS listener is answered by outgate.
        DnsListener = "dns_listener",
        /// A connection that the firewall brings to the transparent listener is answered by outgate.
        TransparentListener = "transparent_listener",
        /// A request at the proxy is answered by outgate.
        ProxyListener = "proxy_listener",
        /// A URL that guests must reach.
        Url = "url",
        /// TCP to port 80 outside.
        Tcp80 = "tcp_80",
        /// TCP to port 443 outside.
        Tcp443 = "tcp_443",
        /// TCP to port 22 outside.
        Tcp22 = "tcp_22",
        /// UDP to port 443 outside.
        Udp443 = "udp_443",
        /// UDP to port 123 outside.
        Udp123 = "udp_123",
        /// UDP to port 9999 outside.
        Udp9999 = "udp_9999",
        /// A query to another DNS server, over UDP.
        DnsOverUdp = "dns_over_udp",
        /// A query to another DNS server, over TCP.
        DnsOverTcp = "dns_over_tcp",
        /// TCP to port 853 outside.
        DnsOverTls = "dns_over_tls",
        /// ICMP echo.
        Ping = "ping",
        /// GRE, ESP and SCTP.
        OtherProtocols = "other_protocols",
        /// A packet that the second router would report.
        Ttl2 = "ttl_2",
        /// A packet from an address that is not the guest's.
        SpoofedSource = "spoofed_source",
        /// The metadata service of clouds.
        Metadata = "metadata",
        /// A TCP port of this machine.
        HostTcp = "host_tcp",
        /// A UDP port of this machine.
        HostUdp = "host_udp",
        /// This machine's port 22.
        HostSsh = "host_ssh",
        /// The port of the status page.
        HostAdmin = "host_admin",
        /// TCP to another guest.
        OtherGuestTcp = "other_guest_tcp",
        /// UDP to another guest.
        OtherGuestUdp = "other_guest_udp",
        /// ICMP echo to another guest.
        OtherGuestPing = "other_guest_ping",
    }
    /// The word in answers and the metric's label.
    pub fn as_str
}

impl Check {
    /// Returns whether it is something that must get through.
    pub const fn must_pass(self) -> bool {
        matches!(self, Check::DnsListener | Check::TransparentListener | Check::ProxyListener | Check::Url)
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Check {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Check, D::Error> {
        let word = String::deserialize(deserializer)?;
        let found = Check::ALL.into_iter().find(|check| check.as_str() == word);
        found.ok_or_else(|| de::Error::custom(format!("{word:?} is no check")))
    }
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    /// As it should be.
    Ok,
    /// Something got past outgate.
    Leak,
    /// Something that must get through does not, or the check could not be made.
    Failed,
    /// It means nothing here.
    NotApplicable,
}

/// One check of the last round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Which.
    pub check: Check,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// The URL, for [`Check::Url`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The result.
    pub result: CheckResult,
    /// What was seen; for a check that means nothing here, why.
    pub seen: String,
}

impl Checked {
    /// Returns check and family in words.
    pub fn name(&self) -> String {
        match &self.url {
            Some(url) => format!("{} {url}", self.check.as_str()),
            None => format!("{} {}", self.check.as_str(), self.family),
        }
    }
}

/// A guests' interface in the proof.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceProof {
    /// Its name, or the pattern of `guest_interfaces`.
    pub interface: String,
    /// Why nothing can be tried there, if so. That is no failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_applicable: Option<String>,
    /// Why nothing could be tried there, though it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The number of rounds.
    pub rounds: u64,
    /// When the last round ended, or before the first one, when the interface was taken up: milliseconds since the
    /// machine started ([`since_boot`]), which no change of the clock touches.
    pub at: u64,
    /// The same in seconds since 1970.
    pub at_unix: u64,
    /// Packets at the sentinel that no check sent, in all rounds.
    pub other_packets: u64,
    /// The checks of the last round; empty before the first.
    pub checks: Vec<Checked>,
}

/// Whether an interface's guests are proven to be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The last round found nothing wrong.
    Proven,
    /// Something gets past outgate.
    Open(String),
    /// Nothing gets past it, and it does not answer.
    CutOff(String),
    /// There is no recent round.
    Silent(String),
    /// The first round is on its way.
    Pending,
    /// Nothing can be tried there.
    NotApplicable(String),
}

impl Standing {
    /// Returns whether nothing is left to be shown.
    pub const fn is_good(&self) -> bool {
        matches!(self, Standing::Proven | Standing::NotApplicable(_))
    }

    /// Returns the word for it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Standing::Proven => "proven",
            Standing::Open(_) => "open",
            Standing::CutOff(_) => "cut_off",
            Standing::Silent(_) => "silent",
            Standing::Pending => "pending",
            Standing::NotApplicable(_) => "not_applicable",
        }
    }

    /// Returns what is to be said: what is wrong with the remedy, or why nothing can be tried.
    pub fn text(&self) -> Option<&str> {
        match self {
            Standing::Proven | Standing::Pending => None,
            Standing::Open(text) | Standing::CutOff(text) | Standing::Silent(text) | Standing::NotApplicable(text) => {
                Some(text)
            }
        }
    }
}

impl InterfaceProof {
    /// Returns how old the last round is.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.at))
    }

    /// Judges the last round; each text names the remedy.
    pub fn standing(&self, now: Duration) -> Standing {
        let guests = format!("guests of {}", self.interface);
        let quoted = outgate_files::shell::quoted(&self.interface);
        if let Some(why) = &self.not_applicable {
            return Standing::NotApplicable(why.clone());
        }
        if let Some(why) = &self.fault {
            return Standing::Silent(format!(
                "it cannot be proven that {guests} are guarded: {why}: run `outgate verify --interface {quoted}`"
            ));
        }
        let named = |is: &dyn Fn(&&Checked) -> bool| {
            let names: Vec<String> = self.checks.iter().filter(is).map(Checked::name).collect();
            (!names.is_empty()).then(|| names.join(", "))
        };
        // What got out stays true until a round shows that nothing does.
        if let Some(leaks) = named(&|checked| checked.result == CheckResult::Leak) {
            return Standing::Open(format!(
                "{guests} are NOT guarded ({leaks}): run `outgate firewall apply`, then `outgate verify --interface {quoted}`"
            ));
        }
        if self.age(now) > OLD {
            return Standing::Silent(format!(
                "for {} s nothing has proven that {guests} are guarded: run `systemctl restart outgate-proof-net.service`",
                self.age(now).as_secs()
            ));
        }
        let untried = named(&|checked| checked.result == CheckResult::Failed && !checked.check.must_pass());
        if let Some(untried) = untried {
            return Standing::Silent(format!(
                "not everything could be tried for {guests} ({untried}): run `outgate verify --interface {quoted}`"
            ));
        }
        match named(&|checked| checked.result == CheckResult::Failed) {
            None if self.rounds == 0 => Standing::Pending,
            Some(failed) => Standing::CutOff(format!(
                "{guests} do not get through to outgate ({failed}): `outgate verify --interface {quoted}` says what is in \
                 the way"
            )),
            None => Standing::Proven,
        }
    }
}

/// All interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    version: u64,
    /// Whether it was stopped in order, so that it proves nothing and nothing is wrong.
    pub is_stopped: bool,
    /// The interfaces, in the order of `guest_interfaces`.
    pub interfaces: Vec<InterfaceProof>,
}

impl Proof {
    /// Creates one to be written.
    pub fn new(interfaces: Vec<InterfaceProof>, is_stopped: bool) -> Proof {
        Proof { version: VERSION, is_stopped, interfaces }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Those of the system, and [`io::ErrorKind::InvalidData`] if others than `owner` (usually root, 0) may have written
    /// it, or this version cannot read it.
    pub fn read(path: &Path, owner: u32) -> io::Result<Proof> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
        let file = File::open(path)?;
        let facts = file.metadata()?;
        if !facts.is_file() || facts.uid() != owner || facts.mode() & 0o022 != 0 {
            return Err(invalid("others than root may have written it"));
        }
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text)?;
        let proof: Proof = serde_json::from_str(&text).map_err(|error| invalid(&error.to_string()))?;
        if proof.version > VERSION {
            return Err(invalid("a later outgate wrote it"));
        }
        Ok(proof)
    }
}

/// Returns the folder of the proof beside this control socket of the daemon; each daemon of a machine has its own. It is
/// in a folder of root's.
pub fn folder(control: Option<&Path>) -> PathBuf {
    match control {
        Some(path) if path != Path::new(SYSTEM_CONTROL) => {
            let sum = outgate_files::sums::of([("control", [path.as_os_str().as_bytes()])]);
            PathBuf::from(format!("{FOLDER}.{}", sum.get(..12).unwrap_or(&sum)))
        }
        _ => PathBuf::from(FOLDER),
    }
}

/// Returns the time since the machine started, sleep included.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or_default(), now.tv_nsec.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn checked(check: Check, result: CheckResult) -> Checked {
        Checked { check, family: "ipv4".to_owned(), url: None, result, seen: "seen".to_owned() }
    }

    #[test]
    fn only_a_recent_round_without_a_fault_is_a_proof() {
        let at = |checks: Vec<Checked>| InterfaceProof {
            interface: "br*".to_owned(),
            at: 10_000,
            rounds: 1,
            checks,
            ..InterfaceProof::default()
        };
        let soon = Duration::from_secs(20);
        let late = Duration::from_secs(131);
        let good = at(vec![checked(Check::Tcp80, CheckResult::Ok), checked(Check::Ping, CheckResult::NotApplicable)]);
        assert_eq!(good.standing(soon), Standing::Proven);
        assert!(matches!(good.standing(late), Standing::Silent(why) if why.contains("for 121 s nothing has proven")));
        let open = at(vec![checked(Check::DnsListener, CheckResult::Failed), checked(Check::Tcp80, CheckResult::Leak)]);
        for now in [soon, late] {
            assert!(matches!(open.standing(now), Standing::Open(why) if why.contains("NOT guarded (tcp_80 ipv4)")
                && why.contains("`outgate verify --interface 'br*'`")));
        }
        let silent = at(vec![checked(Check::DnsListener, CheckResult::Failed), checked(Check::Tcp80, CheckResult::Ok)]);
        assert!(matches!(silent.standing(soon), Standing::CutOff(why) if why.contains("(dns_listener ipv4)")));
        let untried = at(vec![checked(Check::Tcp80, CheckResult::Failed)]);
        assert!(matches!(untried.standing(soon), Standing::Silent(_)), "what was not tried is not proven");
        let none = InterfaceProof { not_applicable: Some("one guest".to_owned()), ..good.clone() };
        assert_eq!(none.standing(late), Standing::NotApplicable("one guest".to_owned()));
        let new = InterfaceProof { rounds: 0, checks: Vec::new(), ..good.clone() };
        assert_eq!(new.standing(soon), Standing::Pending);
        assert!(matches!(new.standing(late), Standing::Silent(_)), "it never came");
        let fault = InterfaceProof { fault: Some("all is taken".to_owned()), ..good };
        assert!(matches!(fault.standing(soon), Standing::Silent(why) if why.contains("all is taken")));
    }

    #[test]
    fn the_file_counts_only_if_nobody_else_can_write_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let me = rustix::process::getuid().as_raw();
        let proof = Proof::new(
            vec![InterfaceProof {
                interface: "br0".to_owned(),
                checks: vec![checked(Check::Ping, CheckResult::Ok)],
                ..InterfaceProof::default()
            }],
            false,
        );
        let write = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Proof::read(&path, me)
        };
        let text = serde_json::to_string(&proof).unwrap();
        assert_eq!(write(&text, 0o644).unwrap(), proof);
        assert!(write(&text, 0o664).is_err() && write(&text, 0o646).is_err());
        assert!(Proof::read(&path, me.wrapping_add(1)).is_err());
        for wrong in ["", "{", &text.replace("\"version\":1", "\"version\":2"), &text.replace("ping", "pong")] {
            assert!(write(wrong, 0o644).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_clock_since_boot_goes_on() {
        let before = since_boot();
        std::thread::sleep(Duration::from_millis(2));
        assert!(since_boot() > before && before > Duration::ZERO);
    }
}
