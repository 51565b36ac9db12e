//! Admission: how many calls, and how many prompt characters, may be in
//! progress, and which share of that each caller gets.
//!
//! One caller may take everything that is free. If nothing is free, a reserve
//! is left for callers that have less than an equal share, so that a caller
//! that has taken everything keeps nobody else out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::caller::CallerId;

/// The part of a limit that is added for callers below an equal share: a
/// quarter.
const RESERVE_DIVISOR: usize = 4;

/// Time over which the rate at which a resource is freed is averaged.
const RATE_SECONDS: f64 = 5.0;

/// Shortest and longest retry delay. A longer one would be a guess.
const MIN_RETRY: Duration = Duration::from_millis(50);
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Retry delay as long as nothing was freed that could be measured.
const UNKNOWN_RETRY: Duration = Duration::from_secs(1);

/// A limited resource that callers take shares of: calls, or characters.
#[derive(Debug)]
pub(crate) struct Admission {
    max: usize,
    usage: Mutex<Usage>,
}

#[derive(Debug)]
struct Usage {
    /// Amount that each caller has; a caller without any has no entry.
    by_caller: HashMap<CallerId, usize>,
    total: usize,
    /// Amount of the shares that are idle.
    idle: usize,
    freed: FreedRate,
}

/// How fast a resource is freed: an exponential average.
#[derive(Debug)]
struct FreedRate {
    per_second: f64,
    at: Instant,
}

impl FreedRate {
    fn now(&self, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.per_second * (-seconds / RATE_SECONDS).exp()
    }

    fn freed(&mut self, amount: usize, now: Instant) {
        self.per_second = self.now(now) + amount as f64 / RATE_SECONDS;
        self.at = now;
    }
}

impl Admission {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            usage: Mutex::new(Usage {
                by_caller: HashMap::new(),
                total: 0,
                idle: 0,
                freed: FreedRate {
                    per_second: 0.0,
                    at: Instant::now(),
                },
            }),
        })
    }

    /// Gives a caller a share of this amount.
    ///
    /// # Errors
    /// There is not enough: the time after which there probably is.
    pub(crate) fn admit(
        self: &Arc<Self>,
        caller: &CallerId,
        amount: usize,
    ) -> Result<Permit, Duration> {
        let mut usage = self.lock();
        let own = usage.by_caller.get(caller).copied().unwrap_or(0);
        let wanted = usage.total + amount;
        let callers = usage.by_caller.len() + usize::from(own == 0);
        let is_below_share = own + amount <= self.max / callers;
        let reserve = self.max.div_ceil(RESERVE_DIVISOR);
        // A caller that is alone needs no reserve: it may take everything.
        let is_reserved = callers > 1 && is_below_share && wanted <= self.max + reserve;
        if wanted > self.max && !is_reserved {
            return Err(usage.retry_after(amount));
        }
        usage.add(caller, amount);
        Ok(Permit {
            admission: Arc::clone(self),
            caller: caller.clone(),
            amount,
            is_idle: false,
        })
    }

    /// The amount in use, that of idle shares included.
    pub(crate) fn live(&self) -> usize {
        let usage = self.lock();
        usage.total + usage.idle
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usage {
    fn add(&mut self, caller: &CallerId, amount: usize) {
        if amount > 0 {
            self.total += amount;
            *self.by_caller.entry(caller.clone()).or_default() += amount;
        }
    }

    fn remove(&mut self, caller: &CallerId, amount: usize) {
        self.total -= amount;
        if let Some(own) = self.by_caller.get_mut(caller) {
            *own -= amount;
            if *own == 0 {
                self.by_caller.remove(caller);
            }
        }
        self.freed.freed(amount, Instant::now());
    }

    /// Returns the time after which this amount was probably freed.
    fn retry_after(&self, amount: usize) -> Duration {
        let rate = self.freed.now(Instant::now());
        if rate < f64::EPSILON {
            return UNKNOWN_RETRY;
        }
        let seconds = amount as f64 / rate;
        Duration::try_from_secs_f64(seconds).map_or(MAX_RETRY, |t| t.clamp(MIN_RETRY, MAX_RETRY))
    }
}

/// A share of a resource, freed when dropped.
///
/// A call that only waits for its reader, or for its commit, is idle: its share
/// is free for another call, so that slow readers do not block others. At most
/// as many calls are idle as may be active; further ones keep their shares.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    caller: CallerId,
    amount: usize,
    is_idle: bool,
}

