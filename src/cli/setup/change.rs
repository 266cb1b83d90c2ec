//! Carries out what was planned, and puts back what was there: after a step that failed, and for `--undo`.

use super::diff;
use super::docker;
use super::files::{self, Content};
use super::listen::{self, Replace};
use super::plan::{self, DOCKER, DropIn, FileChange, SERVICE, Todo, UNITS};
use super::record::{MovedFile, Record, WrittenFile};
use super::systemd::{self, show, systemctl};
use super::{Config, Exit, Failure, Paths, Teller};
use crate::cli::firewall as applied;
use outgate::config::Settings;
use std::io;
use std::path::Path;

/// Does it. Returns [`Exit::CutOff`] if dockerd has to be restarted by the operator.
///
/// # Errors
/// What failed, and that what was there before was put back.
pub(super) fn carry_out(todo: &Todo, paths: &Paths, teller: &mut Teller<'_>) -> Result<Exit, Failure> {
    if todo.is_empty() {
        return Ok(Exit::Good);
    }
    teller.go_on().map_err(|why| Failure::Failed(format!("{why}; nothing was changed")))?;
    let earlier = Record::read(&paths.record).map_err(Failure::Failed)?;
    let now = record_of(todo);
    let mut all = earlier.clone().unwrap_or_else(|| Record::new(todo.has_firewall));
    all.add(&now);
    // First, so that a run that is killed can be undone too.
    all.write(&paths.record).map_err(|why| Failure::Failed(format!("{why}; nothing was changed")))?;
    if let Err(why) = change(todo, teller) {
        tell(teller, &format!("failed: {why}")).map_err(Failure::Failed)?;
        let back = put_back(&now, paths, teller).and_then(|()| match &earlier {
            Some(earlier) => earlier.write(&paths.record),
            None => files::remove(&paths.record),
        });
        return Err(Failure::Failed(match back {
            Ok(()) => format!("{why}; what was there before was put back"),
            Err(error) => {
                format!("{why}; and it could not be put back: {error}; correct that, and run `outgate setup --undo`")
            }
        }));
    }
    Ok(if todo.docker { restart_docker(teller)? } else { Exit::Good })
}

fn record_of(todo: &Todo) -> Record {
    let mut record = Record::new(todo.has_firewall);
    record.files.extend(todo.files.iter().map(|change| WrittenFile {
        path: change.path.clone(),
        before: change.before.clone(),
        after: change.after.as_ref().map(|content| content.text.clone()),
        earlier: None,
        made_folder: !change.path.parent().is_some_and(Path::exists),
    }));
    record.moved.extend(todo.drop_ins.iter().map(|moved| MovedFile { from: moved.from.clone(), to: moved.to.clone() }));
    record.enabled.extend(todo.enable.iter().map(|unit| (*unit).to_owned()));
    // The daemon is put back by its listeners.
    let started = todo.start.iter().filter(|unit| UNITS.contains(unit));
    record.started.extend(started.map(|unit| (*unit).to_owned()));
    let disabled = todo.listen.iter().flat_map(listen::Plan::disabled);
    record.disabled.extend(disabled.filter(|unit| show(unit, "UnitFileState") == "enabled").map(str::to_owned));
    record
}

fn change(todo: &Todo, teller: &mut Teller<'_>) -> Result<(), String> {
    for file in &todo.files {
        teller.go_on()?;
        put(file)?;
        let verb = if file.after.is_some() { "wrote" } else { "removed" };
        tell(teller, &format!("{verb} {}", file.path.display()))?;
    }
    let serves = show(SERVICE, "ActiveState") == "active";
    let listens = match &todo.listen {
        Some(plan) if !plan.is_empty() => {
            teller.go_on()?;
            let _lock = listen::lock().map_err(|failure| failure.unnamed())?;
            listen::carry_out(plan).map_err(|failure| failure.unnamed())?;
            plan.lines("").iter().try_for_each(|line| tell(teller, line))?;
            true
        }
        _ => false,
    };
    for DropIn { from, to, content } in &todo.drop_ins {
        teller.go_on()?;
        relocate(from, to, content)?;
        tell(teller, &format!("moved {} to {}", from.display(), to.display()))?;
    }
    if !systemd::is_init() {
        return Ok(());
    }
    if !todo.drop_ins.is_empty() {
        systemctl(&["daemon-reload"])?;
    }
    if !todo.enable.is_empty() {
        systemctl(&[&["enable", "--quiet"], &todo.enable[..]].concat())?;
        tell(teller, &format!("enabled {}", todo.enable.join(", ")))?;
    }
    // The ruleset before the daemon that it brings guests to: closed first.
    for unit in todo.start.iter().filter(|unit| UNITS.contains(unit)) {
        teller.go_on()?;
        started(unit)?;
        tell(teller, &format!("started {unit}"))?;
    }
    if todo.apply {
        systemctl(&["reload", UNITS[0]]).map_err(|why| format!("{why}; `journalctl -u {}` says why", UNITS[0]))?;
        tell(teller, "applied the firewall")?;
    }
    teller.go_on()?;
    match (serves, listens) {
        (false, _) => started(SERVICE).and_then(|()| tell(teller, &format!("started {SERVICE}"))),
        // The listeners' change has restarted it.
        (true, true) => Ok(()),
        (true, false) if todo.files.is_empty() => Ok(()),
        (true, false) => systemctl(&["reload", SERVICE]),
    }?;
    teller.go_on()
}

