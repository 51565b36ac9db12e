//! Tests of the list of trainings and of the trainer, over a fake learner.

#![allow(clippy::unwrap_used)]

mod durability;
mod fixture;
mod folders;
mod full_disk;
mod quotas;
mod version_0_1;

use std::path::Path;

use self::fixture::{Fixture, PATIENCE, end, epochs, rolled_back, wait_until_idle, watch};
use super::*;
use crate::events::{Event, EventKind, State};
use crate::fake::{CORPUS, Fault, spec, start};
use crate::models::InitialModel;
use charlstm_model::corpus::CorpusError;
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::RepositoryError;

#[test]
fn a_training_tells_its_course_and_publishes_a_model() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let job = start(&jobs, &spec()).unwrap();
    let events = watch(&job, 0);
    assert!(matches!(&events[0].event, EventKind::Accepted(accepted)
        if accepted.total_steps == 12 && accepted.corpus_chars == 13));
    assert_eq!(epochs(&events), [1, 2, 3, 4]);
    let steps: Vec<u64> = events
        .iter()
        .filter_map(|event| match &event.event {
            EventKind::Step(step) => Some(step.step),
            _ => None,
        })
        .collect();
    assert_eq!((steps[0], *steps.last().unwrap()), (1, 12));
    let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (0..events.len() as u64).collect::<Vec<_>>());
    let EventKind::Epoch(first) = &events
        .iter()
        .find(|event| matches!(event.event, EventKind::Epoch(_)))
        .unwrap()
        .event
    else {
        unreachable!()
    };
    assert_eq!(first.sample, "axxx");
    assert!((first.bits_per_char - first.train_loss / std::f64::consts::LN_2).abs() < 1e-12);
    let finished = end(&job);
    assert_eq!((finished.state, finished.version), (State::Succeeded, 1));
    let (name, model) = fixture.models.published.lock().unwrap()[0].clone();
    assert_eq!((name.as_str(), model.metadata.steps), ("m", 12));
    assert_eq!(model.metadata.corpus_sha256.len(), 64);
    assert!(jobs.stop(PATIENCE));
}

#[test]
fn a_watcher_from_any_event_gets_the_rest_once() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let job = start(&jobs, &spec()).unwrap();
    let all = watch(&job, 0);
    for from in 0..=all.len() {
        assert_eq!(watch(&job, from as u64), all[from..]);
    }
}

#[test]
fn the_best_epoch_by_validation_loss_is_published() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let mut spec = spec();
    spec.validation_fraction = Some(0.2);
    spec.batch_size = Some(1);
    let job = start(&jobs, &spec).unwrap();
    let finished = end(&job);
    assert_eq!(finished.validation_loss, Some(3.0));
    assert_eq!(finished.best_epoch, Some(2));
    let best: Vec<bool> = watch(&job, 0)
        .iter()
        .filter_map(|event| match &event.event {
            EventKind::Epoch(epoch) => Some(epoch.best),
            _ => None,
        })
        .collect();
    assert_eq!(best, [true, true, false, false]);
    let published = fixture.models.published.lock().unwrap();
    assert_eq!(published[0].1.metadata.epochs, 2);
}

#[test]
fn cancelling_saves_a_checkpoint_from_which_it_resumes_bit_for_bit() {
    let whole = Fixture::new();
    end(&start(&whole.open(), &spec()).unwrap());

    let fixture = Fixture::new();
    let jobs = fixture.open();
    let hold = fixture.learners.hold_before_step(5);
    let job = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    jobs.cancel(job.id()).unwrap();
    hold.release();
    assert_eq!(end(&job).state, State::Cancelled);
    assert_eq!(job.checkpoints().load().unwrap().learner.step, 5);

    jobs.resume(job.id(), &Requester::admin()).unwrap();
    let events = watch(&job, 0);
    assert_eq!(end(&job).state, State::Succeeded);
    assert_eq!(epochs(&events), [1, 2, 3, 4]);
    assert_eq!(
        fixture.models.published_weights(),
        whole.models.published_weights()
    );
    assert!(matches!(
        jobs.resume(job.id(), &Requester::admin()),
        Err(JobsError::NotResumable {
            state: "has succeeded",
            ..
        })
    ));
}

#[test]
fn a_killed_server_leaves_an_interrupted_training_that_resumes_bit_for_bit() {
    let whole = Fixture::new();
    end(&start(&whole.open(), &spec()).unwrap());
    for interval in [Duration::ZERO, Duration::MAX] {
        let with_interval = |config: &mut JobsConfig| config.checkpoint_interval = interval;
        for kill_before_step in 1..=12 {
            let fixture = Fixture::new();
            let jobs = fixture.open_with(with_interval);
            let (job, hold) = fixture.start_and_hold(&jobs, kill_before_step);
            let after = fixture.killed();
            drop(hold);

            let jobs = after.open_with(with_interval);
            let job = jobs.get(job.id()).unwrap();
            assert_eq!(job.summary().state, State::Interrupted);
            let reported = epochs(&watch(&job, 0));
            assert_eq!(reported.len() as u64, (kill_before_step - 1) / 3);
            jobs.resume_interrupted();
            assert_eq!(end(&job).state, State::Succeeded);
            assert_eq!(epochs(&watch(&job, 0)), [1, 2, 3, 4]);
            assert_eq!(
                after.models.published_weights(),
                whole.models.published_weights()
            );
        }
    }
}

