use super::*;

fn gate(settings: LimitSettings) -> Arc<Gate> {
    Gate::new(settings)
}

/// The gate's calls for undeclared guests, by their addresses.
impl Gate {
    fn admit_at(self: &Arc<Self>, at: IpAddr, purpose: Purpose, now: Instant) -> Result<Slot, Reason> {
        let usage = match purpose {
            Purpose::Handshake => self.handshakes(at, now),
            Purpose::Flow | Purpose::Names => self.usage(None, at, now),
        };
        self.admit(&usage, purpose, now)
    }

    fn admit_named(self: &Arc<Self>, name: &str, at: IpAddr, now: Instant) -> Result<Slot, Reason> {
        self.admit(&self.usage(Some(name), at, now), Purpose::Flow, now)
    }

    fn query_at(&self, at: IpAddr, now: Instant) -> QueryPace {
        self.query(&self.usage(None, at, now), now)
    }

    fn names_at(self: &Arc<Self>, at: IpAddr, now: Instant) -> Names {
        self.names(&self.usage(None, at, now))
    }

    fn refusal_slot_at(self: &Arc<Self>, at: IpAddr, now: Instant) -> Option<RefusalSlot> {
        self.refusal_slot(&self.usage(None, at, now))
    }
}

impl GuestPermit {
    /// A permit for a lookup, without a limit.
    pub(crate) fn for_tests(usage: &Arc<Usage>) -> GuestPermit {
        usage.permit(|usage| &usage.lookups, u32::MAX).unwrap()
    }
}

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

#[test]
fn a_guest_has_its_number_of_places_and_gets_them_back() {
    let gate = gate(LimitSettings { connections: Some(2), ..LimitSettings::default() });
    let now = Instant::now();
    let first = gate.admit_at(A, Purpose::Flow, now).unwrap();
    let _second = gate.admit_at(A, Purpose::Flow, now).unwrap();
    assert_eq!(gate.admit_at(A, Purpose::Flow, now).unwrap_err(), Reason::LimitConnections);
    let _other = gate.admit_at(B, Purpose::Flow, now).unwrap();
    drop(first);
    assert!(gate.admit_at(A, Purpose::Flow, now).is_ok());
    assert_eq!(gate.total(), 2);
}

#[test]
fn no_guest_gets_more_than_a_quarter_of_the_whole() {
    let gate = gate(LimitSettings { total_connections: Some(8), ..LimitSettings::default() });
    let now = Instant::now();
    let mut held = Vec::new();
    for last in 1..=4u8 {
        let source = IpAddr::from([10, 0, 0, last]);
        held.push(gate.admit_at(source, Purpose::Flow, now).unwrap());
        held.push(gate.admit_at(source, Purpose::Flow, now).unwrap());
        assert_eq!(gate.admit_at(source, Purpose::Flow, now).unwrap_err(), Reason::LimitConnections);
    }
    assert_eq!(gate.admit_at(IpAddr::from([10, 0, 0, 9]), Purpose::Flow, now).unwrap_err(), Reason::LimitTotal);
}

/// Returns when the turn of a new connection of `source` comes, counted from `now`.
fn turn(gate: &Arc<Gate>, source: IpAddr, now: Instant) -> Result<Duration, Reason> {
    gate.admit_at(source, Purpose::Flow, now).map(|slot| slot.turn().map_or(Duration::ZERO, |turn| turn - now))
}

#[test]
fn a_second_s_worth_may_come_at_once_and_as_much_again_waits_for_its_turn() {
    let gate = gate(LimitSettings { new_connections_per_second: Some(10), ..LimitSettings::default() });
    let now = Instant::now();
    for _ in 0..10 {
        assert_eq!(turn(&gate, A, now), Ok(Duration::ZERO));
    }
    for tenth in 1..=10 {
        assert_eq!(turn(&gate, A, now), Ok(Duration::from_millis(tenth * 100)));
    }
    assert_eq!(turn(&gate, A, now), Err(Reason::LimitRate));
    assert_eq!(turn(&gate, B, now), Ok(Duration::ZERO));
    let later = now + Duration::from_millis(110);
    assert_eq!(turn(&gate, A, later), Ok(Duration::from_millis(990)));
    assert_eq!(turn(&gate, A, later), Err(Reason::LimitRate));
    assert_eq!(turn(&gate, A, now + Duration::from_secs(3)), Ok(Duration::ZERO));
}

