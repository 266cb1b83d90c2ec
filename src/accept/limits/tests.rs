use super::*;

fn gate(settings: LimitSettings) -> Arc<Gate> {
    Gate::new(settings, Arc::new(|_| None))
}

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

#[test]
fn a_guest_has_its_number_of_places_and_gets_them_back() {
    let gate = gate(LimitSettings { connections: Some(2), ..LimitSettings::default() });
    let now = Instant::now();
    let first = gate.admit(A, Purpose::Flow, now).unwrap();
    let _second = gate.admit(A, Purpose::Flow, now).unwrap();
    assert_eq!(gate.admit(A, Purpose::Flow, now).unwrap_err(), Reason::LimitConnections);
    let _other = gate.admit(B, Purpose::Flow, now).unwrap();
    drop(first);
    assert!(gate.admit(A, Purpose::Flow, now).is_ok());
    assert_eq!(gate.total(), 2);
}

#[test]
fn no_guest_gets_more_than_a_quarter_of_the_whole() {
    let gate = gate(LimitSettings { total_connections: Some(8), ..LimitSettings::default() });
    let now = Instant::now();
    let mut held = Vec::new();
    for last in 1..=4u8 {
        let source = IpAddr::from([10, 0, 0, last]);
        held.push(gate.admit(source, Purpose::Flow, now).unwrap());
        held.push(gate.admit(source, Purpose::Flow, now).unwrap());
        assert_eq!(gate.admit(source, Purpose::Flow, now).unwrap_err(), Reason::LimitConnections);
    }
    assert_eq!(gate.admit(IpAddr::from([10, 0, 0, 9]), Purpose::Flow, now).unwrap_err(), Reason::LimitTotal);
}

#[test]
fn a_second_s_worth_may_come_at_once_and_then_the_rate_holds() {
    let gate = gate(LimitSettings { new_connections_per_second: Some(10), ..LimitSettings::default() });
    let now = Instant::now();
    for _ in 0..10 {
        assert!(gate.admit(A, Purpose::Flow, now).is_ok());
    }
    assert_eq!(gate.admit(A, Purpose::Flow, now).unwrap_err(), Reason::LimitRate);
    assert!(gate.admit(B, Purpose::Flow, now).is_ok());
    let later = now + Duration::from_millis(110);
    assert!(gate.admit(A, Purpose::Flow, later).is_ok());
    assert_eq!(gate.admit(A, Purpose::Flow, later).unwrap_err(), Reason::LimitRate);
}

#[test]
fn queries_over_the_rate_are_told_so_as_often_again_and_then_meet_silence() {
    let gate = gate(LimitSettings { dns_queries_per_second: Some(5), ..LimitSettings::default() });
    let now = Instant::now();
    let paces = |count: usize, at| (0..count).map(|_| gate.query(A, at)).collect::<Vec<_>>();
    assert_eq!(paces(5, now), [Pace::Fair; 5]);
    assert_eq!(paces(5, now), [Pace::Quick; 5]);
    assert_eq!(paces(100, now), [Pace::Flood; 100]);
    assert_eq!(gate.query(B, now), Pace::Fair);
    assert_eq!(gate.query(A, now + Duration::from_millis(210)), Pace::Fair);
}

#[test]
fn one_ipv6_64_is_one_guest_and_a_declared_guest_is_one_over_all_its_addresses() {
    let at = |text: &str| text.parse::<IpAddr>().unwrap();
    let settings = LimitSettings { connections: Some(1), ..LimitSettings::default() };
    let now = Instant::now();
    let undeclared = gate(settings);
    let _held = undeclared.admit(at("2001:db8::1"), Purpose::Flow, now).unwrap();
    assert!(undeclared.admit(at("2001:db8::ffff"), Purpose::Flow, now).is_err());
    assert!(undeclared.admit(at("2001:db8:0:1::1"), Purpose::Flow, now).is_ok());
    let declared = Gate::new(settings, Arc::new(|_| Some(3)));
    let _held = declared.admit(A, Purpose::Flow, now).unwrap();
    assert!(declared.admit(B, Purpose::Flow, now).is_err());
}

#[test]
fn a_guest_over_its_limits_takes_its_share_of_the_places_to_be_told_and_gives_them_back() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let mut told: Vec<Telling> = std::iter::from_fn(|| gate.tell(A, now)).collect();
    assert_eq!((told.len(), gate.telling()), (64, 64));
    assert!(gate.tell(B, now).is_some());
    told.pop();
    assert!(gate.tell(A, now).is_some(), "a place was given back");
    drop(told);
    assert_eq!(gate.telling(), 0);
}

#[test]
fn while_many_guests_flood_the_next_one_is_still_told() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let mut told = Vec::new();
    for last in 0..40u8 {
        let source = IpAddr::from([10, 0, 1, last]);
        let before = told.len();
        told.extend(std::iter::from_fn(|| gate.tell(source, now)));
        assert!(told.len() > before, "guest {last} found no place");
    }
    assert!(gate.telling() <= MAX_TOLD);
}

#[test]
fn a_guest_has_its_share_of_lookups_and_gets_them_back() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let mut held: Vec<Looking> = (0..MAX_LOOKUPS).map(|_| gate.lookup(A, now).unwrap()).collect();
    assert!(gate.lookup(A, now).is_none());
    assert!(gate.lookup(B, now).is_some());
    held.pop();
    assert!(gate.lookup(A, now).is_some());
}

