//! Signals that ask a command to end: what it has begun is then finished or put back, and not left half done.

use outgate::system::Signals;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::runtime::Builder;

/// Whether this process was asked to end. By default it never is.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From here on SIGINT, SIGTERM and SIGHUP end nothing, and are only noted.
    pub(super) fn watch() -> io::Result<Interrupt> {
        let noted = Interrupt::default();
        let shared = noted.clone();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let mut signals = Signals::new()?;
        drop(entered);
        let wait = move || {
            runtime.block_on(signals.next());
            shared.0.store(true, Ordering::Relaxed);
        };
        std::thread::Builder::new().spawn(wait)?;
        Ok(noted)
    }

    /// Whether such a signal has come.
    pub(super) fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