#[test]
fn the_highest_rates_hold_too() {
    for rate in [500_001, 999_999, 1_000_001, 10_000_000] {
        let rate_of_one = Rate::default();
        let now = 5 * SECOND;
        let terms = RateBounds::per_second(rate, Duration::ZERO);
        let taken = (0..20_000_000u32).take_while(|_| rate_of_one.take(now, terms).is_ok()).count();
        let most = usize::try_from(rate).unwrap();
        assert!((most - most / 100..=most + most / 100).contains(&taken), "{taken} of {rate} a second");
    }
}

#[test]
fn requests_over_the_rate_wait_for_their_turn_and_more_than_that_are_refused() {
    let gate = gate(LimitSettings { requests_per_second: Some(4), ..LimitSettings::default() });
    let now = Instant::now();
    let slot = gate.admit_at(A, Purpose::Flow, now).unwrap();
    let other = gate.admit_at(A, Purpose::Flow, now).unwrap();
    for _ in 0..4 {
        assert_eq!(slot.request(now), Pace::Now);
    }
    for quarter in 1..=4 {
        assert_eq!(
            other.request(now),
            Pace::After(Duration::from_millis(quarter * 250)),
            "the guest's, not the connection's"
        );
    }
    assert_eq!((slot.request(now), other.request(now)), (Pace::Over, Pace::Over));
}

#[test]
fn queries_over_the_rate_wait_then_are_told_so_as_often_again_and_then_meet_silence() {
    let gate = gate(LimitSettings { dns_queries_per_second: Some(5), ..LimitSettings::default() });
    let now = Instant::now();
    let paces = |count: usize, at| (0..count).map(|_| gate.query_at(A, at)).collect::<Vec<_>>();
    assert!(paces(5, now).iter().all(|pace| matches!(pace, QueryPace::Now)));
    assert!(paces(5, now).iter().all(|pace| matches!(pace, QueryPace::After(..))));
    assert!(paces(5, now).iter().all(|pace| matches!(pace, QueryPace::Over)));
    assert!(paces(100, now).iter().all(|pace| matches!(pace, QueryPace::Flood)));
    assert!(matches!(gate.query_at(B, now), QueryPace::Now));
    assert!(matches!(gate.query_at(A, now + Duration::from_millis(2100)), QueryPace::Now));
}

#[test]
fn of_one_guest_only_so_many_queries_wait_and_their_places_come_back() {
    let gate = gate(LimitSettings { dns_queries_per_second: Some(5000), ..LimitSettings::default() });
    let now = Instant::now();
    let mut held = Vec::new();
    let mut early = 0;
    for _ in 0..7000 {
        match gate.query_at(A, now) {
            QueryPace::After(_, reservation) => held.push(reservation),
            QueryPace::Over => early += 1,
            QueryPace::Now | QueryPace::Flood => {}
        }
    }
    assert_eq!((held.len(), early), (512, 1488), "5,000 at once, 512 wait, the rest is told so");
    held.pop();
    assert!(matches!(gate.query_at(A, now), QueryPace::After(..)));
}

#[test]
fn new_names_come_in_a_burst_then_wait_and_what_was_asked_before_counts_little() {
    let gate = gate(LimitSettings { new_names_per_second: Some(10), ..LimitSettings::default() });
    let now = Instant::now();
    let ask = |is_new, at| gate.names_at(A, at).ask(is_new, at);
    for _ in 0..200 {
        assert!(matches!(ask(true, now), NamePace::Now(_)));
    }
    // A page or a job begins like this; from then on names wait for what each second allows.
    let mut waits = gate.names_at(A, now);
    let NamePace::After(wait) = waits.ask(true, now) else { panic!("it is to wait") };
    assert_eq!(wait, Duration::from_millis(100));
    assert!(matches!(waits.ask(true, now + wait), NamePace::Now(_)));
    let mut patient = gate.names_at(A, now + wait);
    assert!(matches!(patient.ask(true, now + wait), NamePace::After(_)));
    assert!(matches!(patient.ask(true, now + wait + Duration::from_millis(950)), NamePace::Now(_)));
    // A name that was asked for before counts a sixteenth.
    let at = now + Duration::from_secs(60);
    for _ in 0..3200 {
        assert!(matches!(ask(false, at), NamePace::Now(_)));
    }
    assert!(matches!(ask(false, at), NamePace::After(_)));
    assert!(matches!(gate.names_at(B, at).ask(true, at), NamePace::Now(_)));
}

