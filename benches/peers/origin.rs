//! The origin. Raw bytes on one port: a zero is echoed, and so is all that follows; `<n` and a line feed
//! is answered with n bytes; `>n` and a line feed takes n bytes and answers with one. HTTP/1.1 on
//! the next, and over TLS on a third: `/n` is answered with n bytes.
//!
//! None of these begins like HTTP. A proxy that judges requests in clear within a tunnel waits to see
//! whether a letter becomes one, while a TLS hello, which most tunnels carry, is known by its first byte.

use crate::wire::{self, HEAD, HTTP_PORT, RAW_PORT, TLS_PORT};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;

/// Written at a time, in bytes.
const BLOCK: usize = 256 << 10;
static BYTES: [u8; BLOCK] = [b'x'; BLOCK];

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    #[arg(long, default_value_t = RAW_PORT)]
    raw_port: u16,
    #[arg(long, default_value_t = HTTP_PORT)]
    http_port: u16,
    #[arg(long, default_value_t = TLS_PORT)]
    tls_port: u16,
    /// End after this
    #[arg(long, default_value_t = 7200)]
    seconds: u64,
}

pub(crate) fn run(args: Args) -> io::Result<()> {
    // Streams have a thread of their own, so that the echo beside them waits for the proxy alone.
    let streams = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = streams.handle().clone();
    let life = Duration::from_secs(args.seconds);
    std::thread::spawn(move || streams.block_on(async { tokio::time::sleep(life).await }));
    wire::block_on(async {
        let raw = listen(SocketAddr::new(args.address, args.raw_port))?;
        let http = listen(SocketAddr::new(args.address, args.http_port))?;
        let tls = listen(SocketAddr::new(args.address, args.tls_port))?;
        let acceptor = acceptor();
        let all = async {
            tokio::join!(
                serve(raw, async |stream| self::raw(stream, handle.clone())),
                serve(http, async |stream| answer(stream)),
                serve(tls, async |stream| secured(stream, acceptor.clone())),
            )
        };
        // The end of its time is how it is meant to end.
        let _ = tokio::time::timeout(life, all).await;
        Ok(())
    })
}

pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

/// Accepts for ever. A client that goes away ends its own connection and nothing else.
async fn serve<F>(listener: TcpListener, each: impl AsyncFn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(each(stream).await);
            }
            // Out of descriptors for a moment: some connections have to end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn acceptor() -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(["origin.test".to_string()]).expect("a fixed name is a good one");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("rcgen writes PKCS#8");
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the suites for the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("the key is that of the certificate");
    config.send_tls13_tickets = 0;
    TlsAcceptor::from(Arc::new(config))
}

async fn raw(mut stream: TcpStream, streams: Handle) -> io::Result<()> {
    let mut buffer = [0; 512];
    let mut have = stream.read(&mut buffer[..1]).await?;
    if have == 0 || buffer[0] == 0 {
        while have > 0 {
            stream.write_all(&buffer[..have]).await?;
            have = stream.read(&mut buffer).await?;
        }
        return Ok(());
    }
    let give = buffer[0] == b'<';
    let mut count = 0;
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            digit @ b'0'..=b'9' if count < 1 << 50 => count = count * 10 + u64::from(digit - b'0'),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    let stream = stream.into_std()?;
    streams.spawn(async move {
        let stream = TcpStream::from_std(stream)?;
        if give { pour(stream, count).await } else { drain(stream, count).await }
    });
    Ok(())
}

/// Writes `left` bytes.
async fn pour<S: AsyncWrite + Unpin>(mut stream: S, mut left: u64) -> io::Result<()> {
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        stream.write_all(&BYTES[..part]).await?;
        left -= part as u64;
    }
    stream.flush().await
}

async fn drain(mut stream: TcpStream, count: u64) -> io::Result<()> {
    if wire::discard(&stream, count, &mut vec![0; 1 << 20]).await? == count {
        stream.write_all(b">").await?;
    }
    Ok(())
}

async fn secured(stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<()> {
    answer(acceptor.accept(stream).await?).await
}

/// HTTP/1.1, as much of it as the clients here speak: heads without bodies.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    let mut buffer = [0; HEAD];
    let mut have = 0;
    loop {
        let Some(end) = wire::head_end(&buffer[..have]) else {
            match stream.read(&mut buffer[have..]).await? {
                0 => return Ok(()),
                more => have += more,
            }
            continue;
        };
        let line = String::from_utf8_lossy(&buffer[..end]);
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let size: u64 = path.rsplit('/').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n");
        // Head and body leave together, as from any server that answers out of memory.
        // HEAD is answered without the body that the length speaks of (RFC 9110 section 9.3.2).
        let body = if method == "HEAD" { 0 } else { size };
        let inline = usize::try_from(body).unwrap_or(BLOCK).min(8 << 10);
        stream.write_all(&[head.as_bytes(), &BYTES[..inline]].concat()).await?;
        pour(&mut stream, body - inline as u64).await?;
        buffer.copy_within(end..have, 0);
        have -= end;
    }
}
