//! The loop that trains one job on the training thread: steps, events, epochs,
//! checkpoints, and rollbacks of a training that diverged. `jobs` decides which
//! job runs when; the learner does the arithmetic.
//!
//! **When a checkpoint is saved.** The loss of a step is computed before the
//! weights are updated, so it says nothing about the weights after the step. A
//! checkpoint must not contain weights from which training cannot continue.
//! Therefore the state is captured after a step, and saved after the next step
//! has shown that its loss is sound. Where there is no next step, at the end of
//! the training or when it stops, the loss on a short text is computed instead.

mod clocks;
mod publish;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use charlstm_model::learner::{LearnError, Learner, LearnerConfig, LearnerFactory, StepOutcome};
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary_extension::extend;
use charlstm_repository::RepositoryError;
use charlstm_store::disk_error;
use thiserror::Error;

use self::clocks::Clocks;
pub(super) use self::clocks::Intervals;
use super::checkpoint::{Best, Checkpoint, Checkpoints, LoadError, Position};
use super::events::{
    CheckpointFailed, CheckpointSaved, EpochProgress, EventKind, Finished, RolledBack, State,
};
use super::job::{Job, JobTokens, StopRequest};
use super::memory::{self, Memory, OutOfMemory};
use super::models::Models;
use super::sample::{SampleRequest, SampleWriter};
use super::tensorboard::TensorBoardWriter;

/// Maximum number of rollbacks of a training.
const MAX_ROLLBACKS: u32 = 3;
/// Weights have exploded if their loss is this many times the loss of a uniform
/// guess.
const EXPLODED: f64 = 10.0;
/// Characters on which weights are checked that no step follows.
const CHECK_CHARS: usize = 64;

/// What the trainer works with, the same for all jobs.
pub(super) struct TrainerContext {
    pub(super) learners: Arc<dyn LearnerFactory>,
    pub(super) models: Arc<dyn Models>,
    pub(super) sampler: Box<SampleWriter>,
    pub(super) intervals: Intervals,
    /// Whether to write event files for TensorBoard.
    pub(super) tensorboard: bool,
    /// Returns the memory that trainings may use.
    pub(super) memory: fn() -> Memory,
}

/// Why a training failed. The text is for clients; errors of the system appear
/// only in the log.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error("the training arithmetic failed: {0}")]
    Learn(#[source] LearnError),
    #[error("the stored corpus cannot be read: {0}")]
    Corpus(#[source] io::Error),
    #[error(transparent)]
    Checkpoint(LoadError),
    #[error("an internal error; the server's log has the details")]
    Panicked,
    #[error("the model could not be stored: {}", .0.client_message())]
    Publish(#[source] RepositoryError),
    #[error("the model of init_from cannot be used: {0}")]
    Initial(String),
    #[error(
        "the training diverged at step {step} ({reason}), and again after {MAX_ROLLBACKS} \
         rollbacks to a checkpoint, each with half the learning rate; try a smaller learning_rate"
    )]
    Diverged { step: u64, reason: &'static str },
}

impl From<LearnError> for Failure {
    fn from(error: LearnError) -> Self {
        match error {
            LearnError::Text(error) => Self::Corpus(error),
            error => Self::Learn(error),
        }
    }
}

/// How a run ended that did not fail.
enum Ending {
    Published(Finished),
    Stopped(StopRequest),
}

/// What shows that the weights have diverged.
#[derive(Clone, Copy, Debug)]
struct Divergence {
    reason: &'static str,
    loss: f64,
}

/// Trains a job until it ends, and returns its last event. Blocks for as long
/// as that takes. A panic only fails this job.
pub(super) fn run(job: &Job, context: &TrainerContext) -> Finished {
    let train = || {
        let mut run = Run::new(job, context)?;
        run.train()
    };
    // The panic hook has written the message of the panic to standard error.
    let result: Result<_, Failure> =
        catch_unwind(AssertUnwindSafe(train)).unwrap_or(Err(Failure::Panicked));
    let train_loss = job.summary().train_loss;
    let ended = |state, message: String| Finished {
        state,
        version: 0,
        train_loss,
        validation_loss: None,
        message,
        best_epoch: None,
    };
    match result {
        Ok(Ending::Published(finished)) => finished,
        // Of a training that another replica runs, nothing is reported.
        Ok(Ending::Stopped(StopRequest::Stop | StopRequest::Abandon)) => {
            let text = format!("the server stopped; {}", job.resumability().message());
            ended(State::Interrupted, text)
        }
        Ok(Ending::Stopped(StopRequest::Cancel | StopRequest::Nothing)) => {
            let text = format!("cancelled; {}", job.resumability().message());
            ended(State::Cancelled, text)
        }
        Err(failure) => {
            tracing::error!(error = ?failure, id = job.id(), "a training failed");
            ended(State::Failed, failure.to_string())
        }
    }
}

/// Lowers the priority of the calling thread below that of the threads that
/// generate text.
pub(super) fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        // On Linux, priorities belong to threads, and 0 is the calling thread.
        // SAFETY: the call reads its three numbers and touches no memory.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
        if result != 0 {
            let error = io::Error::last_os_error();
            tracing::warn!(%error, "the priority of the training thread could not be lowered");
        }
    }
}

