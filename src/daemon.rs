//! Builds the stages, connects them, and keeps them running: start, reload, drain.
//!
//! One thread per CPU serves flows, each with its own runtime and listeners. One more thread, this one, handles
//! signals, reloads, the resolver's sockets, the admin listener and the control socket. What is missing at the
//! start (a port, a readable list) is an error before the first connection. After that, only a signal ends the
//! daemon.

mod drain;
mod firewall_watch;
mod listeners;
mod lists;
mod privileges;
mod proof_watch;
mod relief;
mod reload;
mod status;
mod troubles;
mod unconfigured;
mod watchdog;
mod workers;

pub use privileges::needs;

use crate::accept::{ListenError, Reserve, SocketUse};
use crate::account::{Account, AccountError};
use crate::admin::{self, Admin};
use crate::bindings::{Bindings, BindingsFile};
use crate::config::{ConfigError, ListenSettings, Settings};
use crate::control::host::HostReports;
use crate::control::{self, Change, Control, ControlError};
use crate::limits::Gate;
use crate::policy::{Policy, PolicyError};
use crate::proof;
use crate::registered_guests::{KeepError, Registry};
use crate::resolve::{ResolveSetupError, Resolver};
use crate::services::{Services, Snapshot};
use crate::system::{self, AccessError, Confine, PrivilegeError, SignalRequest, Signals};
use crate::tls::{CertificateReloader, Fault, GuestTls, TlsError};
use arc_swap::ArcSwap;
use listeners::Listeners;
use lists::Lists;
use privileges::{GivenUp, Sandbox};
use proof_watch::ProofWatch;
use relief::Relief;
use reload::{Reloader, StartBasis};
use status::Status;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use troubles::{Certificate, Troubles};
use unconfigured::Unconfigured;
use watchdog::Watchdog;

/// Why the daemon can't start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A folder or file of the configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The lists are invalid and no last good list exists; the problems have been printed.
    #[error("no valid whitelist: {0}")]
    Lists(String),
    /// The guests in the configuration and in the files conflict.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The registered guests cannot be read.
    #[error(transparent)]
    Registered(#[from] KeepError),
    /// The registered guests conflict.
    #[error("{0}")]
    Guests(String),
    /// A listener can't be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The resolver can't start.
    #[error(transparent)]
    Resolver(#[from] ResolveSetupError),
    /// Metrics or log can't start.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The control socket can't be opened.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Privileges can't be given up.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// Without privileges a file can't be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A thread, a runtime or a signal handler can't be created.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
    /// The configuration is not usable.
    #[error("{0}")]
    Unusable(String),
    /// The daemon had no usable configuration, and something about that has changed.
    #[error("the cause has changed: the daemon must be started again")]
    Changed,
}

/// The configuration that the daemon starts with.
#[derive(Debug)]
pub enum Basis {
    /// The configuration as it is in the file.
    Current(Settings),
    /// An earlier configuration that worked, and why the current one does not.
    KeptConfiguration(Settings, String),
    /// Only the built-in settings, and why. All guests are refused.
    Nothing(Settings, String),
}

/// Runs until SIGTERM or SIGINT, confined as asked once all listeners are open.
///
/// If a service manager would only restart it again and again, it stays, whatever is wrong with configuration
/// and lists, and refuses all guests meanwhile.
///
/// # Errors
/// [`DaemonError`], before anything was served; [`DaemonError::Changed`] at the end of a daemon without usable
/// configuration.
pub fn run(basis: Basis, confine: &Confine) -> Result<(), DaemonError> {
    let begun = Instant::now();
    let open_files = system::raise_open_files();
    tracing::debug!(open_files, "limit on open files");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before everything else, so that a signal during a long start does not kill the process.
    let signals = runtime.block_on(async { Signals::new() })?;
    let mut fault = Faults { stays: system::has_manager(), first: None };
    let (mut settings, stale, is_there) = match basis {
        Basis::Current(settings) => (settings, None, true),
        Basis::KeptConfiguration(settings, why) => (settings, Some(why), true),
        Basis::Nothing(settings, why) => {
            fault.tolerate(DaemonError::Unusable(why))?;
            (settings, None, false)
        }
    };
    let folders = settings.make_folders(confine.user.as_ref().map(|user| (user.uid, user.gid)));
    fault.ok_or_tolerate(folders.map_err(DaemonError::from))?;
    let workers = system::cpus();
    let (mut listeners, unopened) = match is_there {
        true => Listeners::open(&settings.listen, workers)?,
        false => {
            let (listeners, listen) = Listeners::open_by_unit(&settings.listen, workers)?;
            settings.listen = listen;
            (listeners, None)
        }
    };
    unopened.map_or(Ok(()), |error| fault.tolerate(error.into()))?;
    // The control socket and files belong to the user who will use them, so they come after.
    let control = || settings.listen.control.as_deref().map(control::bind).transpose();
    let GivenUp { sandbox, control, host, unusable } = privileges::give_up(&settings, confine, control)?;
    unusable.map_or(Ok(()), |error| fault.tolerate(error))?;
    let mut made = None;
    if fault.first.is_none() {
        made = fault.ok_or_tolerate(Made::new(&settings, &listeners.bound, &runtime))?;
    }
    let unconfigured = fault.first.take().map(|fault| {
        tracing::error!("{fault}");
        let unconfigured = Unconfigured::new(&fault, &settings);
        tracing::error!("{}", unconfigured.trouble);
        unconfigured
    });
    let (settings, made) = match made {
        Some(made) => (settings, made),
        None => {
            let settings = unconfigured::remains(settings);
            let mut unserved = listeners.without_tls();
            unserved.append(&mut listeners.unclaimed.tcp);
            runtime.block_on(async { listeners::reset(unserved) });
            (settings.clone(), Made::without_configuration(settings, &runtime)?)
        }
    };
    let Made { lists, registry, all, tls, policy, resolver, account, bindings, bindings_file } = made;
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::new(policy, &all)));
    count_panics(&account);
    advise(&account, &snapshot);
    let services = Arc::new(Services {
        gate: Gate::new(settings.limits),
        reserve: Reserve::take(),
        guest_tls: tls.as_ref().map(|tls| GuestTls::new(tls.current())),
        snapshot,
        resolver,
        bindings,
        idle_upstreams: Arc::default(),
        account,
        stop: CancellationToken::new(),
    });
    let end = CancellationToken::new();
    services.drop_bindings();
    let relief = Relief::start(&services, workers, end.clone())?;
    let watchdog = Watchdog::new(workers);
    let per_worker = std::mem::take(&mut listeners.per_worker);
    let threads = workers::spawn(&services, per_worker, takes_ipv6(&settings.listen), &watchdog, &end)?;
    let start = Start {
        settings,
        lists,
        registry,
        tls,
        listeners,
        control,
        host,
        sandbox,
        relief,
        watchdog,
        begun,
        stale,
        unconfigured,
    };
    let result = runtime.block_on(govern(&services, signals, start));
    end.cancel();
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker thread ended by a panic");
        }
    }
    drop(bindings_file);
    services.account.flush();
    result
}

