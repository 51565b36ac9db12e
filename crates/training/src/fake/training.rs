//! A small training.

use std::sync::Arc;

use crate::job::Job;
use crate::jobs::{Jobs, JobsError, Requester};
use crate::sample::SampleWriter;
use crate::spec::TrainingSpec;

/// The corpus of the training.
pub const CORPUS: &[u8] = b"abcabcabcabca";

/// A specification with three steps an epoch and four epochs, for [`CORPUS`].
pub fn spec() -> TrainingSpec {
    TrainingSpec {
        model: "m".to_owned(),
        hidden_size: Some(2),
        num_layers: Some(1),
        batch_size: Some(2),
        sequence_length: Some(2),
        epochs: Some(4),
        recipe: Some("notebook".to_owned()),
        seed: Some(1),
        sample_chars: Some(3),
        ..TrainingSpec::default()
    }
}

/// Starts a training on [`CORPUS`], without quotas.
///
/// # Errors
/// As [`Jobs::begin`] and [`Jobs::start`].
pub fn start(jobs: &Jobs, spec: &TrainingSpec) -> Result<Arc<Job>, JobsError> {
    let mut upload = jobs.begin(spec, Requester::admin())?;
    upload.push(CORPUS)?;
    jobs.start(upload)
}

/// Returns a sampler that generates the same character again and again.
pub fn sampler() -> Box<SampleWriter> {
    Box::new(|request| Ok("x".repeat(request.chars)))
}
