//! The loop that trains one job on the training thread: steps, events,
//! epochs, checkpoints, and the way back from a training that diverged. Which
//! job runs when is in `jobs`; the arithmetic is the learner's.

mod clocks;
mod publish;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use self::clocks::Clocks;
pub(super) use self::clocks::ReportInterval;
use super::checkpoint::{self, Best, Checkpoint, Position};
use super::events::{CheckpointSaved, EpochProgress, EventKind, Finished, RolledBack, State};
use super::job::{Job, JobTokens, StopRequest};
use super::tensorboard::TensorBoardWriter;
use charlstm_model::learner::{Learner, LearnerFactory};

use super::models::{Models, ModelsError};
use super::sample::{SampleRequest, SampleWriter};
use charlstm_model::learner::{LearnError, LearnerConfig, StepOutcome};
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary_extension::extend;

/// How often a training may fall back on its last checkpoint.
const MAX_ROLLBACKS: u32 = 3;
/// A loss of so many times the loss of guessing blindly is that of weights
/// that have grown out of all bounds.
const EXPLODED: f64 = 10.0;

/// What the trainer works with, the same for all jobs.
pub(super) struct TrainerContext {
    pub(super) learners: Arc<dyn LearnerFactory>,
    pub(super) models: Arc<dyn Models>,
    pub(super) sampler: Box<SampleWriter>,
    pub(super) pace: ReportInterval,
    /// Whether to write event files for TensorBoard.
    pub(super) tensorboard: bool,
}

/// Why a training failed. The text is what a client reads.
#[derive(Debug, Error)]
enum Failure {
    #[error("the network could not be computed: {0}")]
    Learn(#[from] LearnError),
    #[error("the training's files cannot be used: {0}")]
    Files(String),
    #[error("an internal error; the server's log says more")]
    Panicked,
    #[error("the model could not be stored: {}; the training can be resumed", reported(.0))]
    Publish(#[from] ModelsError),
    #[error("the model to begin with is gone: {0}")]
    Initial(String),
    #[error(
        "the training diverged at step {step} ({what}) and again after {MAX_ROLLBACKS} \
         returns to a checkpoint with half the learning rate each; try a smaller learning_rate"
    )]
    Diverged { step: u64, what: &'static str },
}

/// What a client may know of it: the paths and words of the system are for the
/// log.
fn reported(error: &ModelsError) -> String {
    match error {
        ModelsError::Broken(_) => "the server's log says more".to_owned(),
        ModelsError::BadReference(_) | ModelsError::NotFound(_) | ModelsError::DiskFull => {
            error.to_string()
        }
    }
}

/// How a training ended that did not fail.
enum Ending {
    Published(Finished),
    Wished(StopRequest),
}

/// Trains a job until it ends, and returns its last event. Blocks for as long
/// as that takes. A panic fails this job only.
pub(super) fn run(job: &Job, context: &TrainerContext) -> EventKind {
    let turn = || {
        let mut run = Run::new(job, context)?;
        run.train()
    };
    // What the panic said is on standard error, by the hook.
    let result: Result<_, Failure> =
        catch_unwind(AssertUnwindSafe(turn)).unwrap_or(Err(Failure::Panicked));
    let reported = job.summary();
    let ended = |state, message: String| Finished {
        state,
        version: 0,
        train_loss: reported.train_loss,
        validation_loss: None,
        message,
        best_epoch: None,
    };
    let finished = match result {
        Ok(Ending::Published(finished)) => finished,
        Ok(Ending::Wished(StopRequest::Stop)) => ended(
            State::Interrupted,
            "the server stopped; the training can be resumed".to_owned(),
        ),
        Ok(Ending::Wished(StopRequest::Cancel | StopRequest::Nothing)) => ended(
            State::Cancelled,
            "cancelled; the training can be resumed".to_owned(),
        ),
        Err(failure) => {
            tracing::error!(error = ?failure, id = job.id(), "a training failed");
            ended(State::Failed, failure.to_string())
        }
    };
    EventKind::Finished(finished)
}

/// Gives the calling thread less of the processor than the threads that
/// generate text.
pub(super) fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        // On Linux a priority is a thread's, and 0 is the calling one.
        // SAFETY: the call reads its three numbers and touches no memory.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            tracing::warn!(%error, "the training thread keeps its priority");
        }
    }
}

/// A job under way.
struct Run<'a> {
    job: &'a Job,
    context: &'a TrainerContext,
    config: LearnerConfig,
    tokens: JobTokens,
    learner: Box<dyn Learner>,
    total_steps: u64,
    step: u64,
    position: Position,
    best_parameters: Option<Vec<f32>>,
    /// Epochs that were reported before this run began: a run that goes on from a
    /// checkpoint within an epoch that was reported does not tell it again.
    reported_epochs: u32,
    clocks: Clocks,
    board: Option<TensorBoardWriter>,
}

