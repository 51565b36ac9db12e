//! Tests of trainings on a disk that accepts nothing.

use std::io::ErrorKind;

use super::*;
use crate::events::CheckpointFailed;
use crate::history::FullDisk;

fn failed(events: &[Event]) -> Vec<CheckpointFailed> {
    let failed = |event: &Event| match &event.event {
        EventKind::CheckpointFailed(failed) => Some(failed.clone()),
        _ => None,
    };
    events.iter().filter_map(failed).collect()
}

/// Blocks until the training has reported that something cannot be saved.
fn wait_for_failure(job: &Job) -> CheckpointFailed {
    let mut watcher = job.watch(0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let failure = async {
            loop {
                let event = watcher.next().await.unwrap();
                if let EventKind::CheckpointFailed(failed) = &event.event {
                    return failed.clone();
                }
            }
        };
        tokio::time::timeout(PATIENCE, failure).await.unwrap()
    })
}

fn fill_disk(fixture: &Fixture) {
    let errors = [ErrorKind::StorageFull; 1000];
    fixture.models.errors.lock().unwrap().extend(errors);
}

fn free_disk(fixture: &Fixture) {
    fixture.models.errors.lock().unwrap().clear();
}

#[test]
fn a_checkpoint_that_cannot_be_saved_is_reported_and_the_training_continues() {
    let fixture = Fixture::new();
    let jobs = fixture.open_with_checkpoints();
    let (job, hold) = fixture.start_and_hold(&jobs, 5);
    // A folder in the place of a file that cannot be created.
    let obstacle = job.folder().join("checkpoint.new");
    fs::create_dir(&obstacle).unwrap();
    let hold_again = fixture.learners.hold_before_step(8);
    hold.release();
    hold_again.wait_until_reached();
    fs::remove_dir(&obstacle).unwrap();
    hold_again.release();
    assert_eq!(end(&job).state, State::Succeeded);
    let failed = failed(&watch(&job, 0));
    let steps: Vec<u64> = failed.iter().map(|failed| failed.step).collect();
    assert_eq!(steps, [4, 5, 6]);
    assert!(
        failed[0].message.contains("step 4"),
        "{}",
        failed[0].message
    );
    let last = job.history().events().into_iter().rev();
    let saved = last.filter(|event| matches!(event.event, EventKind::Checkpoint(_)));
    assert!(saved.count() > 4, "checkpoints are saved again");
}

#[test]
fn a_training_without_any_checkpoint_says_that_resuming_starts_from_the_beginning() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let (job, hold) = fixture.start_and_hold(&jobs, 5);
    fs::remove_file(job.folder().join("checkpoint.bin")).unwrap();
    let obstacle = job.folder().join("checkpoint.new/x");
    fs::create_dir_all(&obstacle).unwrap();
    jobs.cancel(job.id()).unwrap();
    hold.release();
    let finished = end(&job);
    assert_eq!(finished.state, State::Cancelled);
    assert!(
        finished.message.contains("from the beginning"),
        "{}",
        finished.message
    );
    fs::remove_dir_all(job.folder().join("checkpoint.new")).unwrap();
    jobs.resume(job.id(), &Requester::admin()).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
}

#[test]
fn a_finished_model_waits_for_space_and_is_then_published() {
    let fixture = Fixture::new();
    let jobs = fixture.open_with(|config| config.publish_interval = Duration::from_millis(1));
    let errors = [
        ErrorKind::StorageFull,
        ErrorKind::QuotaExceeded,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::Other,
    ];
    fixture.models.errors.lock().unwrap().extend(errors);
    let job = start(&jobs, &spec()).unwrap();
    let finished = end(&job);
    assert_eq!((finished.state, finished.version), (State::Succeeded, 1));
    assert_eq!(*fixture.models.attempts.lock().unwrap(), 5);
    assert_eq!(fixture.models.published_weights().len(), 1);
    let failed = failed(&watch(&job, 0));
    assert_eq!(failed.len(), 1, "it is reported once");
    assert_eq!(failed[0].step, 12);
    assert!(
        failed[0].message.contains("no space left"),
        "{}",
        failed[0].message
    );
}

#[test]
fn a_finished_model_that_waits_frees_the_previous_checkpoint_first() {
    let fixture = Fixture::new();
    let jobs = fixture.open_with(|config| config.publish_interval = PATIENCE);
    // One error, and no wait before the second attempt: space was freed.
    let error = ErrorKind::StorageFull;
    fixture.models.errors.lock().unwrap().push_back(error);
    let job = start(&jobs, &spec()).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
}

#[test]
fn a_server_that_stops_while_a_model_waits_leaves_a_checkpoint_to_publish_it_from() {
    let whole = Fixture::new();
    end(&start(&whole.open(), &spec()).unwrap());
    for cancel in [false, true] {
        let fixture = Fixture::new();
        fill_disk(&fixture);
        let jobs = fixture.open_with(|config| config.publish_interval = PATIENCE);
        let job = start(&jobs, &spec()).unwrap();
        wait_for_failure(&job);
        assert_eq!(job.summary().state, State::Running);
        let state = if cancel {
            jobs.cancel(job.id()).unwrap();
            State::Cancelled
        } else {
            assert!(jobs.stop(PATIENCE));
            State::Interrupted
        };
        let finished = end(&job);
        assert_eq!(finished.state, state);
        assert!(
            finished.message.ends_with("the training can be resumed"),
            "{}",
            finished.message
        );
        assert!(jobs.stop(PATIENCE));
        free_disk(&fixture);
        let jobs = fixture.open();
        let job = jobs.resume(job.id(), &Requester::admin()).unwrap();
        assert_eq!(end(&job).state, State::Succeeded);
        assert_eq!(
            fixture.models.published_weights(),
            whole.models.published_weights()
        );
        let events = watch(&job, 0);
        let resumed = events
            .iter()
            .position(|event| matches!(event.event, EventKind::Resumed(_)));
        let steps = events[resumed.unwrap()..]
            .iter()
            .filter(|event| matches!(event.event, EventKind::Step(_)));
        assert_eq!(steps.count(), 0, "nothing is computed again");
    }
}

#[test]
fn a_training_is_not_resumed_if_the_disk_does_not_accept_that_it_is() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let (job, hold) = fixture.start_and_hold(&jobs, 5);
    jobs.cancel(job.id()).unwrap();
    hold.release();
    end(&job);
    wait_until_idle(&jobs);
    let full = FullDisk::under(job.history());
    assert!(matches!(
        jobs.resume(job.id(), &Requester::admin()),
        Err(JobsError::Io(_))
    ));
    assert_eq!(job.summary().state, State::Cancelled);
    assert_eq!(jobs.load(), Load::default());
    drop(full);
    jobs.resume(job.id(), &Requester::admin()).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
}
