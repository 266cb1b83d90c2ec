//! Tests the resolver with DNS servers on loopback, judged by the queries that the servers received.

mod server;
mod stale;

use super::*;
use crate::limits::GuestPermit;
use crate::policy::rule::AddressSet;
use crate::reason::Reason;
use server::{Reply, Server, a, aaaa, cname, serve};
use std::collections::HashSet;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// The control runtime, on a thread of its own, as in the daemon.
struct Control {
    handle: Handle,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Control {
    fn start() -> Control {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
        });
        Control { handle, _stop: stop }
    }
}

/// Allows any lookup to start.
fn freely() -> impl FnMut(bool) -> NamePace + Send {
    |_| NamePace::Now(GuestPermit::for_tests(&Arc::default()))
}

struct World {
    control: Control,
    resolver: Arc<Resolver>,
}

const TIMEOUT: Duration = Duration::from_millis(1000);

fn settings(servers: &[&Server]) -> ResolverSettings {
    let servers = servers.iter().map(|server| NameServer::plain(server.address)).collect();
    ResolverSettings { servers, hosts_file: None, timeout: TIMEOUT }
}

fn world(servers: &[&Server]) -> World {
    world_with(&settings(servers), FloorSettings::default())
}

fn world_with(settings: &ResolverSettings, floor: FloorSettings) -> World {
    let control = Control::start();
    let resolver = Resolver::start(settings, floor, control.handle.clone()).unwrap();
    World { control, resolver }
}

impl World {
    async fn vet(&self, target: &str) -> Result<Vetted, VetError> {
        self.vet_under(target, &AddressTerms::default()).await
    }

    async fn vet_under(&self, target: &str, terms: &AddressTerms) -> Result<Vetted, VetError> {
        self.resolver.vet_target(&Target::parse(target.as_bytes(), None).unwrap(), terms, freely()).await
    }

    fn try_vet(&self, target: &str) -> Option<Result<Vetted, VetError>> {
        let target = Target::parse(target.as_bytes(), None).unwrap();
        self.resolver.try_vet_target(&target, &AddressTerms::default())
    }
}

fn addresses(vetted: &Result<Vetted, VetError>) -> Vec<String> {
    vetted.as_ref().unwrap().addresses().iter().map(ToString::to_string).collect()
}

