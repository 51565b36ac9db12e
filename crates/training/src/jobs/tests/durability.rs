//! Tests of what survives crashes, damage, cancellations and divergence.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::events::{Resumed, RolledBack};
use crate::job::StopRequest;
use crate::memory::Memory;
use crate::spec::TrainingSpec;

fn resumed(events: &[Event]) -> Vec<Resumed> {
    let resumed = |event: &Event| match &event.event {
        EventKind::Resumed(resumed) => Some(resumed.clone()),
        _ => None,
    };
    events.iter().filter_map(resumed).collect()
}

/// Reads the files of a fixture with another server, after the first has
/// stopped.
fn reopen(fixture: &Fixture, jobs: &Jobs) -> Jobs {
    assert!(jobs.stop(PATIENCE));
    fixture.open()
}

#[test]
fn a_training_that_was_cancelled_resumed_and_killed_is_interrupted() {
    for (kill_before_step, checkpoints) in [(6, false), (6, true), (8, true)] {
        let fixture = Fixture::new();
        let jobs = if checkpoints {
            fixture.open_with_checkpoints()
        } else {
            fixture.open()
        };
        let (job, hold) = fixture.start_and_hold(&jobs, 5);
        jobs.cancel(job.id()).unwrap();
        hold.release();
        assert_eq!(end(&job).state, State::Cancelled);
        let hold = fixture.learners.hold_before_step(kill_before_step);
        jobs.resume(job.id(), &Requester::admin()).unwrap();
        hold.wait_until_reached();
        let after = fixture.killed();
        drop(hold);
        assert_eq!(end(&job).state, State::Succeeded);

        let jobs = after.open();
        let again = jobs.get(job.id()).unwrap();
        let summary = again.summary();
        assert_eq!((summary.state, summary.run), (State::Interrupted, 2));
        jobs.resume_interrupted();
        assert_eq!(end(&again).state, State::Succeeded);
        assert_eq!(
            after.models.published_weights(),
            fixture.models.published_weights()
        );
        let resumed = resumed(&watch(&again, 0));
        let runs: Vec<u32> = resumed.iter().map(|resumed| resumed.run).collect();
        assert_eq!(runs, [2, 3]);
        assert_eq!((resumed[0].step, resumed[0].device.as_str()), (5, "cpu"));
    }
}

#[test]
fn the_end_of_an_old_stream_does_not_cancel_a_later_run() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let (job, hold) = fixture.start_and_hold(&jobs, 2);
    let run = job.summary().run;
    jobs.cancel(job.id()).unwrap();
    hold.release();
    end(&job);
    let hold = fixture.learners.hold_before_step(5);
    jobs.resume(job.id(), &Requester::admin()).unwrap();
    hold.wait_until_reached();
    jobs.cancel_run(job.id(), run).unwrap();
    assert_eq!(job.stop_request(), StopRequest::Nothing);
    jobs.cancel_run(job.id(), run + 1).unwrap();
    assert_eq!(job.stop_request(), StopRequest::Cancel);
    hold.release();
    assert_eq!(end(&job).state, State::Cancelled);
}

#[test]
fn a_training_that_is_being_resumed_is_neither_deleted_nor_resumed_again() {
    let fixture = Fixture::new();
    let jobs = fixture.open_with(|config| config.keep_ended = 0);
    let hold = fixture.learners.hold_before_step(2);
    let running = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    let waiting = start(&jobs, &spec()).unwrap();
    // Kept by the interruption below, which a limit does not delete.
    assert!(!jobs.stop(Duration::ZERO));
    hold.release();
    assert!(jobs.stop(PATIENCE));
    assert_eq!(end(&running).state, State::Interrupted);

    let jobs = fixture.open_with(|config| config.keep_ended = 0);
    let id = waiting.id();
    let job = jobs.shared.reserve_resume(id, &Requester::admin()).unwrap();
    assert!(matches!(
        jobs.resume(id, &Requester::admin()),
        Err(JobsError::NotResumable { .. })
    ));
    assert_eq!(jobs.load().queued, 1);
    jobs.cancel_run(id, 1).unwrap();
    assert_eq!(job.stop_request(), StopRequest::Nothing);
    jobs.cancel(id).unwrap();
    let reported = jobs.shared.report_resume(&job);
    jobs.shared.delete_old();
    jobs.shared.complete_resume(&job, reported).unwrap();
    assert_eq!(end(&job).state, State::Cancelled);
    assert!(job.folder().exists());
    jobs.shared.delete_old();
    assert!(matches!(jobs.get(id), Err(JobsError::NotFound { .. })));
    assert!(matches!(
        jobs.resume(id, &Requester::admin()),
        Err(JobsError::NotFound { .. })
    ));
}