/// What went wrong at the start.
struct Faults {
    /// Whether the daemon stays despite it.
    stays: bool,
    /// The first error.
    first: Option<DaemonError>,
}

impl Faults {
    /// Returns the error, unless the daemon stays despite it.
    fn tolerate(&mut self, error: DaemonError) -> Result<(), DaemonError> {
        if !self.stays {
            return Err(error);
        }
        self.first.get_or_insert(error);
        Ok(())
    }

    /// Returns what was made; `None` if it failed and the daemon stays all the same.
    fn ok_or_tolerate<T>(&mut self, outcome: Result<T, DaemonError>) -> Result<Option<T>, DaemonError> {
        outcome.map(Some).or_else(|error| self.tolerate(error).map(|()| None))
    }
}

/// What is built from configuration, lists and state.
struct Made {
    lists: Lists,
    registry: Registry,
    all: Settings,
    tls: Option<CertificateReloader>,
    policy: Arc<Policy>,
    resolver: Arc<Resolver>,
    account: Arc<Account>,
    bindings: Arc<Bindings>,
    bindings_file: Option<BindingsFile>,
}

impl Made {
    fn new(settings: &Settings, bound: &[SocketAddr], runtime: &Runtime) -> Result<Made, DaemonError> {
        let lists = Lists::at_start(settings)?;
        let (registry, all) = registered(settings, &lists)?;
        let tls = settings.tls.as_ref().map(CertificateReloader::open).transpose()?;
        let policy = lists.policy(&all)?;
        let mut floor = all.floor();
        floor.listeners.extend(bound);
        let resolver = Resolver::start(&settings.resolver, floor, runtime.handle().clone())?;
        let names: Vec<String> = settings.policy.guests.iter().map(|guest| guest.name.clone()).collect();
        let account = Account::start(&settings.log, &names)?;
        let bindings = Arc::new(Bindings::default());
        let bindings_file = match settings.listen.dns.is_empty() {
            true => None,
            false => Some(BindingsFile::start(Arc::clone(&bindings), &settings.state_dir)?),
        };
        Ok(Made { lists, registry, all, tls, policy, resolver, account, bindings, bindings_file })
    }

