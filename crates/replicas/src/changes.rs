//! What a replica knows of the changes of others without polling.
//!
//! Each heartbeat returns the newest revisions of models and trainings, and
//! notifications of the database announce changes in between. A notification is
//! only a hint, and the connection on which it arrives may break without a sign.
//! Therefore each heartbeat also notifies its own process: as soon as such a
//! notification is missing, the revisions count as unknown, and those that follow the
//! changes poll the database every second. They always do if there is a pooler in
//! transaction mode, through which notifications cannot be received.

mod listener;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) use self::listener::listen;

/// Channel of the revisions of models, see `migrations/0200_heartbeat.sql`.
const MODELS: &str = "charlstm_models";

/// Channel of the revisions of trainings.
const TRAININGS: &str = "charlstm_trainings";

/// The newest known revisions. Clones share them. No method blocks.
#[derive(Clone, Debug)]
pub struct Changes(Arc<State>);

#[derive(Debug)]
struct State {
    /// The channel of this process.
    channel: String,
    models: AtomicU64,
    trainings: AtomicU64,
    is_training_waiting: AtomicBool,
    is_listening: AtomicBool,
    /// The last heartbeat that began, that succeeded, and whose notification arrived.
    begun: AtomicU64,
    succeeded: AtomicU64,
    received: AtomicU64,
    /// The last heartbeat that began before the listener listened.
    listening_since: AtomicU64,
    /// The notification of a heartbeat is missing: the listener has to reconnect.
    silent: Notify,
}

/// What a heartbeat has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) models: u64,
    pub(crate) trainings: u64,
    pub(crate) is_training_waiting: bool,
}

impl Changes {
    /// Nothing is known yet.
    pub(crate) fn new(process: Uuid) -> Self {
        Self(Arc::new(State {
            channel: format!("charlstm_{}", process.simple()),
            models: AtomicU64::new(0),
            trainings: AtomicU64::new(0),
            is_training_waiting: AtomicBool::new(false),
            is_listening: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            succeeded: AtomicU64::new(0),
            received: AtomicU64::new(0),
            listening_since: AtomicU64::new(0),
            silent: Notify::new(),
        }))
    }

    /// Returns the newest revision of models; `None` if the database has to be
    /// polled because notifications do not arrive.
    pub fn models(&self) -> Option<u64> {
        self.revision(&self.0.models)
    }

    /// As [`Self::models`], for trainings.
    pub fn trainings(&self) -> Option<u64> {
        self.revision(&self.0.trainings)
    }

    /// Returns whether the last heartbeat found a training that waits or whose claim
    /// has expired; `None` if the database has to be polled.
    pub fn is_training_waiting(&self) -> Option<bool> {
        let is_waiting = self.0.is_training_waiting.load(Ordering::Acquire);
        self.is_listening().then_some(is_waiting)
    }

    fn revision(&self, revision: &AtomicU64) -> Option<u64> {
        self.is_listening()
            .then(|| revision.load(Ordering::Acquire))
    }

    fn is_listening(&self) -> bool {
        self.0.is_listening.load(Ordering::Acquire)
    }

    /// Returns the channel on which this process is notified of its heartbeats.
    pub(crate) fn channel(&self) -> &str {
        &self.0.channel
    }

    /// Called before a heartbeat is sent. If the notification of the previous one is
    /// missing, notifications do not arrive.
    pub(crate) fn begin_heartbeat(&self, number: u64) {
        let state = &self.0;
        let succeeded = state.succeeded.load(Ordering::Acquire);
        if state.received.load(Ordering::Acquire) < succeeded {
            self.stop_listening();
            if succeeded > state.listening_since.load(Ordering::Acquire) {
                state.silent.notify_waiters();
            }
        }
        state.begun.store(number, Ordering::Release);
    }

    /// Records what a heartbeat has found; `None` if it failed.
    pub(crate) fn end_heartbeat(&self, number: u64, found: Option<Found>) {
        let state = &self.0;
        let Some(found) = found else {
            return self.stop_listening();
        };
        state.models.fetch_max(found.models, Ordering::AcqRel);
        state.trainings.fetch_max(found.trainings, Ordering::AcqRel);
        state
            .is_training_waiting
            .store(found.is_training_waiting, Ordering::Release);
        state.succeeded.fetch_max(number, Ordering::AcqRel);
    }

    /// The listener receives the notifications of heartbeats that begin from now on.
    fn start_listening(&self) {
        let begun = self.0.begun.load(Ordering::Acquire);
        self.0.listening_since.store(begun, Ordering::Release);
    }

    /// Notifications do not arrive for now.
    fn stop_listening(&self) {
        self.0.is_listening.store(false, Ordering::Release);
    }

    /// Records a notification. Returns whether it is a heartbeat of this process.
    fn receive(&self, channel: &str, payload: &str) -> bool {
        let state = &self.0;
        // Nobody else sends anything on these channels.
        let Ok(number) = payload.parse() else {
            return false;
        };
        match channel {
            MODELS => state.models.fetch_max(number, Ordering::AcqRel),
            TRAININGS => state.trainings.fetch_max(number, Ordering::AcqRel),
            _ => {
                state.received.fetch_max(number, Ordering::AcqRel);
                state.is_listening.store(true, Ordering::Release);
                return true;
            }
        };
        false
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn found(models: u64) -> Option<Found> {
        Some(Found {
            models,
            ..Found::default()
        })
    }

    #[test]
    fn revisions_are_known_while_the_notifications_of_heartbeats_arrive() {
        let changes = Changes::new(Uuid::new_v4());
        let own = changes.channel().to_owned();
        changes.begin_heartbeat(1);
        changes.end_heartbeat(1, found(4));
        assert_eq!(changes.models(), None);
        assert!(changes.receive(&own, "1"));
        assert_eq!(changes.models(), Some(4));
        assert!(!changes.receive(MODELS, "6"));
        changes.begin_heartbeat(2);
        changes.end_heartbeat(2, found(5));
        assert_eq!(changes.models(), Some(6));
        // The notification of heartbeat 2 is missing, that of 3 arrives.
        changes.begin_heartbeat(3);
        assert_eq!(changes.models(), None);
        changes.end_heartbeat(3, found(7));
        changes.receive(&own, "3");
        assert_eq!(changes.models(), Some(7));
        changes.begin_heartbeat(4);
        changes.end_heartbeat(4, None);
        assert_eq!(changes.models(), None);
    }
}
