//! Tests of stale answers while no server gives a newer one (RFC 8767).

use super::*;
use crate::policy::{Builder, Mode, NamePermit, Policy, PolicySettings, Unknown};
use std::sync::atomic::AtomicU8;

/// How the server answers, changed by the test.
const GOOD: u8 = 0;
const SILENT: u8 = 1;
const FAILING: u8 = 2;
const GONE: u8 = 3;

fn moody() -> (Server, Arc<AtomicU8>) {
    let mood = Arc::new(AtomicU8::new(GOOD));
    let now = Arc::clone(&mood);
    let server = serve(move |query| match (now.load(Ordering::SeqCst), query.family) {
        (GOOD, 4) => Reply::records(1, &[a("11.0.0.10")]),
        (GOOD, _) => Reply::none(1),
        (SILENT, _) => Reply::silence(),
        (FAILING, _) => Reply::code(2),
        _ => Reply::no_such_name(1),
    });
    (server, mood)
}

/// Permission to look up any name.
fn permit(name: &str) -> NamePermit {
    let rules = Builder::new(jiff::civil::date(2026, 11, 23)).build().unwrap();
    let settings = PolicySettings {
        mode: Mode::All,
        ech_allowed: false,
        guests: Vec::new(),
        unknown: Unknown::Shared,
        blocked_ports: Vec::new(),
    };
    let policy = Policy::new(Arc::new(rules), settings).unwrap();
    policy.permit_name(&"10.0.0.1".parse::<IpAddr>().unwrap().into(), &HostName::parse(name).unwrap()).unwrap()
}

async fn outdated() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

#[tokio::test]
async fn a_silent_server_is_waited_for_once_and_then_what_was_known_serves_at_once() {
    let (server, mood) = moody();
    let world = world(&[&server]);
    let fresh = world.resolver.dns_answer(&permit("good.test"), AddressKind::V4, freely()).await.unwrap();
    assert!(!fresh.is_stale() && fresh.ttl() > Duration::ZERO);
    mood.store(SILENT, Ordering::SeqCst);
    outdated().await;
    let start = Instant::now();
    let stale = world.resolver.dns_answer(&permit("good.test"), AddressKind::V4, freely()).await.unwrap();
    assert!(start.elapsed() < TIMEOUT * 2, "{:?}", start.elapsed());
    assert!(stale.is_stale() && stale.addresses() == ["11.0.0.10".parse::<IpAddr>().unwrap()]);
    // What DNS answered for the other family still applies.
    assert!(
        world
            .resolver
            .dns_answer(&permit("good.test"), AddressKind::V6, freely())
            .await
            .unwrap()
            .addresses()
            .is_empty()
    );
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.10:443"]);
    tokio::time::sleep(TIMEOUT * 2).await;
    let asked = server.asked().len();
    for _ in 0..20 {
        assert!(world.resolver.try_dns_answer(&permit("good.test"), AddressKind::V4).unwrap().unwrap().is_stale());
    }
    assert_eq!(server.asked().len(), asked, "a server that is down is not asked for each query");
}

#[tokio::test]
async fn failures_are_bridged_and_the_end_of_a_name_is_believed() {
    let (server, mood) = moody();
    let world = world(&[&server]);
    for name in ["a.test", "b.test"] {
        world.resolver.dns_answer(&permit(name), AddressKind::V4, freely()).await.unwrap();
    }
    outdated().await;
    mood.store(FAILING, Ordering::SeqCst);
    assert!(world.resolver.dns_answer(&permit("a.test"), AddressKind::V4, freely()).await.unwrap().is_stale());
    assert!(world.resolver.dns_answer(&permit("new.test"), AddressKind::V4, freely()).await.is_err());
    mood.store(GONE, Ordering::SeqCst);
    let gone = world.resolver.dns_answer(&permit("b.test"), AddressKind::V4, freely()).await.unwrap_err();
    assert_eq!(gone, VetError::Lookup(LookupError::NoSuchName));
}

#[tokio::test]
async fn a_stale_answer_is_held_against_the_floor_like_any() {
    let (server, mood) = moody();
    let world = world(&[&server]);
    world.resolver.dns_answer(&permit("good.test"), AddressKind::V4, freely()).await.unwrap();
    mood.store(FAILING, Ordering::SeqCst);
    outdated().await;
    let floor = FloorSettings { guests: nets(&["11.0.0.0/24"]), ..FloorSettings::default() };
    world.resolver.reconfigure(&settings(&[&server]), floor).unwrap();
    let refused = world.resolver.dns_answer(&permit("good.test"), AddressKind::V4, freely()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::AddressFloor);
}
