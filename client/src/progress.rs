//! Shows the progress of a training: a bar on a terminal, lines otherwise, JSON
//! objects with `--json`. Results (epochs, the end) go to standard output,
//! everything else to standard error.

mod lines;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{State, StepProgress, TrainingAccepted, WatchTrainingResponse};
use console::Style;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::lines::state_name;
use self::lines::{accepted_lines, epoch_lines, finished_line, rolled_back_line, step_line};
use crate::args::PlotFlags;
use crate::failure::Failure;
use crate::json;
use crate::output::Output;
use crate::plot::LossPlot;

/// Minimum interval between two lines of progress when there is no bar: short
/// enough to see that the training is alive, long enough for a log file.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows the events of one training.
pub(crate) struct TrainingView {
    output: Output,
    /// Hidden if standard error is not a terminal.
    bar: ProgressBar,
    /// When the last line of progress was printed.
    last_line: Option<Instant>,
    /// Number of epochs of the training; 0 if it is unknown.
    epochs: u32,
    plot: Option<LossPlot>,
}

/// Writes messages above the bar of a `TrainingView`.
#[derive(Clone)]
pub(crate) struct NoteWriter {
    output: Output,
    bar: ProgressBar,
}

impl NoteWriter {
    /// Writes a message to standard error.
    pub(crate) fn note(&self, message: &str) {
        self.bar.suspend(|| self.output.note(message));
    }
}

impl TrainingView {
    /// Creates a view of a training that is shown from its start.
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            bar: bar(None, output, "{bar:16} {percent:>3}%  {wide_msg}"),
            last_line: None,
            epochs: 0,
            plot: None,
        }
    }

    /// Also plots the losses, if the flags name a file. Fails if it cannot be
    /// written.
    pub(crate) fn with_plot(mut self, flags: PlotFlags) -> Result<Self, Failure> {
        self.plot = flags.loss_plot()?;
        Ok(self)
    }

    /// Takes note of an event that is not to be shown.
    pub(crate) fn skip(&mut self, response: &WatchTrainingResponse) {
        if let Some(event) = &response.event {
            if let Some(plot) = &mut self.plot {
                plot.add(event);
            }
            if let Event::Accepted(accepted) = event {
                self.accept(accepted);
            }
        }
    }

    /// Shows one event. Fails if standard output or the plot cannot be
    /// written.
    pub(crate) fn show(&mut self, response: &WatchTrainingResponse) -> Result<(), Failure> {
        if let (Some(plot), Some(event)) = (&mut self.plot, &response.event)
            && plot.add(event)
        {
            plot.write(matches!(event, Event::Finished(_)))?;
        }
        if self.output.json {
            return self
                .output
                .object(&json::event("WatchTrainingResponse", response));
        }
        match &response.event {
            Some(Event::Accepted(accepted)) => {
                self.accept(accepted);
                self.note(&accepted_lines(&response.training_id, accepted));
                Ok(())
            }
            Some(Event::Step(step)) => {
                self.step(step);
                Ok(())
            }
            Some(Event::Epoch(epoch)) => {
                self.bar.set_position(epoch.step);
                self.result(&highlighted(&epoch_lines(epoch, self.epochs)))
            }
            Some(Event::Checkpoint(_)) | None => Ok(()),
            Some(Event::RolledBack(back)) => {
                self.bar.set_position(back.checkpoint_step);
                self.note(&rolled_back_line(back));
                Ok(())
            }
            Some(Event::Finished(finished)) => {
                self.bar.finish_and_clear();
                match finished.state() {
                    State::Succeeded => self.result(&finished_line(finished)),
                    _ => {
                        self.note(&finished_line(finished));
                        Ok(())
                    }
                }
            }
        }
    }

    /// Shows what the training waits for before it starts.
    pub(crate) fn waiting(&mut self, waits_for: &str) {
        let message = format!("waiting for {waits_for}");
        if self.bar.is_hidden() {
            self.output.note(&message);
        } else {
            self.bar.set_message(message);
        }
    }

    /// Removes the bar.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn accept(&mut self, accepted: &TrainingAccepted) {
        let spec = accepted.resolved_spec.as_ref();
        self.epochs = spec.map_or(0, |spec| spec.epochs());
        let steps = accepted.steps_per_epoch.saturating_mul(self.epochs.into());
        self.bar.set_length(steps);
    }

    /// Ends the view and prints the id of the training, which continues on the
    /// server.
    pub(crate) fn detach(&self, training_id: &str) -> Result<(), Failure> {
        self.end();
        if self.output.json {
            return Ok(());
        }
        self.output.line(training_id)
    }

    /// Writes a message to standard error.
    pub(crate) fn note(&self, message: &str) {
        self.notes().note(message);
    }

    /// Returns a writer of messages for another task.
    pub(crate) fn notes(&self) -> NoteWriter {
        NoteWriter {
            output: self.output,
            bar: self.bar.clone(),
        }
    }

    fn result(&self, text: &str) -> Result<(), Failure> {
        self.bar.suspend(|| self.output.line(text))
    }

    fn step(&mut self, step: &StepProgress) {
        let line = step_line(step, self.epochs);
        if !self.bar.is_hidden() {
            self.bar.set_length(step.total_steps);
            self.bar.set_position(step.step);
            self.bar.set_message(line);
            return;
        }
        let is_due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if is_due {
            self.last_line = Some(Instant::now());
            self.output.note(&line);
        }
    }
}

impl Drop for TrainingView {
    fn drop(&mut self) {
        // A bar must not stay on the screen after an error.
        self.bar.finish_and_clear();
    }
}

/// Highlights the losses of an epoch and colours its sample, on a terminal.
fn highlighted(epoch: &str) -> String {
    let (losses, sample) = epoch.split_once('\n').unwrap_or((epoch, ""));
    let mut lines = Style::new().bold().apply_to(losses).to_string();
    for line in sample.lines() {
        lines.push('\n');
        lines.push_str(&Style::new().cyan().apply_to(line).to_string());
    }
    lines
}

/// Creates a bar for the transfer of a file of `bytes` bytes, or of unknown
/// size.
pub(crate) fn transfer_bar(bytes: Option<u64>, output: Output) -> ProgressBar {
    let template = match bytes {
        Some(_) => "{bar:24} {percent:>3}%  {bytes} of {total_bytes}, {bytes_per_sec}",
        None => "{spinner} {bytes}, {bytes_per_sec}",
    };
    bar(bytes, output, template)
}

/// Creates a bar, which is hidden with `--json` or if standard error is not a
/// terminal.
fn bar(length: Option<u64>, output: Output, template: &str) -> ProgressBar {
    if output.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template)
        .expect("the templates are valid constants")
        .progress_chars("=> ");
    match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::no_length(),
    }
    .with_style(style)
}
