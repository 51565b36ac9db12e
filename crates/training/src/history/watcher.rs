//! Reads a history while it grows.

use std::sync::Arc;

use tokio::sync::watch;

use super::kept::{Stored, is_finished};
use super::{History, lock};
use crate::events::Event;

/// Reads a history from some position on, each event once.
pub struct Watcher {
    history: Arc<History>,
    changes: watch::Receiver<u64>,
    position: u64,
    ended: bool,
}

enum Next {
    Event(Arc<Event>),
    Wait,
    Ended,
}

impl History {
    fn next(&self, position: u64) -> Next {
        let kept = lock(&self.kept);
        let ended = kept.summary.state.has_ended();
        let events = &kept.events;
        let start = events.partition_point(|stored| stored.event.sequence < position);
        for (index, Stored { event, .. }) in events.iter().enumerate().skip(start) {
            // If the training was resumed, an earlier end is not its end.
            let is_end = ended && index + 1 == events.len();
            if is_end || !is_finished(event) {
                return Next::Event(Arc::clone(event));
            }
        }
        if ended || self.is_closed() {
            Next::Ended
        } else {
            Next::Wait
        }
    }
}

impl Watcher {
    /// Watches a history from the event with that sequence number on.
    pub fn new(history: Arc<History>, from_sequence: u64) -> Self {
        Self {
            changes: history.changes.subscribe(),
            history,
            position: from_sequence,
            ended: false,
        }
    }

    /// Returns the next event, or `None` after the last event of a training
    /// that has ended. Waits without blocking; may be dropped at any time.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        while !self.ended {
            // Before reading, so that a later change wakes the wait.
            self.changes.borrow_and_update();
            match self.history.next(self.position) {
                Next::Event(event) => {
                    self.position = event.sequence + 1;
                    self.ended = is_finished(&event);
                    return Some(event);
                }
                Next::Ended => break,
                Next::Wait => {
                    if self.changes.changed().await.is_err() {
                        break;
                    }
                }
            }
        }
        self.ended = true;
        None
    }
}