#[test]
fn stopping_interrupts_what_runs_and_what_waits() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let hold = fixture.learners.hold_before_step(5);
    let running = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    let waiting = start(&jobs, &spec()).unwrap();
    assert_eq!(
        jobs.load(),
        Load {
            running: 1,
            queued: 1
        }
    );
    assert!(!jobs.stop(Duration::ZERO), "it is still within its step");
    hold.release();
    assert!(jobs.stop(PATIENCE));
    assert_eq!(end(&running).state, State::Interrupted);
    assert_eq!(end(&waiting).state, State::Interrupted);
    assert!(matches!(start(&jobs, &spec()), Err(JobsError::Stopping)));

    let jobs = fixture.open();
    jobs.resume_interrupted();
    for job in jobs.list() {
        assert_eq!(end(&job).state, State::Succeeded);
    }
}

#[test]
fn trainings_wait_in_order_and_the_queue_is_bounded() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let hold = fixture.learners.hold_before_step(1);
    let first = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    let second = start(&jobs, &spec()).unwrap();
    let third = start(&jobs, &spec()).unwrap();
    assert_eq!(second.summary().state, State::Queued);
    assert!(matches!(
        start(&jobs, &spec()),
        Err(JobsError::QueueFull { limit: 2 })
    ));
    jobs.cancel(second.id()).unwrap();
    assert_eq!(end(&second).state, State::Cancelled);
    hold.release();
    assert_eq!(end(&first).version, 1);
    assert_eq!(end(&third).version, 2);
    // It never had its turn, so it starts from the beginning.
    jobs.resume(second.id(), &Requester::admin()).unwrap();
    assert_eq!(end(&second).version, 3);
    let listed: Vec<String> = jobs.list().iter().map(|job| job.id().to_owned()).collect();
    assert_eq!(listed.len(), 3);
}

#[test]
fn a_training_is_deleted_once_it_has_ended_and_is_gone_after_a_restart() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let (running, hold) = fixture.start_and_hold(&jobs, 2);
    let waiting = start(&jobs, &spec()).unwrap();
    for (job, state) in [(&running, "is running"), (&waiting, "is waiting")] {
        let error = jobs.delete(job.id()).err().unwrap();
        assert!(error.to_string().contains(state), "{error}");
    }
    jobs.cancel(running.id()).unwrap();
    hold.release();
    end(&running);
    end(&waiting);
    for job in [&running, &waiting] {
        assert_eq!(jobs.delete(job.id()).unwrap().id(), job.id());
        assert!(!job.folder().exists());
        let again = jobs.delete(job.id());
        assert!(matches!(again, Err(JobsError::NotFound { .. })));
    }
    assert!(jobs.list().is_empty());
    assert!(jobs.stop(PATIENCE));
    // A server that is killed while it deletes leaves a folder like this one.
    let folder = fixture.folder.path().join("trainings");
    fs::create_dir(folder.join(".removed-t-1")).unwrap();
    assert!(fixture.open().list().is_empty());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(fixture.models.published.lock().unwrap().len(), 1);
}

#[test]
fn a_panic_or_a_failing_device_fails_one_training_and_not_the_next() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    for fault in [Fault::Panics, Fault::Fails] {
        fixture.learners.faults.lock().unwrap().push((4, fault));
        let job = start(&jobs, &spec()).unwrap();
        let finished = end(&job);
        assert_eq!(finished.state, State::Failed);
        assert!(!finished.message.is_empty());
        jobs.resume(job.id(), &Requester::admin()).unwrap();
        assert_eq!(end(&job).state, State::Succeeded);
    }
    let published = fixture.models.published_weights();
    assert_eq!(published[0], published[1]);
}

#[test]
fn a_training_that_diverges_is_rolled_back_to_a_checkpoint_with_half_the_learning_rate() {
    let fixture = Fixture::new();
    let jobs = fixture.open_with_checkpoints();
    for fault in [Fault::LossIsNan, Fault::LossExplodes] {
        fixture.fault(5, fault);
        let job = start(&jobs, &spec()).unwrap();
        assert_eq!(end(&job).state, State::Succeeded);
        let rates: Vec<f64> = watch(&job, 0)
            .iter()
            .filter_map(|event| match &event.event {
                EventKind::Step(step) => Some(step.learning_rate),
                _ => None,
            })
            .collect();
        assert_eq!((rates[0], *rates.last().unwrap()), (0.001, 0.0005));
        let reported = rolled_back(&watch(&job, 0));
        assert_eq!(reported.len(), 1);
        let back = &reported[0];
        // No step has shown that the weights after step 4 are sound.
        assert_eq!((back.step, back.checkpoint_step, back.attempt), (5, 3, 1));
        assert_eq!(back.learning_rate, 0.0005);
        assert_eq!(back.loss.is_nan(), fault == Fault::LossIsNan);
        assert!(back.message.contains("loss"), "{}", back.message);
        // It is in the stored history, with its loss that JSON cannot express.
        let stored = fs::read_to_string(job.folder().join("events.jsonl")).unwrap();
        assert_eq!(stored.matches("rolled_back").count(), 1);
    }

    for _ in 0..4 {
        fixture.fault(5, Fault::LossIsNan);
    }
    let finished = end(&start(&jobs, &spec()).unwrap());
    assert_eq!(finished.state, State::Failed);
    assert!(
        finished.message.contains("diverged at step 5"),
        "{}",
        finished.message
    );
}

