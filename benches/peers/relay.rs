//! The floor: a relay that decides, writes down and limits nothing, on one thread. What a proxy costs
//! above it is what the proxy does; what this costs is the kernel and a runtime.
//!
//! All tunnels read into one buffer; what was read is written at once, and only what the other side
//! does not take is kept.

use crate::origin::listen;
use crate::pki;
use crate::wire::head_end;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::str::FromStr;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::TlsAcceptor;

/// The buffer that all share, in bytes. The size of reads decides what bulk costs.
const SCRATCH: usize = 1 << 20;
/// Bytes that one direction may move before the other tunnels get their turn.
const TURN: usize = 2 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Relay what comes to LISTEN on to TO, unseen; LISTEN=TO
    #[arg(long, value_name = "LISTEN=TO")]
    plain: Vec<Pair>,
    /// The same, but connections come by TPROXY
    #[arg(long, value_name = "LISTEN=TO")]
    transparent: Vec<Pair>,
    /// Answer any CONNECT with 200 and relay to TO
    #[arg(long, value_name = "LISTEN=TO")]
    connect: Vec<Pair>,
    /// Folder that `peers pki` made, for the listeners with TLS
    #[arg(long)]
    pki: Option<PathBuf>,
    /// As --plain, inside TLS
    #[arg(long, value_name = "LISTEN=TO", requires = "pki")]
    tls_plain: Vec<Pair>,
    /// As --connect, inside TLS
    #[arg(long, value_name = "LISTEN=TO", requires = "pki")]
    tls_connect: Vec<Pair>,
    /// As --tls-plain, and clients have to show a certificate
    #[arg(long, value_name = "LISTEN=TO", requires = "pki")]
    known_plain: Vec<Pair>,
    /// As --tls-connect, and clients have to show a certificate
    #[arg(long, value_name = "LISTEN=TO", requires = "pki")]
    known_connect: Vec<Pair>,
    /// Find the end of each request's head, which is all of the request, and relay
    #[arg(long, value_name = "LISTEN=TO")]
    http: Vec<Pair>,
    /// Answer any head with 403
    #[arg(long, value_name = "LISTEN")]
    refuse: Vec<SocketAddr>,
    /// Send each DNS query that comes by UDP back as its own response
    #[arg(long, value_name = "LISTEN")]
    echo: Vec<SocketAddr>,
    /// End after this
    #[arg(long, default_value_t = 7200)]
    seconds: u64,
}

/// Where connections are taken and where they are brought.
#[derive(Clone, Copy)]
struct Pair {
    listen: SocketAddr,
    to: SocketAddr,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (listen, to) = text.split_once('=').ok_or("not LISTEN=TO")?;
        let address = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
        Ok(Pair { listen: address(listen)?, to: address(to)? })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Plain(SocketAddr),
    Connect(SocketAddr),
    Http(SocketAddr),
    Refuse,
}

/// A stream to relay, in clear or out of TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

pub(crate) async fn run(args: Args) -> io::Result<()> {
    for pair in args.plain {
        tokio::spawn(serve(listen(pair.listen)?, Manner::Plain(pair.to), None));
    }
    for pair in args.transparent {
        tokio::spawn(serve(listen_transparent(pair.listen)?, Manner::Plain(pair.to), None));
    }
    for pair in args.connect {
        tokio::spawn(serve(listen(pair.listen)?, Manner::Connect(pair.to), None));
    }
    for pair in args.http {
        tokio::spawn(serve(listen(pair.listen)?, Manner::Http(pair.to), None));
    }
    for address in args.refuse {
        tokio::spawn(serve(listen(address)?, Manner::Refuse, None));
    }
    if let Some(pki) = args.pki {
        let listeners = [(false, args.tls_plain, args.tls_connect), (true, args.known_plain, args.known_connect)];
        for (known, plain, connect) in listeners {
            let tls = TlsAcceptor::from(pki::server(&pki, known)?);
            for pair in plain {
                tokio::spawn(serve(listen(pair.listen)?, Manner::Plain(pair.to), Some(tls.clone())));
            }
            for pair in connect {
                tokio::spawn(serve(listen(pair.listen)?, Manner::Connect(pair.to), Some(tls.clone())));
            }
        }
    }
    for address in args.echo {
        tokio::spawn(echo(UdpSocket::bind(address).await?));
    }
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    Ok(())
}

