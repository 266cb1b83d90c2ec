//! What a guest does: connections from its namespace, tunnels, requests, and TLS.

use super::http::{self, Response};
use super::namespace::Namespace;
use super::{PROXY, client_hello, pki};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// The TLS alert of a refusal (RFC 8446 §6.2).
pub const ACCESS_DENIED: u8 = 49;

/// How long a client waits for bytes: longer than any answer takes on a busy machine.
const WAIT: Duration = Duration::from_secs(20);

/// TLS over a connection.
pub type Tls = StreamOwned<ClientConnection, Wire>;

/// Whether the connection is neither closed nor reset by the other side, and has nothing to read.
pub fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    stream.set_nonblocking(false).is_ok() && peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// A guest: its namespace and its address.
pub struct Guest {
    /// Where its sockets are made.
    pub namespace: Arc<Namespace>,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
}

impl Guest {
    /// A guest in this namespace.
    pub fn new(namespace: Namespace, address: Ipv4Addr) -> Guest {
        Guest { namespace: Arc::new(namespace), address }
    }

    /// Connects to the proxy listener.
    pub fn proxy(&self) -> Wire {
        Wire::dial(&self.namespace, PROXY.parse::<SocketAddr>().unwrap()).expect("the proxy accepts")
    }

    /// Connects to the proxy from one of the guest's addresses.
    pub fn proxy_from(&self, address: Ipv4Addr) -> Wire {
        let proxy: SocketAddr = PROXY.parse().unwrap();
        let connect = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((address, 0)).into())?;
            socket.connect(&proxy.into())?;
            Wire::new(socket.into())
        };
        self.namespace.run(connect).expect("the proxy accepts")
    }

    /// Connects to the proxy `count` times.
    pub fn proxies(&self, count: usize) -> Vec<TcpStream> {
        let proxy: SocketAddr = PROXY.parse().unwrap();
        self.namespace.run(|| (0..count).filter_map(|_| TcpStream::connect(proxy).ok()).collect())
    }

    /// Sends a request to the proxy on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Response {
        let mut wire = self.proxy();
        wire.say(&request);
        let method = request.as_ref().split(|byte| *byte == b' ').next().unwrap_or_default();
        wire.hear(&String::from_utf8_lossy(method))
    }

    /// GET of an absolute URI in plain HTTP.
    pub fn get(&self, host: &str, path: &str) -> Response {
        self.ask(format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    }

    /// The answer to CONNECT, with the connection.
    pub fn connect(&self, target: &str) -> (Response, Wire) {
        let mut wire = self.proxy();
        wire.say(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        (wire.hear("CONNECT"), wire)
    }

    /// A tunnel through CONNECT; it must be granted.
    #[track_caller]
    pub fn tunnel(&self, target: &str) -> Wire {
        let (response, wire) = self.connect(target);
        assert_eq!(response.status, 200, "CONNECT {target}: {}", response.text());
        wire
    }

    /// The reply code to a SOCKS5 request, with the connection. `address` starts with its type.
    pub fn socks(&self, command: u8, address: &[u8], port: u16) -> (Option<u8>, Wire) {
        let mut wire = self.proxy();
        wire.say([5, 1, 0]);
        let mut method = [0u8; 2];
        if wire.read_exact(&mut method).is_err() || method != [5, 0] {
            return (None, wire);
        }
        wire.say([&[5, command, 0], address, &port.to_be_bytes()].concat());
        let mut reply = [0u8; 10];
        match wire.read_exact(&mut reply) {
            Ok(()) => (Some(reply[1]), wire),
            Err(_) => (None, wire),
        }
    }

    /// As [`socks`](Self::socks): CONNECT to a name.
    pub fn socks_name(&self, name: impl AsRef<[u8]>, port: u16) -> (Option<u8>, Wire) {
        let name = name.as_ref();
        let length = u8::try_from(name.len()).expect("a SOCKS name has 255 bytes at most");
        self.socks(1, &[&[3, length], name].concat(), port)
    }

    /// An https GET through CONNECT, the hello naming `sni`. The error is what TLS ended by.
    pub fn https_get(&self, target: &str, sni: &str, path: &str) -> io::Result<Response> {
        self.tunnel(target).tls(sni)?.get(sni, path)
    }
}

/// A connection with a buffer for reading and none for writing.
pub struct Wire(BufReader<TcpStream>);

impl Wire {
    /// Connects from a namespace.
    pub fn dial(namespace: &Namespace, address: impl Into<SocketAddr>) -> io::Result<Wire> {
        let address = address.into();
        Wire::new(namespace.run(|| TcpStream::connect_timeout(&address, WAIT))?)
    }

    /// Wraps a connection.
    pub fn new(stream: TcpStream) -> io::Result<Wire> {
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        stream.set_nodelay(true)?;
        Ok(Wire(BufReader::new(stream)))
    }

    /// Sends bytes. If the other side has closed, the next read shows it.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.get_mut().write_all(bytes.as_ref());
    }

    /// Sends each piece in a segment of its own, with a pause after it.
    pub fn say_slowly<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>, pause: Duration) {
        for piece in pieces {
            if self.0.get_mut().write_all(piece).is_err() {
                return;
            }
            std::thread::sleep(pause);
        }
    }

    /// Reads the response to a request with this method; status 0 for none.
    pub fn hear(&mut self, method: &str) -> Response {
        http::read_response(&mut self.0, method).unwrap_or_default()
    }

    /// Reads only a response's head; also returns the interim statuses before it.
    pub fn hear_head(&mut self) -> (Response, Vec<u16>) {
        let mut interim = Vec::new();
        let head = http::read_head(&mut self.0, &mut interim).unwrap_or_default();
        (head, interim)
    }

    /// Reads exactly this many bytes, fewer if the connection ends before.
    pub fn take_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut length = 0;
        while length < count {
            match self.0.read(&mut bytes[length..]) {
                Ok(0) | Err(_) => break,
                Ok(more) => length += more,
            }
        }
        bytes.truncate(length);
        bytes
    }

    /// Reads to the end; fails if there is none, or if the connection is reset.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the other side has ended the connection, by end of file or reset. What it sent before is skipped.
    pub fn is_over(&mut self) -> bool {
        loop {
            match self.0.fill_buf() {
                Ok([]) => return true,
                Ok(bytes) => {
                    let length = bytes.len();
                    self.0.consume(length);
                }
                Err(error) => return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            }
        }
    }

    /// Reads to the end, and gives the TLS alert found there, if that is what was sent.
    pub fn alert(&mut self) -> Option<u8> {
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes);
        client_hello::alert(&bytes)
    }

    /// Ends the sending half.
    pub fn finish(&self) {
        let _ = self.0.get_ref().shutdown(Shutdown::Write);
    }

    /// Resets the connection, as a guest does whose VM is killed.
    pub fn vanish(self) {
        let socket = self.0.into_inner();
        rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("a socket takes the option");
    }

    /// The socket below.
    pub fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    /// Another handle for sending, so that a thread can send while this one reads.
    pub fn clone_sender(&self) -> TcpStream {
        self.0.get_ref().try_clone().expect("a socket can be cloned")
    }

    /// Performs a handshake with a server that must have a certificate for `name`.
    pub fn tls(self, name: &str) -> io::Result<Tls> {
        self.tls_with(pki::client(), name, |hello| vec![hello])
    }

    /// As [`tls`](Self::tls), with this configuration; `cut` splits the first flight into the pieces
    /// that are sent.
    pub fn tls_with(
        mut self,
        config: Arc<ClientConfig>,
        name: &str,
        cut: impl FnOnce(Vec<u8>) -> Vec<Vec<u8>>,
    ) -> io::Result<Tls> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut flight = Vec::new();
        connection.write_tls(&mut flight)?;
        for piece in cut(flight) {
            self.write_all(&piece)?;
        }
        let mut tls = StreamOwned::new(connection, self);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(tls)
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A request and its response inside TLS.
pub trait Get {
    /// GET of a path; the host goes into `Host`.
    fn get(&mut self, host: &str, path: &str) -> io::Result<Response>;
}

impl Get for Tls {
    fn get(&mut self, host: &str, path: &str) -> io::Result<Response> {
        write!(self, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
        http::read_response(&mut BufReader::new(self), "GET")
    }
}
