//! Connections as the clients make them: dialling, CONNECT, an HTTP exchange, TLS.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// Ports of the origin: raw bytes, HTTP, HTTP over TLS.
pub(crate) const RAW_PORT: u16 = 9001;
pub(crate) const HTTP_PORT: u16 = 9002;
pub(crate) const TLS_PORT: u16 = 9003;

/// The longest head that anybody here reads, in bytes.
pub(crate) const HEAD: usize = 4096;

/// Why an operation failed; the text is also what failures are counted under.
#[derive(Debug)]
pub(crate) struct Failure(String);

pub(crate) type Outcome<T> = Result<T, Failure>;

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure(error.to_string())
    }
}

impl Failure {
    pub(crate) fn status(status: u16) -> Self {
        Failure(format!("status {status}"))
    }

    pub(crate) fn new(what: &str) -> Self {
        Failure(what.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs on this thread alone, so that a process is one CPU's worth of load.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(future)
}

/// How a connection is opened.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) dial: SocketAddr,
    /// The address to dial from, where it matters.
    pub(crate) from: Option<IpAddr>,
    /// `NAME:PORT` for CONNECT; none where what was dialled brings to the origin by itself.
    pub(crate) connect: Option<String>,
}

impl Route {
    pub(crate) async fn dial(&self) -> io::Result<TcpStream> {
        let socket = if self.dial.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = self.from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = socket.connect(self.dial).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection on which the next byte goes to the origin.
    pub(crate) async fn open(&self) -> Outcome<TcpStream> {
        let mut stream = self.dial().await?;
        self.ask(&mut stream).await?;
        Ok(stream)
    }

    /// What is left to do on a connection that the proxy has taken: CONNECT, where there is one.
    pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> Outcome<()> {
        let Some(target) = &self.connect else { return Ok(()) };
        match ask_connect(stream, target).await? {
            200..=299 => Ok(()),
            other => Err(Failure::status(other)),
        }
    }
}

/// Sends CONNECT and reads the head of the answer; its status.
pub(crate) async fn ask_connect<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, target: &str) -> Outcome<u16> {
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut buffer = [0; HEAD];
    let (end, have) = read_head(stream, &mut buffer).await?;
    let status = status(&buffer[..end])?;
    // Our origin speaks only when spoken to. What follows a refusal is its page.
    if have > end && status < 300 {
        return Err(Failure::new("bytes behind the answer to CONNECT"));
    }
    Ok(status)
}

/// Reads until a blank line has come; its end, and how much was read.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut [u8; HEAD]) -> Outcome<(usize, usize)> {
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..]).await? {
            0 if have == HEAD => return Err(Failure::new("a head over 4 KiB")),
            0 => return Err(Failure::new("closed before an answer")),
            more => have += more,
        }
        if let Some(end) = head_end(&buffer[..have]) {
            return Ok((end, have));
        }
    }
}

/// The index behind the blank line that ends a head.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

fn status(head: &[u8]) -> Outcome<u16> {
    let digits = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| Failure::new("no status line"))
}

/// One byte to the origin and back.
pub(crate) async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Outcome<()> {
    stream.write_all(b"\0").await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        0 => Ok(()),
        _ => Err(Failure::new("another byte came back")),
    }
}

/// A request, and its answer with a body of `size` bytes. Says whether the connection may be used again.
pub(crate) async fn exchange<S>(stream: &mut S, request: &[u8], size: usize) -> Outcome<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut buffer = [0; HEAD];
    let (end, have) = read_head(stream, &mut buffer).await?;
    match status(&buffer[..end])? {
        200 => {}
        other => return Err(Failure::status(other)),
    }
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let closes = match field("connection:") {
        Some(said) => said.contains("close"),
        None => head.starts_with("http/1.0"),
    };
    // The origin always says the length; a proxy that leaves it out can only mean "until I close".
    if field("content-length:").map_or(!closes, |length| length.parse() != Ok(size)) {
        return Err(Failure::new("another length"));
    }
    let mut left = size.checked_sub(have - end).ok_or_else(|| Failure::new("bytes behind the body"))?;
    while left > 0 {
        let most = left.min(HEAD);
        match stream.read(&mut buffer[..most]).await? {
            0 => return Err(Failure::new("a cut body")),
            more => left -= more,
        }
    }
    Ok(!closes)
}

/// Takes `left` bytes off a stream, or what comes before its end. Says how many.
///
/// With MSG_TRUNC the kernel drops them instead of copying them out (tcp(7)), so that the load costs
/// less than the proxy that it measures.
pub(crate) async fn discard(stream: &TcpStream, left: u64, scratch: &mut [u8]) -> io::Result<u64> {
    use rustix::net::{RecvFlags, recv};
    let mut taken = 0;
    while taken < left {
        let most = usize::try_from(left - taken).unwrap_or(usize::MAX).min(scratch.len());
        let take = || Ok(recv(stream, &mut scratch[..most], RecvFlags::TRUNC | RecvFlags::DONTWAIT)?);
        let (_, count) = stream.async_io(Interest::READABLE, take).await?;
        if count == 0 {
            break;
        }
        taken += count as u64;
    }
    Ok(taken)
}

/// A TLS client that takes any certificate and resumes nothing.
pub(crate) fn tls_client() -> TlsConnector {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring has the suites for the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

/// The origin signs its certificate itself, and checking one is no work of the proxy's.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
