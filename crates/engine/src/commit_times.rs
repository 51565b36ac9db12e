//! How long the commits of sessions take.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use charlstm_store::session::SessionKey;

/// Upper bounds of the buckets, in seconds: from a commit in memory to one that
/// waits for a disk that hangs.
pub const COMMIT_BUCKETS: [f64; 10] = [
    0.0001, 0.0004, 0.0016, 0.0064, 0.0256, 0.1024, 0.4096, 1.6384, 6.5536, 26.2144,
];

/// Duration from which a commit is slow: a person notices it.
const SLOW: Duration = Duration::from_secs(1);

/// Minimum time between two lines about slow commits in the log, in seconds.
const REPORT_INTERVAL: u64 = 10;

/// Durations of the commits since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommitTimes {
    /// Number of commits in each bucket of [`COMMIT_BUCKETS`], without those in
    /// the buckets before it.
    pub counts: [u64; COMMIT_BUCKETS.len()],
    /// Number of all commits.
    pub count: u64,
    /// Sum of their durations, in seconds.
    pub seconds: f64,
}

/// Counts commits.
#[derive(Debug)]
pub(crate) struct CommitTimer {
    counts: [AtomicU64; COMMIT_BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
    started: Instant,
    /// When a slow commit was last logged, in seconds since `started` plus
    /// [`REPORT_INTERVAL`]; 0 if none was.
    reported: AtomicU64,
}

impl CommitTimer {
    pub(crate) fn new() -> Self {
        Self {
            counts: Default::default(),
            count: AtomicU64::new(0),
            micros: AtomicU64::new(0),
            started: Instant::now(),
            reported: AtomicU64::new(0),
        }
    }

    /// Counts a commit that took this time, and logs it if it was slow.
    pub(crate) fn record(&self, session: &SessionKey, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(bucket) = COMMIT_BUCKETS.iter().position(|&bound| seconds <= bound) {
            self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        if time >= SLOW && self.is_due() {
            tracing::warn!(%session, seconds, "the commit of a session took long: the disk is slow");
        }
    }

    /// Whether a slow commit is to be logged again.
    fn is_due(&self) -> bool {
        let now = self.started.elapsed().as_secs() + REPORT_INTERVAL;
        let due = |reported| (now >= reported + REPORT_INTERVAL).then_some(now);
        let order = Ordering::Relaxed;
        self.reported.fetch_update(order, order, due).is_ok()
    }

    pub(crate) fn times(&self) -> CommitTimes {
        CommitTimes {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed)),
            count: self.count.load(Ordering::Relaxed),
            seconds: self.micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use charlstm_store::session::{Owner, SessionId};

    use super::*;

    #[test]
    fn commits_are_counted_in_the_bucket_of_their_duration() {
        let timer = CommitTimer::new();
        let id = SessionId::new("s").expect("a valid id");
        let session = SessionKey::new(Owner::admin(), id);
        for millis in [0, 1, 5, 60_000] {
            timer.record(&session, Duration::from_millis(millis));
        }
        let times = timer.times();
        assert_eq!(times.count, 4);
        assert_eq!(times.counts[..4], [1, 0, 1, 1]);
        assert_eq!(
            times.counts.iter().sum::<u64>(),
            3,
            "one is beyond the last"
        );
        assert!((times.seconds - 60.006).abs() < 1e-9);
    }

    #[test]
    fn slow_commits_are_reported_once_in_a_while() {
        let timer = CommitTimer::new();
        assert!(timer.is_due());
        assert!(!timer.is_due());
    }
}
