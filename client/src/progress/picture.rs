//! The losses of a training as a picture that grows. How it is drawn is in
//! `plot`.

use std::path::PathBuf;

use charlstm_proto::v1::TrainingSpec;
use charlstm_proto::v1::watch_training_response::Event;

use crate::exit::Failure;
use crate::plot::{self, losses::Losses};

/// A picture of the losses that grows with each epoch.
pub(crate) struct Plot {
    path: PathBuf,
    losses: Losses,
}

impl Plot {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            losses: Losses::new("Loss of the training"),
        }
    }

    /// Takes note of an event; true where an epoch or the training is
    /// complete, so that a picture is worth drawing.
    pub(crate) fn add(&mut self, event: &Event) -> bool {
        match event {
            Event::Accepted(accepted) => {
                if let Some(spec) = &accepted.resolved_spec {
                    self.losses.title(title(spec));
                }
                false
            }
            Event::Step(step) => {
                self.losses.step(step.step, step.loss);
                false
            }
            Event::Epoch(epoch) => {
                let validation = epoch.validation_loss;
                self.losses
                    .epoch(epoch.epoch, epoch.step, epoch.train_loss, validation);
                true
            }
            Event::Finished(_) => true,
            Event::Checkpoint(_) | Event::RolledBack(_) => false,
        }
    }

    /// Draws what came so far into the file.
    pub(crate) fn write(&self) -> Result<(), Failure> {
        plot::write(&self.path, &self.losses)
    }
}

fn title(spec: &TrainingSpec) -> String {
    format!(
        "Training of {}: recipe {}, {} x {} hidden",
        spec.model,
        spec.recipe(),
        spec.num_layers(),
        spec.hidden_size()
    )
}