#[test]
fn guests_that_went_quiet_are_forgotten() {
    let gate = gate(LimitSettings { new_connections_per_second: Some(1), ..LimitSettings::default() });
    let mut now = Instant::now();
    for index in 0..100_000u32 {
        now += Duration::from_millis(10);
        drop(gate.admit(IpAddr::V4(index.into()), Purpose::Flow, now));
    }
    let kept: usize = gate.shards.iter().map(|shard| shard.lock().unwrap().guests.len()).sum();
    assert!(kept <= SHARDS * (SWEEP_AT + 1), "{kept}");
}

#[test]
fn sources_without_end_share_one_set_of_limits_once_there_are_too_many() {
    let gate = gate(LimitSettings { dns_queries_per_second: Some(1), ..LimitSettings::default() });
    let now = Instant::now();
    let mut sources = (0..200_000u32).map(|index| IpAddr::V4(index.into()));
    let paces: Vec<Pace> = sources.by_ref().map(|source| gate.query(source, now)).collect();
    let kept: usize = gate.shards.iter().map(|shard| shard.lock().unwrap().guests.len()).sum();
    assert_eq!(kept, SHARDS * MAX_IN_SHARD);
    assert!(paces[..1000].iter().all(|pace| *pace == Pace::Fair));
    assert!(paces[190_000..].iter().all(|pace| *pace == Pace::Flood));
    let later = now + Duration::from_secs(3);
    assert_eq!(gate.query(IpAddr::V4(u32::MAX.into()), later), Pace::Fair, "quiet ones made room");
}

#[test]
fn in_overload_the_heaviest_are_refused_first_and_then_everybody_is() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let _heavy: Vec<Slot> = (0..30).map(|_| gate.admit(A, Purpose::Flow, now).unwrap()).collect();
    let admits = |source, purpose| gate.admit(source, purpose, now).is_ok();
    gate.relieve(Stage::Heavy, 20);
    assert_eq!(gate.admit(A, Purpose::Flow, now).unwrap_err(), Reason::LimitTotal);
    assert!(admits(B, Purpose::Flow));
    gate.relieve(Stage::Full, 20);
    assert_eq!(gate.admit(B, Purpose::Flow, now).unwrap_err(), Reason::LimitTotal);
    assert!(admits(B, Purpose::Names) && !admits(A, Purpose::Names));
    gate.relieve(Stage::Normal, u32::MAX);
    assert!(admits(A, Purpose::Flow));
    assert_eq!((gate.total(), gate.guests()), (30, 1));
}

#[test]
fn no_more_are_let_in_than_there_are_descriptors_for() {
    let gate = gate(LimitSettings { total_connections: Some(100), ..LimitSettings::default() });
    gate.set_room(Room { connections: 3, told: 1 });
    let now = Instant::now();
    let _held: Vec<Slot> = (0..3).map(|_| gate.admit(A, Purpose::Flow, now).unwrap()).collect();
    assert_eq!(gate.most(), 3);
    assert_eq!(gate.admit(B, Purpose::Flow, now).unwrap_err(), Reason::LimitTotal);
    let told = gate.tell(A, now);
    assert!(told.is_some() && gate.tell(B, now).is_none());
}

#[tokio::test]
async fn only_guests_with_more_than_their_share_are_asked_to_end_what_is_idle() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let heavy: Vec<Slot> = (0..20).map(|_| gate.admit(A, Purpose::Flow, now).unwrap()).collect();
    let light = gate.admit(B, Purpose::Flow, now).unwrap();
    gate.relieve(Stage::Closing, 20);
    let ask = async {
        tokio::task::yield_now().await;
        gate.ease();
    };
    tokio::join!(heavy[0].eased(), ask);
    tokio::select! {
        biased;
        () = light.eased() => panic!("it has less than its share"),
        () = async { tokio::task::yield_now().await; gate.ease(); tokio::task::yield_now().await; } => {}
    }
}

#[test]
fn handshakes_count_apart_from_the_flows_of_their_address_and_are_fewer() {
    let settings = LimitSettings { connections: Some(3), total_connections: Some(32), ..LimitSettings::default() };
    let (gate, now) = (gate(settings), Instant::now());
    let _flows: Vec<Slot> = (0..3).map(|_| gate.admit(A, Purpose::Flow, now).unwrap()).collect();
    let shaking: Vec<Slot> = (0..2).map(|_| gate.admit(A, Purpose::Handshake, now).unwrap()).collect();
    assert_eq!(gate.admit(A, Purpose::Handshake, now).unwrap_err(), Reason::LimitConnections, "a sixteenth of all");
    assert!(gate.admit(B, Purpose::Handshake, now).is_ok());
    drop(shaking);
    assert!(gate.admit(A, Purpose::Handshake, now).is_ok());
    let certified = |name: &str| Source { address: A, certified: Some(name.into()) };
    let by_name = Gate::new(settings, Arc::new(|source| source.certified.as_ref().map(|name| name.len() as u64)));
    let _held: Vec<Slot> = (0..3).map(|_| by_name.admit(certified("vm-7"), Purpose::Flow, now).unwrap()).collect();
    assert!(by_name.admit(certified("vm-8"), Purpose::Flow, now).is_err(), "one number is one guest");
    assert!(by_name.admit(certified("vm-77"), Purpose::Flow, now).is_ok());
}