#[test]
fn weights_that_have_diverged_are_never_saved_or_published() {
    let whole = Fixture::new();
    end(&start(&whole.open(), &spec()).unwrap());
    for fault in [Fault::WeightsBecomeNan, Fault::WeightsExplode] {
        // Within an epoch, at the end of an epoch, and at the last step.
        for step in [5, 6, 12] {
            let fixture = Fixture::new();
            let jobs = fixture.open_with_checkpoints();
            fixture.fault(step, fault);
            let job = start(&jobs, &spec()).unwrap();
            assert_eq!(end(&job).state, State::Succeeded);
            let rolled_back = rolled_back(&watch(&job, 0));
            assert_eq!(rolled_back.len(), 1, "{fault:?} {step}");
            assert_eq!(rolled_back[0].checkpoint_step, step - 1);
            let sound = |weight: &f32| weight.abs() < 1e3;
            assert!(fixture.models.published_weights()[0].iter().all(sound));
        }
    }
}

#[test]
fn weights_that_have_diverged_are_not_saved_when_the_training_stops() {
    let whole = Fixture::new();
    end(&start(&whole.open(), &spec()).unwrap());
    for fault in [Fault::WeightsBecomeNan, Fault::WeightsExplode] {
        let fixture = Fixture::new();
        let jobs = fixture.open_with_checkpoints();
        fixture.fault(5, fault);
        let (job, hold) = fixture.start_and_hold(&jobs, 5);
        jobs.cancel(job.id()).unwrap();
        hold.release();
        assert_eq!(end(&job).state, State::Cancelled);
        jobs.resume(job.id(), &Requester::admin()).unwrap();
        assert_eq!(end(&job).state, State::Succeeded);
        if fault == Fault::WeightsExplode {
            // Not even a rollback was needed.
            assert_eq!(
                fixture.models.published_weights(),
                whole.models.published_weights()
            );
        }
    }
}

#[test]
fn a_training_that_diverges_twice_from_a_checkpoint_is_rolled_back_to_the_one_before() {
    let fixture = Fixture::new();
    let jobs = fixture.open_with_checkpoints();
    fixture.fault(5, Fault::LossIsNan);
    fixture.fault(5, Fault::LossIsNan);
    let job = start(&jobs, &spec()).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
    let rolled_back = rolled_back(&watch(&job, 0));
    let steps: Vec<u64> = rolled_back
        .iter()
        .map(|back| back.checkpoint_step)
        .collect();
    assert_eq!(steps, [3, 2]);
    assert_eq!(rolled_back[1].learning_rate, 0.00025);
}

/// Trains with these losses and a checkpoint after each step; returns the rollbacks of
/// the training, which succeeds.
fn train_with(losses: fn(u64, f64) -> f64) -> Vec<RolledBack> {
    let fixture = Fixture::new();
    *fixture.learners.losses.lock().unwrap() = Some(losses);
    let long = TrainingSpec {
        epochs: Some(60),
        ..spec()
    };
    let job = start(&fixture.open_with_checkpoints(), &long).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
    rolled_back(&watch(&job, 0))
}

