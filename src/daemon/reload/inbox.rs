//! The inbox of the reload thread: its requests, in order and bounded. Waiting requests of the same kind share
//! one answer: a thousand signals or requests cause one reload, or two if one is running.

use super::{Ask, Outcome};
use crate::lock::lock;
use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// Most requests that wait for one reload, and most removals that wait. Only root and the daemon's user may send them.
const MAX_WAITING: usize = 4_096;
/// Most registrations that wait: each has a manifest of up to 8 MiB. Those whose requester has left are dropped first.
const MAX_REGISTRATIONS: usize = 64;

/// The sender's end of the inbox.
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

/// Why a request is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotQueued {
    /// The thread has ended.
    #[error("the daemon is stopping")]
    Gone,
    /// Too many requests wait.
    #[error("too many requests wait for the daemon already; ask again when they are done")]
    Full,
}

#[derive(Default)]
struct Queue {
    asks: VecDeque<Ask>,
    /// The thread does not read any more. It is set under the queue's lock, so each request is either refused
    /// or found.
    closed: bool,
}

/// Creates an inbox and its sender.
pub(super) fn inbox() -> (Asker, Inbox) {
    // One ring is enough, because the receiver then takes everything in the queue.
    let (bell, rung) = mpsc::sync_channel(1);
    let queue = Arc::<Mutex<Queue>>::default();
    (Asker { queue: Arc::clone(&queue), bell }, Inbox { queue, rung })
}

impl Asker {
    /// Adds a request, or merges it with a waiting one if one action serves both.
    pub(super) fn ask(&self, ask: Ask) -> Result<(), NotQueued> {
        lock(&self.queue).put(ask)?;
        // If the receiver is gone, the queue was closed since, and that has dropped the waiting requests.
        let _ = self.bell.try_send(());
        Ok(())
    }
}

impl Inbox {
    /// Waits for the next request; `Timeout` if none arrives in time, `Disconnected` when nobody can send any more.
    pub(super) fn next(&self, timeout: Duration) -> Result<Ask, RecvTimeoutError> {
        loop {
            if let Some(ask) = lock(&self.queue).asks.pop_front() {
                return Ok(ask);
            }
            self.rung.recv_timeout(timeout)?;
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        lock(&self.queue).close();
    }
}

impl Queue {
    /// Accepts nothing more, and informs waiting requesters by dropping their requests.
    fn close(&mut self) {
        self.closed = true;
        self.asks.clear();
    }

    fn put(&mut self, ask: Ask) -> Result<(), NotQueued> {
        if self.closed {
            return Err(NotQueued::Gone);
        }
        match ask {
            Ask::Look if self.asks.iter().any(|ask| matches!(ask, Ask::Look)) => {}
            Ask::Reread(more) => match self.asks.iter_mut().find_map(Ask::rereaders) {
                Some(waiting) => {
                    if waiting.len() + more.len() > MAX_WAITING {
                        waiting.retain(|reply| !reply.is_closed());
                    }
                    if waiting.len() + more.len() > MAX_WAITING {
                        return Err(NotQueued::Full);
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
                    return Err(NotQueued::Full);
                }
                self.asks.push_back(ask);
            }
            // A removal is carried out even if its requester has left.
            Ask::Remove(..) if self.asks.len() >= MAX_WAITING => return Err(NotQueued::Full),
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
        // One that arrives during a reload is for files that may have been read already: one more reload.
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
            // Nobody waits for this one, and it is carried out.
            asker.ask(removal(&format!("vm-{index}")).0).unwrap();
            answers.push(answer);
        }
        assert_eq!(asker.ask(registration("late").0), Err(NotQueued::Full));
        // A request without a reply is never lost, and there is never more than one.
        for _ in 0..10 {
            assert_eq!(asker.ask(Ask::Reread(Vec::new())), Ok(()));
            assert_eq!(asker.ask(Ask::Look), Ok(()));
        }
        // A requester that has left makes room.
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
        assert_eq!(ask().unwrap_err(), NotQueued::Full);
        answers.pop();
        assert!(ask().is_ok());
        for _ in 0..MAX_WAITING {
            let _ = asker.ask(removal("vm-1").0);
        }
        assert_eq!(asker.ask(removal("vm-1").0), Err(NotQueued::Full));
    }

    #[test]
    fn who_waits_when_the_thread_ends_is_told() {
        let (asker, inbox) = inbox();
        let (ask, mut answer) = removal("vm-1");
        asker.ask(ask).unwrap();
        drop(inbox);
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert_eq!(asker.ask(Ask::Look), Err(NotQueued::Gone));
    }

    #[test]
    fn nobody_waits_who_asks_while_the_thread_ends() {
        // In between: the queue is closed, and the bell still works.
        let (asker, inbox) = inbox();
        let Inbox { queue, .. } = &inbox;
        queue.lock().unwrap().close();
        let (reply, mut answer) = oneshot::channel();
        assert_eq!(asker.ask(Ask::Reread(vec![reply])), Err(NotQueued::Gone));
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));

        // Whenever the thread ends, an accepted request is answered or dropped, and none is left over.
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
            // The sender still exists, and waiting requests are dropped all the same.
            let (_asker, waiting) = asking.join().unwrap();
            for mut answer in waiting {
                assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
            }
        }
    }
}
