//! SOCKS5 on a proxy port, up to the tunnel.

use super::{Ended, Filled, Step, Visit, reach, tunnel};
use crate::account::{Listener, Record};
use crate::identify::socks::{self, SocksError};
use crate::identify::{Claim, Evidence, Parsed};
use crate::reason::Reason;
use crate::relay::close;
use crate::target::{Host, Target, Transport};
use tokio::io::AsyncWriteExt;

/// Serves a connection whose first byte is a SOCKS version.
pub(super) async fn serve(mut visit: Box<Visit>) -> Result<Step, Ended> {
    visit.active = visit.house.account.active(Listener::Socks);
    let _greeting = read(&mut visit, socks::parse_greeting).await?;
    visit.guest.write_all(&socks::ACCEPT).await.map_err(|_| Ended)?;
    visit.guest.flush().await.map_err(|_| Ended)?;
    let socks::Request { target } = read(&mut visit, socks::parse_request).await?;
    connect(visit, target).await
}

/// Reads one message of the handshake and takes it off the input.
async fn read<T>(visit: &mut Visit, parse: fn(&[u8]) -> Result<Parsed<T>, SocksError>) -> Result<T, Ended> {
    loop {
        match parse(&visit.input) {
            Ok(Parsed::Complete { head, len }) => {
                visit.input.drain(..len);
                return Ok(head);
            }
            Ok(Parsed::Partial) => {}
            Err(error) => {
                let mut record = unread(visit, error.reason());
                record.refuse(error.reason(), None);
                drop(record);
                let mut answer = Vec::new();
                error.write_answer(&mut answer);
                close::after(&mut visit.guest, &answer).await;
                return Err(Ended);
            }
        }
        let reason = match visit.fill().await {
            Filled::Bytes => continue,
            Filled::End | Filled::Revoked(_) => Reason::Malformed,
            Filled::Timeout => Reason::Timeout,
        };
        unread(visit, reason).refuse(reason, None);
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
