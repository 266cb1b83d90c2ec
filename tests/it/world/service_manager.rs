//! A stand-in for the service manager: opens sockets, passes them to the daemon (sd_listen_fds(3)), keeps them open,
//! and receives the daemon's messages (sd_notify(3)).

use super::namespace::Namespace;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Descriptors from here on are unused in the shell that passes them.
const FIRST: i32 = 100;

/// Sockets to pass to the daemon, and the socket for its messages.
pub struct ServiceManager {
    sockets: Vec<Socket>,
    /// The names of their units, in order; empty: they have none.
    units: Vec<String>,
    ear: Option<(PathBuf, Duration)>,
}

impl ServiceManager {
    /// Opens `count` listeners of each address.
    pub fn listen(namespace: &Namespace, addresses: &[&str], count: usize) -> ServiceManager {
        let mut manager = ServiceManager { sockets: Vec::new(), units: Vec::new(), ear: None };
        for address in addresses {
            (0..count).for_each(|_| manager.add(namespace, address, Type::STREAM, false));
        }
        manager
    }

    /// Opens one more socket.
    pub fn add(&mut self, namespace: &Namespace, address: &str, kind: Type, transparent: bool) {
        let address: SocketAddr = address.parse().unwrap();
        let open = || {
            let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
            let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.set_ip_transparent_v4(transparent && address.is_ipv4())?;
            socket.bind(&address.into())?;
            if kind == Type::STREAM {
                socket.listen(4096)?;
            }
            Ok::<_, std::io::Error>(socket)
        };
        self.sockets.push(namespace.run(open).unwrap_or_else(|error| panic!("{address}: {error}")));
    }

    /// The units that the sockets are of, in order.
    pub fn name(&mut self, units: &[&str]) {
        self.units = units.iter().map(|unit| (*unit).to_owned()).collect();
    }

    /// A socket at `path` for the daemon's messages, with a watchdog of `limit`.
    pub fn hear(&mut self, path: &Path, limit: Duration) -> UnixDatagram {
        let ear = UnixDatagram::bind(path).unwrap();
        self.ear = Some((path.to_owned(), limit));
        ear
    }

    /// Makes `command` one that gets the sockets. The returned value must live until it is started.
    pub fn wrap(&self, command: &mut Command) -> Vec<OwnedFd> {
        let handed: Vec<OwnedFd> =
            self.sockets.iter().map(|socket| fcntl_dupfd_cloexec(socket, FIRST).unwrap()).collect();
        let mut script = String::new();
        for (to, from) in (3..).zip(&handed) {
            fcntl_setfd(from, FdFlags::empty()).unwrap();
            let from = from.as_raw_fd();
            script.push_str(&format!("exec {to}<&{from} {from}<&-\n"));
        }
        script.push_str("LISTEN_PID=$$ exec \"$@\"");
        let mut shell = Command::new("bash");
        shell.stdin(Stdio::null()).env_remove("RUST_LOG");
        shell.args(["-c", &script, "bash"]).arg(command.get_program()).args(command.get_args());
        if !handed.is_empty() {
            shell.env("LISTEN_FDS", handed.len().to_string()).env("LISTEN_FDNAMES", self.units.join(":"));
        }
        if let Some((path, limit)) = &self.ear {
            shell.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", limit.as_micros().to_string());
        }
        *command = shell;
        handed
    }
}