/// A job that is being trained.
struct Run<'a> {
    job: &'a Job,
    context: &'a TrainerContext,
    checkpoints: Checkpoints,
    config: LearnerConfig,
    tokens: JobTokens,
    learner: Box<dyn Learner>,
    total_steps: u64,
    step: u64,
    position: Position,
    best_parameters: Option<Arc<Vec<f32>>>,
    /// A state that is saved once the next step has shown that it is sound.
    pending: Option<Checkpoint>,
    /// Step of the checkpoint that the training was last rolled back to, unless
    /// a later one was saved since.
    rolled_back_to: Option<u64>,
    /// True if the checkpoint of the last step is saved.
    last_is_saved: bool,
    /// Epochs that were reported before this run. A run that resumes before the
    /// end of a reported epoch does not report it again.
    reported_epochs: u32,
    clocks: Clocks,
    tensorboard: Option<TensorBoardWriter>,
}

impl<'a> Run<'a> {
    fn new(job: &'a Job, context: &'a TrainerContext) -> Result<Self, Failure> {
        let spec = &job.metadata().spec;
        let needed = memory::estimate_bytes(spec, job.vocabulary().len());
        tracing::info!(
            id = job.id(),
            memory_mib = needed >> 20,
            "memory that the training needs"
        );
        (context.memory)().check_available(needed)?;
        let tokens = job.tokens().map_err(Failure::Corpus)?;
        let summary = job.summary();
        let config = job.config();
        let checkpoints = job.checkpoints();
        let saved = load(&checkpoints)?;
        let is_new = saved.is_none();
        let mut position = Position::default();
        let mut best_parameters = None;
        let rollbacks = |position: &Position| position.rollbacks.max(summary.rollbacks);
        let training = tokens.training.clone();
        let learner = match saved {
            Some(saved) => {
                position = saved.position;
                best_parameters = saved.best_parameters;
                let config = slowed(&config, rollbacks(&position));
                context.learners.resume(&config, training, saved.learner)?
            }
            None => {
                if summary.step > 0 {
                    let step = summary.step;
                    tracing::warn!(
                        id = job.id(),
                        step,
                        "a training has no checkpoint and starts from the beginning"
                    );
                }
                let config = slowed(&config, rollbacks(&position));
                let initial = initial(job, context)?;
                context.learners.start(&config, training, initial)?
            }
        };
        position.rollbacks = rollbacks(&position);
        position.instructions = context.learners.instructions(config.precision);
        let step = learner.step_count();
        let mut run = Self {
            job,
            context,
            checkpoints,
            total_steps: learner.steps_per_epoch() * u64::from(config.epochs),
            config,
            tokens,
            learner,
            step,
            position,
            best_parameters,
            pending: None,
            rolled_back_to: summary.rolled_back_to,
            last_is_saved: !is_new,
            reported_epochs: summary.epochs_completed,
            clocks: Clocks::start(step),
            tensorboard: tensorboard(job, context),
        };
        if is_new {
            // So that there is one to roll back to from the first step on.
            run.save_first()?;
        }
        Ok(run)
    }

