//! Tests of the files of trainings.

use super::*;

#[test]
fn a_training_that_succeeded_keeps_its_history_and_none_of_its_large_files() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let job = start(&jobs, &spec()).unwrap();
    end(&job);
    assert!(jobs.stop(PATIENCE));
    let mut left: Vec<_> = (fs::read_dir(job.folder()).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["events.jsonl", "job.json", "outcome.json"]);
    // As after a kill before they were deleted.
    fs::write(job.folder().join("tokens.bin"), b"x").unwrap();
    let again = fixture.open().get(job.id()).unwrap();
    assert_eq!(epochs(&watch(&again, 0)), [1, 2, 3, 4]);
    assert!(!job.folder().join("tokens.bin").exists());
}

#[test]
fn the_oldest_ended_trainings_beyond_the_limit_are_deleted_but_no_interrupted_one() {
    let fixture = Fixture::new();
    let jobs = fixture.open_with(|config| config.keep_ended = 2);
    let hold = fixture.learners.hold_before_step(2);
    let interrupted = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    assert!(!jobs.stop(Duration::ZERO));
    hold.release();
    assert!(jobs.stop(PATIENCE));

    let jobs = fixture.open_with(|config| config.keep_ended = 2);
    let mut ended: Vec<Arc<Job>> = (0..3)
        .map(|_| {
            let job = start(&jobs, &spec()).unwrap();
            end(&job);
            job
        })
        .collect();
    ended.sort_by_key(|job| age_order(job));
    // Once it computes, the training thread has deleted what the last one left.
    let hold = fixture.learners.hold_before_step(2);
    let waiting = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    assert!(jobs.get(ended[0].id()).is_err() && !ended[0].folder().exists());
    for job in [&ended[1], &ended[2], &interrupted, &waiting] {
        assert!(jobs.get(job.id()).is_ok() && job.folder().exists());
    }
    hold.release();
    end(&waiting);
    assert!(jobs.stop(PATIENCE));
    // The limit holds when a training has ended, not only when the next begins.
    assert!(jobs.get(ended[1].id()).is_err());
}

#[test]
fn if_a_checkpoint_is_damaged_the_one_before_is_used_and_two_are_an_error() {
    let fixture = Fixture::new();
    let jobs = fixture.open_with_checkpoints();
    let (job, hold) = fixture.start_and_hold(&jobs, 8);
    jobs.cancel(job.id()).unwrap();
    hold.release();
    end(&job);
    let current = job.folder().join("checkpoint.bin");
    let previous = job.folder().join("checkpoint.previous.bin");
    let (sound, before) = (fs::read(&current).unwrap(), fs::read(&previous).unwrap());
    fs::write(&current, &sound[..sound.len() - 1]).unwrap();
    fs::write(&previous, b"").unwrap();
    let error = jobs.resume(job.id(), &Requester::admin()).err().unwrap();
    assert!(matches!(error, JobsError::NoCheckpoint { .. }), "{error}");
    assert_eq!(job.summary().state, State::Cancelled);
    fs::write(&previous, before).unwrap();
    jobs.resume(job.id(), &Requester::admin()).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
    assert_eq!(epochs(&watch(&job, 0)), [1, 2, 3, 4]);
}

#[test]
fn incomplete_and_foreign_folders_do_not_prevent_the_start() {
    let fixture = Fixture::new();
    let trainings = fixture.folder.path().join("trainings");
    fs::create_dir_all(trainings.join(".new-t-1")).unwrap();
    fs::create_dir_all(trainings.join("t-2")).unwrap();
    fs::write(trainings.join("note.txt"), b"hello").unwrap();
    let jobs = fixture.open();
    assert!(jobs.list().is_empty());
    assert!(!trainings.join(".new-t-1").exists());
}

#[test]
fn a_kill_after_the_model_was_published_publishes_no_second_one() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let (job, hold) = fixture.start_and_hold(&jobs, 12);
    // A kill leaves this, but the model that is published now exists already.
    let after = Fixture {
        models: Arc::clone(&fixture.models),
        ..fixture.killed()
    };
    hold.release();
    let finished = end(&job);
    assert_eq!(finished.version, 1);

    let jobs = after.open();
    let job = jobs.get(job.id()).unwrap();
    assert_eq!(end(&job), finished);
    jobs.resume_interrupted();
    assert_eq!(end(&job), finished);
    assert_eq!(fixture.models.published_weights().len(), 1);
}