impl Permit {
    /// Frees the share for other calls while this one waits.
    pub(crate) fn release(&mut self) {
        let mut usage = self.admission.lock();
        if !self.is_idle && usage.idle + self.amount <= self.admission.max {
            usage.remove(&self.caller, self.amount);
            usage.idle += self.amount;
            self.is_idle = true;
        }
    }

    /// Takes the share again, even if nothing is free by now: the call was
    /// admitted once.
    pub(crate) fn reacquire(&mut self) {
        if std::mem::take(&mut self.is_idle) {
            let mut usage = self.admission.lock();
            usage.idle -= self.amount;
            usage.add(&self.caller, self.amount);
        }
    }

    /// Adds another share of the same resource and caller to this one.
    pub(crate) fn merge(&mut self, mut other: Self) {
        debug_assert!(self.caller == other.caller && !self.is_idle && !other.is_idle);
        self.amount += std::mem::take(&mut other.amount);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut usage = self.admission.lock();
        if self.is_idle {
            usage.idle -= self.amount;
        } else {
            usage.remove(&self.caller, self.amount);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_may_take_everything_and_others_still_get_their_share() {
        let admission = Admission::new(8);
        let (greedy, other) = (CallerId::from("greedy"), CallerId::from("other"));
        let held: Vec<_> = (0..8)
            .map(|_| admission.admit(&greedy, 1).unwrap())
            .collect();
        assert!(admission.admit(&greedy, 1).is_err());
        let first = admission.admit(&other, 1).unwrap();
        let _second = admission.admit(&other, 1).unwrap();
        assert!(
            admission.admit(&other, 1).is_err(),
            "the reserve is used up"
        );
        assert!(admission.admit(&greedy, 1).is_err());
        drop(held);
        drop(first);
        assert_eq!(admission.live(), 1);
        assert!(admission.admit(&other, 7).is_ok(), "no share is kept free");
    }

    #[test]
    fn a_share_of_characters_counts_with_its_size() {
        let admission = Admission::new(100);
        let caller = CallerId::default();
        let mut permit = admission.admit(&caller, 60).unwrap();
        assert!(admission.admit(&caller, 41).is_err());
        permit.merge(admission.admit(&caller, 40).unwrap());
        assert_eq!(admission.live(), 100);
        drop(permit);
        assert_eq!(admission.live(), 0);
        admission.admit(&caller, 0).unwrap();
    }

    #[test]
    fn an_idle_call_frees_its_share_and_takes_it_again() {
        let admission = Admission::new(1);
        let caller = CallerId::default();
        let mut idle = admission.admit(&caller, 1).unwrap();
        idle.release();
        let mut second = admission.admit(&caller, 1).unwrap();
        second.release();
        assert!(
            admission.admit(&caller, 1).is_err(),
            "one idle call at most"
        );
        idle.reacquire();
        assert_eq!(admission.live(), 2);
    }

    #[test]
    fn the_retry_delay_is_the_amount_divided_by_the_measured_rate() {
        let start = Instant::now();
        let mut usage = Usage {
            by_caller: HashMap::new(),
            total: 0,
            idle: 0,
            freed: FreedRate {
                per_second: 0.0,
                at: start,
            },
        };
        assert_eq!(usage.retry_after(1), UNKNOWN_RETRY);
        // Two a second for a minute.
        for n in 1..=120 {
            usage.freed.freed(1, start + Duration::from_millis(n * 500));
        }
        let rate = usage.freed.now(start + Duration::from_secs(60));
        assert!((1.8..2.3).contains(&rate), "{rate}");
        let delay = usage.retry_after(10).as_secs_f64();
        assert!((delay - 10.0 / rate).abs() < 0.01, "{delay}");
        assert!(usage.retry_after(1_000_000) == MAX_RETRY);
    }
}
