//! Collects the losses of a training from its events and plots them.

use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{TrainingAccepted, TrainingSpec};

use super::loss_chart::LossChart;
use super::{PlotFile, PlotTheme, PlotWriter};
use crate::display;
use crate::failure::Failure;
use crate::output_file::Existing;

/// A plot of the losses of one training that grows with each epoch.
pub(crate) struct LossPlot {
    writer: PlotWriter,
    chart: LossChart,
}

impl LossPlot {
    /// Creates a plot without losses, and checks that its file can be written.
    /// Nothing is written yet.
    pub(crate) fn new(
        file: PlotFile,
        theme: PlotTheme,
        existing: Existing,
    ) -> Result<Self, Failure> {
        Ok(Self {
            writer: PlotWriter::new(file, theme, existing)?,
            chart: LossChart::new("Training loss", ""),
        })
    }

    /// Adds the losses of an event. Returns true if an epoch or the training
    /// is complete, so that the plot should be written.
    pub(crate) fn add(&mut self, event: &Event) -> bool {
        match event {
            Event::Accepted(accepted) => {
                if let Some(spec) = &accepted.resolved_spec {
                    let (title, subtitle) = (title(accepted, spec), subtitle(accepted, spec));
                    self.chart.set_titles(title, subtitle);
                }
                false
            }
            Event::Step(step) => {
                self.chart.add_step(step.step, step.loss);
                false
            }
            Event::Epoch(epoch) => {
                self.chart.add_epoch(
                    epoch.epoch,
                    epoch.step,
                    epoch.train_loss,
                    epoch.validation_loss,
                );
                true
            }
            Event::Finished(_) => true,
            Event::Checkpoint(_)
            | Event::CheckpointFailed(_)
            | Event::RolledBack(_)
            | Event::Resumed(_) => false,
        }
    }

    /// Writes the losses so far to the file; a pipe receives only the last
    /// plot (`is_last`). Blocks until the file is on disk.
    pub(crate) fn write(&mut self, is_last: bool) -> Result<(), Failure> {
        self.writer.write(&self.chart, is_last)
    }
}

fn title(accepted: &TrainingAccepted, spec: &TrainingSpec) -> String {
    format!(
        "Training of {}: recipe {}, {} x {} hidden, {} parameters",
        spec.model,
        spec.recipe(),
        spec.num_layers(),
        spec.hidden_size(),
        display::count(accepted.parameters),
    )
}

fn subtitle(accepted: &TrainingAccepted, spec: &TrainingSpec) -> String {
    format!(
        "{} characters, batches of {} x {}, learning rate {}, dropout {}, seed {}, on {}",
        display::count(accepted.corpus_chars),
        spec.batch_size(),
        spec.sequence_length(),
        spec.learning_rate(),
        spec.dropout(),
        spec.seed(),
        accepted.device,
    )
}
