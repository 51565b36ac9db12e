//! The clock that idle time is measured with.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Maximum time that one look at the clock adds. The store looks at least once
/// a second, so a longer gap means that the machine was suspended or that the
/// clock jumped; it does not count as idle time.
const MAX_GAP: Duration = Duration::from_secs(60);

/// Counts the time during which the server runs, over restarts, in
/// milliseconds. It never goes back and is not the time of day: no change of
/// the system's clock evicts a session.
#[derive(Debug)]
pub struct RunningClock {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    total: Duration,
    /// `None`: the clock stands still but for [`RunningClock::advance`].
    seen: Option<Instant>,
}

impl RunningClock {
    /// A clock that continues from the time that earlier runs have counted.
    pub fn starting_at(milliseconds: u64) -> Self {
        Self {
            state: Mutex::new(State {
                total: Duration::from_millis(milliseconds),
                seen: Some(Instant::now()),
            }),
        }
    }

    /// A clock that moves only by `advance`, for tests.
    pub fn manual() -> Self {
        Self {
            state: Mutex::new(State {
                total: Duration::ZERO,
                seen: None,
            }),
        }
    }

    /// Moves the clock on.
    pub fn advance(&self, time: Duration) {
        self.lock().total += time;
    }

    /// The time counted so far, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        let mut state = self.lock();
        if let Some(seen) = state.seen {
            let now = Instant::now();
            state.total += now.saturating_duration_since(seen).min(MAX_GAP);
            state.seen = Some(now);
        }
        u64::try_from(state.total.as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