    fn train(&mut self) -> Result<Ending, Failure> {
        while self.step < self.total_steps {
            let stop_request = self.job.stop_request();
            if stop_request != StopRequest::Nothing {
                return self.stop(stop_request);
            }
            let outcome = self.learner.step()?;
            self.step = outcome.step;
            self.last_is_saved = false;
            if let Some(divergence) = self.divergence_of_step(&outcome) {
                self.roll_back(divergence)?;
                continue;
            }
            if let Some(checkpoint) = self.pending.take() {
                self.save(&checkpoint);
            }
            self.report_step(&outcome);
            if let Some(train_loss) = outcome.epoch_loss {
                self.end_epoch(outcome.epoch, train_loss)?;
            } else if self.checkpoint_is_due() {
                self.capture_pending()?;
            }
        }
        self.publish()
    }

    /// Ends the run before the training has ended.
    fn stop(&mut self, request: StopRequest) -> Result<Ending, Failure> {
        if request != StopRequest::Abandon {
            self.save_last()?;
        }
        Ok(Ending::Stopped(request))
    }

    fn report(&mut self, event: EventKind) {
        if let Some(tensorboard) = &mut self.tensorboard
            && let Err(error) = tensorboard.write(&event)
        {
            tracing::warn!(%error, id = self.job.id(), "writing events for TensorBoard stops");
            self.tensorboard = None;
        }
        self.job.history().append(event);
    }

    fn report_step(&mut self, outcome: &StepOutcome) {
        let (total_steps, batch_chars) = (self.total_steps, self.batch_chars());
        let intervals = &self.context.intervals;
        let due = self
            .clocks
            .step_event(outcome, total_steps, batch_chars, intervals);
        if let Some(event) = due {
            self.report(EventKind::Step(event));
        }
    }

    fn end_epoch(&mut self, epoch: u32, train_loss: f64) -> Result<(), Failure> {
        let seconds = self.position.epoch_seconds + self.clocks.epoch_seconds();
        let is_last = self.step == self.total_steps;
        let evaluated = self.evaluate_epoch()?;
        let validation_loss = evaluated.as_ref().map(|(loss, _)| *loss);
        let divergence = match validation_loss {
            Some(loss) => self.divergence_of(loss),
            // No step follows that would show it.
            None if is_last => self.check_weights()?,
            None => None,
        };
        if let Some(divergence) = divergence {
            return self.roll_back(divergence);
        }
        self.position.train_loss = Some(train_loss);
        self.position.validation_loss = validation_loss;
        let best_so_far = self.position.best.map(|best| best.validation_loss);
        let best = validation_loss.filter(|&loss| best_so_far.is_none_or(|lowest| loss < lowest));
        let is_reported = epoch > self.reported_epochs;
        let with_sample = is_reported && self.job.metadata().spec.sample_chars > 0;
        let parameters = match evaluated {
            Some((_, parameters)) => Some(parameters),
            None if with_sample => Some(self.last_parameters()?),
            None => None,
        };
        if is_reported {
            let chars = self.learner.steps_per_epoch() as f64 * self.batch_chars();
            let sample = match &parameters {
                Some(parameters) if with_sample => self.sample(epoch, parameters),
                _ => String::new(),
            };
            self.report(EventKind::Epoch(EpochProgress {
                epoch,
                step: self.step,
                train_loss,
                validation_loss,
                bits_per_char: validation_loss.unwrap_or(train_loss) / std::f64::consts::LN_2,
                seconds,
                chars_per_second: chars / seconds.max(1e-9),
                sample,
                best: best.is_some(),
            }));
            self.reported_epochs = epoch;
        }
        if let (Some(validation_loss), Some(parameters)) = (best, parameters) {
            self.best_parameters = Some(Arc::new(parameters.values));
            self.position.best = Some(Best {
                epoch,
                step: self.step,
                train_loss,
                validation_loss,
            });
        }
        self.position.epoch_seconds = 0.0;
        self.clocks.restart_epoch(self.step);
        // After the event: an epoch whose checkpoint is saved was reported.
        if is_last {
            let checkpoint = self.capture()?;
            if !checkpoint.learner.is_finite() {
                return self.roll_back(NOT_FINITE);
            }
            self.last_is_saved = self.save_with_space(&checkpoint);
        } else if self.checkpoint_is_due() {
            self.capture_pending()?;
        }
        Ok(())
    }

