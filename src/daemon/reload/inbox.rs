//! What the thread of the reloads is asked to do, in order and bounded. Who asks for the same while it
//! waits has one answer with the others: a thousand signals or requests take one reload, or two if one runs.

use super::{Ask, Outcome};
use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Who waits for one reload at most, and removals. Only root and the daemon's user may ask for them.
const MAX_WAITING: usize = 4_096;
/// Registrations that wait, at most: they have manifests of up to 8 MiB. Those whose asker has left give way.
const MAX_REGISTRATIONS: usize = 64;

/// Puts something into the inbox.
#[derive(Clone)]
pub(super) struct Asker {
    queue: Arc<Mutex<Queue>>,
    bell: SyncSender<()>,
}

/// The thread's end.
pub(super) struct Inbox {
    queue: Arc<Mutex<Queue>>,
    rung: Receiver<()>,
}

/// Why something is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// The thread has ended.
    #[error("the daemon is stopping")]
    Gone,
    /// Too many wait.
    #[error("too many requests wait for the daemon already; ask again when they are done")]
    Full,
}

#[derive(Default)]
struct Queue {
    asks: VecDeque<Ask>,
    /// Nobody attends any more. Under the lock of the queue, so that an ask is either told so or found.
    closed: bool,
}

/// An inbox and who may put something into it.
pub(super) fn inbox() -> (Asker, Inbox) {
    // One ring is enough, for whoever hears it looks at all that is there.
    let (bell, rung) = mpsc::sync_channel(1);
    let queue = Arc::<Mutex<Queue>>::default();
    (Asker { queue: Arc::clone(&queue), bell }, Inbox { queue, rung })
}

impl Asker {
    /// Takes it in, in the place of one of its kind where that does the same for both.
    pub(super) fn ask(&self, ask: Ask) -> Result<(), Refused> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).put(ask)?;
        // Where nobody hears it any more the queue was closed since, and whoever waits is told so by that.
        let _ = self.bell.try_send(());
        Ok(())
    }
}

impl Inbox {
    /// What comes next; `Timeout` if nothing does for so long, `Disconnected` when nobody can ask any more.
    pub(super) fn next(&self, timeout: Duration) -> Result<Ask, RecvTimeoutError> {
        loop {
            if let Some(ask) = self.queue.lock().unwrap_or_else(PoisonError::into_inner).asks.pop_front() {
                return Ok(ask);
            }
            self.rung.recv_timeout(timeout)?;
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).close();
    }
}

impl Queue {
    /// Takes nothing more, and tells those who wait by dropping their asks.
    fn close(&mut self) {
        self.closed = true;
        self.asks.clear();
    }

    fn put(&mut self, ask: Ask) -> Result<(), Refused> {
        if self.closed {
            return Err(Refused::Gone);
        }
        match ask {
            Ask::Look if self.asks.iter().any(|ask| matches!(ask, Ask::Look)) => {}
            Ask::Reread(more) => match self.asks.iter_mut().find_map(Ask::rereaders) {
                Some(waiting) => {
                    if waiting.len() + more.len() > MAX_WAITING {
                        waiting.retain(|reply| !reply.is_closed());
                    }
                    if waiting.len() + more.len() > MAX_WAITING {
                        return Err(Refused::Full);
                    }
                    waiting.extend(more);
                }
                None => self.asks.push_back(Ask::Reread(more)),
            },
            // The daemon is about to end.
            Ask::KeepUsed(_) => self.asks.push_front(ask),
            Ask::Register(..) => {
                let full = |asks: &VecDeque<Ask>| {
                    asks.iter().filter(|ask| matches!(ask, Ask::Register(..))).count() >= MAX_REGISTRATIONS
                };
                if full(&self.asks) {
                    self.asks.retain(|ask| !matches!(ask, Ask::Register(_, reply) if reply.is_closed()));
                }
                if full(&self.asks) {
                    return Err(Refused::Full);
                }
                self.asks.push_back(ask);
            }
            // One whose asker has left is a removal all the same.
            Ask::Remove(..) if self.asks.len() >= MAX_WAITING => return Err(Refused::Full),
            Ask::Look | Ask::Remove(..) => self.asks.push_back(ask),
        }
        Ok(())
    }
}

