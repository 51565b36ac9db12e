//! What a principal uses at the moment, on this server. It is counted by name,
//! so it survives a reload of the principals.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time whose characters may be taken at once: a principal that was idle starts
/// with a message of normal size.
const BURST: Duration = Duration::from_secs(1);

/// Number of pieces in which a stream takes the characters of one second, so that
/// the streams of a principal alternate.
const PIECES_PER_SECOND: u64 = 4;

/// Counters of one principal.
#[derive(Debug, Default)]
pub struct Usage {
    streams: AtomicU64,
    chars: Mutex<CharRate>,
}

/// The rate of characters of a principal: a leaky bucket, as the time at which
/// everything that was taken is paid for.
#[derive(Debug, Default)]
struct CharRate {
    paid_at: Option<Instant>,
}

impl CharRate {
    /// Returns how long to wait before the next character.
    fn delay(&self, now: Instant) -> Duration {
        let paid_at = self.paid_at.unwrap_or(now);
        paid_at.saturating_duration_since(now + BURST)
    }

    fn charge(&mut self, now: Instant, chars: u64, per_minute: u64) {
        let cost = Duration::from_secs_f64(chars as f64 * 60.0 / per_minute as f64);
        let paid_at = self.paid_at.map_or(now, |paid_at| paid_at.max(now));
        self.paid_at = Some(paid_at + cost);
    }
}

impl Usage {
    /// Counts a stream until the guard is dropped; `None` if there are `limit`
    /// of them already.
    pub fn start_stream(self: &Arc<Self>, limit: Option<u64>) -> Option<StreamGuard> {
        let started = self
            .streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |streams| {
                (limit.is_none_or(|limit| streams < limit)).then_some(streams + 1)
            });
        started.ok().map(|_| StreamGuard(Arc::clone(self)))
    }

    /// Returns the number of streams.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    fn delay(&self) -> Duration {
        let chars = self.chars.lock().unwrap_or_else(PoisonError::into_inner);
        chars.delay(Instant::now())
    }

    fn charge(&self, chars: u64, per_minute: u64) {
        let mut rate = self.chars.lock().unwrap_or_else(PoisonError::into_inner);
        rate.charge(Instant::now(), chars, per_minute);
    }
}

/// A stream that is counted.
#[derive(Debug)]
pub struct StreamGuard(Arc<Usage>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Slows the text of one stream down to the rate of its principal.
#[derive(Debug)]
pub struct CharThrottle {
    usage: Arc<Usage>,
    per_minute: u64,
}

impl CharThrottle {
    /// A stream of the principal whose usage this is.
    pub fn new(usage: Arc<Usage>, per_minute: u64) -> Self {
        Self { usage, per_minute }
    }

    /// Returns how long to wait before more text is taken.
    pub fn delay(&self) -> Duration {
        self.usage.delay()
    }

    /// Returns the maximum number of characters to take then.
    pub fn piece(&self) -> usize {
        let chars = (self.per_minute / 60 / PIECES_PER_SECOND).max(1);
        usize::try_from(chars).unwrap_or(usize::MAX)
    }

    /// Counts characters that were taken. What is beyond the rate is paid for
    /// by waiting longer.
    pub fn charge(&self, chars: u64) {
        self.usage.charge(chars, self.per_minute);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_exactly_and_debts_are_paid() {
        let start = Instant::now();
        let mut rate = CharRate::default();
        let mut now = start;
        let mut chars = 0;
        while now < start + Duration::from_secs(60) {
            let piece = 7;
            rate.charge(now, piece, 600);
            chars += piece;
            now += rate.delay(now);
        }
        // One second may be taken in advance.
        assert!((600..=617).contains(&chars), "{chars}");
        // An idle hour earns no more than the burst.
        now += Duration::from_secs(3600);
        rate.charge(now, 20, 600);
        assert_eq!(rate.delay(now), Duration::from_secs(1));
    }

    #[test]
    fn streams_are_counted_up_to_the_limit() {
        let usage = Arc::new(Usage::default());
        let first = usage.start_stream(Some(2));
        let second = usage.start_stream(Some(2));
        assert!(first.is_some() && second.is_some());
        assert!(usage.start_stream(Some(2)).is_none());
        assert!(usage.start_stream(None).is_some());
        drop(first);
        assert_eq!(usage.streams(), 1);
        assert!(usage.start_stream(Some(2)).is_some());
    }
}