#[test]
fn of_one_guest_only_so_many_names_wait_and_none_for_longer_than_a_second() {
    let gate = gate(LimitSettings { new_names_per_second: Some(1), ..LimitSettings::default() });
    let now = Instant::now();
    for _ in 0..20 {
        assert!(matches!(gate.names_at(A, now).ask(true, now), NamePace::Now(_)));
    }
    let mut waiting: Vec<Names> = (0..64).map(|_| gate.names_at(A, now)).collect();
    assert!(waiting.iter_mut().all(|names| matches!(names.ask(true, now), NamePace::After(_))));
    assert!(matches!(gate.names_at(A, now).ask(true, now), NamePace::Over));
    let soon = now + Duration::from_secs(1);
    let asked: Vec<NamePace> = waiting.iter_mut().map(|names| names.ask(true, soon)).collect();
    assert_eq!(asked.iter().filter(|pace| matches!(pace, NamePace::Now(_))).count(), 1);
    assert!(asked.iter().skip(1).all(|pace| matches!(pace, NamePace::Over)), "their second is over");
    drop(waiting);
    assert!(matches!(gate.names_at(A, soon).ask(true, soon), NamePace::After(_)));
}

#[test]
fn one_ipv6_64_is_one_guest_and_a_declared_guest_is_one_over_all_its_addresses() {
    let at = |text: &str| text.parse::<IpAddr>().unwrap();
    let settings = LimitSettings { connections: Some(1), ..LimitSettings::default() };
    let now = Instant::now();
    let undeclared = gate(settings);
    let _held = undeclared.admit_at(at("2001:db8::1"), Purpose::Flow, now).unwrap();
    assert!(undeclared.admit_at(at("2001:db8::ffff"), Purpose::Flow, now).is_err());
    assert!(undeclared.admit_at(at("2001:db8:0:1::1"), Purpose::Flow, now).is_ok());
    let declared = Gate::new(settings);
    let _held = declared.admit_named("vm-7", A, now).unwrap();
    assert!(declared.admit_named("vm-7", B, now).is_err());
}

#[test]
fn a_guest_over_its_limits_takes_its_share_of_the_places_to_be_told_and_gives_them_back() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let mut told: Vec<RefusalSlot> = std::iter::from_fn(|| gate.refusal_slot_at(A, now)).collect();
    assert_eq!((told.len(), gate.refusals()), (64, 64));
    assert!(gate.refusal_slot_at(B, now).is_some());
    told.pop();
    assert!(gate.refusal_slot_at(A, now).is_some(), "a place was given back");
    drop(told);
    assert_eq!(gate.refusals(), 0);
}

#[test]
fn while_many_guests_flood_the_next_one_is_still_told() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let mut told = Vec::new();
    for last in 0..40u8 {
        let source = IpAddr::from([10, 0, 1, last]);
        let before = told.len();
        told.extend(std::iter::from_fn(|| gate.refusal_slot_at(source, now)));
        assert!(told.len() > before, "guest {last} found no place");
    }
    assert!(gate.refusals() <= MAX_REFUSALS);
}

#[test]
fn a_guest_has_its_share_of_lookups_and_gets_them_back() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let ask = |source: IpAddr| gate.names_at(source, now).ask(true, now);
    let mut held: Vec<NamePace> = (0..MAX_LOOKUPS).map(|_| ask(A)).collect();
    assert!(held.iter().all(|pace| matches!(pace, NamePace::Now(_))));
    assert!(matches!(ask(A), NamePace::Over));
    assert!(matches!(ask(B), NamePace::Now(_)));
    held.pop();
    assert!(matches!(ask(A), NamePace::Now(_)));
}

#[test]
fn guests_that_went_quiet_are_forgotten() {
    let gate = gate(LimitSettings { new_connections_per_second: Some(1), ..LimitSettings::default() });
    let mut now = Instant::now();
    for index in 0..100_000u32 {
        now += Duration::from_millis(10);
        drop(gate.admit_at(IpAddr::V4(index.into()), Purpose::Flow, now));
    }
    let kept: usize = gate.shards.iter().map(|shard| shard.lock().unwrap().guests.len()).sum();
    assert!(kept <= SHARDS * (SWEEP_AT + 1), "{kept}");
}

