//! The losses of a training as a picture that grows. How it is drawn is in
//! `plot`.

use std::path::PathBuf;

use charlstm_proto::v1::watch_training_response::Event;

use crate::exit::Failure;
use crate::plot::{self, Curve};

/// A picture of the losses that grows with each epoch.
pub(super) struct Plot {
    path: PathBuf,
    steps: Curve,
    epochs: Curve,
    validation: Curve,
}

impl Plot {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            steps: Curve::new("steps", "#9db8d9"),
            epochs: Curve::new("epochs", "#1f4e96"),
            validation: Curve::new("validation", "#c8501e"),
        }
    }

    /// Takes note of an event, and writes the picture where an epoch or the
    /// training is complete.
    pub(super) fn add(&mut self, event: &Event) -> Result<(), Failure> {
        match event {
            Event::Step(step) => {
                self.steps.push(step.step, step.loss);
                return Ok(());
            }
            Event::Epoch(epoch) => {
                self.epochs.push(epoch.step, epoch.train_loss);
                if let Some(loss) = epoch.validation_loss {
                    self.validation.push(epoch.step, loss);
                }
            }
            Event::Finished(_) => {}
            Event::Accepted(_) | Event::Checkpoint(_) | Event::RolledBack(_) => return Ok(()),
        }
        let curves = [&self.steps, &self.epochs, &self.validation].map(Clone::clone);
        let picture = plot::svg("Loss of the training", &curves);
        std::fs::write(&self.path, picture).map_err(|error| Failure::Io {
            what: format!("write {}", self.path.display()),
            source: error,
        })
    }
}
