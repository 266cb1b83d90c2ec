use super::*;
use crate::accept::Reserve;
use crate::account::Account;
use crate::identify::{Claim, Evidence};
use crate::limits::Gate;
use crate::resolve::Resolver;
use crate::target::{Target, Transport};
use arc_swap::ArcSwap;
use std::fs;
use std::path::Path;
use tokio_util::sync::CancellationToken;

fn settings(dir: &Path) -> Settings {
    let root = dir.display();
    let config = format!(
        "[whitelist]\ndir = \"{root}\"\n[resolver]\nservers = [\"127.0.0.53\"]\n\
         [log]\naccess = \"off\"\n[state]\ndir = \"{root}\"\n"
    );
    let path = dir.join("outgate.toml");
    fs::write(&path, config).unwrap();
    Settings::load(Some(&path)).unwrap().0
}

fn worker(settings: Settings, lists: Lists, runtime: tokio::runtime::Handle) -> ReloadWorker {
    let policy = lists.policy(&settings).unwrap();
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::new(policy, &settings)));
    let services = Arc::new(Services {
        gate: Gate::new(settings.limits),
        guest_tls: None,
        reserve: Reserve::default(),
        snapshot,
        resolver: Resolver::start(&settings.resolver, settings.floor(), runtime).unwrap(),
        bindings: Arc::default(),
        idle_upstreams: Arc::default(),
        account: Account::start(&settings.log, &[]).unwrap(),
        stop: CancellationToken::new(),
    });
    let counting = Counting::start(&settings.state_dir, &lists.rules);
    let registry = Registry::default();
    ReloadWorker {
        services,
        settings,
        lists,
        registry,
        generation: 1,
        state: Arc::default(),
        bound: Vec::new(),
        counting,
        unconfigured: None,
    }
}

fn allows(worker: &ReloadWorker, target: &str) -> bool {
    let claim = Claim {
        source: "10.42.42.7".parse::<std::net::IpAddr>().unwrap().into(),
        target: Target::parse(target.as_bytes(), None).unwrap(),
        transport: Transport::Tcp,
        spoken: None,
        ech: false,
        evidence: Evidence::Connect,
    };
    worker.services.snapshot.load().policy.decide(&claim).is_ok()
}

#[test]
fn a_rule_past_its_last_day_counts_as_removed_though_the_files_on_disk_are_broken() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("main.rules");
    fs::write(&list, "good.test until=2020-06-30\nother.test\n").unwrap();
    let settings = settings(dir.path());
    let files = Files::of(settings.whitelist_dir.as_deref(), None);
    // In force since before that day.
    let lists = compile(&files, jiff::civil::date(2020, 6, 1)).unwrap();
    let mut worker = worker(settings, lists, runtime.handle().clone());
    assert!(allows(&worker, "good.test:443") && allows(&worker, "other.test:443"));

    fs::write(&list, "good.test\n*\n").unwrap();
    let revision = worker.services.bindings.revision();
    worker.attend(None);
    assert!(
        worker.services.bindings.revision() > revision,
        "a name judged before is seen to have been, though no list is new"
    );
    assert!(!allows(&worker, "good.test:443"), "its last day is over");
    assert!(allows(&worker, "other.test:443"), "the rest of the last good list stays");
    assert!(worker.state.lock().unwrap().trouble.is_some(), "and the operator is told that the files are broken");
    let generation = worker.generation;
    worker.attend(None);
    assert_eq!(worker.generation, generation, "one day comes once");

    fs::write(&list, "cdn-ok.test\n").unwrap();
    let revision = worker.services.bindings.revision();
    worker.attend(Some(Ask::Look));
    assert!(worker.services.bindings.revision() > revision);
    assert!(allows(&worker, "cdn-ok.test:443") && !allows(&worker, "other.test:443"));
    assert!(worker.state.lock().unwrap().trouble.is_none());
}
