//! The loop that trains one job on the training thread, step by step. Its
//! modules do what follows a step: the end of an epoch, a checkpoint, a rollback
//! of a training that diverged, and the publication of the model. `jobs` decides
//! which job runs when; the learner does the arithmetic.

mod clocks;
mod divergence;
mod epoch;
mod initial;
mod publish;
mod rollback;
mod saving;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use charlstm_model::learner::{LearnError, Learner, LearnerConfig, LearnerFactory, StepOutcome};
use charlstm_repository::RepositoryError;
use thiserror::Error;

use self::clocks::Clocks;
pub(super) use self::clocks::Intervals;
use self::initial::initial;
use self::rollback::{MAX_ROLLBACKS, slowed};
use super::checkpoint::{Checkpoint, Checkpoints, LoadError, Position};
use super::collapse::{Health, entropy};
use super::events::{EventKind, Finished, State};
use super::job::{Job, JobTokens, StopRequest};
use super::memory::{self, Memory, OutOfMemory};
use super::models::Models;
use super::sample::SampleWriter;
use super::tensorboard::TensorBoardWriter;

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
    match result {
        Ok(Ending::Published(finished)) => finished,
        // Of a training that another replica runs, nothing is reported.
        Ok(Ending::Stopped(StopRequest::Stop | StopRequest::Abandon)) => {
            job.interrupted(job.resumability())
        }
        Ok(Ending::Stopped(StopRequest::Cancel | StopRequest::Nothing)) => {
            let text = format!("cancelled; {}", job.resumability().message());
            job.without_model(State::Cancelled, text)
        }
        Err(failure) => {
            tracing::error!(error = ?failure, id = job.id(), "a training failed");
            job.without_model(State::Failed, failure.to_string())
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
    /// Loss of predicting the text by the frequencies of its characters.
    entropy: f64,
    /// What the last step has shown.
    health: Health,
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
        let entropy = entropy(&training, job.vocabulary().len()).map_err(Failure::Corpus)?;
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
            entropy,
            health: Health::Sound,
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
            if let Some(checkpoint) = self.pending.take()
                && self.health == Health::Sound
            {
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

    fn batch_chars(&self) -> f64 {
        (self.config.batch_size * self.config.sequence_length) as f64
    }
}

/// Opens the event files for TensorBoard, if they are enabled and can be
/// written.
fn tensorboard(job: &Job, context: &TrainerContext) -> Option<TensorBoardWriter> {
    if !context.tensorboard {
        return None;
    }
    TensorBoardWriter::create(job.folder())
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
