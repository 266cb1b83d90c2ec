//! The compiled lists of the daemon: those to start with, and the copy that is kept for a start at which the files on
//! disk are broken.

use super::DaemonError;
use crate::config::Settings;
use crate::golem::rules as provider;
use crate::policy::{Policy, PolicyError, Rules};
use crate::whitelist::{self, Files, Loaded, Report, last_good};
use jiff::civil::Date;
use std::sync::Arc;

/// A compiled list and its origin.
pub(super) struct Lists {
    pub(super) rules: Arc<Rules>,
    pub(super) loaded: Loaded,
    pub(super) day: Date,
    /// Why today's files are not in force, if so.
    pub(super) fallback: Option<String>,
}

impl Lists {
    /// Returns the list to start with: today's files; if they are broken, the last good ones; without
    /// configuration and whitelist dir, the shipped ones.
    pub(super) fn at_start(settings: &Settings) -> Result<Lists, DaemonError> {
        let today = whitelist::today();
        let files = Files::of(settings.whitelist_dir.as_deref(), settings.data_dir());
        let report = match compile(&files, today) {
            Ok(lists) => {
                if settings.whitelist_dir.is_some() || settings.golem.is_some() {
                    remember(settings, &files);
                }
                return Ok(lists);
            }
            Err(report) => report,
        };
        print(&report);
        let kept = last_good::restore(&settings.state_dir).map_err(|error| error.to_string()).and_then(|files| {
            compile(&files, today).map_err(|report| format!("the last good list is not valid any more: {report}"))
        });
        match kept {
            Ok(lists) => {
                let fallback =
                    format!("today's files are invalid ({} errors); the last good list is in force", count(&report));
                tracing::error!("{fallback}");
                Ok(Lists { fallback: Some(fallback), ..lists })
            }
            Err(why) => Err(DaemonError::Lists(format!(
                "{} errors in the files, and there is no last good list: {why}",
                count(&report)
            ))),
        }
    }

    /// Returns no list at all.
    pub(super) fn none() -> Lists {
        let (rules, today) = (Arc::default(), whitelist::today());
        Lists { rules, loaded: Loaded::none(), day: today, fallback: None }
    }

    /// Builds the policy from these lists and `settings`.
    pub(super) fn policy(&self, settings: &Settings) -> Result<Arc<Policy>, PolicyError> {
        Policy::new(Arc::clone(&self.rules), settings.policy_with(self.outbound())).map(Arc::new)
    }

    /// Returns a provider's rules, if there are any.
    pub(super) fn outbound(&self) -> Option<&provider::Outbound> {
        self.loaded.outbound.as_ref()
    }

    /// Returns the number of rules.
    pub(super) fn len(&self) -> u64 {
        self.loaded.rules
    }
}

pub(super) fn compile(files: &Files, today: Date) -> Result<Lists, Report> {
    let (rules, loaded) = whitelist::build(files, today)?;
    Ok(Lists { rules: Arc::new(rules), loaded, day: today, fallback: None })
}

/// Saves the files for a start at which the files on disk are broken.
pub(super) fn remember(settings: &Settings, files: &Files) {
    if let Err(error) = last_good::save(&settings.state_dir, files) {
        tracing::warn!(%error, dir = %settings.state_dir.display(), "the list cannot be kept for the next start");
    }
}

pub(super) fn print(report: &Report) {
    for finding in &report.diagnostics {
        tracing::error!("{finding}");
    }
    if report.more > 0 {
        tracing::error!("and {} more", report.more);
    }
}

fn count(report: &Report) -> usize {
    report.errors().count() + report.more
}