#[test]
fn sources_without_end_share_one_set_of_limits_once_there_are_too_many() {
    let gate = gate(LimitSettings { dns_queries_per_second: Some(1), ..LimitSettings::default() });
    let now = Instant::now();
    let mut sources = (0..200_000u32).map(|index| IpAddr::V4(index.into()));
    let paces: Vec<QueryPace> = sources.by_ref().map(|source| gate.query_at(source, now)).collect();
    let kept: usize = gate.shards.iter().map(|shard| shard.lock().unwrap().guests.len()).sum();
    assert_eq!(kept, SHARDS * MAX_IN_SHARD);
    assert!(paces[..1000].iter().all(|pace| matches!(pace, QueryPace::Now)));
    assert!(paces[190_000..].iter().all(|pace| matches!(pace, QueryPace::Flood)));
    drop(paces);
    let later = now + Duration::from_secs(3);
    assert!(matches!(gate.query_at(IpAddr::V4(u32::MAX.into()), later), QueryPace::Now), "quiet ones made room");
}

#[test]
fn in_overload_the_heaviest_are_refused_first_and_then_everybody_is() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let _heavy: Vec<Slot> = (0..30).map(|_| gate.admit_at(A, Purpose::Flow, now).unwrap()).collect();
    let admits = |source, purpose| gate.admit_at(source, purpose, now).is_ok();
    gate.relieve(Stage::Heavy, 20);
    assert_eq!(gate.admit_at(A, Purpose::Flow, now).unwrap_err(), Reason::LimitTotal);
    assert!(admits(B, Purpose::Flow));
    gate.relieve(Stage::Full, 20);
    assert_eq!(gate.admit_at(B, Purpose::Flow, now).unwrap_err(), Reason::LimitTotal);
    assert!(admits(B, Purpose::Names) && !admits(A, Purpose::Names));
    gate.relieve(Stage::Normal, u32::MAX);
    assert!(admits(A, Purpose::Flow));
    assert_eq!((gate.total(), gate.guests()), (30, 1));
}

#[test]
fn no_more_are_let_in_than_there_are_descriptors_for() {
    let gate = gate(LimitSettings { total_connections: Some(100), ..LimitSettings::default() });
    gate.set_room(Room { connections: 3, refusals: 1 });
    let now = Instant::now();
    let _held: Vec<Slot> = (0..3).map(|_| gate.admit_at(A, Purpose::Flow, now).unwrap()).collect();
    assert_eq!(gate.most(), 3);
    assert_eq!(gate.admit_at(B, Purpose::Flow, now).unwrap_err(), Reason::LimitTotal);
    let told = gate.refusal_slot_at(A, now);
    assert!(told.is_some() && gate.refusal_slot_at(B, now).is_none());
}

#[tokio::test]
async fn only_guests_with_more_than_their_share_are_asked_to_end_what_is_idle() {
    let gate = gate(LimitSettings::default());
    let now = Instant::now();
    let heavy: Vec<Slot> = (0..20).map(|_| gate.admit_at(A, Purpose::Flow, now).unwrap()).collect();
    let light = gate.admit_at(B, Purpose::Flow, now).unwrap();
    gate.relieve(Stage::Closing, 20);
    let ask = async {
        tokio::task::yield_now().await;
        gate.evict_idle();
    };
    tokio::join!(heavy[0].evicted(), ask);
    tokio::select! {
        biased;
        () = light.evicted() => panic!("it has less than its share"),
        () = async { tokio::task::yield_now().await; gate.evict_idle(); tokio::task::yield_now().await; } => {}
    }
}

#[test]
fn handshakes_count_apart_from_the_flows_of_their_address_and_are_fewer() {
    let settings = LimitSettings { connections: Some(3), total_connections: Some(32), ..LimitSettings::default() };
    let (gate, now) = (gate(settings), Instant::now());
    let _flows: Vec<Slot> = (0..3).map(|_| gate.admit_at(A, Purpose::Flow, now).unwrap()).collect();
    let shaking: Vec<Slot> = (0..2).map(|_| gate.admit_at(A, Purpose::Handshake, now).unwrap()).collect();
    assert_eq!(gate.admit_at(A, Purpose::Handshake, now).unwrap_err(), Reason::LimitConnections, "a sixteenth of all");
    assert!(gate.admit_at(B, Purpose::Handshake, now).is_ok());
    drop(shaking);
    assert!(gate.admit_at(A, Purpose::Handshake, now).is_ok());
    let by_name = Gate::new(settings);
    let _held: Vec<Slot> = (0..3).map(|_| by_name.admit_named("vm-7", A, now).unwrap()).collect();
    assert!(by_name.admit_named("vm-7", B, now).is_err(), "one name is one guest");
    assert!(by_name.admit_named("vm-8", A, now).is_ok());
}
