//! Reloads: from files on disk to the policy in force, on a thread of its own.
//!
//! All or nothing. A broken list changes nothing and is reported loudly; the last good one stays, also over a
//! restart. A new list comes into force in one step. Then each live flow is judged again, and those that the
//! new list refuses are ended. Old lists are freed on this thread, because freeing a million names takes a
//! while that no flow should wait for.

mod inbox;
mod registration;
mod used;

use super::lists::{Lists, compile, print, remember};
use crate::account::AccountError;
use crate::config::Settings;
use crate::cooperate;
use crate::golem::rules as provider;
use crate::identify::Claim;
use crate::lock::lock;
use crate::policy::Rules;
use crate::reason::Reason;
use crate::registered_guests::{Application, Registry};
use crate::resolve::FloorSettings;
use crate::services::{Services, Snapshot};
use crate::trouble::{Trouble, TroubleCause};
use crate::whitelist::{self, Files, UsedLines, watch};
use inbox::{Asker, Inbox, NotQueued};
use jiff::civil::Date;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use used::Counting;

/// The thread checks the clock at least this often, to notice a new day.
const TICK: Duration = Duration::from_secs(30);
/// How long the end of the daemon waits for data to be saved.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The result of a requested reload.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Summary {
    /// The number of the list in force; it grows with each new list.
    pub generation: u64,
    /// Files read.
    pub files: usize,
    /// Rules in force.
    pub rules: u64,
    /// Flows that the new list refuses, ended.
    pub revoked: usize,
    /// Whether anything new came into force.
    pub changed: bool,
    /// Settings that changed but require a restart.
    pub restart_needed: Vec<&'static str>,
    /// Warnings for the operator.
    pub warnings: Vec<String>,
}

type Outcome = Result<Summary, Vec<String>>;

/// How the configuration at the start compares with the one in the file.
pub(super) enum StartBasis {
    /// It is the same.
    Current,
    /// It is an earlier one that worked; why the file's is not used.
    Stale(String),
    /// There is none; why.
    Unconfigured(String),
}

/// A request to the thread.
enum Ask {
    /// Something may have changed on disk.
    Look,
    /// Read configuration and lists again, changed or not, for all requesters in the list.
    Reread(Vec<oneshot::Sender<Outcome>>),
    /// Save which rules were used, for the next start.
    KeepUsed(oneshot::Sender<()>),
    /// Register a guest.
    Register(Box<Application>, oneshot::Sender<Result<Value, Vec<String>>>),
    /// End a registration.
    Remove(String, oneshot::Sender<Result<Value, Vec<String>>>),
}

/// Sends requests to the reload thread.
#[derive(Clone)]
pub(super) struct Reloader {
    ask: Asker,
    state: Arc<Mutex<ReloadStatus>>,
    /// Since when uses of rules are counted.
    since: jiff::Timestamp,
}

/// What the operator may want to know about the list.
#[derive(Clone, Debug, Default)]
struct ReloadStatus {
    /// Why the daemon does not use today's lists, if so.
    trouble: Option<String>,
    /// Why it does not use the configuration in the file, if so.
    stale: Option<String>,
    /// The files of the configuration in force.
    configuration: Vec<PathBuf>,
    /// The list in force, and the fingerprint of its files.
    in_force: Option<(Arc<Rules>, whitelist::Fingerprint)>,
    /// All guests, as the control socket shows them.
    guests: Arc<Value>,
}

