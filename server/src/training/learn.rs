//! What the trainings need from others: a learner that takes optimizer steps,
//! a place for models, a way to write a sample. Traits, so that the jobs are
//! tested without a network and without a disk full of models.

use std::sync::Arc;

use thiserror::Error;

use crate::model::learner::{LearnError, LearnerConfig, Snapshot, StepOutcome};
use crate::model::parameters::Parameters;
use crate::model::step::StepError;
use crate::model::vocabulary::Vocabulary;

/// Trains one network. Belongs to the training thread.
pub trait Learn {
    /// Optimizer steps in an epoch.
    fn steps_per_epoch(&self) -> u64;
    /// Takes one optimizer step. Blocks until it is done.
    ///
    /// # Errors
    /// A device that failed.
    fn step(&mut self) -> Result<StepOutcome, LearnError>;
    /// A copy of the weights.
    ///
    /// # Errors
    /// A device that failed.
    fn parameters(&self) -> Result<Parameters, LearnError>;
    /// Mean loss on a text, without dropout, in nats per character.
    ///
    /// # Errors
    /// A device that failed.
    fn evaluate(&mut self, tokens: &[u32]) -> Result<f64, LearnError>;
    /// Everything to go on from here.
    ///
    /// # Errors
    /// A device that failed.
    fn snapshot(&self) -> Result<Snapshot, LearnError>;
}

/// Makes learners, for one device. Called on the training thread.
pub trait Learners: Send + Sync {
    /// The device: "cpu" or "cuda:N".
    fn device(&self) -> String;
    /// A learner at its beginning, on the training part of a corpus.
    ///
    /// # Errors
    /// A device that failed.
    fn begin(
        &self,
        config: &LearnerConfig,
        tokens: Arc<[u32]>,
        initial: Option<Parameters>,
    ) -> Result<Box<dyn Learn>, LearnError>;
    /// A learner that goes on from a snapshot.
    ///
    /// # Errors
    /// A device that failed, or a snapshot of another network.
    fn resume(
        &self,
        config: &LearnerConfig,
        tokens: Arc<[u32]>,
        snapshot: Snapshot,
    ) -> Result<Box<dyn Learn>, LearnError>;
}

/// A model to begin with.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialModel {
    /// Its name and version, as `name@version`.
    pub id: String,
    /// Its characters.
    pub vocabulary: Vocabulary,
    /// Its weights.
    pub parameters: Parameters,
}

/// A model that was trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedModel {
    /// Its weights.
    pub parameters: Parameters,
    /// Its characters.
    pub vocabulary: Vocabulary,
    /// How it came to be.
    pub facts: TrainedFacts,
}

/// How a trained model came to be.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedFacts {
    /// Name of the recipe.
    pub recipe: String,
    /// Epochs that were trained up to these weights.
    pub epochs: u32,
    /// Steps that were taken up to these weights.
    pub steps: u64,
    /// Characters of the corpus.
    pub corpus_chars: u64,
    /// SHA-256 of the corpus, in hexadecimal.
    pub corpus_sha256: String,
    /// The training.
    pub training_id: String,
    /// Mean training loss of the epoch, in nats per character.
    pub train_loss: Option<f64>,
    /// Loss on the held-out text, in nats per character.
    pub validation_loss: Option<f64>,
}

/// A model could not be found, read or stored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelsError {
    /// The text names no model.
    #[error("{0}")]
    BadReference(String),
    /// There is no such model; the text says which there are.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be read or written; the text is for the log.
    #[error("{0}")]
    Broken(String),
}

/// Where models are found and published. All methods block.
pub trait Models: Send + Sync {
    /// A model by `name` or `name@version`.
    ///
    /// # Errors
    /// An unknown model, or one that cannot be read.
    fn find(&self, reference: &str) -> Result<InitialModel, ModelsError>;
    /// Stores a model as the next version of its name; returns the version.
    ///
    /// # Errors
    /// A disk that does not take it.
    fn publish(&self, name: &str, model: TrainedModel) -> Result<u64, ModelsError>;
}

/// What a sample of a model under training is made of.
pub struct SampleRequest<'a> {
    /// The weights as they are now.
    pub parameters: &'a Parameters,
    /// The characters.
    pub vocabulary: &'a Vocabulary,
    /// Numbers of the text to go on from; at least one.
    pub prime: &'a [u32],
    /// Characters to write.
    pub chars: usize,
    /// Seed of the choice.
    pub seed: u64,
}

/// Writes the sample of an epoch: the characters after the prime.
pub type Sampler = dyn Fn(&SampleRequest<'_>) -> Result<String, StepError> + Send + Sync;
