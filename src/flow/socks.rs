//! SOCKS5 on a proxy port, up to the tunnel.

use super::connection::{Connection, Filled};
use super::refuse::{Dialect, Ended, Refused};
use super::{Step, proxied};
use crate::account::Record;
use crate::identify::socks::{self, SocksError};
use crate::identify::{Evidence, Parsed};
use crate::listener::ListenerLabel;
use crate::reason::{Reason, Why};
use crate::target::Host;
use tokio::io::AsyncWriteExt;

/// Serves a connection whose first byte is a SOCKS version.
pub(super) async fn serve(mut connection: Box<Connection>) -> Result<Step, Ended> {
    connection.active = connection.services.account.active(ListenerLabel::Socks);
    let _greeting = read(&mut connection, socks::parse_greeting, false).await?;
    connection.stream.write_all(&socks::ACCEPT).await.map_err(|_| Ended::Closed)?;
    connection.stream.flush().await.map_err(|_| Ended::Closed)?;
    let socks::Request { target } = read(&mut connection, socks::parse_request, true).await?;
    let evidence = if matches!(target.host, Host::Addr(_)) { Evidence::Address } else { Evidence::Connect };
    proxied::open(connection, ListenerLabel::Socks, target, evidence, Dialect::Socks).await
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
                let refused = Refused::new(unread(connection, error.reason()), error.why(), None);
                let mut answer = Vec::new();
                error.write_answer(&mut answer);
                return Err(refused.tell(&mut connection.stream, Dialect::Bytes(&answer)).await);
            }
        }
        let why = match connection.fill().await {
            Filled::Bytes => continue,
            Filled::End => Why::malformed("the connection ended within the SOCKS handshake"),
            Filled::Timeout => Reason::Timeout.into(),
        };
        let refused = Refused::new(unread(connection, why.reason), why, None);
        return Err(match greeted {
            true => refused.tell(&mut connection.stream, Dialect::Socks).await,
            false => refused.end(),
        });
    }
}

/// Opens the record of a handshake that failed.
fn unread(connection: &mut Connection, reason: Reason) -> Record {
    let mut record = connection.record(ListenerLabel::Socks);
    // The operator wants to see a domain that could not be read as a name.
    if reason != Reason::Timeout
        && let Some([5, _, _, 3, _, domain @ ..]) = connection.input.get(..)
    {
        record.shown(domain.get(..domain.len().saturating_sub(2)).unwrap_or_default());
    }
    record
}
