//! Stand-ins for tests: a learner whose weights are simple sums, which a test
//! can hold, fail or let diverge at a step; models in memory.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use charlstm_model::learner::{Learner, LearnerFactory};

use super::models::{InitialModel, Models, ModelsError};
use charlstm_model::learner::{LearnError, LearnerConfig, LearnerState, StepOutcome};
use charlstm_model::model_file::ModelFile;
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;

/// What goes wrong at a step, once for each time it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The step panics.
    Panics,
    /// The step fails.
    Fails,
    /// The loss is NaN.
    LossIsNan,
    /// The loss explodes.
    LossExplodes,
}

/// Makes fake learners.
#[derive(Default)]
pub struct FakeLearners {
    /// The faults to inject, each with its step.
    pub troubles: Arc<Mutex<Vec<(u64, Trouble)>>>,
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
            troubles: Arc::clone(&self.troubles),
            gate: Arc::clone(&self.gate),
            steps_per_epoch: (tokens.len() / (config.batch_size * config.sequence_length)) as u64,
            config: config.clone(),
            snapshot,
        })
    }
}

impl LearnerFactory for FakeLearners {
    fn device(&self) -> String {
        "cpu".to_owned()
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
    troubles: Arc<Mutex<Vec<(u64, Trouble)>>>,
    gate: Arc<Mutex<Option<Gate>>>,
    steps_per_epoch: u64,
    config: LearnerConfig,
    snapshot: LearnerState,
}

impl Learner for FakeLearner {
    fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    fn step(&mut self) -> Result<StepOutcome, LearnError> {
        let step = self.snapshot.step + 1;
        let mut gate = lock(&self.gate);
        if let Some(held) = gate.take_if(|gate| gate.at_step == step) {
            drop(gate);
            let _ = held.reached.send(());
            // A hold that was dropped lets go as well.
            let _ = held.go.recv();
        }
        let mut troubles = lock(&self.troubles);
        let place = troubles.iter().position(|(at, _)| *at == step);
        let trouble = place.map(|place| troubles.remove(place).1);
        drop(troubles);
        match trouble {
            Some(Trouble::Panics) => panic!("a panic that the test asked for"),
            Some(Trouble::Fails) => return Err(LearnError::Panicked),
            Some(Trouble::LossIsNan | Trouble::LossExplodes) | None => {}
        }
        let first = (step - 1).is_multiple_of(self.steps_per_epoch);
        let loss = match trouble {
            Some(Trouble::LossIsNan) => f64::NAN,
            Some(Trouble::LossExplodes) => 1e3,
            _ => 4.0 - 0.01 * step as f64,
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

    fn parameters(&self) -> Result<Parameters, LearnError> {
        Ok(Parameters {
            architecture: self.config.architecture,
            values: self.snapshot.parameters.clone(),
        })
    }

    /// Lowest after the second epoch.
    fn evaluate(&mut self, _tokens: &CorpusTokens) -> Result<f64, LearnError> {
        let epoch = self.snapshot.step / self.steps_per_epoch;
        Ok(3.0 + (epoch as f64 - 2.0).abs())
    }

    fn state(&self) -> Result<LearnerState, LearnError> {
        Ok(self.snapshot.clone())
    }
}

/// Models in memory.
#[derive(Default)]
pub struct FakeModels {
    /// Models that were published, with their names.
    pub published: Mutex<Vec<(String, ModelFile)>>,
    /// Models to start from, by reference.
    pub stored: Mutex<BTreeMap<String, InitialModel>>,
}

impl Models for FakeModels {
    fn find(&self, reference: &str) -> Result<InitialModel, ModelsError> {
        lock(&self.stored)
            .get(reference)
            .cloned()
            .ok_or_else(|| ModelsError::NotFound(format!("there is no model {reference:?}")))
    }

    fn publish(&self, name: &str, model: ModelFile) -> Result<u64, ModelsError> {
        let mut published = lock(&self.published);
        published.push((name.to_owned(), model));
        Ok(published.len() as u64)
    }

    fn published_by(&self, name: &str, training_id: &str) -> Result<Option<u64>, ModelsError> {
        let by = |(other, model): &(String, ModelFile)| {
            other == name && model.facts.training_id == training_id
        };
        let place = lock(&self.published).iter().position(by);
        Ok(place.map(|place| place as u64 + 1))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