    /// Builds what refuses all guests; it does not touch what the last daemon kept.
    fn without_configuration(all: Settings, runtime: &Runtime) -> Result<Made, DaemonError> {
        let lists = Lists::none();
        let policy = Arc::new(Policy::unconfigured(all.policy.clone())?);
        let resolver = Resolver::start(&all.resolver, all.floor(), runtime.handle().clone())?;
        let account = Account::start(&all.log, &[])?;
        let (registry, bindings) = (Registry::empty(None), Arc::new(Bindings::default()));
        Ok(Made { lists, registry, all, tls: None, policy, resolver, account, bindings, bindings_file: None })
    }
}

/// Returns the guests that were registered with the previous daemon, and the settings including them.
fn registered(settings: &Settings, lists: &Lists) -> Result<(Registry, Settings), DaemonError> {
    let mut registry = Registry::restore(settings.listen.control.as_deref())?;
    let before = registry.iter().count();
    for clash in registry.yield_to(settings) {
        tracing::error!("{clash}; the configuration takes precedence, and the registration is dropped");
    }
    if before > registry.iter().count() {
        registry.keep().map_err(DaemonError::Guests)?;
    }
    let all = registry.over(settings, lists.outbound()).map_err(DaemonError::Guests)?;
    let count = registry.iter().count();
    if count > 0 {
        tracing::info!(count, "restored the guests that were registered at run time");
    }
    Ok((registry, all))
}

/// What the start has prepared for [`govern`].
struct Start {
    settings: Settings,
    lists: Lists,
    registry: Registry,
    tls: Option<CertificateReloader>,
    listeners: Listeners,
    control: Option<UnixListener>,
    host: Option<UnixListener>,
    sandbox: Sandbox,
    relief: Relief,
    watchdog: Watchdog,
    begun: Instant,
    /// Why an earlier configuration is used instead of the one in the file, if so.
    stale: Option<String>,
    /// Why there is no usable configuration, if so.
    unconfigured: Option<Unconfigured>,
}

/// Runs everything besides the flows: reloads, admin, control. When it is time to stop, it drains.
async fn govern(services: &Arc<Services>, mut signals: Signals, start: Start) -> Result<(), DaemonError> {
    let Start {
        settings,
        lists,
        registry,
        tls,
        listeners,
        control,
        host,
        sandbox,
        relief,
        watchdog,
        begun,
        stale,
        unconfigured,
    } = start;
    let where_to = settings.listen.clone();
    let rules = lists.len();
    let standing = match (&unconfigured, stale) {
        (Some(unconfigured), _) => StartBasis::Unconfigured(unconfigured.trouble.clone()),
        (None, Some(why)) => StartBasis::Stale(why),
        (None, None) => StartBasis::Current,
    };
    let reloader = Reloader::start(Arc::clone(services), settings, lists, registry, listeners.bound, standing)?;
    let mut served = JoinSet::new();
    let (reports, has_watcher) = (Arc::new(HostReports::default()), host.is_some());
    if let Some(host) = host {
        served.spawn(receive_reports(host, Arc::clone(&reports)));
    }
    let certificate = tls.as_ref().map(|tls| Certificate::new(tls.expires()));
    let proof = ProofWatch::new(proof::folder(where_to.control.as_deref()).join(proof::FILE_NAME), 0);
    let troubles = Troubles::new(services, &reloader, &reports, has_watcher, certificate.clone(), proof);
    served.spawn(troubles.clone().watch());
    listeners::turn_away(listeners.unclaimed);
    let status = Status::new(services, troubles, relief);
    let (stop, own) = (services.stop.clone(), status.clone());
    let not_ready = move || {
        let stopping = stop.is_cancelled().then(|| "the daemon is stopping".to_owned());
        own.not_ready().into_iter().chain(stopping).collect()
    };
    let snapshot = Arc::clone(&services.snapshot);
    let is_guest = move |name: &str| snapshot.load().policy.names_guest(name);
    let admin = Admin::new(Arc::clone(&services.account), Box::new(not_ready), Box::new(is_guest));
    for listener in listeners.admin {
        served.spawn(admin::serve(tokio::net::TcpListener::from_std(listener)?, Arc::clone(&admin)));
    }
    if let Some(tls) = tls {
        for listener in listeners.admin_tls {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            served.spawn(admin::serve_tls(listener, tls.current(), Arc::clone(&admin)));
        }
        services.account.metrics().certificate_expires(tls.expires());
        for (listener, is_there) in
            [("proxy_tls", !where_to.proxy_tls.is_empty()), ("admin_tls", where_to.admin_tls.is_some())]
        {
            let faults = if is_there { &Fault::ALL[..] } else { &[] };
            services.account.metrics().expect_handshakes(listener, faults.iter().map(|fault| fault.as_str()));
        }
        let account = Arc::clone(&services.account);
        served.spawn(tls.follow(move |read| {
            if let Some(certificate) = &certificate {
                certificate.read_again(read.as_ref().ok().copied());
            }
            match read {
                Ok(expires) => account.metrics().certificate_expires(expires),
                Err(_) => account.metrics().certificate_failed(),
            }
        }));
    }
    if let Some(listener) = control {
        let (account, used, make) = (Arc::clone(&services.account), used(&reloader), make(&reloader));
        let (shown, of_configuration, of_guests) = (status.clone(), reloader.clone(), reloader.clone());
        let status = Box::new(move || shown.shown(&of_configuration.configuration()));
        let guests = Box::new(move || of_guests.guests());
        let control = Arc::new(Control { account, status, used, guests, make });
        served.spawn(control::serve(tokio::net::UnixListener::from_std(listener)?, control));
    }
    tracing::info!(
        proxy = ?where_to.proxy, proxy_tls = ?where_to.proxy_tls, transparent = ?where_to.transparent, redirect = ?where_to.redirect,
        dns = ?where_to.dns, admin = ?where_to.admin.as_slice(), admin_tls = ?where_to.admin_tls.as_slice(), rules,
        "outgate {} is ready", env!("CARGO_PKG_VERSION")
    );
    privileges::bar_calls(sandbox, &services.account);
    system::notify(&[sd_notify::NotifyState::Ready]);
    served.spawn(watchdog.report(move || status.line()));
    let grace = drain::grace(listeners.inherited, begun.elapsed());
    let mut changed = std::pin::pin!(async {
        match &unconfigured {
            Some(unconfigured) => unconfigured.until_changed().await,
            None => std::future::pending().await,
        }
    });
    let anew = loop {
        let asked = tokio::select! {
            asked = signals.next() => asked,
            () = &mut changed => break true,
        };
        match asked {
            SignalRequest::Reload if unconfigured.is_some() => break true,
            SignalRequest::Reload => {
                services.account.reopen();
                reloader.request();
            }
            SignalRequest::Stop => break false,
        }
    };
    system::notify(&[sd_notify::NotifyState::Stopping]);
    drain::drain(services, &mut signals, grace).await;
    drop(served);
    reloader.keep_used().await;
    if anew { Err(DaemonError::Changed) } else { Ok(()) }
}