fn reason(vetted: &Result<Vetted, VetError>) -> Reason {
    vetted.as_ref().unwrap_err().reason()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn to(texts: &[&str]) -> AddressTerms {
    AddressTerms { to: Some(nets(texts).into()), ..AddressTerms::default() }
}

#[tokio::test]
async fn two_hundred_flows_that_want_one_name_cause_one_query_a_family() {
    let server = serve(|_| Reply::records(300, &[a("11.0.0.10")]).after(150));
    let world = world(&[&server]);
    let flows: Vec<_> = (0..200)
        .map(|_| {
            let resolver = world.resolver.clone();
            tokio::spawn(async move {
                let target = Target::parse(b"good.test:443", None).unwrap();
                resolver.vet_target(&target, &AddressTerms::default(), freely()).await
            })
        })
        .collect();
    for flow in flows {
        assert_eq!(addresses(&flow.await.unwrap()), ["11.0.0.10:443"]);
    }
    assert_eq!(server.asked(), ["A good.test", "AAAA good.test"]);
    assert_eq!(addresses(&world.try_vet("good.test:80").unwrap()), ["11.0.0.10:80"]);
    assert_eq!(server.asked().len(), 2);
    assert_eq!(world.resolver.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_answer_is_kept_for_its_smallest_ttl_and_not_longer() {
    let server = serve(|query| match query.family {
        4 => Reply::records(1, &[a("11.0.0.10")]),
        _ => Reply::records(300, &[aaaa("2a00::1")]),
    });
    let world = world(&[&server]);
    world.vet("good.test:443").await.unwrap();
    assert!(world.try_vet("good.test:443").is_some());
    let answer = world.resolver.lookup(&HostName::parse("good.test").unwrap(), freely()).await.unwrap();
    assert!(answer.v4().ttl(Instant::now()) <= Duration::from_secs(1));
    assert!(answer.v6().ttl(Instant::now()) > Duration::from_secs(290));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(world.try_vet("good.test:443").is_none());
    world.vet("good.test:443").await.unwrap();
    assert_eq!(server.asked(), ["A good.test", "AAAA good.test", "A good.test"], "the family still fresh is kept");
}

#[tokio::test]
async fn an_answer_of_ttl_zero_that_alternates_with_loopback_never_lets_loopback_through() {
    let flip = AtomicBool::new(false);
    let server = serve(move |query| match query.family {
        4 if flip.fetch_xor(true, Ordering::Relaxed) => Reply::records(0, &[a("127.0.0.1")]),
        4 => Reply::records(0, &[a("11.0.0.10")]),
        _ => Reply::none(0),
    });
    let world = world(&[&server]);
    let mut seen = HashSet::new();
    for _ in 0..500 {
        match world.vet("good.test:80").await {
            Ok(vetted) => {
                assert_eq!(addresses(&Ok(vetted)), ["11.0.0.10:80"]);
                seen.insert("public");
            }
            refused => {
                assert_eq!(reason(&refused), Reason::AddressFloor);
                seen.insert("loopback");
            }
        }
    }
    assert_eq!(seen.len(), 2, "both answers were given");
    assert_eq!(server.asked().iter().filter(|query| query.starts_with("A ")).count(), 500);
}

#[tokio::test]
async fn an_answer_with_one_address_of_the_floor_is_refused_whole() {
    let server = serve(|query| match (query.name.as_str(), query.family) {
        ("first.test", 4) => Reply::records(60, &[a("10.0.0.1"), a("11.0.0.10")]),
        ("last.test", 4) => Reply::records(60, &[a("11.0.0.10"), a("169.254.169.254")]),
        ("other.test", 4) => Reply::records(60, &[a("11.0.0.10")]),
        ("other.test", 6) => Reply::records(60, &[aaaa("::1")]),
        ("nat64.test", 6) => Reply::records(60, &[aaaa("64:ff9b::a9fe:a9fe")]),
        ("mapped.test", 6) => Reply::records(60, &[aaaa("::ffff:11.0.0.10")]),
        _ => Reply::none(60),
    });
    let world = world(&[&server]);
    for name in ["first.test", "last.test", "other.test", "nat64.test", "mapped.test"] {
        for _ in 0..2 {
            let vetted = world.vet(&format!("{name}:443")).await;
            assert_eq!(reason(&vetted), Reason::AddressFloor, "{name}");
        }
    }
    let text = world.vet("last.test:443").await.unwrap_err().to_string();
    assert_eq!(text, "169.254.169.254 is link local (RFC 3927)");
}

#[tokio::test]
async fn a_dead_first_server_delays_the_first_lookup_briefly_and_the_next_ones_not_at_all() {
    let dead = serve(|_| Reply::silence());
    let live = serve(|_| Reply::records(60, &[a("11.0.0.10")]));
    let world = world(&[&dead, &live]);
    let start = Instant::now();
    world.vet("one.test:443").await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(600), "{:?}", start.elapsed());
    let before = dead.asked().len();
    for index in 0..20 {
        let start = Instant::now();
        world.vet(&format!("n{index}.test:443")).await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
    }
    let about_later_names = dead.asked().split_off(before).into_iter().filter(|query| !query.ends_with("one.test"));
    assert_eq!(about_later_names.count(), 0);
}

#[tokio::test]
async fn where_all_servers_are_dead_a_lookup_ends_within_twice_the_timeout_and_is_not_repeated_at_once() {
    let (one, two) = (serve(|_| Reply::silence()), serve(|_| Reply::silence()));
    let world = world(&[&one, &two]);
    let start = Instant::now();
    let vetted = world.vet("good.test:443").await;
    assert!(start.elapsed() < TIMEOUT * 2 + Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!(reason(&vetted), Reason::Timeout);
    assert!(one.asked().len() >= 2 && two.asked().len() >= 2);
    let before = one.asked().len() + two.asked().len();
    assert_eq!(reason(&world.try_vet("good.test:443").unwrap()), Reason::Timeout);
    assert_eq!(one.asked().len() + two.asked().len(), before);
}

#[tokio::test]
async fn servfail_is_taken_to_the_next_server_and_remembered_where_all_say_it() {
    let fails = serve(|_| Reply::code(2));
    let knows =
        serve(|query| if query.name == "good.test" { Reply::records(60, &[a("11.0.0.10")]) } else { Reply::code(2) });
    let world = world(&[&fails, &knows]);
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.10:443"]);
    let vetted = world.vet("bad.test:443").await;
    assert_eq!(reason(&vetted), Reason::ResolveFailed);
    assert_eq!(vetted.unwrap_err().to_string(), "the server answered with Server Failure");
    let before = fails.asked().len() + knows.asked().len();
    for _ in 0..10 {
        assert_eq!(reason(&world.vet("bad.test:443").await), Reason::ResolveFailed);
    }
    assert_eq!(fails.asked().len() + knows.asked().len(), before);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(world.try_vet("bad.test:443").is_none());
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_over_tcp() {
    let server = serve(|query| match (query.tcp, query.family) {
        (false, _) => Reply::truncated(),
        (true, 4) => Reply::records(60, &[a("11.0.0.10"), a("11.0.0.11")]),
        (true, _) => Reply::none(60),
    });
    let world = world(&[&server]);
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.10:443", "11.0.0.11:443"]);
    assert!(server.asked().contains(&"A good.test tcp".to_string()));
}

#[tokio::test]
async fn a_server_that_changes_the_case_of_the_name_is_believed_over_tcp_alone() {
    // For a name of this length, lower case by chance is practically impossible.
    let name = "a-name-with-so-many-letters-that-case-counts.good.test";
    let server = serve(|query| match (query.tcp, query.family) {
        (false, _) => Reply::records(60, &[a("11.66.66.66")]).lowered(),
        (true, 4) => Reply::records(60, &[a("11.0.0.10")]),
        (true, _) => Reply::none(60),
    });
    let world = world(&[&server]);
    assert_eq!(addresses(&world.vet(&format!("{name}:443")).await), ["11.0.0.10:443"]);
}

#[tokio::test]
async fn a_server_that_is_slow_for_one_name_does_not_make_the_second_one_suspect() {
    let first = serve(|_| Reply::records(60, &[a("11.0.0.10")]).after(280));
    let second = serve(|_| Reply::silence());
    let world = world(&[&first, &second]);
    world.vet("slow.test:443").await.unwrap();
    let sick: Vec<_> = world.resolver.state.load().sources.upstreams().sick();
    assert!(sick.is_empty(), "{sick:?}");
}

#[tokio::test]
async fn aliases_are_followed_and_judged_by_where_they_end() {
    let server = serve(|query| match (query.name.as_str(), query.family) {
        // In one answer, with a record of a name that was not asked for.
        ("one.test", 4) => {
            Reply::records(60, &[cname("cdn.test"), a("11.0.0.20").of("cdn.test"), a("127.0.0.1").of("stray.test")])
        }
        // Over several answers.
        ("hop1.test", 4) => Reply::records(5, &[cname("hop2.test")]),
        ("hop2.test", 4) => Reply::records(60, &[cname("hop3.test")]),
        ("hop3.test", 4) => Reply::records(60, &[a("11.0.0.30")]),
        ("private.test", 4) => Reply::records(60, &[cname("lan.test"), a("192.168.1.1").of("lan.test")]),
        ("loop1.test", _) => Reply::records(60, &[cname("loop2.test")]),
        ("loop2.test", _) => Reply::records(60, &[cname("loop1.test")]),
        ("self.test", _) => Reply::records(60, &[cname("self.test")]),
        _ => Reply::none(60),
    });
    let world = world(&[&server]);
    assert_eq!(addresses(&world.vet("one.test:443").await), ["11.0.0.20:443"]);
    assert_eq!(addresses(&world.vet("hop1.test:443").await), ["11.0.0.30:443"]);
    let answer = world.resolver.lookup(&HostName::parse("hop1.test").unwrap(), freely()).await.unwrap();
    assert!(answer.v4().ttl(Instant::now()) <= Duration::from_secs(5), "the smallest TTL of the chain holds");
    assert_eq!(reason(&world.vet("private.test:443").await), Reason::AddressFloor);
    assert_eq!(reason(&world.vet("loop1.test:443").await), Reason::ResolveFailed);
    assert_eq!(reason(&world.vet("self.test:443").await), Reason::ResolveFailed);
    let in_loop = server.asked().iter().filter(|query| query.contains("loop")).count();
    assert!(in_loop <= 20, "{in_loop}");
}

#[tokio::test]
async fn that_a_name_does_not_exist_is_remembered_for_no_longer_than_its_soa_says() {
    let server = serve(|query| Reply::no_such_name(if query.name == "short.test" { 0 } else { 3600 }));
    let world = world(&[&server]);
    for name in ["short.test:443", "long.test:443"] {
        assert_eq!(world.vet(name).await.unwrap_err(), VetError::Lookup(LookupError::NoSuchName));
        assert_eq!(reason(&world.try_vet(name).unwrap()), Reason::ResolveFailed);
    }
    assert_eq!(server.asked().len(), 4);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(world.try_vet("short.test:443").is_none());
    assert!(world.try_vet("long.test:443").is_some());
}

#[tokio::test]
async fn a_family_that_stays_silent_holds_the_other_up_for_a_quarter_second() {
    let server =
        serve(|query| if query.family == 4 { Reply::records(60, &[a("11.0.0.10")]) } else { Reply::silence() });
    let world = world(&[&server]);
    let start = Instant::now();
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.10:443"]);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(240) && took < Duration::from_millis(450), "{took:?}");
    assert!(world.try_vet("good.test:443").is_some(), "those who come later share it while the other is awaited");
    tokio::time::sleep(TIMEOUT + Duration::from_millis(300)).await;
    let before = server.asked().len();
    assert!(world.try_vet("good.test:443").is_some());
    assert_eq!(server.asked().len(), before);
}

#[tokio::test]
async fn an_address_of_the_floor_that_comes_late_is_refused_from_then_on() {
    let server = serve(|query| match query.family {
        4 => Reply::records(60, &[a("11.0.0.10")]),
        _ => Reply::records(60, &[aaaa("fe80::1")]).after(500),
    });
    let world = world(&[&server]);
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.10:443"]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(reason(&world.try_vet("good.test:443").unwrap()), Reason::AddressFloor);
}

#[tokio::test]
async fn a_flow_that_goes_away_does_not_stop_the_query_of_the_others() {
    let server = serve(|_| Reply::records(60, &[a("11.0.0.10")]).after(300));
    let world = world(&[&server]);
    let gone = tokio::time::timeout(Duration::from_millis(50), world.vet("good.test:443")).await;
    assert!(gone.is_err());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(addresses(&world.try_vet("good.test:443").unwrap()), ["11.0.0.10:443"]);
    assert_eq!(server.asked().len(), 2);
    assert_eq!(world.resolver.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn reserved_names_are_never_asked_for() {
    let server = serve(|_| Reply::records(60, &[a("11.0.0.10")]));
    let world = world(&[&server]);
    for name in ["localhost", "a.localhost", "printer.local", "metadata.google.internal"] {
        assert_eq!(world.vet(&format!("{name}:80")).await.unwrap_err(), VetError::Lookup(LookupError::Reserved));
        assert_eq!(
            world.resolver.lookup(&HostName::parse(name).unwrap(), freely()).await.unwrap_err(),
            LookupError::Reserved
        );
    }
    assert!(server.asked().is_empty());
    world.vet("notlocalhost:80").await.unwrap();
}

#[tokio::test]
async fn names_of_the_hosts_file_are_not_asked_for_and_the_file_is_read_again() {
    let server = serve(|_| Reply::records(60, &[a("11.0.0.10")]));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "11.0.0.77 good.test\n10.0.0.1 lan.test\n11.0.0.78 localhost").unwrap();
    let with_hosts = ResolverSettings { hosts_file: Some(file.path().into()), ..settings(&[&server]) };
    let world = world_with(&with_hosts, FloorSettings::default());
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.77:443"]);
    assert_eq!(addresses(&world.vet("localhost:443").await), ["11.0.0.78:443"]);
    assert_eq!(reason(&world.vet("lan.test:443").await), Reason::AddressFloor);
    assert!(server.asked().is_empty());
    std::fs::write(file.path(), "11.0.0.99 good.test\n# and nothing else\n").unwrap();
    world.resolver.check_files();
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.99:443"]);
    assert_eq!(addresses(&world.vet("lan.test:443").await), ["11.0.0.10:443"]);
    // After its removal, the file read before stays in force.
    let path = file.into_temp_path();
    path.close().unwrap();
    world.resolver.check_files();
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.99:443"]);
}

#[tokio::test]
async fn to_holds_for_every_address_and_lifts_the_floor_there_alone() {
    let server = serve(|query| match (query.name.as_str(), query.family) {
        ("in.test", 4) => Reply::records(60, &[a("10.0.0.5")]),
        ("half.test", 4) => Reply::records(60, &[a("10.0.0.5"), a("11.0.0.10")]),
        ("out.test", 4) => Reply::records(60, &[a("11.0.0.10")]),
        _ => Reply::none(60),
    });
    let world = world(&[&server]);
    let terms = to(&["10.0.0.5/32"]);
    assert_eq!(addresses(&world.vet_under("in.test:443", &terms).await), ["10.0.0.5:443"]);
    assert_eq!(reason(&world.vet_under("half.test:443", &terms).await), Reason::AddressFloor);
    assert_eq!(reason(&world.vet_under("out.test:443", &terms).await), Reason::AddressFloor);
    // Also once the answer is known to be clear.
    world.vet("out.test:443").await.unwrap();
    assert_eq!(reason(&world.vet_under("out.test:443", &terms).await), Reason::AddressFloor);
    assert_eq!(reason(&world.vet("in.test:443").await), Reason::AddressFloor);
}

#[tokio::test]
async fn denied_addresses_are_refused_even_where_the_answer_is_clear() {
    let server = serve(|_| Reply::records(60, &[a("11.0.0.10")]));
    let world = world(&[&server]);
    world.vet("good.test:443").await.unwrap();
    let terms = AddressTerms { denied: Arc::new(AddressSet::new(nets(&["11.0.0.0/24"]))), ..AddressTerms::default() };
    assert_eq!(reason(&world.vet_under("good.test:443", &terms).await), Reason::DeniedByRule);
    assert_eq!(reason(&world.vet_under("11.0.0.9:443", &terms).await), Reason::DeniedByRule);
    let both = AddressTerms { to: to(&["11.0.0.10/32"]).to, ..terms };
    assert_eq!(reason(&world.vet_under("good.test:443", &both).await), Reason::DeniedByRule);
}

#[tokio::test]
async fn guests_and_own_addresses_are_floor_unless_permitted_and_listeners_always() {
    let server = serve(|_| Reply::records(60, &[a("11.0.0.10")]));
    let floor = FloorSettings {
        permitted: nets(&["127.0.0.0/8", "10.0.0.0/8"]),
        guests: nets(&["11.0.0.0/28", "10.42.0.0/16"]),
        listeners: vec!["0.0.0.0:3129".parse().unwrap(), "11.0.0.200:3128".parse().unwrap()],
    };
    let world = world_with(&settings(&[&server]), floor.clone());
    assert_eq!(world.vet("good.test:443").await.unwrap_err(), VetError::Guest("11.0.0.10".parse().unwrap()));
    assert_eq!(addresses(&world.vet("10.42.0.1:443").await), ["10.42.0.1:443"]);
    assert_eq!(addresses(&world.vet("127.0.0.1:443").await), ["127.0.0.1:443"]);
    for target in ["127.0.0.1:3129", "127.9.9.9:3129", "11.0.0.200:3128"] {
        let terms = to(&["0.0.0.0/0", "::/0"]);
        assert!(matches!(world.vet(target).await.unwrap_err(), VetError::Listener(_)), "{target}");
        assert!(matches!(world.vet_under(target, &terms).await.unwrap_err(), VetError::Listener(_)), "{target}");
    }
    let mapped = "[::ffff:127.0.0.1]:3129";
    assert!(matches!(world.vet_under(mapped, &to(&["::/0"])).await.unwrap_err(), VetError::Listener(_)));
    assert_eq!(addresses(&world.vet("11.0.0.200:443").await), ["11.0.0.200:443"]);
    // The same name under a floor without guests, and back.
    world.resolver.reconfigure(&settings(&[&server]), FloorSettings::default()).unwrap();
    assert_eq!(addresses(&world.try_vet("good.test:443").unwrap()), ["11.0.0.10:443"]);
    world.resolver.reconfigure(&settings(&[&server]), floor).unwrap();
    assert_eq!(reason(&world.try_vet("good.test:443").unwrap()), Reason::AddressFloor);
}

#[tokio::test]
async fn address_literals_are_judged_at_once() {
    let server = serve(|_| Reply::none(60));
    let world = world(&[&server]);
    assert_eq!(addresses(&world.try_vet("11.0.0.10:443").unwrap()), ["11.0.0.10:443"]);
    for target in
        ["127.0.0.1:80", "10.0.0.1:80", "[::ffff:127.0.0.1]:80", "[::1]:80", "[64:ff9b::7f00:1]:80", "0.0.0.0:80"]
    {
        assert_eq!(reason(&world.try_vet(target).unwrap()), Reason::AddressFloor, "{target}");
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn other_servers_empty_the_cache_and_a_failed_change_leaves_everything() {
    let one = serve(|_| Reply::records(60, &[a("11.0.0.1")]));
    let two = serve(|_| Reply::records(60, &[a("11.0.0.2")]));
    let world = world(&[&one]);
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.1:443"]);
    let broken = ResolverSettings { hosts_file: Some("/nonexistent/hosts".into()), ..settings(&[&two]) };
    assert!(world.resolver.reconfigure(&broken, FloorSettings::default()).is_err());
    assert_eq!(addresses(&world.try_vet("good.test:443").unwrap()), ["11.0.0.1:443"]);
    world.resolver.reconfigure(&settings(&[&one]), FloorSettings::default()).unwrap();
    assert!(world.try_vet("good.test:443").is_some(), "the same servers keep the cache");
    world.resolver.reconfigure(&settings(&[&two]), FloorSettings::default()).unwrap();
    assert!(world.try_vet("good.test:443").is_none());
    assert_eq!(addresses(&world.vet("good.test:443").await), ["11.0.0.2:443"]);
}

#[tokio::test]
async fn no_more_addresses_are_vetted_than_are_dialled() {
    let many: Vec<_> = (1..=30).map(|last| a(&format!("11.0.0.{last}"))).collect();
    let server = serve(move |query| if query.family == 4 { Reply::records(60, &many) } else { Reply::none(60) });
    let world = world(&[&server]);
    assert_eq!(world.vet("good.test:443").await.unwrap().addresses().len(), MAX_VETTED);
}

#[tokio::test]
async fn a_resolver_whose_runtime_ends_refuses_instead_of_hanging() {
    let server = serve(|_| Reply::silence());
    let World { control, resolver } = world(&[&server]);
    let target = Target::parse(b"good.test:443", None).unwrap();
    let waiting = {
        let resolver = resolver.clone();
        let target = target.clone();
        tokio::spawn(async move { resolver.vet_target(&target, &AddressTerms::default(), freely()).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(control);
    assert_eq!(waiting.await.unwrap().unwrap_err(), VetError::Lookup(LookupError::Stopped));
    assert!(resolver.vet_target(&target, &AddressTerms::default(), freely()).await.is_err());
}