#[test]
fn a_training_whose_network_collapses_is_rolled_back() {
    let rolled_back = train_with(|step, learning_rate| match learning_rate {
        0.001 if step > 100 => 5.0,
        _ => 0.1,
    });
    assert_eq!(rolled_back.len(), 1);
    assert!(rolled_back[0].message.contains("frequencies"));
    assert!((100..200).contains(&rolled_back[0].step), "{rolled_back:?}");
    // The loss of step 101 shows that the weights after step 100 have collapsed.
    assert_eq!(rolled_back[0].checkpoint_step, 99);
}

#[test]
fn a_training_whose_network_collapses_in_any_case_succeeds() {
    let rolled_back = train_with(|step, _| if step > 100 { 5.0 } else { 0.1 });
    assert_eq!(rolled_back.len(), 3);
}

#[test]
fn a_rollback_is_the_same_after_a_kill() {
    for faults in 1..=2 {
        let fixture = Fixture::new();
        let jobs = fixture.open_with_checkpoints();
        for _ in 0..faults {
            fixture.fault(5, Fault::LossExplodes);
        }
        // It is reached after the rollbacks only.
        let (job, hold) = fixture.start_and_hold(&jobs, 6);
        let after = fixture.killed();
        drop(hold);
        end(&job);
        let jobs = after.open_with_checkpoints();
        jobs.resume_interrupted();
        let again = jobs.get(job.id()).unwrap();
        assert_eq!(end(&again).state, State::Succeeded);
        assert_eq!(
            after.models.published_weights(),
            fixture.models.published_weights()
        );
    }
}

#[test]
fn a_divergence_before_the_first_checkpoint_starts_from_the_beginning() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    fixture.fault(5, Fault::LossIsNan);
    let (job, hold) = fixture.start_and_hold(&jobs, 5);
    fs::remove_file(job.folder().join("checkpoint.bin")).unwrap();
    hold.release();
    assert_eq!(end(&job).state, State::Succeeded);
    assert_eq!(rolled_back(&watch(&job, 0))[0].checkpoint_step, 0);
}

#[test]
fn short_epochs_do_not_each_save_a_checkpoint() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let job = start(&jobs, &spec()).unwrap();
    end(&job);
    let saved: Vec<u64> = watch(&job, 0)
        .iter()
        .filter_map(|event| match &event.event {
            EventKind::Checkpoint(saved) => Some(saved.step),
            _ => None,
        })
        .collect();
    assert_eq!(saved, [0, 12], "the first one and that of the last epoch");
}

#[test]
fn a_damaged_history_does_not_turn_a_succeeded_training_into_an_interrupted_one() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let job = start(&jobs, &spec()).unwrap();
    let finished = end(&job);
    assert_eq!(finished.state, State::Succeeded);
    let jobs = reopen(&fixture, &jobs);
    assert!(jobs.stop(PATIENCE));
    let events = job.folder().join("events.jsonl");
    let outcome = job.folder().join("outcome.json");
    let sound = fs::read(&events).unwrap();
    let sound_outcome = fs::read(&outcome).unwrap();
    let check = |length: usize| {
        fs::write(&events, &sound[..length]).unwrap();
        for _ in 0..2 {
            let jobs = fixture.open();
            let job = jobs.get(job.id()).unwrap();
            assert_eq!(end(&job), finished, "{length}");
            assert!(jobs.stop(PATIENCE));
        }
    };
    for length in [sound.len() - 1, sound.len() - 2, sound.len() / 2, 1, 0] {
        check(length);
        // The model knows its training, too.
        fs::remove_file(&outcome).unwrap();
        check(length);
        fs::write(&outcome, &sound_outcome).unwrap();
    }

    // Without any of them, nothing is promised that does not work.
    fixture.models.published.lock().unwrap().clear();
    fs::write(&outcome, b"{}").unwrap();
    fs::write(&events, &sound[..sound.len() / 2]).unwrap();
    let jobs = fixture.open();
    let job = jobs.get(job.id()).unwrap();
    let finished = end(&job);
    assert_eq!(finished.state, State::Failed);
    assert!(
        finished.message.contains("cannot be resumed"),
        "{}",
        finished.message
    );
    assert!(matches!(
        jobs.resume(job.id(), &Requester::admin()),
        Err(JobsError::NoCorpus { .. })
    ));
}