impl<'a> Run<'a> {
    fn new(job: &'a Job, context: &'a TrainerContext) -> Result<Self, Failure> {
        let tokens = job
            .tokens()
            .map_err(|error| Failure::Files(error.to_string()))?;
        let summary = job.summary();
        let config = job.config();
        let mut position = Position::default();
        let mut best_parameters = None;
        let learner = if summary.has_checkpoint {
            let saved = load(job)?;
            position = saved.position;
            best_parameters = saved.best_parameters;
            let config = slowed(&config, position.rollbacks);
            let training = tokens.training.clone();
            context.learners.resume(&config, training, saved.snapshot)?
        } else {
            let initial = initial(job, context)?;
            let training = tokens.training.clone();
            context.learners.start(&config, training, initial)?
        };
        let step = learner.state()?.step;
        let mut run = Self {
            job,
            context,
            total_steps: learner.steps_per_epoch() * u64::from(config.epochs),
            config,
            tokens,
            learner,
            step,
            position,
            best_parameters,
            reported_epochs: summary.epochs_completed,
            clocks: Clocks::start(step),
            board: board(job, context),
        };
        if !summary.has_checkpoint {
            // So that there is one to go back to from the first step on.
            run.save();
        }
        Ok(run)
    }

    fn train(&mut self) -> Result<Ending, Failure> {
        while self.step < self.total_steps {
            let stop_request = self.job.stop_request();
            if stop_request != StopRequest::Nothing {
                self.save();
                return Ok(Ending::Wished(stop_request));
            }
            let outcome = self.learner.step()?;
            self.step = outcome.step;
            if let Some(what) = diverged(&outcome, self.config.architecture.vocabulary_size) {
                self.roll_back(what, outcome.loss)?;
                continue;
            }
            self.tell_step(&outcome);
            if let Some(train_loss) = outcome.epoch_loss {
                self.end_epoch(outcome.epoch, train_loss)?;
            } else if self.clocks.checkpoint.elapsed() >= self.context.pace.checkpoints {
                self.save();
            }
        }
        self.publish().map(Ending::Published)
    }

    fn tell(&mut self, event: EventKind) {
        if let Some(board) = &mut self.board
            && let Err(error) = board.take(&event)
        {
            tracing::warn!(%error, id = self.job.id(), "no more events for TensorBoard");
            self.board = None;
        }
        self.job.history().append(event);
    }

    fn tell_step(&mut self, outcome: &StepOutcome) {
        let (total_steps, batch_chars) = (self.total_steps, self.batch_chars());
        let pace = &self.context.pace;
        let due = self
            .clocks
            .step_told(outcome, total_steps, batch_chars, pace);
        if let Some(event) = due {
            self.tell(EventKind::Step(event));
        }
    }

    fn end_epoch(&mut self, epoch: u32, train_loss: f64) -> Result<(), Failure> {
        let seconds = self.position.epoch_seconds + self.clocks.epoch_seconds();
        let held_out = &self.tokens.validation;
        let validation_loss = if held_out.is_empty() {
            None
        } else {
            Some(self.learner.evaluate(held_out)?)
        };
        if let Some(loss) = validation_loss
            && !loss.is_finite()
        {
            return self.roll_back("the validation loss is not a number", loss);
        }
        self.position.train_loss = Some(train_loss);
        self.position.validation_loss = validation_loss;
        let parameters = self.learner.parameters()?;
        let best_so_far = self.position.best.map(|best| best.validation_loss);
        let best = validation_loss.filter(|&loss| best_so_far.is_none_or(|lowest| loss < lowest));
        if let Some(validation_loss) = best {
            self.best_parameters = Some(parameters.values.clone());
            self.position.best = Some(Best {
                epoch,
                step: self.step,
                train_loss,
                validation_loss,
            });
        }
        if epoch > self.reported_epochs {
            let chars = self.learner.steps_per_epoch() as f64 * self.batch_chars();
            self.tell(EventKind::Epoch(EpochProgress {
                epoch,
                step: self.step,
                train_loss,
                validation_loss,
                bits_per_char: validation_loss.unwrap_or(train_loss) / std::f64::consts::LN_2,
                seconds,
                chars_per_second: chars / seconds.max(1e-9),
                sample: self.sample(epoch, &parameters),
                best: best.is_some(),
            }));
            self.reported_epochs = epoch;
        }
        self.position.epoch_seconds = 0.0;
        // After the event: an epoch whose checkpoint is there was reported.
        self.save();
        Ok(())
    }

