//! When a second core computes a part of the steps of a lone generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::worker_load::WorkerLoad;

/// Steps that a generation takes alone before a second thread is tried, so that
/// a burst of short calls does not start and end one for each.
const LONE_STEPS: usize = 32;

/// Steps that are measured without and with a second thread. The median of so
/// many is not moved by the interruptions of a busy machine.
const MEASURED_STEPS: usize = 129;

/// Steps with a second thread before they are measured: until it is awake.
const WARM_UP_STEPS: usize = 32;

/// Steps after which both are measured again, since the other core may have
/// got something else to do.
const DECIDED_STEPS: usize = 8192;

/// Part of the time without a second thread that a step with one must stay
/// below: the thread costs a core.
const MAX_RATIO: f64 = 0.9;

/// Decides whether a worker uses a second thread. It does so only while all
/// other workers are idle, and if characters then come faster: the core may be
/// needed by the threads that send them.
#[derive(Debug)]
pub(crate) struct PartnerPolicy {
    others: Vec<Arc<WorkerLoad>>,
    phase: Phase,
    /// Steps taken in this phase.
    steps: usize,
    /// Times between the steps of this phase.
    times: Vec<Duration>,
    /// Median time between steps without a second thread.
    alone: Duration,
    last_step: Option<Instant>,
    /// A thread could not be started; not tried again.
    has_failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There have been few steps alone so far.
    Settling,
    MeasuringAlone,
    WarmingUp,
    MeasuringShared,
    Decided {
        with_partner: bool,
    },
}

impl PartnerPolicy {
    /// `others` are the loads of the other workers. A worker without others
    /// never gets a second thread: the server is to use one core only.
    pub(crate) fn new(others: Vec<Arc<WorkerLoad>>) -> Self {
        Self {
            others,
            phase: Phase::Settling,
            steps: 0,
            times: Vec::with_capacity(MEASURED_STEPS),
            alone: Duration::ZERO,
            last_step: None,
            has_failed: false,
        }
    }

    /// Whether the step that begins `now` is to be shared; `is_alone` if it has
    /// one row and the worker has nothing else to do.
    pub(crate) fn wants_partner(&mut self, is_alone: bool, now: Instant) -> bool {
        let is_alone = is_alone
            && !self.has_failed
            && !self.others.is_empty()
            && self.others.iter().all(|load| load.weight() == 0);
        if !is_alone {
            self.last_step = None;
            self.begin(Phase::Settling);
            return false;
        }
        if let Some(last) = self.last_step.replace(now) {
            self.stepped(now - last);
        }
        match self.phase {
            Phase::Settling | Phase::MeasuringAlone => false,
            Phase::WarmingUp | Phase::MeasuringShared => true,
            Phase::Decided { with_partner } => with_partner,
        }
    }

    fn stepped(&mut self, time: Duration) {
        self.steps += 1;
        match self.phase {
            Phase::Settling if self.steps >= LONE_STEPS => self.begin(Phase::MeasuringAlone),
            Phase::WarmingUp if self.steps >= WARM_UP_STEPS => self.begin(Phase::MeasuringShared),
            Phase::Decided { .. } if self.steps >= DECIDED_STEPS => {
                self.begin(Phase::MeasuringAlone);
            }
            Phase::MeasuringAlone | Phase::MeasuringShared => {
                self.times.push(time);
                if self.steps >= MEASURED_STEPS {
                    self.measured();
                }
            }
            _ => {}
        }
    }

    /// Continues after the last step of a measurement.
    fn measured(&mut self) {
        let middle = self.times.len() / 2;
        let (_, median, _) = self.times.select_nth_unstable(middle);
        let median = *median;
        if self.phase == Phase::MeasuringAlone {
            self.alone = median;
            self.begin(Phase::WarmingUp);
        } else {
            let with_partner = median.as_secs_f64() < MAX_RATIO * self.alone.as_secs_f64();
            self.begin(Phase::Decided { with_partner });
        }
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.steps = 0;
        self.times.clear();
    }

    /// Records that a thread could not be started.
    pub(crate) fn failed(&mut self, error: &std::io::Error) {
        self.has_failed = true;
        tracing::warn!(%error, "no second thread can be started; single streams use one core");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream whose steps take these numbers of microseconds.
    struct Stream {
        policy: PartnerPolicy,
        now: Instant,
        alone: u64,
        shared: u64,
    }

    impl Stream {
        fn new(others: Vec<Arc<WorkerLoad>>, alone: u64, shared: u64) -> Self {
            Self {
                policy: PartnerPolicy::new(others),
                now: Instant::now(),
                alone,
                shared,
            }
        }

        /// Number of the steps that were shared.
        fn steps(&mut self, count: usize) -> usize {
            let mut shared = 0;
            for step in 0..count {
                let with_partner = self.policy.wants_partner(true, self.now);
                let time = if with_partner {
                    self.shared
                } else {
                    self.alone
                };
                // Now and then something else has the core.
                let time = if step % 50 == 49 { 4_000 } else { time };
                self.now += Duration::from_micros(time);
                shared += usize::from(with_partner);
            }
            shared
        }
    }

    #[test]
    fn a_second_thread_is_used_if_characters_then_come_faster() {
        let mut stream = Stream::new(vec![Arc::default()], 50, 30);
        assert_eq!(stream.steps(LONE_STEPS + MEASURED_STEPS), 0);
        assert!(stream.steps(5_000) > 4_900);
    }

    #[test]
    fn a_second_thread_that_takes_the_core_of_the_readers_is_not_used() {
        let mut stream = Stream::new(vec![Arc::default()], 50, 48);
        assert!(stream.steps(8_000) < 200);
    }

    #[test]
    fn what_was_decided_is_measured_again() {
        let mut stream = Stream::new(vec![Arc::default()], 50, 48);
        stream.steps(5_000);
        stream.shared = 30;
        assert!(stream.steps(10_000) > 4_000);
    }

    #[test]
    fn a_second_row_or_another_busy_worker_ends_it() {
        let load: Arc<WorkerLoad> = Arc::default();
        let mut stream = Stream::new(vec![Arc::default(), Arc::clone(&load)], 50, 30);
        stream.steps(1_000);
        assert!(stream.policy.wants_partner(true, stream.now));
        assert!(!stream.policy.wants_partner(false, stream.now));
        assert_eq!(stream.steps(LONE_STEPS), 0, "it starts over");
        let call = load.add(0);
        assert_eq!(stream.steps(5_000), 0);
        drop(call);
        assert!(stream.steps(5_000) > 0);
    }

    #[test]
    fn a_worker_without_others_or_without_a_thread_computes_alone() {
        assert_eq!(Stream::new(Vec::new(), 50, 30).steps(5_000), 0);
        let mut stream = Stream::new(vec![Arc::default()], 50, 30);
        stream
            .policy
            .failed(&std::io::Error::other("no threads left"));
        assert_eq!(stream.steps(5_000), 0);
    }
}
