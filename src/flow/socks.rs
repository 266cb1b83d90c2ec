//! SOCKS5 on a proxy port, up to the tunnel.

use super::{Ended, Filled, Step, Visit, reach, transparent, tunnel};
use crate::account::{Listener, Record};
use crate::identify::socks::{self, SocksError};
use crate::identify::{Claim, Evidence, Parsed};
use crate::reason::{Reason, Why};
use crate::relay::close;
use crate::target::{Host, Target, Transport};
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;

/// Serves a connection whose first byte is a SOCKS version.
pub(super) async fn serve(mut visit: Box<Visit>) -> Result<Step, Ended> {
    visit.active = visit.house.account.active(Listener::Socks);
    let _greeting = read(&mut visit, socks::parse_greeting, false).await?;
    visit.guest.write_all(&socks::ACCEPT).await.map_err(|_| Ended)?;
    visit.guest.flush().await.map_err(|_| Ended)?;
    let socks::Request { target } = read(&mut visit, socks::parse_request, true).await?;
    connect(visit, target).await
}

/// Reads one message of the handshake and takes it off the input. Behind the greeting every end of it is told
/// in a reply.
async fn read<T>(
    visit: &mut Visit,
    parse: fn(&[u8]) -> Result<Parsed<T>, SocksError>,
    greeted: bool,
) -> Result<T, Ended> {
    loop {
        match parse(&visit.input) {
            Ok(Parsed::Complete { head, len }) => {
                visit.input.drain(..len);
                return Ok(head);
            }
            Ok(Parsed::Partial) => {}
            Err(error) => {
                let mut record = unread(visit, error.reason());
                record.refuse(error.why(), None);
                drop(record);
                let mut answer = Vec::new();
                error.write_answer(&mut answer);
                close::after(&mut visit.guest, &answer).await;
                return Err(Ended);
            }
        }
        let why = match visit.fill().await {
            Filled::Bytes => continue,
            Filled::End | Filled::Revoked(_) => Why::malformed("the connection ended within the SOCKS handshake"),
            Filled::Timeout => Reason::Timeout.into(),
        };
        unread(visit, why.reason).refuse(why, None);
        if greeted {
            close::after(&mut visit.guest, &socks::reply(why.reason.socks_reply())).await;
        }
        return Err(Ended);
    }
}

/// The record of a handshake that came to nothing.
fn unread(visit: &Visit, reason: Reason) -> Record {
    let mut record = visit.record(Listener::Socks);
    // The domain that could not be read as a name is what the operator wants to see.
    if reason != Reason::Timeout
        && let Some([5, _, _, 3, _, domain @ ..]) = visit.input.get(..)
    {
        record.shown(domain.get(..domain.len().saturating_sub(2)).unwrap_or_default());
    }
    record
}

/// CONNECT: judged by its target now, by what is spoken inside later.
async fn connect(mut visit: Box<Visit>, target: Target) -> Result<Step, Ended> {
    let mut record = visit.record(Listener::Socks);
    match (transparent::bound(&visit.house, &visit.who, visit.source, &target), &target.host) {
        (Some(Ok(())), Host::Addr(address)) => {
            let original = SocketAddr::new(*address, target.port);
            record.cancel();
            visit.tell(&socks::reply(0)).await?;
            return transparent::serve_bound(visit, Listener::Socks, original).await;
        }
        (Some(Err(claim)), _) => {
            // Another list may have come into force since.
            let reason = visit.decide(&claim, &mut record).map_or_else(|refusal| refusal.reason, |_| Reason::Revoked);
            record.refuse(reason, None);
            drop(record);
            close::after(&mut visit.guest, &socks::reply(reason.socks_reply())).await;
            return Err(Ended);
        }
        _ => {}
    }
    let evidence = if matches!(target.host, Host::Addr(_)) { Evidence::Address } else { Evidence::Connect };
    let claim =
        Claim { source: visit.who.clone(), target, transport: Transport::Tcp, spoken: None, ech: false, evidence };
    let reason = match visit.decide(&claim, &mut record) {
        Ok(permit) => match reach(&visit.house, &claim, &permit, &mut record).await {
            Ok(upstream) => {
                visit.say(&socks::reply(0), &mut record).await?;
                let opened = tunnel::Opened { listener: Listener::Socks, record, claim, permit, upstream };
                return Ok(Step::Tunnel(visit, Box::new(opened)));
            }
            Err(reason) => reason,
        },
        Err(refusal) => refusal.reason,
    };
    drop(record);
    close::after(&mut visit.guest, &socks::reply(reason.socks_reply())).await;
    Err(Ended)
}