    /// The text of an epoch, its prime included. A sample that cannot be made
    /// does not fail the training.
    fn sample(&self, epoch: u32, parameters: &Parameters) -> String {
        let spec = &self.job.facts().spec;
        let vocabulary = self.job.vocabulary();
        if spec.sample_chars == 0 {
            return String::new();
        }
        let first = String::from(vocabulary.character(self.tokens.first));
        let prime = spec.sample_prime.as_deref().unwrap_or(&first);
        // The prime was found in the vocabulary when the training was accepted.
        let Ok(numbers) = vocabulary.encode(prime) else {
            return String::new();
        };
        let written = (self.context.sampler)(&SampleRequest {
            parameters,
            vocabulary,
            prime: &numbers,
            chars: spec.sample_chars as usize,
            seed: spec.seed.wrapping_add(u64::from(epoch)),
        });
        match written {
            Ok(text) => format!("{prime}{text}"),
            Err(error) => {
                tracing::warn!(%error, "a sample could not be written");
                String::new()
            }
        }
    }

    /// Saves a checkpoint and tells so. Where the disk does not take it, the
    /// last one stays, the log says so, and the next time may go better.
    fn save(&mut self) {
        self.clocks.checkpoint = Instant::now();
        match self.try_save() {
            Ok(()) => {
                let event = EventKind::Checkpoint(CheckpointSaved { step: self.step });
                self.tell(event);
            }
            Err(error) => {
                tracing::error!(%error, id = self.job.id(), "a checkpoint could not be saved");
            }
        }
    }

    fn try_save(&mut self) -> Result<(), Failure> {
        let within = !self.step.is_multiple_of(self.learner.steps_per_epoch());
        if within {
            self.position.epoch_seconds += self.clocks.epoch_seconds();
        }
        self.clocks.stretch_begins(self.step);
        let checkpoint = Checkpoint {
            snapshot: self.learner.state()?,
            position: self.position.clone(),
            best_parameters: self.best_parameters.clone(),
        };
        checkpoint::save(self.job.folder(), self.job.id(), &checkpoint)
            .map_err(|error| Failure::Files(error.to_string()))
    }

    /// Goes back to the last checkpoint, with half the learning rate.
    fn roll_back(&mut self, what: &'static str, loss: f64) -> Result<(), Failure> {
        let step = self.step;
        let saved = load(self.job)?;
        let rollbacks = self.position.rollbacks.max(saved.position.rollbacks) + 1;
        if rollbacks > MAX_ROLLBACKS {
            return Err(Failure::Diverged { step, what });
        }
        let config = slowed(&self.config, rollbacks);
        tracing::warn!(
            id = self.job.id(),
            step,
            what,
            back_to = saved.snapshot.step,
            learning_rate = config.learning_rate,
            "a training diverged; it goes back to its last checkpoint"
        );
        // Before the checkpoint: what a crash comes between is reported again
        // rather than never.
        self.tell(EventKind::RolledBack(RolledBack {
            step,
            loss,
            checkpoint_step: saved.snapshot.step,
            learning_rate: config.learning_rate,
            attempt: rollbacks,
            message: what.to_owned(),
        }));
        self.step = saved.snapshot.step;
        self.position = saved.position;
        self.position.rollbacks = rollbacks;
        self.best_parameters = saved.best_parameters;
        let training = self.tokens.training.clone();
        let learners = &self.context.learners;
        self.learner = learners.resume(&config, training, saved.snapshot)?;
        self.clocks = Clocks::start(self.step);
        // The new learning rate counts from here, also after a crash.
        self.save();
        Ok(())
    }

    fn batch_chars(&self) -> f64 {
        (self.config.batch_size * self.config.sequence_length) as f64
    }
}

/// Event files for TensorBoard, where they are wanted and can be written.
fn board(job: &Job, context: &TrainerContext) -> Option<TensorBoardWriter> {
    if !context.tensorboard {
        return None;
    }
    let board = TensorBoardWriter::create(&job.folder().join("tensorboard"));
    board
        .inspect_err(|error| {
            tracing::warn!(%error, id = job.id(), "no events for TensorBoard");
        })
        .ok()
}

fn load(job: &Job) -> Result<Checkpoint, Failure> {
    checkpoint::load(job.folder(), job.id()).map_err(|error| Failure::Files(error.to_string()))
}

/// The weights to begin with, where they are those of a model. Characters that
/// it does not know get the weights that a new network would have.
fn initial(job: &Job, context: &TrainerContext) -> Result<Option<Parameters>, Failure> {
    let spec = &job.facts().spec;
    let Some(id) = &spec.init_from else {
        return Ok(None);
    };
    let model = context.models.find(id).map_err(|error| {
        tracing::error!(%error, id, "a model to begin with cannot be read");
        Failure::Initial(reported(&error))
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
            let text = format!("{id} is no longer the model that it was");
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

fn diverged(outcome: &StepOutcome, vocabulary_size: usize) -> Option<&'static str> {
    let blind = (vocabulary_size.max(2) as f64).ln();
    if !outcome.loss.is_finite() {
        Some("the loss is not a number")
    } else if !outcome.gradient_norm.is_finite() {
        // The weights are spoilt already, though this loss does not show it.
        Some("the gradient is not a number")
    } else if outcome.loss > EXPLODED * blind {
        Some("the loss has exploded")
    } else {
        None
    }
}
