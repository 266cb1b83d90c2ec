//! What happened: metrics, the access log, the table of live flows.

/// The kind of listener a flow came in by; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Listener {
    /// HTTP forward and CONNECT.
    Proxy,
    /// SOCKS5.
    Socks,
    /// TPROXY.
    Transparent,
    /// nft REDIRECT.
    Redirect,
    /// UDP.
    Udp,
    /// The guests' DNS.
    Dns,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Standard output.
    Stdout,
    /// The systemd journal's socket.
    Journal,
    /// A file, opened for append and again on SIGHUP.
    File(std::path::PathBuf),
    /// Nowhere.
    Off,
}

/// `[log]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The sink.
    pub access: AccessLog,
    /// Only flows that were not allowed.
    pub denied_only: bool,
}
