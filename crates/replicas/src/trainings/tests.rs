//! Tests of trainings on several replicas.

#![allow(clippy::unwrap_used)]

mod cut_off;

use std::collections::BTreeMap;
use std::time::Duration;

use charlstm_training::events::State;
use charlstm_training::fake::{FakeLearners, FakeModels, Hold, sampler, spec, start};
use charlstm_training::job::StopRequest;
use charlstm_training::jobs::{Jobs, JobsConfig, JobsError, Requester};
use tempfile::TempDir;

use self::cut_off::CutOff;
use super::*;
use crate::testing::test_database;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Store {
    database: Database,
    objects: Objects,
    models: Arc<FakeModels>,
    folder: TempDir,
}

/// One replica, which can be cut off from database and object store.
struct Replica {
    jobs: Jobs,
    learners: Arc<FakeLearners>,
    trainings: Arc<CutOff>,
}

impl Store {
    async fn new() -> Option<Self> {
        let database = test_database().await?;
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().join("objects").display());
        Some(Self {
            database,
            objects: Objects::open(&url).await.unwrap(),
            models: Arc::default(),
            folder,
        })
    }

    fn trainings(&self, replica: &str) -> ReplicaTrainings {
        ReplicaTrainings::new(
            replica.to_owned(),
            self.database.clone(),
            self.objects.clone(),
        )
    }

    /// Opens a replica that saves a checkpoint after every step.
    fn open(&self, name: &str) -> Replica {
        let trainings = Arc::new(CutOff::new(self.trainings(name)));
        let learners: Arc<FakeLearners> = Arc::default();
        let folder = self.folder.path().join(name).join("trainings");
        let config = JobsConfig {
            max_queued: 2,
            checkpoint_interval: Duration::ZERO,
            ..JobsConfig::new(folder)
        };
        let jobs = Jobs::open_shared(
            config,
            Arc::<FakeLearners>::clone(&learners),
            Arc::<FakeModels>::clone(&self.models),
            sampler(),
            Arc::<CutOff>::clone(&trainings),
        );
        Replica {
            jobs: jobs.unwrap(),
            learners,
            trainings,
        }
    }

    /// Lets every claim end now, as if no replica had renewed it.
    async fn expire_claims(&self) {
        let expire = sqlx::query(
            "UPDATE trainings SET lease_until = clock_timestamp() - interval '1 s'
             WHERE state = 'running'",
        );
        self.database.fetch_all(expire).await.unwrap();
    }
}