    /// Returns the validation loss of the weights, or, if that is lower, of their
    /// moving average, with the weights that have this loss; `None` if nothing is
    /// held out.
    fn evaluate_epoch(&mut self) -> Result<Option<(f64, Parameters)>, Failure> {
        let held_out = &self.tokens.validation;
        if held_out.is_empty() {
            return Ok(None);
        }
        let parameters = self.learner.parameters()?;
        let loss = self.learner.evaluate(&parameters, held_out)?;
        let Some(average) = self.learner.average()? else {
            return Ok(Some((loss, parameters)));
        };
        let average_loss = self.learner.evaluate(&average, held_out)?;
        // A loss that is not a number must be seen.
        if average_loss < loss {
            Ok(Some((average_loss, average)))
        } else {
            Ok(Some((loss, parameters)))
        }
    }

    /// Returns the weights that are published if nothing is held out: their
    /// average, or the last ones if there is none.
    fn last_parameters(&mut self) -> Result<Parameters, Failure> {
        match self.learner.average()? {
            Some(average) => Ok(average),
            None => Ok(self.learner.parameters()?),
        }
    }

    /// Returns the text generated after an epoch, including its prompt. If it
    /// cannot be generated, the training continues without it.
    fn sample(&self, epoch: u32, parameters: &Parameters) -> String {
        let spec = &self.job.metadata().spec;
        let vocabulary = self.job.vocabulary();
        let first = String::from(vocabulary.character(self.tokens.first));
        let prime = spec.sample_prime.as_deref().unwrap_or(&first);
        // It was found in the vocabulary when the training was accepted.
        let Ok(tokens) = vocabulary.encode(prime) else {
            return String::new();
        };
        let written = (self.context.sampler)(&SampleRequest {
            parameters,
            vocabulary,
            prime: &tokens,
            chars: spec.sample_chars as usize,
            seed: spec.seed.wrapping_add(u64::from(epoch)),
        });
        match written {
            Ok(text) => format!("{prime}{text}"),
            Err(error) => {
                tracing::warn!(%error, "a sample could not be generated");
                String::new()
            }
        }
    }

    fn checkpoint_is_due(&self) -> bool {
        self.clocks.checkpoint.elapsed() >= self.context.intervals.checkpoints
    }

    /// Captures the current state, to be saved after the next step.
    fn capture_pending(&mut self) -> Result<(), Failure> {
        self.clocks.checkpoint = Instant::now();
        let checkpoint = self.capture()?;
        if !checkpoint.learner.is_finite() {
            return self.roll_back(NOT_FINITE);
        }
        self.pending = Some(checkpoint);
        Ok(())
    }

    fn capture(&mut self) -> Result<Checkpoint, Failure> {
        let within_epoch = !self.step.is_multiple_of(self.learner.steps_per_epoch());
        if within_epoch {
            self.position.epoch_seconds += self.clocks.epoch_seconds();
        }
        self.clocks.restart_epoch(self.step);
        Ok(Checkpoint {
            learner: self.learner.state()?,
            position: self.position.clone(),
            best_parameters: self.best_parameters.clone(),
        })
    }

    /// Saves the state before the first step.
    fn save_first(&mut self) -> Result<(), Failure> {
        let checkpoint = self.capture()?;
        if !checkpoint.learner.is_finite() {
            let text = "its weights are not all finite numbers";
            return Err(Failure::Initial(text.to_owned()));
        }
        self.last_is_saved = self.save(&checkpoint);
        Ok(())
    }

