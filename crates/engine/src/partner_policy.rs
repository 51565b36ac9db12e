//! When a second core computes a part of the steps of a lone generation.

use std::sync::Arc;

use crate::worker_load::WorkerLoad;

/// Steps that a generation takes alone before it gets a second thread, so that
/// a burst of short calls does not start and end one for each.
const LONE_STEPS: u32 = 32;

/// Decides whether a worker uses a second thread. It does so only while all
/// other workers are idle: their cores are free then.
#[derive(Debug)]
pub(crate) struct PartnerPolicy {
    others: Vec<Arc<WorkerLoad>>,
    lone_steps: u32,
    /// A thread could not be started; not tried again.
    has_failed: bool,
}

impl PartnerPolicy {
    /// `others` are the loads of the other workers. A worker without others
    /// never gets a second thread: the server is to use one core only.
    pub(crate) fn new(others: Vec<Arc<WorkerLoad>>) -> Self {
        Self {
            others,
            lone_steps: 0,
            has_failed: false,
        }
    }

    /// Whether the next step is to be shared; `is_alone` if it has one row and
    /// the worker has nothing else to do.
    pub(crate) fn wants_partner(&mut self, is_alone: bool) -> bool {
        let is_alone = is_alone
            && !self.has_failed
            && !self.others.is_empty()
            && self.others.iter().all(|load| load.weight() == 0);
        self.lone_steps = if is_alone {
            self.lone_steps.saturating_add(1)
        } else {
            0
        };
        self.lone_steps > LONE_STEPS
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

    /// Whether a partner is wanted after many steps alone.
    fn after_many(policy: &mut PartnerPolicy) -> bool {
        (0..=LONE_STEPS).fold(false, |_, _| policy.wants_partner(true))
    }

    #[test]
    fn a_lone_generation_gets_a_partner_after_some_steps() {
        let mut policy = PartnerPolicy::new(vec![Arc::default()]);
        assert!((0..LONE_STEPS).all(|_| !policy.wants_partner(true)));
        assert!(policy.wants_partner(true));
        assert!(!policy.wants_partner(false), "a second row has come");
        assert!(!policy.wants_partner(true), "counted from the start again");
    }

    #[test]
    fn there_is_no_partner_while_another_worker_is_busy_or_if_there_is_none() {
        let load: Arc<WorkerLoad> = Arc::default();
        let mut policy = PartnerPolicy::new(vec![Arc::default(), Arc::clone(&load)]);
        let call = load.add(0);
        assert!(!after_many(&mut policy));
        drop(call);
        assert!(after_many(&mut policy));
        assert!(!after_many(&mut PartnerPolicy::new(Vec::new())));
    }

    #[test]
    fn a_thread_that_could_not_be_started_is_not_tried_again() {
        let mut policy = PartnerPolicy::new(vec![Arc::default()]);
        policy.failed(&std::io::Error::other("no threads left"));
        assert!(!after_many(&mut policy));
    }
}
