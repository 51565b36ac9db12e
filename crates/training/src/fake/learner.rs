//! A learner whose weights are simple sums.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use charlstm_model::learner::{
    LearnError, Learner, LearnerConfig, LearnerFactory, LearnerState, StepOutcome,
    TrainingPrecision,
};
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;

use super::lock;

/// What goes wrong at a step, once for each time it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The step panics.
    Panics,
    /// The step fails.
    Fails,
    /// The loss is NaN.
    LossIsNan,
    /// The loss explodes.
    LossExplodes,
    /// The loss is sound, but the weights after the step are NaN.
    WeightsBecomeNan,
    /// The loss is sound, but the weights after the step are huge.
    WeightsExplode,
}

/// Weights beyond this have exploded: the loss of the fake learner is huge.
const EXPLODED_WEIGHT: f32 = 1e30;

/// Returns the loss of a step with a learning rate.
pub type Losses = fn(u64, f64) -> f64;

/// Creates fake learners.
#[derive(Default)]
pub struct FakeLearners {
    /// The faults to inject, each with its step.
    pub faults: Arc<Mutex<Vec<(u64, Fault)>>>,
    /// The loss of each step and learning rate, in place of the usual ones.
    pub losses: Arc<Mutex<Option<Losses>>>,
    gate: Arc<Mutex<Option<Gate>>>,
}

struct Gate {
    at_step: u64,
    reached: Sender<()>,
    go: Receiver<()>,
}

/// Holds the training thread before a step.
pub struct Hold {
    reached: Receiver<()>,
    go: Sender<()>,
}

impl Hold {
    /// Blocks until the learner has reached the step.
    pub fn wait_until_reached(&self) {
        self.reached.recv().expect("the learner lives");
    }

    /// Lets the learner continue.
    pub fn release(&self) {
        let _ = self.go.send(());
    }
}

impl FakeLearners {
    /// Holds the next learner that comes to a step until it is released.
    pub fn hold_before_step(&self, at_step: u64) -> Hold {
        let (reached, was_reached) = channel();
        let (go, may_go) = channel();
        *lock(&self.gate) = Some(Gate {
            at_step,
            reached,
            go: may_go,
        });
        Hold {
            reached: was_reached,
            go,
        }
    }

    fn learner(
        &self,
        config: &LearnerConfig,
        tokens: &CorpusTokens,
        snapshot: LearnerState,
    ) -> Box<dyn Learner> {
        Box::new(FakeLearner {
            faults: Arc::clone(&self.faults),
            losses: Arc::clone(&self.losses),
            gate: Arc::clone(&self.gate),
            steps_per_epoch: (tokens.len() / (config.batch_size * config.sequence_length)) as u64,
            tokens: tokens.clone(),
            config: config.clone(),
            snapshot,
        })
    }
}

impl LearnerFactory for FakeLearners {
    fn device(&self) -> String {
        "cpu".to_owned()
    }

    fn threads(&self) -> usize {
        1
    }

    fn instructions(&self, _precision: TrainingPrecision) -> String {
        "fake".to_owned()
    }

    fn start(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        initial: Option<Parameters>,
    ) -> Result<Box<dyn Learner>, LearnError> {
        let parameters = initial.unwrap_or_else(|| Parameters::zeros(config.architecture));
        let snapshot = LearnerState {
            step: 0,
            epoch_loss_sum: 0.0,
            first_moments: vec![0.0; parameters.values.len()],
            second_moments: vec![0.0; parameters.values.len()],
            parameters: parameters.values,
            average: Vec::new(),
            hidden: vec![0.0; config.batch_size],
        };
        Ok(self.learner(config, &tokens, snapshot))
    }

    fn resume(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        snapshot: LearnerState,
    ) -> Result<Box<dyn Learner>, LearnError> {
        Ok(self.learner(config, &tokens, snapshot))
    }
}

