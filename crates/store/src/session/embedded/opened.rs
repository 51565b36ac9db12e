//! The database that is open at the moment. After an error it is opened again,
//! and readers wait for that.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::database::Database;

#[derive(Debug)]
enum State {
    Open(Arc<Database>),
    Reopening,
    /// It could not be opened again, or the store has ended.
    Closed,
}

/// The open database, if there is one.
#[derive(Debug)]
pub(super) struct Opened {
    state: Mutex<State>,
    changed: Condvar,
}

impl Opened {
    pub(super) fn new(database: Database) -> Self {
        Self {
            state: Mutex::new(State::Open(Arc::new(database))),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        let old = std::mem::replace(&mut *self.state(), state);
        self.changed.notify_all();
        // Closing the database may write, and must not happen under the lock.
        drop(old);
    }

    /// The database, unless it is being reopened or is closed.
    pub(super) fn get(&self) -> Option<Arc<Database>> {
        match &*self.state() {
            State::Open(database) => Some(Arc::clone(database)),
            State::Reopening | State::Closed => None,
        }
    }

    /// Waits, for at most `limit`, until a database other than `failed` is open.
    /// `None` if that takes longer, or if the database is closed. Blocks.
    pub(super) fn wait(
        &self,
        failed: Option<&Arc<Database>>,
        limit: Duration,
    ) -> Option<Arc<Database>> {
        let until = Instant::now() + limit;
        let mut state = self.state();
        loop {
            match &*state {
                State::Open(database) if failed.is_none_or(|old| !Arc::ptr_eq(old, database)) => {
                    return Some(Arc::clone(database));
                }
                State::Closed => return None,
                State::Open(_) | State::Reopening => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends all access to the file, so that it can be opened again.
    pub(super) fn begin_reopening(&self) {
        if let Some(old) = self.get() {
            old.detach();
        }
        self.set(State::Reopening);
    }

    pub(super) fn reopened(&self, database: Database) {
        self.set(State::Open(Arc::new(database)));
    }

    /// Nobody waits any longer.
    pub(super) fn close(&self) {
        self.set(State::Closed);
    }
}