    /// Saves the current state if it is sound, because the training stops.
    fn save_last(&mut self) -> Result<(), Failure> {
        self.pending = None;
        if self.last_is_saved {
            return Ok(());
        }
        let checkpoint = self.capture()?;
        if !checkpoint.learner.is_finite() || self.check_weights()?.is_some() {
            tracing::warn!(
                id = self.job.id(),
                step = self.step,
                "the weights have diverged; the last checkpoint is kept instead"
            );
            return Ok(());
        }
        self.last_is_saved = self.save(&checkpoint);
        Ok(())
    }

    /// Saves a checkpoint, and reports that it is saved or is not. If the disk
    /// does not accept it, the earlier ones are kept, and the training
    /// continues.
    fn save(&mut self, checkpoint: &Checkpoint) -> bool {
        let saved = self.checkpoints.save(checkpoint);
        self.report_saved(checkpoint, saved)
    }

    /// As [`Self::save`], for the last checkpoint of a training: on a full disk,
    /// the one before it makes space.
    fn save_with_space(&mut self, checkpoint: &Checkpoint) -> bool {
        let mut saved = self.checkpoints.save(checkpoint);
        if saved.as_ref().is_err_and(disk_error::is_full)
            && self
                .checkpoints
                .delete_previous()
                .is_ok_and(|deleted| deleted)
        {
            saved = self.checkpoints.save(checkpoint);
        }
        self.report_saved(checkpoint, saved)
    }

    fn report_saved(&mut self, checkpoint: &Checkpoint, saved: io::Result<()>) -> bool {
        let step = checkpoint.learner.step;
        match saved {
            Ok(()) => {
                self.rolled_back_to = None;
                self.report(EventKind::Checkpoint(CheckpointSaved { step }));
                true
            }
            Err(error) => {
                tracing::error!(%error, id = self.job.id(), step, "a checkpoint could not be saved");
                let reason = disk_error::message(&error);
                let message = format!("the checkpoint of step {step} could not be saved: {reason}");
                self.report(EventKind::CheckpointFailed(CheckpointFailed {
                    step,
                    message,
                }));
                false
            }
        }
    }

    /// Rolls back to the last checkpoint, with half the learning rate. If the
    /// training diverges from the same checkpoint again, rolls back to the one
    /// before it.
    fn roll_back(&mut self, divergence: Divergence) -> Result<(), Failure> {
        self.pending = None;
        let Divergence { reason, loss } = divergence;
        let step = self.step;
        let rollbacks = self.position.rollbacks + 1;
        if rollbacks > MAX_ROLLBACKS {
            return Err(Failure::Diverged { step, reason });
        }
        let mut saved = load(&self.checkpoints)?;
        if let Some(newest) = &saved
            && self.rolled_back_to == Some(newest.learner.step)
            && let Ok(previous) = self.checkpoints.load_previous()
            && previous.learner.step < newest.learner.step
        {
            saved = Some(previous);
        }
        let config = slowed(&self.config, rollbacks);
        let checkpoint_step = saved.as_ref().map_or(0, |saved| saved.learner.step);
        tracing::warn!(
            id = self.job.id(),
            step,
            reason,
            checkpoint_step,
            learning_rate = config.learning_rate,
            "a training diverged and is rolled back to a checkpoint"
        );
        self.report(EventKind::RolledBack(RolledBack {
            step,
            loss,
            checkpoint_step,
            learning_rate: config.learning_rate,
            attempt: rollbacks,
            message: reason.to_owned(),
        }));
        let training = self.tokens.training.clone();
        let learners = &self.context.learners;
        match saved {
            Some(mut saved) => {
                // The new learning rate counts from here, also after a crash.
                // The checkpoint before this one is kept.
                saved.position.rollbacks = rollbacks;
                let replaced = self.checkpoints.replace(&saved);
                self.last_is_saved = replaced.is_ok();
                if let Err(error) = replaced {
                    tracing::error!(%error, id = self.job.id(), "a rollback could not be saved");
                }
                self.position = saved.position;
                self.best_parameters = saved.best_parameters;
                self.learner = learners.resume(&config, training, saved.learner)?;
            }
            None => {
                self.position = Position {
                    rollbacks,
                    instructions: std::mem::take(&mut self.position.instructions),
                    ..Position::default()
                };
                self.best_parameters = None;
                let initial = initial(self.job, self.context)?;
                self.learner = learners.start(&config, training, initial)?;
                self.last_is_saved = false;
            }
        }
        self.step = checkpoint_step;
        self.rolled_back_to = Some(checkpoint_step);
        self.clocks = Clocks::start(self.step);
        Ok(())
    }