fn started(unit: &str) -> Result<(), String> {
    systemctl(&["start", unit]).map_err(|why| format!("{why}; `journalctl -u {unit}` says why"))
}

fn put(change: &FileChange) -> Result<(), String> {
    // What was planned is for the content that was shown.
    if files::read(&change.path)? != change.before {
        return Err(format!("{} was changed meanwhile; run it again", change.path.display()));
    }
    match &change.after {
        Some(content) => files::write(&change.path, content),
        None => files::remove(&change.path),
    }
}

/// Moves a drop-in, and removes the folder that is empty then.
fn relocate(from: &Path, to: &Path, content: &Content) -> Result<(), String> {
    files::write(to, content)?;
    files::remove(from)?;
    if let Some(folder) = from.parent() {
        // Other files may be in it.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(())
}

fn tell(teller: &mut Teller<'_>, line: &str) -> Result<(), String> {
    // A closed pipe must not leave half of it.
    let _: Result<(), io::Error> = teller.say(line);
    Ok(())
}

/// Restarts dockerd so that it reads its file, where that ends no container.
fn restart_docker(teller: &mut Teller<'_>) -> Result<Exit, Failure> {
    let command = format!("systemctl restart {DOCKER}");
    let why = match docker::has_containers() {
        Some(false) if systemd::is_init() => match systemctl(&["restart", DOCKER]) {
            Ok(()) => {
                teller.say("restarted dockerd")?;
                return Ok(Exit::Good);
            }
            Err(why) => why,
        },
        Some(true) => "containers run, and a restart of dockerd may end them".to_owned(),
        Some(false) => "systemd does not run this machine".to_owned(),
        None => "docker(1) does not say whether containers run, and a restart of dockerd may end them".to_owned(),
    };
    teller.say(&format!(
        "warning: dockerd reads its file when it starts: {why}. Run `{command}`; until then the names that containers ask for \
         pass by outgate"
    ))?;
    Ok(Exit::CutOff)
}

/// What `--undo` does.
#[derive(Debug)]
pub(super) struct Back {
    record: Record,
    pub(super) files: Vec<FileChange>,
}

impl Back {
    /// Finds out what has to be put back. Changes nothing.
    ///
    /// # Errors
    /// Files that were changed since, each with the difference and what to do.
    pub(super) fn plan(record: &Record, paths: &Paths) -> Result<Back, Failure> {
        let (mut changes, mut changed) = (Vec::new(), Vec::new());
        for file in &record.files {
            let now = files::read(&file.path).map_err(Failure::Failed)?;
            let text = now.as_ref().map(|content| content.text.as_str());
            if file.is_before(text) {
                // Put back already.
            } else if file.is_ours(text) || (text.is_none() && file.before.is_some()) {
                // Also where it is gone, as after the command below.
                changes.push(FileChange { path: file.path.clone(), before: now, after: file.before.clone() });
            } else if text.is_some() {
                let shown = diff::unified(&file.path, file.after.as_deref(), text);
                changed.push(format!(
                    "{}: changed since setup wrote it, so it is not overwritten:\n{shown}take that change back, or keep the \
                     file under another name: `mv {} {}.kept`",
                    file.path.display(),
                    outgate::shell::quoted(&file.path.to_string_lossy()),
                    outgate::shell::quoted(&file.path.to_string_lossy())
                ));
            }
        }
        for moved in &record.moved {
            if moved.from.exists() && moved.to.exists() {
                let (from, to) = (moved.from.display(), moved.to.display());
                changed.push(format!("{from}: written since setup moved it to {to}; move it away, or remove {to}"));
            }
        }
        if !changed.is_empty() {
            return Err(Failure::Failed(format!("nothing was undone\n{}", changed.join("\n"))));
        }
        let back = Back { record: record.clone(), files: changes };
        back.check(paths)?;
        Ok(back)
    }

    /// Checks that the configuration without setup's file can be used.
    fn check(&self, paths: &Paths) -> Result<(), Failure> {
        let mut trial = outgate::config::Trial::read(Some(&paths.config))?;
        for file in self.files.iter().filter(|file| file.path == paths.own) {
            trial.put(&file.path, file.after.as_ref().map(|content| content.text.as_str()));
        }
        let (settings, problems) = trial.load()?;
        listen::check(&settings, problems)
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let put = |file: &FileChange| {
            let verb = if file.after.is_some() { "put back" } else { "remove" };
            format!("{verb} {}", file.path.display())
        };
        let mut lines: Vec<String> = self.files.iter().map(put).collect();
        lines.extend(self.record.moved.iter().map(|moved| format!("put back {}", moved.from.display())));
        lines.extend(self.record.disabled.iter().map(|unit| format!("enable {unit}")));
        lines.extend(self.record.enabled.iter().map(|unit| format!("disable {unit}")));
        lines.extend(self.record.started.iter().map(|unit| format!("stop {unit}")));
        lines.push("make the listeners follow [listen]".to_owned());
        let firewall = if self.record.had_firewall { "apply the firewall of before" } else { "remove the firewall" };
        lines.push(firewall.to_owned());
        lines
    }

    /// Does it, and forgets the record.
    pub(super) fn carry_out(&self, paths: &Paths, config: &Config, teller: &mut Teller<'_>) -> Result<Exit, Failure> {
        let failed = |why: String| Failure::Failed(format!("{why}; correct that and run `outgate setup --undo` again"));
        let docker = self.files.iter().any(|file| file.path != paths.own);
        put_back(&self.record, paths, teller).map_err(failed)?;
        if !systemd::is_init() {
            // Without its unit nothing else removes it.
            firewall_back(&self.record, config, teller).map_err(failed)?;
        }
        files::remove(&paths.record).map_err(failed)?;
        if docker && docker::Docker::look(&plan::docker_unit(systemd::is_init())).runs() {
            return restart_docker(teller);
        }
        Ok(Exit::Good)
    }
}

/// Puts back what the record says was there. It may be repeated.
fn put_back(record: &Record, paths: &Paths, teller: &mut Teller<'_>) -> Result<(), String> {
    for file in record.files.iter().rev() {
        let now = files::read(&file.path)?.map(|content| content.text);
        let is_changed = now.is_some() && !file.is_ours(now.as_deref());
        if is_changed {
            continue;
        }
        let is_before = file.is_before(now.as_deref());
        match &file.before {
            _ if is_before => files::tidy(&file.path),
            Some(content) => files::write(&file.path, content)?,
            None => files::remove(&file.path)?,
        }
        if let Some(folder) = file.path.parent().filter(|_| file.made_folder) {
            // Other files may be in it.
            let _ = std::fs::remove_dir(folder);
        }
        if is_before {
            continue;
        }
        let verb = if file.before.is_some() { "put back" } else { "removed" };
        tell(teller, &format!("{verb} {}", file.path.display()))?;
    }
    for moved in &record.moved {
        if let Some(content) = files::read(&moved.to)? {
            relocate(&moved.to, &moved.from, &content)?;
            tell(teller, &format!("put back {}", moved.from.display()))?;
        }
    }
    // Empty once all are back.
    let _ = std::fs::remove_dir(&paths.drop_ins);
    if !systemd::is_init() {
        return Ok(());
    }
    systemctl(&["daemon-reload"])?;
    let words = |units: &[String]| units.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    if !record.disabled.is_empty() {
        let units: Vec<&str> = record.disabled.iter().map(String::as_str).collect();
        systemctl(&[&["enable", "--quiet"], &units[..]].concat())?;
        tell(teller, &format!("enabled {}", words(&record.disabled)))?;
    }
    if !record.enabled.is_empty() {
        let units: Vec<&str> = record.enabled.iter().map(String::as_str).collect();
        systemctl(&[&["disable", "--quiet"], &units[..]].concat())?;
        tell(teller, &format!("disabled {}", words(&record.enabled)))?;
    }
    if !record.started.is_empty() {
        let units: Vec<&str> = record.started.iter().map(String::as_str).collect();
        systemctl(&[&["stop"], &units[..]].concat())?;
        // One that was stopped while it was starting counts as failed.
        let _ = systemctl(&[&["reset-failed"], &units[..]].concat());
        tell(teller, &format!("stopped {}", words(&record.started)))?;
    }
    // Before the listeners go, so that guests are not brought to where nobody listens.
    firewall_back(record, &Config::default(), teller)?;
    let (settings, _) = Settings::load(None).map_err(|error| error.to_string())?;
    let _lock = listen::lock().map_err(|failure| failure.unnamed())?;
    listen::tidy();
    let plan = listen::prepare(&settings, Replace::NoDropIns).map_err(|failure| failure.unnamed())?;
    if plan.is_empty() {
        return systemctl(&["try-reload-or-restart", SERVICE]);
    }
    listen::carry_out(&plan).map_err(|failure| failure.unnamed())?;
    plan.lines("").iter().try_for_each(|line| tell(teller, line))
}

/// Removes the firewall, or applies that of before, if there was one.
fn firewall_back(record: &Record, config: &Config, teller: &mut Teller<'_>) -> Result<(), String> {
    let (settings, _) = Settings::load(config.file()).map_err(|error| error.to_string())?;
    if record.had_firewall && settings.firewall.is_wanted() {
        applied::apply_quietly(config.file()).map_err(|failure| failure.unnamed())?;
        return tell(teller, "applied the firewall of before");
    }
    if !outgate::firewall::is_any_there() {
        return Ok(());
    }
    let mut said = Vec::new();
    let exit = applied::remove_for(config, &mut said).map_err(|failure| failure.unnamed())?;
    let said = String::from_utf8_lossy(&said).into_owned();
    match exit {
        Exit::Good => tell(teller, said.trim_end()),
        _ => Err(said),
    }
}