/// Waits on this replica for the end of a training; returns all its events.
async fn watch(jobs: &Jobs, id: &str) -> Vec<Arc<Event>> {
    let watching = async {
        let job = loop {
            match jobs.get(id) {
                Ok(job) => break job,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let mut watcher = job.watch(0);
        let mut events = Vec::new();
        while let Some(event) = watcher.next().await {
            events.push(event);
        }
        events
    };
    tokio::time::timeout(PATIENCE, watching).await.unwrap()
}

/// The events, without steps and checkpoints.
fn outline(events: &[Arc<Event>]) -> Vec<String> {
    let name = |event: &Arc<Event>| match &event.event {
        EventKind::Accepted(_) => Some("accepted".to_owned()),
        EventKind::Epoch(epoch) => Some(format!("epoch {}", epoch.epoch)),
        EventKind::Resumed(resumed) => Some(format!(
            "run {} on {} with {} threads of {}",
            resumed.run, resumed.replica, resumed.threads, resumed.device
        )),
        EventKind::Finished(finished) => Some(format!("{:?}", finished.state)),
        EventKind::Step(_)
        | EventKind::Checkpoint(_)
        | EventKind::CheckpointFailed(_)
        | EventKind::RolledBack(_) => None,
    };
    events.iter().filter_map(name).collect()
}

impl Replica {
    /// Does something that blocks with the trainings of the replica.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Jobs) -> T + Send + 'static,
    ) -> T {
        let jobs = self.jobs.clone();
        blocking(move || work(&jobs)).await
    }

    /// Starts a training, and returns its id.
    async fn start(&self) -> String {
        let start = |jobs: &Jobs| start(jobs, &spec()).unwrap().id().to_owned();
        self.blocking(start).await
    }
}

/// Waits until the training thread is held.
async fn reached(hold: Hold) -> Hold {
    blocking(move || {
        hold.wait_until_reached();
        hold
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn stop(replicas: impl IntoIterator<Item = Replica>) {
    for replica in replicas {
        assert!(blocking(move || replica.jobs.stop(PATIENCE)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_serves_the_events_of_a_training_that_one_of_them_runs() {
    let Some(store) = Store::new().await else {
        return;
    };
    let (a, b) = (store.open("a"), store.open("b"));
    let id = a.start().await;
    let expected = [
        "accepted",
        "epoch 1",
        "epoch 2",
        "epoch 3",
        "epoch 4",
        "Succeeded",
    ];
    let (from_a, from_b) = (watch(&a.jobs, &id).await, watch(&b.jobs, &id).await);
    assert_eq!(outline(&from_a), expected);
    assert_eq!(from_a, from_b);
    assert_eq!(store.models.published_weights().len(), 1);
    stop([a, b]).await;
    // Corpus and checkpoints are not needed any more.
    assert_eq!(store.objects.list("trainings").await.unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_takes_over_and_the_first_one_has_no_effect_any_more() {
    let Some(undisturbed) = Store::new().await else {
        return;
    };
    let only = undisturbed.open("only");
    let id = only.start().await;
    watch(&only.jobs, &id).await;
    stop([only]).await;

    let store = Store::new().await.unwrap();
    let a = store.open("a");
    let hold = a.learners.hold_before_step(6);
    let id = a.start().await;
    let hold = reached(hold).await;
    // The process is suspended, and its claim expires.
    a.trainings.set(true);
    store.expire_claims().await;
    let b = store.open("b");
    let from_b = watch(&b.jobs, &id).await;
    // It wakes up, believes that it still has the training, and continues.
    a.trainings.set(false);
    hold.release();
    let from_a = watch(&a.jobs, &id).await;
    assert_eq!(from_a, from_b);
    let expected = [
        "accepted",
        "epoch 1",
        "run 2 on b with 1 threads of cpu",
        "epoch 2",
        "epoch 3",
        "epoch 4",
        "Succeeded",
    ];
    assert_eq!(outline(&from_b), expected);
    stop([a, b]).await;
    assert_eq!(
        store.models.published_weights(),
        undisturbed.models.published_weights()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_was_reported_is_not_reported_again_after_a_takeover() {
    let Some(store) = Store::new().await else {
        return;
    };
    let a = store.open("a");
    // Without the checkpoints of the second epoch, which is computed again.
    let hold = a.learners.hold_before_step(8);
    let id = a.start().await;
    let hold = reached(hold).await;
    let back = sqlx::query(
        "UPDATE trainings SET checkpoint = previous_checkpoint, previous_checkpoint = NULL",
    );
    store.database.fetch_all(back).await.unwrap();
    a.trainings.set(true);
    store.expire_claims().await;
    let b = store.open("b");
    let events = watch(&b.jobs, &id).await;
    let mut epochs: BTreeMap<String, u32> = BTreeMap::new();
    for name in outline(&events) {
        *epochs.entry(name).or_default() += 1;
    }
    assert!(epochs.values().all(|count| *count == 1), "{epochs:?}");
    assert_eq!(
        epochs
            .keys()
            .filter(|name| name.starts_with("epoch"))
            .count(),
        4
    );
    hold.release();
    stop([b]).await;
    drop(a);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stops_lets_another_one_continue_at_once() {
    let Some(store) = Store::new().await else {
        return;
    };
    let (a, b) = (store.open("a"), store.open("b"));
    let hold_a = a.learners.hold_before_step(5);
    let hold_b = b.learners.hold_before_step(5);
    let id = a.start().await;
    // Whichever of them runs it.
    let (holder, first, second) = blocking(move || {
        let (sent, received) = std::sync::mpsc::channel();
        let mut holds = [Some(hold_a), Some(hold_b)];
        for (index, hold) in holds.iter_mut().enumerate() {
            let (hold, sent) = (hold.take().unwrap(), sent.clone());
            std::thread::spawn(move || {
                hold.wait_until_reached();
                let _ = sent.send((index, hold));
            });
        }
        let (index, hold) = received.recv().unwrap();
        match index {
            0 => (hold, a, b),
            _ => (hold, b, a),
        }
    })
    .await;
    let mut watcher = first.jobs.get(&id).unwrap().watch(0);
    let jobs = first.jobs.clone();
    let stopping = tokio::task::spawn_blocking(move || jobs.stop(PATIENCE));
    while first.jobs.get(&id).unwrap().stop_request() == StopRequest::Nothing {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    holder.release();
    assert!(stopping.await.unwrap());
    // Its watchers end without a last event, so that clients ask another replica.
    while watcher.next().await.is_some() {}
    assert!(first.jobs.get(&id).unwrap().history().is_closed());
    let events = watch(&second.jobs, &id).await;
    assert_eq!(
        events.last().map(|event| matches!(&event.event, EventKind::Finished(end) if end.state == State::Succeeded)),
        Some(true)
    );
    stop([second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_can_be_cancelled_resumed_and_deleted_from_any_replica() {
    let Some(store) = Store::new().await else {
        return;
    };
    let a = store.open("a");
    let hold = a.learners.hold_before_step(5);
    let running = a.start().await;
    std::mem::forget(reached(hold).await);
    let waiting = a.start().await;
    let b = store.open("b");
    // Replica b claims the waiting one as soon as it can; it may have ended.
    let id = waiting.clone();
    b.blocking(move |jobs| jobs.cancel(&id).map(|_| ()).unwrap())
        .await;
    let events = watch(&b.jobs, &waiting).await;
    let last = outline(&events).pop().unwrap();
    assert!(last == "Cancelled" || last == "Succeeded", "{last}");
    let id = running.clone();
    let error = b
        .blocking(move |jobs| jobs.delete(&id).map(|_| ()).unwrap_err())
        .await;
    assert!(matches!(error, JobsError::NotDeletable { .. }), "{error}");
    let id = running.clone();
    b.blocking(move |jobs| jobs.cancel(&id).map(|_| ()).unwrap())
        .await;
    a.trainings.set(true);
    store.expire_claims().await;
    // Its replica is gone, and the next one that claims it cancels it.
    let events = watch(&b.jobs, &running).await;
    assert_eq!(outline(&events).pop().unwrap(), "Cancelled");

    let id = running.clone();
    b.blocking(move |jobs| jobs.resume(&id, &Requester::admin()).map(|_| ()).unwrap())
        .await;
    let events = watch(&b.jobs, &running).await;
    assert_eq!(outline(&events).pop().unwrap(), "Succeeded");
    let id = running.clone();
    b.blocking(move |jobs| jobs.delete(&id).map(|_| ()).unwrap())
        .await;
    let c = store.open("c");
    assert!(matches!(
        c.jobs.get(&running),
        Err(JobsError::NotFound { .. })
    ));
    stop([b, c]).await;
    drop(a);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_and_the_quota_count_the_trainings_of_all_replicas() {
    let Some(store) = Store::new().await else {
        return;
    };
    let insert = |id: &str, owner: &str, trainings: &ReplicaTrainings| {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        std::fs::write(&tokens, "x").unwrap();
        let owner = charlstm_store::session::Owner::new(owner).unwrap();
        trainings.insert(&NewTraining {
            id,
            metadata: "{}",
            accepted: EventKind::Checkpoint(charlstm_training::events::CheckpointSaved { step: 0 }),
            tokens: &tokens,
            limits: QueueLimits {
                max_queued: 2,
                owner: &owner,
                max_of_owner: Some(1),
            },
        })
    };
    // Nothing claims these trainings.
    let (first, second) = (store.trainings("a"), store.trainings("b"));
    insert("t-1", "ann", &first).unwrap();
    let quota = insert("t-2", "ann", &second);
    assert!(
        matches!(quota, Err(SharedTrainingsError::Quota)),
        "{quota:?}"
    );
    insert("t-3", "bob", &second).unwrap();
    let full = insert("t-4", "eve", &first);
    assert!(
        matches!(full, Err(SharedTrainingsError::QueueFull)),
        "{full:?}"
    );
    // The corpora of those that were rejected are gone.
    let keys = store.objects.list("trainings").await.unwrap();
    assert_eq!(
        keys,
        ["trainings/t-1/tokens.bin", "trainings/t-3/tokens.bin"]
    );
}
