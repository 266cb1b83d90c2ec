//! A tunnel that a guest asks a proxy port for, whichever protocol it asks in.

use super::connection::Connection;
use super::establish::{PermittedFlow, decide_refusal, establish, reach};
use super::refuse::{Dialect, Ended, Refused};
use super::{Step, transparent, tunnel::OpenTunnel};
use crate::guest::Guest;
use crate::identify::{Claim, Evidence};
use crate::listener::ListenerLabel;
use crate::reason::Reason;
use crate::services::Services;
use crate::target::{Host, Target, Transport};
use std::net::SocketAddr;

/// Opens the tunnel to `target` and answers in `dialect`. What is inside it is judged later.
pub(super) async fn open(
    mut connection: Box<Connection>,
    listener: ListenerLabel,
    target: Target,
    evidence: Evidence,
    dialect: Dialect<'_>,
) -> Result<Step, Ended> {
    let record = connection.record(listener);
    match named_by_dns(&connection.services, connection.source, &connection.guest, &target) {
        Some(Ok(original)) => {
            record.cancel();
            connection.say_unrecorded(dialect.granted()).await?;
            return transparent::serve_named(connection, listener, original).await;
        }
        Some(Err(claim)) => {
            let services = &connection.services;
            let refused = decide_refusal(services, claim, record, Reason::NotWhitelisted, Reason::Revoked);
            return Err(refused.tell(&mut connection.stream, dialect).await);
        }
        None => {}
    }
    let claim = claim(&connection.guest, target, evidence);
    let opened = establish(&connection, listener, claim, record, Reason::NotWhitelisted).await;
    grant(connection, opened, dialect).await
}

/// As [`open`], for a tunnel that the policy has permitted already.
pub(super) async fn open_permitted(
    connection: Box<Connection>,
    listener: ListenerLabel,
    flow: PermittedFlow,
    dialect: Dialect<'_>,
) -> Result<Step, Ended> {
    let opened = reach(&connection, listener, flow).await;
    grant(connection, opened, dialect).await
}

async fn grant(
    mut connection: Box<Connection>,
    opened: Result<Box<OpenTunnel>, Box<Refused>>,
    dialect: Dialect<'_>,
) -> Result<Step, Ended> {
    match opened {
        Ok(mut opened) => {
            connection.say(dialect.granted(), &mut opened.flow.record).await?;
            Ok(Step::Tunnel(connection, opened))
        }
        Err(refused) => Err(refused.tell(&mut connection.stream, dialect).await),
    }
}

/// The claim of a guest that asks for a tunnel.
pub(super) fn claim(guest: &Guest, target: Target, evidence: Evidence) -> Claim {
    Claim { source: guest.source.clone(), target, transport: Transport::Tcp, spoken: None, ech: false, evidence }
}

/// What a guest means that asks a proxy for an address which outgate's DNS gave it: one of the names, judged as
/// if the connection were redirected. Returns the address in that case. `None` if the guest did not get the address
/// from outgate's DNS, or if the address itself is permitted.
///
/// # Errors
/// The claim with the latest name, if neither a name nor the address is permitted on the port.
pub(super) fn named_by_dns(
    services: &Services,
    source: SocketAddr,
    guest: &Guest,
    target: &Target,
) -> Option<Result<SocketAddr, Claim>> {
    let Host::Addr(address) = target.host else { return None };
    let names = services.bindings.names(source.ip(), guest.name(), address);
    let policy = &services.snapshot.load().policy;
    let mut refused = None;
    for name in names {
        let named = claim(guest, Target { host: Host::Name(name), port: target.port }, Evidence::Dns);
        match policy.decide(&named) {
            Ok(_) => return Some(Ok(SocketAddr::new(address, target.port))),
            Err(_) => refused = refused.or(Some(named)),
        }
    }
    let refused = refused?;
    let by_address = policy.decide(&claim(guest, target.clone(), Evidence::Address)).is_ok();
    (!by_address).then_some(Err(refused))
}
