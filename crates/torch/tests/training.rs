//! Trainings with the real learner: interruption and divergence.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use charlstm_model::device::{Device, GpuMath};
use charlstm_model::kernels::FloatKernels;
use charlstm_torch::learner::TorchLearnerFactory;
use charlstm_training::events::{EventKind, State};
use charlstm_training::fake::FakeModels;
use charlstm_training::job::Job;
use charlstm_training::jobs::{Jobs, JobsConfig, Requester};
use charlstm_training::sample;
use charlstm_training::spec::TrainingSpec;

const PATIENCE: Duration = Duration::from_secs(120);

fn open(folder: &Path, models: &Arc<FakeModels>) -> Jobs {
    open_with_sampler(folder, models, Box::new(sample::write))
}

fn open_with_sampler(
    folder: &Path,
    models: &Arc<FakeModels>,
    sampler: Box<sample::SampleWriter>,
) -> Jobs {
    let learners = TorchLearnerFactory {
        device: Device::Cpu,
        threads: 2,
        kernels: FloatKernels::best(),
        gpu_math: GpuMath::default(),
    };
    let mut config = JobsConfig::new(folder.to_owned());
    // A checkpoint after every step.
    config.checkpoint_interval = Duration::ZERO;
    let models = Arc::clone(models) as Arc<dyn charlstm_training::models::Models>;
    Jobs::open(config, Arc::new(learners), models, sampler).unwrap()
}

fn start(jobs: &Jobs) -> Arc<Job> {
    start_with(jobs, |_| {})
}

fn start_with(jobs: &Jobs, change: impl FnOnce(&mut TrainingSpec)) -> Arc<Job> {
    let mut spec = TrainingSpec {
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
    change(&mut spec);
    let mut upload = jobs.begin(&spec, Requester::admin()).unwrap();
    let text = "the quick brown fox jumps over the lazy dog. ".repeat(10);
    upload.push(text.as_bytes()).unwrap();
    jobs.start(upload).unwrap()
}

/// Waits until a training ends; returns its state.
async fn end_of(job: &Job) -> State {
    let mut watcher = job.watch(0);
    let end = async { while watcher.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.unwrap();
    job.summary().state
}

#[tokio::test]
async fn an_interrupted_and_resumed_training_gives_the_weights_of_an_uninterrupted_one() {
    let (folder, models) = (tempfile::tempdir().unwrap(), Arc::default());
    let jobs = open(folder.path(), &models);
    let uninterrupted = start(&jobs);
    assert_eq!(end_of(&uninterrupted).await, State::Succeeded);

    assert!(jobs.stop(PATIENCE));
    // This training waits at the sample of its first epoch until the server
    // stops.
    let (reached, is_reached) = std::sync::mpsc::channel();
    let (release, is_released) = std::sync::mpsc::channel::<()>();
    let is_released = std::sync::Mutex::new(is_released);
    let waiting = move |request: &sample::SampleRequest<'_>| {
        let _ = reached.send(());
        // Returns immediately once the other end is dropped.
        let _ = is_released.lock().unwrap().recv();
        sample::write(request)
    };
    let jobs = open_with_sampler(folder.path(), &models, Box::new(waiting));
    let interrupted = start(&jobs);
    is_reached.recv_timeout(PATIENCE).unwrap();
    assert!(!jobs.stop(Duration::ZERO));
    drop(release);
    assert!(jobs.stop(PATIENCE));
    let jobs = open(folder.path(), &models);
    let interrupted = jobs.get(interrupted.id()).unwrap();
    assert_eq!(interrupted.summary().state, State::Interrupted);
    jobs.resume(interrupted.id(), &Requester::admin()).unwrap();
    assert_eq!(end_of(&interrupted).await, State::Succeeded);

    let published = models.published.lock().unwrap();
    assert_eq!(published.len(), 2);
    assert_eq!(published[0].1.parameters, published[1].1.parameters);
    let losses = |job: &Job| {
        let events = job.history().events();
        let losses = |event: &EventKind| match event {
            EventKind::Epoch(epoch) => Some((epoch.train_loss, epoch.validation_loss)),
            _ => None,
        };
        let reported: Vec<_> = events.iter().filter_map(|e| losses(&e.event)).collect();
        reported
    };
    assert_eq!(losses(&uninterrupted), losses(&interrupted));
    assert_eq!(samples(&uninterrupted), samples(&interrupted));
    assert!(
        samples(&uninterrupted)
            .iter()
            .all(|text| text.chars().count() == 21)
    );
    jobs.stop(PATIENCE);
}

#[tokio::test]
async fn a_learning_rate_that_diverges_is_halved_until_the_training_fails() {
    let (folder, models) = (tempfile::tempdir().unwrap(), Arc::default());
    let jobs = open(folder.path(), &models);
    let job = start_with(&jobs, |spec| {
        spec.recipe = Some("notebook".to_owned());
        spec.hidden_size = Some(256);
        (spec.learning_rate, spec.clip_norm) = (Some(1.0), Some(1e6));
        // Dropout would add noise to the losses before the divergence.
        spec.dropout = Some(0.0);
    });
    assert_eq!(end_of(&job).await, State::Failed);
    let events = job.history().events();
    let rates: Vec<f64> = events
        .iter()
        .filter_map(|event| match &event.event {
            EventKind::RolledBack(rollback) => Some(rollback.learning_rate),
            _ => None,
        })
        .collect();
    assert_eq!(rates, [0.5, 0.25, 0.125]);
    assert!(models.published.lock().unwrap().is_empty());
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
