//! Loads through a proxy's listener with TLS: what a handshake costs, and what a byte does.

use crate::hold::{BulkArgs, measure, send};
use crate::pki;
use crate::rates::{self, rate};
use crate::wire::{self, Failure, Outcome, RAW_PORT, Route};
use rustls::pki_types::ServerName;
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Bytes taken at a time. TLS holds 16 KiB a record at most, so more would save nothing.
const BLOCK: usize = 256 << 10;

/// How the proxy is known, and the client.
#[derive(clap::Args, Clone)]
pub(crate) struct TlsProxyArgs {
    /// Folder that `peers pki` made; the proxy's certificate has to be of its ca.pem
    #[arg(long)]
    pub(crate) pki: PathBuf,
    /// Show client.pem of that folder
    #[arg(long)]
    pub(crate) client_certificate: bool,
}

/// One that leads to the proxy inside TLS.
#[derive(Clone)]
pub(crate) struct TlsProxy {
    client: TlsConnector,
    name: ServerName<'static>,
}

impl TlsProxy {
    pub(crate) fn new(args: &TlsProxyArgs) -> Outcome<Self> {
        let client = TlsConnector::from(pki::client(&args.pki, args.client_certificate)?);
        let name = ServerName::try_from(pki::PROXY).map_err(|_| Failure::new("no name"))?;
        Ok(TlsProxy { client, name })
    }

    /// A connection on which the next byte goes to the origin.
    pub(crate) async fn open(&self, route: &Route) -> Outcome<TlsStream<TcpStream>> {
        let mut stream = self.client.connect(self.name.clone(), route.dial().await?).await?;
        route.ask(&mut stream).await?;
        Ok(stream)
    }

    /// One byte there and back on a connection of its own, which is ended as TLS wants it: by close_notify.
    pub(crate) async fn exchange(&self, route: &Route) -> Outcome<TlsStream<TcpStream>> {
        let mut stream = self.open(route).await?;
        wire::echo(&mut stream).await?;
        stream.shutdown().await?;
        Ok(stream)
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    rate: rates::Args,
    #[command(flatten)]
    proxy: TlsProxyArgs,
}

pub(crate) async fn handshake(args: Args) -> Outcome<()> {
    let (proxy, route) = (TlsProxy::new(&args.proxy)?, args.rate.common.route(RAW_PORT));
    let once = async move |_: &mut Option<()>| proxy.exchange(&route).await.map(drop);
    rate("handshake", &args.rate, once).await
}

#[derive(clap::Args)]
pub(crate) struct TlsBulkArgs {
    #[command(flatten)]
    bulk: BulkArgs,
    #[command(flatten)]
    proxy: TlsProxyArgs,
}

pub(crate) async fn bulk(args: TlsBulkArgs) -> Outcome<()> {
    let (proxy, route) = (TlsProxy::new(&args.proxy)?, args.bulk.common.route(RAW_PORT));
    let up = args.bulk.up;
    let stream = move |bytes| {
        let (proxy, route) = (proxy.clone(), route.clone());
        async move {
            let stream = proxy.open(&route).await?;
            if up { send(stream, bytes).await } else { receive(stream, bytes).await }
        }
    };
    measure(if up { "tls-bulk-up" } else { "tls-bulk-down" }, &args.bulk, stream).await
}

async fn receive(mut stream: TlsStream<TcpStream>, bytes: u64) -> Outcome<()> {
    stream.write_all(format!("<{bytes}\n").as_bytes()).await?;
    let (mut block, mut left) = (vec![0; BLOCK], bytes);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        match stream.read(&mut block[..most]).await? {
            0 => return Err(Failure::new("a cut stream")),
            more => left -= more as u64,
        }
    }
    Ok(())
}