fn listen_transparent(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Nothing of a query is read.
async fn echo(socket: UdpSocket) {
    /// Of the third byte, the bit that makes a response of it (RFC 1035 §4.1.1).
    const RESPONSE: u8 = 0x80;
    let mut query = vec![0; 4096];
    while socket.readable().await.is_ok() {
        while let Ok((length, client)) = socket.try_recv_from(&mut query) {
            if let Some(reply) = query.get_mut(..length)
                && let Some(flags) = reply.get_mut(2)
            {
                *flags |= RESPONSE;
                // A full send buffer loses a reply, as any network does.
                let _ = socket.try_send_to(reply, client);
            }
        }
    }
}

async fn serve(listener: TcpListener, manner: Manner, tls: Option<TlsAcceptor>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let tls = tls.clone();
                tokio::spawn(async move {
                    stream.set_nodelay(true)?;
                    match tls {
                        Some(tls) => connection(tls.accept(stream).await?, manner).await,
                        None => connection(stream, manner).await,
                    }
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn connection(mut guest: impl Stream, manner: Manner) -> io::Result<()> {
    let to = match manner {
        Manner::Refuse => {
            head(&mut guest).await?;
            return guest.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        }
        Manner::Connect(to) => {
            head(&mut guest).await?;
            to
        }
        Manner::Plain(to) | Manner::Http(to) => to,
    };
    let mut server = TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    if matches!(manner, Manner::Connect(_)) {
        guest.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        guest.flush().await?;
    }
    let mut up = Way { heads: matches!(manner, Manner::Http(_)), ..Way::default() };
    let mut down = Way::default();
    poll_fn(|cx| {
        let up = up.poll(cx, &mut guest, &mut server)?;
        let down = down.poll(cx, &mut server, &mut guest)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Reads one head, which has to come in one piece: the clients here send it so.
async fn head(stream: &mut impl Stream) -> io::Result<()> {
    let end = poll_fn(|cx| {
        BUFFER.with_borrow_mut(|buffer| {
            let mut space = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut space))?;
            Poll::Ready(io::Result::Ok(head_end(space.filled())))
        })
    });
    end.await?.map(drop).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// One direction of a tunnel.
#[derive(Default)]
struct Way {
    /// Read, and not yet taken by the other side.
    kept: Vec<u8>,
    /// TLS takes bytes before the socket below it has room for them.
    unsent: bool,
    ended: bool,
    done: bool,
    /// Each read has to hold a request's head.
    heads: bool,
}

impl Way {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut moved = 0;
        while !self.done {
            while !self.kept.is_empty() {
                let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.kept))?;
                self.kept.drain(..count);
            }
            self.kept = Vec::new();
            if self.unsent {
                ready!(Pin::new(&mut *to).poll_flush(cx))?;
                self.unsent = false;
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.done = true;
                break;
            }
            if moved >= TURN {
                // Woken by itself, a task is run again before the runtime looks for what has become
                // readable, 61 times over. To yield is to be run after that look.
                return pin!(tokio::task::yield_now()).poll(cx).map(Ok);
            }
            moved += ready!(self.pass(cx, from, to))?;
        }
        Poll::Ready(Ok(()))
    }

    /// One read, and writes until the other side takes no more. Says how much was read.
    fn pass<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<usize>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|buffer| {
            let mut space = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(cx, &mut space))?;
            let mut bytes = space.filled();
            let count = bytes.len();
            self.ended = count == 0;
            self.unsent = true;
            if self.heads && count > 0 && head_end(bytes).is_none() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            while !bytes.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, bytes)? {
                    Poll::Ready(count) => bytes = &bytes[count..],
                    Poll::Pending => {
                        self.kept = bytes.to_vec();
                        break;
                    }
                }
            }
            Poll::Ready(Ok(count))
        })
    }
}
