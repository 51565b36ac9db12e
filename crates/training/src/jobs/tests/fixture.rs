//! A list of trainings over a fake learner, and what its trainings have reported.

use std::sync::Arc;
use std::time::Duration;

use charlstm_store::folder_copy::copy_folder;

use crate::events::{Event, EventKind, Finished, RolledBack};
use crate::fake::{FakeLearners, FakeModels, Fault, Hold, sampler, spec, start};
use crate::job::Job;
use crate::jobs::{Jobs, JobsConfig, Load};

/// Far longer than anything here takes: a test that waits for it has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Fixture {
    pub(super) folder: tempfile::TempDir,
    pub(super) learners: Arc<FakeLearners>,
    pub(super) models: Arc<FakeModels>,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            learners: Arc::default(),
            models: Arc::default(),
        }
    }

    pub(super) fn open(&self) -> Jobs {
        self.open_with(|_| {})
    }

    /// Saves a checkpoint after every step.
    pub(super) fn open_with_checkpoints(&self) -> Jobs {
        self.open_with(|config| config.checkpoint_interval = Duration::ZERO)
    }

    /// Starts a training and holds it before a step.
    pub(super) fn start_and_hold(&self, jobs: &Jobs, step: u64) -> (Arc<Job>, Hold) {
        let hold = self.learners.hold_before_step(step);
        let job = start(jobs, &spec()).unwrap();
        hold.wait_until_reached();
        (job, hold)
    }

    /// Copies what a kill of the server would leave now.
    pub(super) fn killed(&self) -> Self {
        let after = Self::new();
        copy_folder(self.folder.path(), after.folder.path()).unwrap();
        after
    }

    pub(super) fn fault(&self, step: u64, fault: Fault) {
        self.learners.faults.lock().unwrap().push((step, fault));
    }

    pub(super) fn open_with(&self, change: impl FnOnce(&mut JobsConfig)) -> Jobs {
        let mut config = JobsConfig::new(self.folder.path().join("trainings"));
        config.max_queued = 2;
        change(&mut config);
        let (learners, models) = (Arc::clone(&self.learners), Arc::clone(&self.models));
        Jobs::open(config, learners, models, sampler()).unwrap()
    }
}

/// Returns all events up to the end.
pub(super) fn watch(job: &Job, from: u64) -> Vec<Event> {
    let mut watcher = job.watch(from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut events = Vec::new();
        let all = async {
            while let Some(event) = watcher.next().await {
                events.push(event.as_ref().clone());
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap();
        events
    })
}

/// Blocks until no training runs: a moment after the last event of one.
pub(super) fn wait_until_idle(jobs: &Jobs) {
    let patience = std::time::Instant::now() + PATIENCE;
    while jobs.load() != Load::default() {
        assert!(std::time::Instant::now() < patience);
        std::thread::yield_now();
    }
}

pub(super) fn end(job: &Job) -> Finished {
    match watch(job, 0).pop().unwrap().event {
        EventKind::Finished(finished) => finished,
        other => panic!("the last event is {other:?}"),
    }
}

pub(super) fn rolled_back(events: &[Event]) -> Vec<RolledBack> {
    let back = |event: &Event| match &event.event {
        EventKind::RolledBack(back) => Some(back.clone()),
        _ => None,
    };
    events.iter().filter_map(back).collect()
}

pub(super) fn epochs(events: &[Event]) -> Vec<u32> {
    let epoch = |event: &Event| match &event.event {
        EventKind::Epoch(epoch) => Some(epoch.epoch),
        _ => None,
    };
    events.iter().filter_map(epoch).collect()
}