struct FakeLearner {
    faults: Arc<Mutex<Vec<(u64, Fault)>>>,
    losses: Arc<Mutex<Option<Losses>>>,
    gate: Arc<Mutex<Option<Gate>>>,
    steps_per_epoch: u64,
    tokens: CorpusTokens,
    config: LearnerConfig,
    snapshot: LearnerState,
}

impl FakeLearner {
    /// Returns `sound`, unless the weights have diverged.
    fn loss(&self, sound: f64) -> f64 {
        let weights = &self.snapshot.parameters;
        if weights.iter().any(|weight| weight.is_nan()) {
            f64::NAN
        } else if weights.iter().any(|weight| *weight > EXPLODED_WEIGHT) {
            1e3
        } else {
            sound
        }
    }
}

impl Learner for FakeLearner {
    fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    fn step_count(&self) -> u64 {
        self.snapshot.step
    }

    fn step(&mut self) -> Result<StepOutcome, LearnError> {
        let step = self.snapshot.step + 1;
        let mut gate = lock(&self.gate);
        if let Some(held) = gate.take_if(|gate| gate.at_step == step) {
            drop(gate);
            let _ = held.reached.send(());
            // A hold that was dropped does not hold either.
            let _ = held.go.recv();
        }
        let mut faults = lock(&self.faults);
        let place = faults.iter().position(|(at, _)| *at == step);
        let fault = place.map(|place| faults.remove(place).1);
        drop(faults);
        match fault {
            Some(Fault::Panics) => panic!("a panic that a test asked for"),
            Some(Fault::Fails) => return Err(LearnError::Panicked),
            _ => {}
        }
        // As the real learner does, though only one token of each step.
        let within = (step - 1) % self.steps_per_epoch;
        let mut token = [0];
        self.tokens
            .read(within as usize, &mut token)
            .map_err(LearnError::Text)?;
        let first = (step - 1).is_multiple_of(self.steps_per_epoch);
        let usual = match *lock(&self.losses) {
            Some(losses) => losses(step, self.config.learning_rate),
            None => 4.0 - 0.01 * step as f64,
        };
        let loss = match fault {
            Some(Fault::LossIsNan) => f64::NAN,
            Some(Fault::LossExplodes) => 1e3,
            _ => self.loss(usual),
        };
        let state = &mut self.snapshot;
        state.step = step;
        state.epoch_loss_sum = if first {
            loss
        } else {
            state.epoch_loss_sum + loss
        };
        for (number, hidden) in state.parameters.iter_mut().zip(state.hidden.iter().cycle()) {
            *number += self.config.learning_rate as f32 * step as f32 + 0.001 * hidden;
        }
        state.hidden.iter_mut().for_each(|hidden| *hidden += 1.0);
        match fault {
            Some(Fault::WeightsBecomeNan) => state.parameters[0] = f32::NAN,
            Some(Fault::WeightsExplode) => state.parameters[0] = 2.0 * EXPLODED_WEIGHT,
            _ => {}
        }
        let last = step.is_multiple_of(self.steps_per_epoch);
        Ok(StepOutcome {
            step,
            epoch: ((step - 1) / self.steps_per_epoch) as u32 + 1,
            loss,
            gradient_norm: 1.0,
            learning_rate: self.config.learning_rate,
            epoch_loss: last.then(|| state.epoch_loss_sum / self.steps_per_epoch as f64),
        })
    }

    fn average(&mut self) -> Result<Option<Parameters>, LearnError> {
        Ok(None)
    }

    fn parameters(&mut self) -> Result<Parameters, LearnError> {
        Ok(Parameters {
            architecture: self.config.architecture,
            values: self.snapshot.parameters.clone(),
        })
    }

    /// Lowest after the second epoch, and never exploded.
    fn evaluate(
        &mut self,
        _parameters: &Parameters,
        _tokens: &CorpusTokens,
    ) -> Result<f64, LearnError> {
        let epoch = self.snapshot.step / self.steps_per_epoch;
        Ok(self.loss(3.0 + (epoch as f64 - 2.0).abs().min(2.0)))
    }

    fn state(&mut self) -> Result<LearnerState, LearnError> {
        Ok(self.snapshot.clone())
    }
}
