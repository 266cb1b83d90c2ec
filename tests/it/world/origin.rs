//! The internet: a web server on ports 80 and 443 of GOOD, CDN and EVIL, and whatever servers a test
//! scripts. Each connection and the bytes it brought are kept, by the address they came to.

use super::http;
use super::namespace::Namespace;
use super::pki;
use rustls::{ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Of each connection, this many of the first bytes are kept; all are counted.
const KEPT: usize = 256 * 1024;

/// What an origin saw of one connection.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The address and port it came to.
    pub local: Option<SocketAddr>,
    /// The server name of its ClientHello.
    pub sni: Option<String>,
    /// The requests on it, in order.
    pub requests: Vec<http::Request>,
    /// The first bytes it brought, as they came over the wire.
    pub bytes: Vec<u8>,
    /// How many bytes it brought.
    pub count: u64,
    /// The other side closed its sending half, or reset the connection.
    pub ended: bool,
}

type Log = Arc<Mutex<Vec<Arc<Mutex<Seen>>>>>;

/// All origins of a world.
pub struct Internet {
    namespace: Namespace,
    log: Log,
    servers: Mutex<Vec<Server>>,
}

struct Server {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Internet {
    /// Starts the web servers.
    pub fn start(namespace: Namespace) -> Internet {
        let internet = Internet { namespace, log: Log::default(), servers: Mutex::default() };
        let good6: IpAddr = super::GOOD6.parse().expect("it is written right");
        for address in [super::GOOD.into(), super::CDN.into(), super::EVIL.into(), good6] {
            internet.serve((address, 80), |mut tap| {
                let _ = http::serve(&mut tap);
            });
            internet.serve((address, 443), |tap| {
                let _ = serve_tls(tap);
            });
        }
        internet
    }

    /// Runs `handler` in a thread for each connection to `address`.
    pub fn serve(&self, address: impl Into<SocketAddr>, handler: impl Fn(Tap) + Send + Sync + 'static) {
        let address = address.into();
        let listener = self.namespace.run(|| TcpListener::bind(address).expect("the address is free"));
        let listener = Arc::new(listener);
        let stop = Arc::new(AtomicBool::new(false));
        let (accepting, stopped, log) = (Arc::clone(&listener), Arc::clone(&stop), Arc::clone(&self.log));
        let handler = Arc::new(handler);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let local = stream.local_addr().ok();
                let seen = Arc::new(Mutex::new(Seen { local, ..Seen::default() }));
                log.lock().unwrap().push(Arc::clone(&seen));
                let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                let _ = stream.set_nodelay(true);
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || handler(Tap { stream, seen }));
            }
        });
        self.servers.lock().unwrap().push(Server { listener, thread: Some(thread), stop });
    }

    /// A server that sends back what it gets, until the client's end, then ends too.
    pub fn echo(&self, address: impl Into<SocketAddr>) {
        self.serve(address, |mut tap| {
            let mut buffer = [0u8; 16 * 1024];
            while let Ok(length) = tap.read(&mut buffer) {
                if length == 0 || tap.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            tap.finish();
        });
    }

    /// Runs `work` where the origins are.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// A UDP socket that is never read.
    pub fn bind_udp(&self, address: impl Into<SocketAddr>) -> UdpSocket {
        let address = address.into();
        self.namespace.run(|| UdpSocket::bind(address).expect("the address is free"))
    }

    /// A server that stores what it gets, and sends nothing.
    pub fn sink(&self, address: impl Into<SocketAddr>) {
        self.serve(address, |mut tap| {
            let _ = io::copy(&mut tap, &mut io::sink());
        });
    }

    /// Every connection to this address so far.
    pub fn seen(&self, address: impl Into<IpAddr>) -> Vec<Seen> {
        let address = address.into();
        let all = self.all();
        all.into_iter().filter(|seen| seen.local.is_some_and(|local| local.ip() == address)).collect()
    }

    /// Every connection so far.
    pub fn all(&self) -> Vec<Seen> {
        self.log.lock().unwrap().iter().map(|seen| seen.lock().unwrap().clone()).collect()
    }

    /// Every request that came to this address so far, in clear or inside TLS.
    pub fn requests(&self, address: impl Into<IpAddr>) -> Vec<http::Request> {
        self.seen(address).into_iter().flat_map(|seen| seen.requests).collect()
    }

    /// How many bytes this address has got.
    pub fn bytes(&self, address: impl Into<IpAddr>) -> u64 {
        self.seen(address).iter().map(|seen| seen.count).sum()
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        for server in self.servers.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            server.stop.store(true, Ordering::SeqCst);
            // Wakes the accept: on Linux it fails once the socket is shut down.
            let _ = rustix::net::shutdown(&server.listener, rustix::net::Shutdown::Both);
            if let Some(thread) = server.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn serve_tls(tap: Tap) -> io::Result<()> {
    let connection = ServerConnection::new(pki::server()).map_err(io::Error::other)?;
    let mut tls = StreamOwned::new(connection, tap);
    while tls.conn.is_handshaking() {
        if let Err(error) = tls.conn.complete_io(&mut tls.sock) {
            let _ = tls.conn.write_tls(&mut tls.sock);
            return Err(error);
        }
    }
    let sni = tls.conn.server_name().map(str::to_owned);
    tls.sock.seen.lock().unwrap().sni = sni;
    let seen = Arc::clone(&tls.sock.seen);
    http::serve_on(&mut tls, &seen)?;
    tls.conn.send_close_notify();
    let _ = tls.conn.write_tls(&mut tls.sock);
    Ok(())
}

/// A connection at an origin; what is read is recorded.
pub struct Tap {
    stream: TcpStream,
    /// The notes.
    pub seen: Arc<Mutex<Seen>>,
}

impl Tap {
    /// Ends the sending half; the client reads end of file.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection by a reset, unsent bytes lost.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Reads until the client's end, recording everything.
    pub fn drain(&mut self) {
        let _ = io::copy(self, &mut io::sink());
    }
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer);
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
            self.seen.lock().unwrap().ended = true;
        }
        let length = read?;
        let mut seen = self.seen.lock().unwrap();
        seen.count += length as u64;
        seen.ended |= length == 0 && !buffer.is_empty();
        let room = KEPT - seen.bytes.len();
        seen.bytes.extend(&buffer[..length.min(room)]);
        Ok(length)
    }
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