/// Receives the watcher's reports for as long as possible.
async fn receive_reports(socket: UnixListener, reports: Arc<HostReports>) {
    if let Err(error) = control::host::receive(socket, reports).await {
        tracing::error!(%error, "no more reports can be received from outgate-host.service");
    }
}

/// Returns what `outgate whitelist lint` asks for.
fn used(reloader: &Reloader) -> control::Used {
    let reloader = reloader.clone();
    Box::new(move || serde_json::json!(reloader.used()))
}

/// Handles `outgate whitelist reload`, `guest add` and `guest remove`.
fn make(reloader: &Reloader) -> control::Make {
    let reloader = reloader.clone();
    Box::new(move |change| {
        let reloader = reloader.clone();
        Box::pin(async move {
            match change {
                Change::Reload => reloader.reload().await.map(|summary| serde_json::json!(summary)),
                Change::Register(application) => reloader.register(application).await,
                Change::Remove(name) => reloader.remove(name).await,
            }
        })
    })
}

/// Whether guests' connections can arrive over IPv6, so that an AAAA record is useful to them.
fn takes_ipv6(listen: &ListenSettings) -> bool {
    let flows = SocketUse::ALL.into_iter().filter(|kind| kind.listener_kind().is_some());
    flows
        .flat_map(|kind| listen.addresses(kind))
        .chain(&listen.udp)
        .any(|address| address.is_ipv6() && !address.ip().is_loopback())
}

/// Sets the panic hook: a panic ends one flow; the hook counts it and logs its location.
fn count_panics(account: &Arc<Account>) {
    let account = Arc::downgrade(account);
    std::panic::set_hook(Box::new(move |info| {
        if let Some(account) = account.upgrade() {
            account.metrics().panicked();
        }
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a panic ended a task; this is a defect, please report it");
    }));
}

/// Sets the lookup of near misses. It runs on the log's thread, not on the flows' path.
fn advise(account: &Account, snapshot: &Arc<ArcSwap<Snapshot>>) {
    let snapshot = Arc::clone(snapshot);
    account.set_advice(Box::new(move |claim| snapshot.load_full().policy.near_miss(claim)));
}
