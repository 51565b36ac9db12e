//! What trainings leave on disk, and what they make of it.

use super::*;

#[test]
fn a_training_that_succeeded_keeps_its_history_and_none_of_its_large_files() {
    let bench = Bench::new();
    let jobs = bench.open();
    let job = start(&jobs, &spec()).unwrap();
    end(&job);
    assert!(jobs.stop(PATIENCE));
    let mut left: Vec<_> = (fs::read_dir(job.folder()).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["events.jsonl", "job.json"]);
    // A kill came before they were deleted.
    fs::write(job.folder().join("tokens.bin"), b"x").unwrap();
    let again = bench.open().get(job.id()).unwrap();
    assert_eq!(epochs(&watch(&again, 0)), [1, 2, 3, 4]);
    assert!(!job.folder().join("tokens.bin").exists());
}

#[test]
fn the_oldest_trainings_that_ended_are_deleted_beyond_the_limit_and_no_interrupted_one() {
    let bench = Bench::new();
    let jobs = bench.open_with(|config| config.keep_ended = 2);
    let hold = bench.learners.hold_before_step(2);
    let interrupted = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    assert!(!jobs.stop(Duration::ZERO));
    hold.release();
    assert!(jobs.stop(PATIENCE));

    let jobs = bench.open_with(|config| config.keep_ended = 2);
    let mut ended: Vec<Arc<Job>> = (0..3)
        .map(|_| {
            let job = start(&jobs, &spec()).unwrap();
            end(&job);
            job
        })
        .collect();
    // Two may be accepted within one millisecond.
    ended.sort_by_key(|job| (job.facts().created_unix_ms, job.id().to_owned()));
    let waiting = start(&jobs, &spec()).unwrap();
    assert!(jobs.get(ended[0].id()).is_err() && !ended[0].folder().exists());
    for job in [&ended[1], &ended[2], &interrupted, &waiting] {
        assert!(jobs.get(job.id()).is_ok() && job.folder().exists());
    }
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before_and_two_are_an_error() {
    let bench = Bench::new();
    let jobs = bench.open();
    let hold = bench.learners.hold_before_step(8);
    let job = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    jobs.cancel(job.id()).unwrap();
    hold.release();
    end(&job);
    let current = job.folder().join("checkpoint.bin");
    let previous = job.folder().join("checkpoint.previous.bin");
    let (sound, before) = (fs::read(&current).unwrap(), fs::read(&previous).unwrap());
    fs::write(&current, &sound[..sound.len() - 1]).unwrap();
    fs::write(&previous, b"").unwrap();
    let error = jobs.resume(job.id()).err().unwrap();
    assert!(matches!(error, JobsError::NoCheckpoint { .. }), "{error}");
    fs::write(&previous, before).unwrap();
    jobs.resume(job.id()).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
    assert_eq!(epochs(&watch(&job, 0)), [1, 2, 3, 4]);
}

#[test]
fn a_folder_that_takes_no_checkpoint_does_not_end_the_training() {
    let bench = Bench::new();
    let jobs = bench.open();
    let hold = bench.learners.hold_before_step(2);
    let job = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    // A folder in its place is a file that cannot be made.
    fs::create_dir(job.folder().join("checkpoint.new")).unwrap();
    hold.release();
    assert_eq!(end(&job).state, State::Succeeded);
}

#[test]
fn half_written_and_foreign_folders_do_not_keep_the_server_from_starting() {
    let bench = Bench::new();
    let trainings = bench.folder.path().join("trainings");
    fs::create_dir_all(trainings.join(".new-t-1")).unwrap();
    fs::create_dir_all(trainings.join("t-2")).unwrap();
    fs::write(trainings.join("note.txt"), b"hello").unwrap();
    let jobs = bench.open();
    assert!(jobs.list().is_empty());
    assert!(!trainings.join(".new-t-1").exists());
}

#[test]
fn a_kill_after_the_model_was_published_publishes_no_second_one() {
    let bench = Bench::new();
    let jobs = bench.open();
    let hold = bench.learners.hold_before_step(12);
    let job = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    // A kill leaves this, but the model that comes now is there already.
    let after = Bench {
        models: Arc::clone(&bench.models),
        ..Bench::new()
    };
    copy(bench.folder.path(), after.folder.path());
    hold.release();
    assert_eq!(end(&job).version, 1);

    let jobs = after.open();
    jobs.resume_interrupted();
    let finished = end(&jobs.get(job.id()).unwrap());
    assert_eq!((finished.state, finished.version), (State::Succeeded, 1));
    assert_eq!(bench.published().len(), 1);
}
