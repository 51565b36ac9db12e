//! Trainings with the real learner: what an interruption must not change.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::model::device::Device;
use crate::training::checkpoint;
use crate::training::events::{EventKind, State};
use crate::training::fake::FakeModels;
use crate::training::job::Job;
use crate::training::jobs::{Jobs, JobsConfig};
use crate::training::sample;
use crate::training::spec::TrainingSpec;

const PATIENCE: Duration = Duration::from_secs(120);

fn open(folder: &Path, models: &Arc<FakeModels>) -> Jobs {
    let learners = Place {
        device: Device::Cpu,
        threads: 2,
    };
    let mut config = JobsConfig::new(folder.to_owned());
    // A checkpoint after every step.
    config.checkpoint_interval = Duration::ZERO;
    let models = Arc::clone(models) as Arc<dyn crate::training::learn::Models>;
    Jobs::open(config, Arc::new(learners), models, Box::new(sample::write)).unwrap()
}

fn start(jobs: &Jobs) -> Arc<Job> {
    let spec = TrainingSpec {
        model: "m".to_owned(),
        hidden_size: Some(16),
        num_layers: Some(2),
        batch_size: Some(4),
        sequence_length: Some(10),
        epochs: Some(3),
        seed: Some(5),
        sample_chars: Some(20),
        validation_fraction: Some(0.1),
        ..TrainingSpec::default()
    };
    let mut upload = jobs.begin(&spec).unwrap();
    let text = "the quick brown fox jumps over the lazy dog. ".repeat(10);
    upload.push(text.as_bytes()).unwrap();
    jobs.start(upload).unwrap()
}

/// Waits for the end, or for an event; returns the state then.
async fn watch(job: &Job, until: impl Fn(&EventKind) -> bool) -> State {
    let mut watcher = job.watch(0);
    let wait = async {
        while let Some(event) = watcher.next().await {
            if until(&event.event) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    job.summary().state
}

#[tokio::test]
async fn an_interrupted_and_resumed_training_gives_the_weights_of_an_uninterrupted_one() {
    let (folder, models) = (tempfile::tempdir().unwrap(), Arc::default());
    let jobs = open(folder.path(), &models);
    let whole = start(&jobs);
    assert_eq!(watch(&whole, |_| false).await, State::Succeeded);

    let cut = start(&jobs);
    let within =
        |event: &EventKind| matches!(event, EventKind::Checkpoint(saved) if saved.step == 5);
    watch(&cut, within).await;
    assert!(jobs.stop(PATIENCE));
    let jobs = open(folder.path(), &models);
    let cut = jobs.get(cut.id()).unwrap();
    if cut.summary().state == State::Interrupted {
        jobs.resume(cut.id()).unwrap();
    }
    assert_eq!(watch(&cut, |_| false).await, State::Succeeded);

    let published = models.published.lock().unwrap();
    assert_eq!(published.len(), 2);
    assert_eq!(published[0].1.parameters, published[1].1.parameters);
    let end = |job: &Job| checkpoint::load(job.folder(), job.id()).unwrap().snapshot;
    assert_eq!(end(&whole), end(&cut));
    assert_eq!(samples(&whole), samples(&cut));
    assert!(
        samples(&whole)
            .iter()
            .all(|text| text.chars().count() == 21)
    );
    jobs.stop(PATIENCE);
}

fn samples(job: &Job) -> Vec<String> {
    let events = job.history().events();
    let sample = |event: &EventKind| match event {
        EventKind::Epoch(epoch) => Some(epoch.sample.clone()),
        _ => None,
    };
    events
        .iter()
        .filter_map(|event| sample(&event.event))
        .collect()
}