#[test]
fn the_outcome_of_an_earlier_run_is_not_that_of_a_later_one() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let (job, hold) = fixture.start_and_hold(&jobs, 2);
    jobs.cancel(job.id()).unwrap();
    hold.release();
    end(&job);
    wait_until_idle(&jobs);
    let outcome = job.folder().join("outcome.json");
    let earlier = fs::read(&outcome).unwrap();
    let hold = fixture.learners.hold_before_step(5);
    jobs.resume(job.id(), &Requester::admin()).unwrap();
    hold.wait_until_reached();
    assert!(!outcome.exists());
    // As if its removal had not become durable.
    fs::write(&outcome, earlier).unwrap();
    let after = fixture.killed();
    drop(hold);
    let again = after.open().get(job.id()).unwrap();
    assert_eq!(again.summary().state, State::Interrupted);
}

#[test]
fn a_training_whose_checkpoints_are_gone_resumes_from_the_beginning() {
    let whole = Fixture::new();
    end(&start(&whole.open(), &spec()).unwrap());
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let (job, hold) = fixture.start_and_hold(&jobs, 8);
    jobs.cancel(job.id()).unwrap();
    hold.release();
    end(&job);
    job.checkpoints().delete().unwrap();
    let jobs = reopen(&fixture, &jobs);
    let job = jobs.resume(job.id(), &Requester::admin()).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
    let events = watch(&job, 0);
    assert_eq!(resumed(&events)[0].step, 0);
    assert_eq!(epochs(&events), [1, 2, 3, 4], "each is reported once");
    assert_eq!(
        fixture.models.published_weights(),
        whole.models.published_weights()
    );
}

#[test]
fn a_corpus_that_is_cut_short_in_use_fails_its_training_only() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let (job, hold) = fixture.start_and_hold(&jobs, 5);
    let tokens = fs::OpenOptions::new()
        .write(true)
        .open(job.folder().join("tokens.bin"))
        .unwrap();
    tokens.set_len(1).unwrap();
    hold.release();
    let finished = end(&job);
    assert_eq!(finished.state, State::Failed);
    assert!(
        finished.message.contains("truncated"),
        "{}",
        finished.message
    );
    assert!(matches!(
        jobs.resume(job.id(), &Requester::admin()),
        Err(JobsError::NoCorpus { .. })
    ));
    assert_eq!(end(&start(&jobs, &spec()).unwrap()).state, State::Succeeded);
}

#[test]
fn memory_is_checked_when_the_turn_of_a_training_comes() {
    static AVAILABLE: AtomicU64 = AtomicU64::new(u64::MAX);
    let fixture = Fixture::new();
    let jobs = fixture.open_with(|config| {
        config.memory = || Memory {
            total_bytes: Some(1 << 30),
            available_bytes: Some(AVAILABLE.load(Ordering::SeqCst)),
        };
    });
    let (running, hold) = fixture.start_and_hold(&jobs, 2);
    // What is free while another training runs says nothing about later.
    AVAILABLE.store(0, Ordering::SeqCst);
    let waiting = start(&jobs, &spec()).unwrap();
    hold.release();
    assert_eq!(end(&running).state, State::Succeeded);
    let finished = end(&waiting);
    assert_eq!(finished.state, State::Failed);
    assert!(
        finished.message.contains("MiB of memory"),
        "{}",
        finished.message
    );
    // One that would start now is rejected now.
    wait_until_idle(&jobs);
    let rejected = start(&jobs, &spec()).err().unwrap();
    assert!(matches!(rejected, JobsError::OutOfMemory(_)), "{rejected}");
    AVAILABLE.store(u64::MAX, Ordering::SeqCst);
    jobs.resume(waiting.id(), &Requester::admin()).unwrap();
    assert_eq!(end(&waiting).state, State::Succeeded);

    let mut large = spec();
    (large.hidden_size, large.num_layers) = (Some(4096), Some(8));
    let error = start(&jobs, &large).err().unwrap();
    assert!(error.to_string().contains("are installed"), "{error}");
}