#[test]
fn a_training_starts_from_a_model_that_has_the_characters_of_its_corpus() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let vocabulary = Vocabulary::of("abcdef".chars());
    let architecture = charlstm_model::architecture::Architecture {
        vocabulary_size: 6,
        hidden_size: 3,
        num_layers: 2,
    };
    let mut parameters = Parameters::zeros(architecture);
    parameters.values[0] = 100.0;
    let model = InitialModel {
        vocabulary: vocabulary.clone(),
        parameters,
    };
    for reference in ["base", "base@1"] {
        fixture
            .models
            .stored
            .lock()
            .unwrap()
            .insert(reference.to_owned(), ("base@1".to_owned(), model.clone()));
    }
    let mut spec = spec();
    (spec.hidden_size, spec.num_layers) = (None, None);
    spec.init_from = Some("base".to_owned());
    let job = start(&jobs, &spec).unwrap();
    assert_eq!(job.metadata().spec.init_from.as_deref(), Some("base@1"));
    assert_eq!(end(&job).state, State::Succeeded);
    let published = fixture.models.published.lock().unwrap()[0].1.clone();
    assert_eq!(published.vocabulary, vocabulary);
    assert!(published.parameters.values[0] > 99.0);

    let mut upload = jobs.begin(&spec, Requester::admin()).unwrap();
    upload.push("abcé".repeat(4).as_bytes()).unwrap();
    let error = jobs.start(upload).err().unwrap().to_string();
    assert!(
        error.contains("base@1")
            && error.contains("(U+00E9) at position 3")
            && error.contains("extend_vocabulary"),
        "{error}"
    );
    spec.extend_vocabulary = Some(true);
    let mut upload = jobs.begin(&spec, Requester::admin()).unwrap();
    upload.push("abcé".repeat(4).as_bytes()).unwrap();
    let job = jobs.start(upload).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
    let published = fixture.models.published.lock().unwrap()[1].1.clone();
    assert_eq!(published.vocabulary, Vocabulary::of("abcdefé".chars()));
    assert!(published.parameters.values[0] > 99.0);
    spec.init_from = None;
    let error = jobs
        .begin(&spec, Requester::admin())
        .err()
        .unwrap()
        .to_string();
    assert!(error.starts_with("extend_vocabulary: requires"), "{error}");
    spec.init_from = Some("nothing".to_owned());
    assert!(matches!(
        jobs.begin(&spec, Requester::admin()),
        Err(JobsError::Model(RepositoryError::NotFound { .. }))
    ));
}

#[test]
fn a_rejected_training_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let mut long = spec();
    long.batch_size = Some(100);
    let error = start(&jobs, &long).err().unwrap();
    assert!(error.to_string().contains("at least 200"), "{error}");
    let mut prime = spec();
    prime.sample_prime = Some("ax".to_owned());
    let error = start(&jobs, &prime).err().unwrap();
    assert!(
        error.to_string().starts_with("sample_prime: character 'x'"),
        "{error}"
    );
    let upload = jobs.begin(&spec(), Requester::admin()).unwrap();
    assert!(matches!(
        jobs.start(upload),
        Err(JobsError::Corpus(CorpusError::Empty))
    ));
    assert_eq!(
        fs::read_dir(fixture.folder.path().join("trainings"))
            .unwrap()
            .count(),
        0
    );
    assert!(matches!(jobs.get("t-0"), Err(JobsError::NotFound { .. })));
}

#[test]
fn the_state_of_the_fake_learner_is_what_is_saved() {
    // Guards the tests above: a fake without state would prove nothing.
    let fixture = Fixture::new();
    let jobs = fixture.open_with_checkpoints();
    let (job, hold) = fixture.start_and_hold(&jobs, 11);
    jobs.cancel(job.id()).unwrap();
    hold.release();
    end(&job);
    let checkpoints = job.checkpoints();
    let saved = checkpoints.load().unwrap().learner;
    let before = checkpoints.load_previous().unwrap().learner;
    assert_eq!((before.step, saved.step), (10, 11));
    assert_eq!(saved.hidden, [11.0, 11.0]);
    assert_ne!(saved.parameters, before.parameters);
}
