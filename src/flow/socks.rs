//! SOCKS5 on a proxy port, up to the tunnel.

use super::{Connection, Ended, Filled, Step, reach, transparent, tunnel};
use crate::account::Record;
use crate::identify::socks::{self, SocksError};
use crate::identify::{Claim, Evidence, Parsed};
use crate::listener::Listener;
use crate::reason::{Reason, Why};
use crate::relay::close;
use crate::target::{Host, Target, Transport};
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;

/// Serves a connection whose first byte is a SOCKS version.
pub(super) async fn serve(mut connection: Box<Connection>) -> Result<Step, Ended> {
    connection.active = connection.services.account.active(Listener::Socks);
    let _greeting = read(&mut connection, socks::parse_greeting, false).await?;
    connection.guest.write_all(&socks::ACCEPT).await.map_err(|_| Ended)?;
    connection.guest.flush().await.map_err(|_| Ended)?;
    let socks::Request { target } = read(&mut connection, socks::parse_request, true).await?;
    connect(connection, target).await
}

/// Reads one message of the handshake and removes it from the input. After the greeting, every failure is
/// answered with a reply.
async fn read<T>(
    connection: &mut Connection,
    parse: fn(&[u8]) -> Result<Parsed<T>, SocksError>,
    greeted: bool,
) -> Result<T, Ended> {
    loop {
        match parse(&connection.input) {
            Ok(Parsed::Complete { head, len }) => {
                connection.input.drain(..len);
                return Ok(head);
            }
            Ok(Parsed::Partial) => {}
            Err(error) => {
                let mut record = unread(connection, error.reason());
                record.refuse(error.why(), None);
                drop(record);
                let mut answer = Vec::new();
                error.write_answer(&mut answer);
                close::after(&mut connection.guest, &answer).await;
                return Err(Ended);
            }
        }
        let why = match connection.fill().await {
            Filled::Bytes => continue,
            Filled::End | Filled::Revoked(_) => Why::malformed("the connection ended within the SOCKS handshake"),
            Filled::Timeout => Reason::Timeout.into(),
        };
        unread(connection, why.reason).refuse(why, None);
        if greeted {
            close::after(&mut connection.guest, &socks::reply(why.reason.socks_reply())).await;
        }
        return Err(Ended);
    }
}

/// Opens the record of a handshake that failed.
fn unread(connection: &Connection, reason: Reason) -> Record {
    let mut record = connection.record(Listener::Socks);
    // The operator wants to see a domain that could not be read as a name.
    if reason != Reason::Timeout
        && let Some([5, _, _, 3, _, domain @ ..]) = connection.input.get(..)
    {
        record.shown(domain.get(..domain.len().saturating_sub(2)).unwrap_or_default());
    }
    record
}

/// CONNECT: judged by its target now, and by the protocol inside it later.
async fn connect(mut connection: Box<Connection>, target: Target) -> Result<Step, Ended> {
    let mut record = connection.record(Listener::Socks);
    match (transparent::bound(&connection.services, &connection.who, connection.source, &target), &target.host) {
        (Some(Ok(())), Host::Addr(address)) => {
            let original = SocketAddr::new(*address, target.port);
            record.cancel();
            connection.tell(&socks::reply(0)).await?;
            return transparent::serve_bound(connection, Listener::Socks, original).await;
        }
        (Some(Err(claim)), _) => {
            // Another policy may have come into force since.
            let reason =
                connection.decide(&claim, &mut record).map_or_else(|refusal| refusal.reason, |_| Reason::Revoked);
            record.refuse(reason, None);
            drop(record);
            close::after(&mut connection.guest, &socks::reply(reason.socks_reply())).await;
            return Err(Ended);
        }
        _ => {}
    }
    let evidence = if matches!(target.host, Host::Addr(_)) { Evidence::Address } else { Evidence::Connect };
    let claim =
        Claim { source: connection.who.clone(), target, transport: Transport::Tcp, spoken: None, ech: false, evidence };
    let reason = match connection.decide(&claim, &mut record) {
        Ok(permit) => match reach(&connection.services, &claim, &permit, &mut record).await {
            Ok(upstream) => {
                connection.say(&socks::reply(0), &mut record).await?;
                let opened = tunnel::OpenTunnel { listener: Listener::Socks, record, claim, permit, upstream };
                return Ok(Step::Tunnel(connection, Box::new(opened)));
            }
            Err(reason) => reason,
        },
        Err(refusal) => refusal.reason,
    };
    drop(record);
    close::after(&mut connection.guest, &socks::reply(reason.socks_reply())).await;
    Err(Ended)
}