impl Reloader {
    /// Starts the thread and the watch on the files.
    pub(super) fn start(
        services: Arc<Services>,
        settings: Settings,
        lists: Lists,
        registry: Registry,
        bound: Vec<SocketAddr>,
        standing: StartBasis,
    ) -> std::io::Result<Reloader> {
        let (ask, asked) = inbox::inbox();
        let trouble = lists.fallback.clone();
        let (stale, unconfigured) = match standing {
            StartBasis::Current => (None, None),
            StartBasis::Stale(why) => (Some(why), None),
            StartBasis::Unconfigured(why) => (Some(why.clone()), Some(why)),
        };
        let configuration = settings.files().map(Path::to_owned).collect();
        let state = Arc::new(Mutex::new(ReloadStatus { trouble, stale, configuration, ..ReloadStatus::default() }));
        let counting = Counting::start(&settings.state_dir, &lists.rules);
        let since = counting.since();
        let folder = settings.whitelist_dir.clone().map(watch::Watched::Folder);
        let provider = settings.data_dir().map(provider::files).into_iter().flatten().map(watch::Watched::File);
        let watched: Vec<_> = folder.into_iter().chain(provider).collect();
        let watched = (!watched.is_empty()).then_some(watched);
        let state_too = Arc::clone(&state);
        let mut worker = ReloadWorker {
            services,
            settings,
            lists,
            registry,
            generation: 0,
            state: state_too,
            bound,
            counting,
            unconfigured,
        };
        worker.announce();
        worker.show_guests();
        let looks = ask.clone();
        if let Some((watch, mut changes)) = watched.map(watch::start).transpose()? {
            tokio::spawn(async move {
                while changes.changed().await.is_ok() && looks.ask(Ask::Look).is_ok() {}
                drop(watch);
            });
        }
        std::thread::Builder::new().name("outgate-lists".into()).spawn(move || worker.run(&asked))?;
        Ok(Reloader { ask, state, since })
    }

    /// Returns the files of the configuration in force, in the order in which they are read.
    pub(super) fn configuration(&self) -> Vec<PathBuf> {
        lock(&self.state).configuration.clone()
    }

    /// Requests that everything is read again (SIGHUP).
    pub(super) fn request(&self) {
        let _ = self.ask.ask(Ask::Reread(Vec::new()));
    }

    /// Works as [`request`](Self::request), and waits for the result.
    pub(super) async fn reload(&self) -> Outcome {
        let (reply, answer) = oneshot::channel();
        self.ask.ask(Ask::Reread(vec![reply])).map_err(|refused| vec![refused.to_string()])?;
        answer.await.unwrap_or_else(|_| Err(vec![NotQueued::Gone.to_string()]))
    }

    /// Returns which rules of the list in force were used. Takes time in proportion to its lines.
    pub(super) fn used(&self) -> Option<UsedLines> {
        let in_force = lock(&self.state).in_force.clone();
        in_force.map(|(rules, fingerprint)| UsedLines::of(&rules, fingerprint, self.since))
    }

    /// Saves which rules were used for the next start, unless that takes too long.
    pub(super) async fn keep_used(&self) {
        let (reply, done) = oneshot::channel();
        if self.ask.ask(Ask::KeepUsed(reply)).is_ok() {
            let _ = tokio::time::timeout(LAST_WRITE, done).await;
        }
    }

    /// Returns why the daemon does not use configuration and lists as they are in the files, if so.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let state = lock(&self.state);
        let of = |cause, text: &Option<String>| text.as_ref().map(|text| Trouble::new(cause, text.clone()));
        of(TroubleCause::Configuration, &state.stale)
            .into_iter()
            .chain(of(TroubleCause::List, &state.trouble))
            .collect()
    }
}

/// Answers the request with the reason why there is no usable configuration.
fn refuse(ask: Option<Ask>, why: &str) {
    let why = || vec![why.to_owned()];
    match ask {
        None | Some(Ask::Look) => {}
        Some(Ask::Reread(waiting)) => waiting.into_iter().for_each(|reply| drop(reply.send(Err(why())))),
        Some(Ask::KeepUsed(done)) => drop(done.send(())),
        Some(Ask::Register(_, reply) | Ask::Remove(_, reply)) => drop(reply.send(Err(why()))),
    }
}

/// Returns why a new log is not used, and what to do: since its start the daemon can only write in its own folders.
fn log_complaint(error: &AccountError) -> String {
    match error {
        AccountError::Open { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            format!(
                "{error}; a log in another folder than before needs a restart, and the folder must be writable for the daemon"
            )
        }
        _ => error.to_string(),
    }
}