    /// Computes the loss on a short text, which shows whether the weights have
    /// diverged.
    fn check_weights(&mut self) -> Result<Option<Divergence>, Failure> {
        let training = &self.tokens.training;
        let Some(text) = training.range(0..training.len().min(CHECK_CHARS)) else {
            return Ok(None);
        };
        let parameters = self.learner.parameters()?;
        let loss = self.learner.evaluate(&parameters, &text)?;
        Ok(self.divergence_of(loss))
    }

    fn divergence_of_step(&self, outcome: &StepOutcome) -> Option<Divergence> {
        if outcome.loss.is_finite() && !outcome.gradient_norm.is_finite() {
            // The weights are useless already, though this loss does not show it.
            let loss = outcome.loss;
            let reason = "the gradient is not a number";
            return Some(Divergence { reason, loss });
        }
        self.divergence_of(outcome.loss)
    }

    fn divergence_of(&self, loss: f64) -> Option<Divergence> {
        let vocabulary_size = self.config.architecture.vocabulary_size;
        let uniform_loss = (vocabulary_size.max(2) as f64).ln();
        let reason = if !loss.is_finite() {
            "the loss is not a number"
        } else if loss > EXPLODED * uniform_loss {
            "the loss has exploded"
        } else {
            return None;
        };
        Some(Divergence { reason, loss })
    }

    fn batch_chars(&self) -> f64 {
        (self.config.batch_size * self.config.sequence_length) as f64
    }
}

const NOT_FINITE: Divergence = Divergence {
    reason: "the weights are not all finite numbers",
    loss: f64::NAN,
};

/// Opens the event files for TensorBoard, if they are enabled and can be
/// written.
fn tensorboard(job: &Job, context: &TrainerContext) -> Option<TensorBoardWriter> {
    if !context.tensorboard {
        return None;
    }
    TensorBoardWriter::create(&job.folder().join("tensorboard"))
        .inspect_err(|error| {
            tracing::warn!(%error, id = job.id(), "events for TensorBoard cannot be written");
        })
        .ok()
}

/// Returns the newest checkpoint, or `None` if none was ever saved.
fn load(checkpoints: &Checkpoints) -> Result<Option<Checkpoint>, Failure> {
    match checkpoints.load() {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(LoadError::Missing) => Ok(None),
        Err(error) => Err(Failure::Checkpoint(error)),
    }
}

/// Returns the weights to start from if they are those of a model. Characters
/// that it does not have get the weights that a new network would have.
fn initial(job: &Job, context: &TrainerContext) -> Result<Option<Parameters>, Failure> {
    let spec = &job.metadata().spec;
    let Some(id) = &spec.init_from else {
        return Ok(None);
    };
    let model = context.models.read(id).map_err(|error| {
        tracing::error!(%error, id, "the model of init_from cannot be read");
        Failure::Initial(error.client_message())
    })?;
    if &model.vocabulary == job.vocabulary() {
        return Ok(Some(model.parameters));
    }
    let extended = spec.extend_vocabulary.then(|| {
        let config = job.config();
        let fresh = config
            .optimizer
            .initial
            .parameters(config.architecture, config.seed);
        extend(
            &model.parameters,
            &model.vocabulary,
            fresh,
            job.vocabulary(),
        )
    });
    match extended.flatten() {
        Some(parameters) => Ok(Some(parameters)),
        None => {
            let text = format!("{id} is not the model that it was when the training was accepted");
            Err(Failure::Initial(text))
        }
    }
}

fn slowed(config: &LearnerConfig, rollbacks: u32) -> LearnerConfig {
    LearnerConfig {
        learning_rate: config.learning_rate * 0.5f64.powi(rollbacks as i32),
        ..config.clone()
    }
}