impl Ask {
    fn rereaders(&mut self) -> Option<&mut Vec<oneshot::Sender<Outcome>>> {
        if let Ask::Reread(waiting) = self { Some(waiting) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    type Answer = oneshot::Receiver<Result<serde_json::Value, Vec<String>>>;

    fn removal(name: &str) -> (Ask, Answer) {
        let (reply, answer) = oneshot::channel();
        (Ask::Remove(name.to_owned(), reply), answer)
    }

    fn registration(name: &str) -> (Ask, Answer) {
        let (reply, answer) = oneshot::channel();
        let application = serde_json::json!({ "name": name, "addresses": ["10.42.42.7"] });
        (Ask::Register(Box::new(serde_json::from_value(application).unwrap()), reply), answer)
    }

    #[test]
    fn a_thousand_who_ask_for_a_reload_are_one_and_each_has_its_answer() {
        let (asker, inbox) = inbox();
        let mut answers = Vec::new();
        for _ in 0..1_000 {
            let (reply, answer) = oneshot::channel();
            asker.ask(Ask::Reread(vec![reply])).unwrap();
            asker.ask(Ask::Reread(Vec::new())).unwrap();
            asker.ask(Ask::Look).unwrap();
            answers.push(answer);
        }
        let Ok(Ask::Reread(waiting)) = inbox.next(NOW) else { panic!("not a reload") };
        assert_eq!(waiting.len(), 1_000);
        // One that comes while it runs is for files that it may have read already: one more.
        asker.ask(Ask::Reread(Vec::new())).unwrap();
        for reply in waiting {
            reply.send(Err(vec!["a.rules:3:1: no".to_owned()])).unwrap();
        }
        for mut answer in answers {
            assert_eq!(answer.try_recv().unwrap().unwrap_err(), ["a.rules:3:1: no"]);
        }
        assert!(matches!(inbox.next(NOW), Ok(Ask::Look)));
        assert!(matches!(inbox.next(NOW), Ok(Ask::Reread(waiting)) if waiting.is_empty()));
        assert!(matches!(inbox.next(NOW), Err(RecvTimeoutError::Timeout)));
    }

    #[test]
    fn changes_of_guests_keep_their_order_and_their_number_is_bounded() {
        let (asker, inbox) = inbox();
        let mut answers = Vec::new();
        for index in 0..MAX_REGISTRATIONS {
            let (ask, answer) = registration(&format!("vm-{index}"));
            asker.ask(ask).unwrap();
            // Nobody waits for this one, and it is done.
            asker.ask(removal(&format!("vm-{index}")).0).unwrap();
            answers.push(answer);
        }
        assert_eq!(asker.ask(registration("late").0), Err(Refused::Full));
        // What needs no answer is never lost, and never more than one.
        for _ in 0..10 {
            assert_eq!(asker.ask(Ask::Reread(Vec::new())), Ok(()));
            assert_eq!(asker.ask(Ask::Look), Ok(()));
        }
        // Who has left makes room.
        drop(answers.remove(0));
        let (ask, _answer) = registration("late");
        asker.ask(ask).unwrap();
        let (mut changes, mut others) = (Vec::new(), 0);
        while let Ok(ask) = inbox.next(NOW) {
            match ask {
                Ask::Register(application, _) => changes.push(format!("+{}", application.name)),
                Ask::Remove(name, _) => changes.push(format!("-{name}")),
                _ => others += 1,
            }
        }
        let wanted = (0..MAX_REGISTRATIONS).flat_map(|index| [format!("+vm-{index}"), format!("-vm-{index}")]);
        let wanted: Vec<_> = wanted.skip(1).chain(["+late".to_owned()]).collect();
        assert_eq!((changes, others), (wanted, 2));
    }

    #[test]
    fn more_than_can_wait_are_told_so() {
        let (asker, _inbox) = inbox();
        let ask = || {
            let (reply, answer) = oneshot::channel();
            asker.ask(Ask::Reread(vec![reply])).map(|()| answer)
        };
        let mut answers: Vec<_> = (0..MAX_WAITING).map(|_| ask().unwrap()).collect();
        assert_eq!(ask().unwrap_err(), Refused::Full);
        answers.pop();
        assert!(ask().is_ok());
        for _ in 0..MAX_WAITING {
            let _ = asker.ask(removal("vm-1").0);
        }
        assert_eq!(asker.ask(removal("vm-1").0), Err(Refused::Full));
    }

    #[test]
    fn who_waits_when_the_thread_ends_is_told() {
        let (asker, inbox) = inbox();
        let (ask, mut answer) = removal("vm-1");
        asker.ask(ask).unwrap();
        drop(inbox);
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert_eq!(asker.ask(Ask::Look), Err(Refused::Gone));
    }

    #[test]
    fn nobody_waits_who_asks_while_the_thread_ends() {
        // In between: the queue is given up, and the bell is still heard.
        let (asker, inbox) = inbox();
        let Inbox { queue, .. } = &inbox;
        queue.lock().unwrap().close();
        let (reply, mut answer) = oneshot::channel();
        assert_eq!(asker.ask(Ask::Reread(vec![reply])), Err(Refused::Gone));
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));

        // Whenever it ends: what is taken in is answered or dropped, and nothing is left.
        for _ in 0..200 {
            let (asker, inbox) = self::inbox();
            let asking = std::thread::spawn(move || {
                let mut waiting = Vec::new();
                for _ in 0..20 {
                    let (ask, answer) = removal("vm-1");
                    if asker.ask(ask).is_err() {
                        break;
                    }
                    waiting.push(answer);
                }
                (asker, waiting)
            });
            drop(inbox);
            // The asker is still there, and what waits is told all the same.
            let (_asker, waiting) = asking.join().unwrap();
            for mut answer in waiting {
                assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
            }
        }
    }
}
