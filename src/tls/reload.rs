//! Follows the files of TLS while the daemon runs: certbot's links, Kubernetes' `..data`, a file that is written
//! over. stat(2) of what the paths lead to is asked every two seconds, which no way of replacing escapes.

use super::{Loaded, TlsError, TlsSettings, load};
use crate::system;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// A certificate that ends within this is worth a word.
const SOON: i64 = 14 * 86_400;

/// What the next handshake is made with.
pub type Live = Arc<ArcSwap<Loaded>>;

/// The files and what came of them.
pub struct CertificateReloader {
    settings: TlsSettings,
    stamp: Stamp,
    live: Live,
}

impl CertificateReloader {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// [`TlsError`]: there is nothing to begin with.
    pub fn open(settings: &TlsSettings) -> Result<CertificateReloader, TlsError> {
        let stamp = stamp(settings);
        let live = Arc::new(ArcSwap::from_pointee(load(settings)?));
        let keeper = CertificateReloader { settings: settings.clone(), stamp, live };
        keeper.warn_of_end();
        Ok(keeper)
    }

    /// What handshakes are made with.
    pub fn live(&self) -> Live {
        Arc::clone(&self.live)
    }

    /// The last second of the certificate in use, since 1970.
    pub fn expires(&self) -> i64 {
        self.live.load().expires
    }

    /// Looks whether the files changed and takes them over, connections that are open staying as they are.
    /// `tell` learns how it went. What cannot be used changes nothing. Never returns.
    pub async fn follow(mut self, tell: impl Fn(Result<i64, &TlsError>)) {
        let mut last_error = String::new();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let (settings, before) = (self.settings.clone(), self.stamp.clone());
            // The disk may hang, and this runtime has more to do.
            let looked = tokio::task::spawn_blocking(move || look(&settings, &before)).await;
            let Ok(Some((stamp, loaded))) = looked else { continue };
            self.stamp = stamp;
            match loaded {
                Ok(loaded) => {
                    last_error.clear();
                    let expires = loaded.expires;
                    self.live.store(Arc::new(loaded));
                    tracing::info!(certificate = %self.settings.certificate.display(), "a new certificate is in use");
                    self.warn_of_end();
                    tell(Ok(expires));
                }
                Err(error) => {
                    // What could not be read may be there the next time, with the same stamp.
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
            ..0 => tracing::error!(%certificate, "the certificate has expired, and nobody will trust it"),
            0..SOON => tracing::warn!(%certificate, days = left / 86_400, "the certificate expires soon"),
            _ => {}
        }
    }
}

/// Reads the files, if their stamp is another. It is taken before that, so that a change in between is seen at the
/// next look.
fn look(settings: &TlsSettings, before: &Stamp) -> Option<(Stamp, Result<Loaded, TlsError>)> {
    let now = stamp(settings);
    if now == *before { None } else { Some((now, load(settings))) }
}

/// Of each file.
type Stamp = Vec<system::Stamp>;

fn stamp(settings: &TlsSettings) -> Stamp {
    settings.files().map(system::stamp).collect()
}
