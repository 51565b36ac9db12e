//! What a training looks like: a progress bar on a terminal, plain lines
//! elsewhere, JSON objects with `--json`. Results (epochs, the end) go to
//! standard output, the rest to standard error.

mod picture;
mod words;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{State, StepProgress, WatchTrainingResponse};
use console::Style;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::picture::Plot;
pub(crate) use self::words::state_name;
use self::words::{accepted_line, epoch_lines, finished_line, rolled_back_line, step_line};
use crate::exit::Failure;
use crate::json;
use crate::output::Output;

/// Time between two lines of progress where nobody can watch a bar: often
/// enough to see that it lives, seldom enough for a log.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows the events of one training.
pub(crate) struct TrainingView {
    output: Output,
    /// Hidden where standard error is not a terminal.
    bar: ProgressBar,
    last_line: Option<Instant>,
    epochs: u32,
    plot: Option<Plot>,
}

/// Writes messages beside a bar that is being drawn.
#[derive(Clone)]
pub(crate) struct Notes {
    output: Output,
    bar: ProgressBar,
}

impl Notes {
    /// Writes a message to standard error.
    pub(crate) fn note(&self, message: &str) {
        self.bar.suspend(|| self.output.note(message));
    }
}

impl TrainingView {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            bar: bar(None, output, "{bar:16} {percent:>3}%  {wide_msg}"),
            last_line: None,
            epochs: 0,
            plot: None,
        }
    }

    /// Also draws the losses into a picture.
    pub(crate) fn with_plot(mut self, path: Option<PathBuf>) -> Self {
        self.plot = path.map(Plot::new);
        self
    }

    /// For a training of `epochs` epochs whose beginning is not shown again.
    pub(crate) fn resumed(output: Output, epochs: u32) -> Self {
        Self {
            epochs,
            ..Self::new(output)
        }
    }

    /// Shows one event.
    pub(crate) fn show(&mut self, response: &WatchTrainingResponse) -> Result<(), Failure> {
        if let (Some(plot), Some(event)) = (&mut self.plot, &response.event)
            && plot.add(event)
        {
            plot.write()?;
        }
        if self.output.json {
            return self
                .output
                .object(&json::event("WatchTrainingResponse", response));
        }
        match &response.event {
            Some(Event::Accepted(accepted)) => {
                let spec = accepted.resolved_spec.as_ref();
                self.epochs = spec.map_or(0, |spec| spec.epochs());
                self.bar
                    .set_length(accepted.steps_per_epoch * u64::from(self.epochs));
                self.note(&accepted_line(&response.training_id, accepted));
                Ok(())
            }
            Some(Event::Step(step)) => {
                self.step(step);
                Ok(())
            }
            Some(Event::Epoch(epoch)) => {
                self.bar.set_position(epoch.step);
                self.result(&coloured(&epoch_lines(epoch, self.epochs)))
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

    /// Prints the id of a training that goes on without this client.
    pub(crate) fn detached(&self, training_id: &str) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        if self.output.json {
            return Ok(());
        }
        self.output.line(training_id)
    }

    /// Writes a message to standard error.
    pub(crate) fn note(&self, message: &str) {
        self.notes().note(message);
    }

    /// Something that writes messages beside the bar from another task.
    pub(crate) fn notes(&self) -> Notes {
        Notes {
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
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if due {
            self.last_line = Some(Instant::now());
            self.output.note(&line);
        }
    }
}

/// On a terminal the figures of an epoch stand out from its sample.
fn coloured(epoch: &str) -> String {
    let (figures, sample) = epoch.split_once('\n').unwrap_or((epoch, ""));
    let mut lines = Style::new().bold().apply_to(figures).to_string();
    for line in sample.lines() {
        lines.push('\n');
        lines.push_str(&Style::new().cyan().apply_to(line).to_string());
    }
    lines
}

/// A bar for `bytes` to be sent.
pub(crate) fn upload_bar(bytes: Option<u64>, output: Output) -> ProgressBar {
    let template = match bytes {
        Some(_) => "{bar:24} {percent:>3}%  {bytes} of {total_bytes}, {bytes_per_sec}",
        None => "{spinner} {bytes}, {bytes_per_sec}",
    };
    bar(bytes, output, template)
}

/// A bar on a terminal, a hidden one elsewhere and with `--json`.
fn bar(length: Option<u64>, output: Output, template: &str) -> ProgressBar {
    if output.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template)
        .expect("the templates are written in this file")
        .progress_chars("=> ");
    match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::no_length(),
    }
    .with_style(style)
}
