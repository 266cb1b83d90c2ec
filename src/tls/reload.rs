//! Watches the TLS files while the daemon runs: certbot's links, Kubernetes' `..data`, a file that is
//! overwritten. It calls stat(2) on the targets of the paths every two seconds, so no way of replacing a file
//! is missed.

use super::{Loaded, TlsError, TlsSettings, load};
use crate::files;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(2);
/// A certificate that expires within this many seconds causes a warning.
const SOON: i64 = 14 * 86_400;

/// What the next handshake uses.
pub type CurrentTls = Arc<ArcSwap<Loaded>>;

/// The files and the result of loading them.
pub struct CertificateReloader {
    settings: TlsSettings,
    stamp: Stamp,
    current: CurrentTls,
}

impl CertificateReloader {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// [`TlsError`]: there is no earlier certificate to use.
    pub fn open(settings: &TlsSettings) -> Result<CertificateReloader, TlsError> {
        let stamp = stamp(settings);
        let current = Arc::new(ArcSwap::from_pointee(load(settings)?));
        let keeper = CertificateReloader { settings: settings.clone(), stamp, current };
        keeper.warn_of_end();
        Ok(keeper)
    }

    /// Returns what handshakes use.
    pub fn current(&self) -> CurrentTls {
        Arc::clone(&self.current)
    }

    /// Returns the last second of the current certificate's validity, since 1970.
    pub fn expires(&self) -> i64 {
        self.current.load().expires
    }

    /// Checks whether the files changed and loads them; open connections stay as they are. `tell` gets the
    /// result. Unusable files change nothing. Never returns.
    pub async fn follow(mut self, tell: impl Fn(Result<i64, &TlsError>)) {
        let mut last_error = String::new();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let (settings, before) = (self.settings.clone(), self.stamp.clone());
            // The disk may hang, and this runtime has other work.
            let looked = tokio::task::spawn_blocking(move || look(&settings, &before)).await;
            let Ok(Some((stamp, loaded))) = looked else { continue };
            self.stamp = stamp;
            match loaded {
                Ok(loaded) => {
                    last_error.clear();
                    let expires = loaded.expires;
                    self.current.store(Arc::new(loaded));
                    tracing::info!(certificate = %self.settings.certificate.display(), "a new certificate is in use");
                    self.warn_of_end();
                    tell(Ok(expires));
                }
                Err(error) => {
                    // A file that could not be read may be readable the next time, with the same stamp.
                    if matches!(error, TlsError::Io { .. }) {
                        self.stamp.clear();
                    }
                    if last_error != error.to_string() {
                        last_error = error.to_string();
                        tracing::error!("{error}; the certificate in use stays");
                        tell(Err(&error));
                    }
                }
            }
        }
    }

    fn warn_of_end(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let left = self.expires().saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
        let certificate = self.settings.certificate.display();
        match left {
            ..0 => tracing::error!(%certificate, "the certificate has expired, so clients will not trust it"),
            0..SOON => tracing::warn!(%certificate, days = left / 86_400, "the certificate expires soon"),
            _ => {}
        }
    }
}

/// Reads the files if their stamp has changed. The stamp is taken first, so that the next check notices a
/// change in between.
fn look(settings: &TlsSettings, before: &Stamp) -> Option<(Stamp, Result<Loaded, TlsError>)> {
    let now = stamp(settings);
    if now == *before { None } else { Some((now, load(settings))) }
}

/// The stamp of each file.
type Stamp = Vec<files::Stamp>;

fn stamp(settings: &TlsSettings) -> Stamp {
    settings.files().map(files::stamp).collect()
}