/// Returns the time until the next day begins (UTC).
fn until_midnight() -> Duration {
    const DAY: u64 = 86_400;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Slightly longer, so that it is the next day for sure.
    Duration::from_secs(DAY - now.as_secs() % DAY) + Duration::from_millis(10)
}

/// The state of the reload thread.
struct ReloadWorker {
    services: Arc<Services>,
    /// The settings of the configuration, without the registered guests.
    settings: Settings,
    lists: Lists,
    registry: Registry,
    generation: u64,
    state: Arc<Mutex<ReloadStatus>>,
    /// The real addresses of outgate's listeners; port 0 in the configuration asks for any.
    bound: Vec<SocketAddr>,
    counting: Counting,
    /// Why there is no usable configuration: then nothing is read, and saved data is not touched.
    unconfigured: Option<String>,
}

impl ReloadWorker {
    fn run(&mut self, asked: &Inbox) {
        cooperate::shared();
        loop {
            let ask = match asked.next(until_midnight().min(TICK)) {
                Ok(ask) => Some(ask),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // A defect here must not freeze the list for ever, let alone unnoticed.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.attend(ask)));
            if done.is_err() {
                self.set_trouble(Some("the last reload ended by a panic; what was in force stays".to_owned()));
            }
        }
    }

    fn attend(&mut self, ask: Option<Ask>) {
        if let Some(why) = &self.unconfigured {
            return refuse(ask, why);
        }
        match ask {
            Some(Ask::Look) => drop(self.look()),
            Some(Ask::Reread(waiting)) => {
                let outcome = self.reread();
                for reply in waiting {
                    let _ = reply.send(outcome.clone());
                }
            }
            Some(Ask::KeepUsed(done)) => {
                self.counting.keep(&self.settings.state_dir, &self.lists.rules);
                let _ = done.send(());
            }
            // A requester that does not wait for the answer finds the result in the list of guests.
            Some(Ask::Register(application, reply)) => drop(reply.send(self.register(&application))),
            Some(Ask::Remove(name, reply)) => drop(reply.send(self.end_registration(&name))),
            None => self.new_day(),
        }
        self.counting.keep_sometimes(&self.settings.state_dir, &self.lists.rules);
    }

    /// Treats rules past their last day as removed.
    fn new_day(&mut self) {
        let today = whitelist::today();
        if today == self.lists.day || self.lists.rules.next_expiry().is_none_or(|until| until >= today) {
            return;
        }
        tracing::info!(%today, "rules have expired");
        if self.look().is_err() {
            // Today's files are broken; the rules in force expire all the same.
            self.expire(today);
        }
    }

    /// Ends the rules of the list in force whose last day was before `today`, without reading files.
    fn expire(&mut self, today: Date) {
        self.lists.rules.expire(today);
        self.lists.day = today;
        self.revoke();
    }

    /// Reloads only the files, with the settings in force.
    fn look(&mut self) -> Outcome {
        let settings = self.settings.clone();
        self.reload(settings, Vec::new())
    }

    /// Reloads configuration and files.
    fn reread(&mut self) -> Outcome {
        let (settings, warnings) = match Settings::load(self.settings.path.as_deref()) {
            Ok(read) => read,
            Err(error) => {
                let lines: Vec<String> = error.into_diagnostics().iter().map(ToString::to_string).collect();
                for line in &lines {
                    tracing::error!("{line}");
                }
                let what = "the configuration is invalid; what was in force stays";
                self.set_stale(Some(what.to_owned()));
                tracing::error!(problems = lines.len(), first = lines.first(), "{what}");
                self.services.account.metrics().whitelist_failed();
                return Err(lines);
            }
        };
        let restart_needed = self.settings.restart_needed(&settings);
        if !restart_needed.is_empty() {
            tracing::warn!(keys = ?restart_needed, "these settings changed but require a restart");
        }
        let mut settings = self.settings.reloaded(settings);
        if !restart_needed.is_empty() {
            // The files are not in force as a whole.
            settings.sha256.clone_from(&self.settings.sha256);
        }
        let mut outcome = self.reload(settings, restart_needed)?;
        self.set_stale(None);
        let configuration = self.settings.files().map(Path::to_owned).collect();
        lock(&self.state).configuration = configuration;
        outcome.warnings.extend(warnings.iter().map(ToString::to_string));
        outcome.warnings.extend(self.settings.enforced_limits().and_then(|enforced| enforced.complaint()));
        Ok(outcome)
    }

    fn reload(&mut self, settings: Settings, restart_needed: Vec<&'static str>) -> Outcome {
        let start = Instant::now();
        let today = whitelist::today();
        let files = Files::of(settings.whitelist_dir.as_deref(), settings.data_dir());
        let same_files = files.fingerprint() == self.lists.loaded.fingerprint && today == self.lists.day;
        let unchanged = same_files && self.lists.fallback.is_none();
        let is_same = settings == Settings { sha256: settings.sha256.clone(), ..self.settings.clone() };
        if unchanged && is_same {
            // A comment may have changed.
            self.settings = settings;
            self.show_sums();
            self.services.account.metrics().whitelist_unchanged();
            self.set_trouble(None);
            return Ok(self.summary(0, false, restart_needed));
        }
        let lists = if unchanged {
            None
        } else {
            match compile(&files, today) {
                Ok(lists) => Some(lists),
                Err(report) => {
                    print(&report);
                    let lines = report.errors().map(ToString::to_string).collect();
                    return self.failed("the list is invalid; the last good one stays in force", lines);
                }
            }
        };
        // Without the provider's rules, yagna grants the list, which may be more than the missing rules granted.
        let had_rules = self.settings.golem.is_some() && self.lists.outbound().is_some();
        if had_rules && lists.as_ref().is_some_and(|lists| lists.outbound().is_none()) {
            let lines =
                vec![format!("{} is gone; let ya-provider write it again, or restart outgate", provider::RULES)];
            return self.failed("the provider's rules are gone; the last good ones stay in force", lines);
        }
        let new_lists = lists.as_ref().unwrap_or(&self.lists);
        let all = self.registry.over(&settings, new_lists.outbound());
        let made = all.and_then(|all| match new_lists.policy(&all) {
            Ok(policy) => Ok((all, policy)),
            Err(error) => Err(error.to_string()),
        });
        let (all, policy) = match made {
            Ok(made) => made,
            Err(error) => {
                return self.failed("configuration and list do not fit together; nothing changed", vec![error]);
            }
        };
        if let Err(lines) = self.put_settings(&settings, &all) {
            return self.failed("the new settings cannot be put in force; nothing changed", lines);
        }
        let old = self.services.snapshot.swap(Arc::new(Snapshot::new(policy, &all)));
        self.settings = settings;
        let old_lists = lists.map(|lists| std::mem::replace(&mut self.lists, lists));
        let revoked = self.revoke();
        // Writing tens of megabytes takes a while, and nobody has to wait for it.
        let in_force_after = start.elapsed();
        remember(&self.settings, &files);
        self.announce();
        self.show_guests();
        if let Some(old) = &old_lists {
            self.lists.rules.note_used(&old.rules.used_marks());
        }
        self.set_trouble(None);
        tracing::info!(
            generation = self.generation,
            files = self.lists.loaded.files,
            rules = self.lists.len(),
            everyone = self.lists.outbound().map(|rules| rules.without_manifest().as_str()),
            revoked,
            took_ms = in_force_after.as_millis(),
            "a new list is in force"
        );
        for warning in &self.lists.loaded.warnings {
            tracing::warn!("{warning}");
        }
        free(old, old_lists);
        Ok(self.summary(revoked, true, restart_needed))
    }

    /// Applies the settings outside the policy: all of them or none. `all` includes the registered guests. The
    /// metrics do not include them, because their number would grow every day.
    fn put_settings(&self, settings: &Settings, all: &Settings) -> Result<(), Vec<String>> {
        if *settings == self.settings {
            return Ok(());
        }
        let names =
            |settings: &Settings| settings.policy.guests.iter().map(|guest| guest.name.clone()).collect::<Vec<_>>();
        let account = &self.services.account;
        account.reconfigure(&settings.log, &names(settings)).map_err(|error| vec![log_complaint(&error)])?;
        if let Err(error) = self.services.resolver.reconfigure(&settings.resolver, self.floor(all)) {
            if let Err(error) = account.reconfigure(&self.settings.log, &names(&self.settings)) {
                tracing::error!(%error, "the access log cannot be put back");
            }
            return Err(vec![error.to_string()]);
        }
        self.services.gate.reconfigure(settings.limits);
        Ok(())
    }

    fn floor(&self, all: &Settings) -> FloorSettings {
        let mut floor = all.floor();
        floor.listeners.extend(&self.bound);
        floor
    }

    /// Ends the flows that the policy in force refuses, by what they ask for or by the address they are connected to.
    fn revoke(&self) -> usize {
        // First, because walking the bindings takes a while in which flows connect.
        self.services.account.live().announce_search();
        self.services.drop_bindings();
        let snapshot = self.services.snapshot.load_full();
        let decide = |claim: &Claim, upstream: Option<SocketAddr>| match snapshot.policy.decide(claim) {
            Err(refusal) => Some((Reason::Revoked, refusal.rule)),
            Ok(permit) => {
                let screened =
                    upstream.map_or(Ok(()), |upstream| self.services.resolver.screen(&permit, &[upstream.ip()]));
                screened.err().map(|_| (Reason::Revoked, None))
            }
        };
        let revoked = self.services.account.live().revoke_where(decide);
        self.services.account.metrics().flows_revoked(revoked);
        // After the live flows: one that ends meanwhile returns its connection to the idle ones, and then sees
        // that it was revoked.
        self.services.idle_upstreams.close_where(|claim, upstream| decide(claim, Some(upstream)).is_some());
        revoked
    }

    fn failed(&self, what: &str, lines: Vec<String>) -> Outcome {
        tracing::error!(problems = lines.len(), first = lines.first(), "{what}");
        self.services.account.metrics().whitelist_failed();
        self.set_trouble(Some(what.to_owned()));
        Err(lines)
    }

    fn set_stale(&self, stale: Option<String>) {
        lock(&self.state).stale = stale;
    }

    fn set_trouble(&self, trouble: Option<String>) {
        lock(&self.state).trouble = trouble;
    }

    /// Records that a list came into force.
    fn announce(&mut self) {
        self.generation += 1;
        let in_force = Some((Arc::clone(&self.lists.rules), self.lists.loaded.fingerprint));
        lock(&self.state).in_force = in_force;
        let kinds = self
            .lists
            .rules
            .counts()
            .map(|(kind, count)| (kind.as_str(), usize::try_from(count).unwrap_or(usize::MAX)));
        self.services.account.metrics().whitelist_loaded(self.generation, &kinds);
        self.show_sums();
        if self.lists.fallback.is_some() || self.unconfigured.is_some() {
            self.services.account.metrics().whitelist_failed();
        }
    }

    /// Shows by which list and configuration this host can be compared with others.
    fn show_sums(&self) {
        let metrics = self.services.account.metrics();
        metrics.set_sums(&self.lists.loaded.sha256, self.settings.sha256.as_deref());
    }

    fn summary(&self, revoked: usize, changed: bool, restart_needed: Vec<&'static str>) -> Summary {
        Summary {
            generation: self.generation,
            files: self.lists.loaded.files,
            rules: self.lists.len(),
            revoked,
            changed,
            restart_needed,
            warnings: self.lists.loaded.warnings.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Waits until no flow uses the old policy any more, and frees it on this thread.
fn free(old: Arc<Snapshot>, lists: Option<Lists>) {
    for _ in 0..1000 {
        if Arc::strong_count(&old) == 1 && Arc::strong_count(&old.policy) == 1 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    drop((old, lists));
}

#[cfg(test)]
mod tests;
