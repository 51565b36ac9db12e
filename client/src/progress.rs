//! What a training looks like: a progress bar on a terminal, plain lines
//! elsewhere, JSON objects with `--json`. Results (epochs, the end) go to
//! standard output, the rest to standard error.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{
    EpochProgress, State, StepProgress, TrainingAccepted, TrainingFinished, WatchTrainingResponse,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::exit::Failure;
use crate::human;
use crate::json;
use crate::output::Output;
use crate::plot::{self, Curve};

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

/// A picture of the losses that grows with each epoch.
struct Plot {
    path: PathBuf,
    steps: Curve,
    epochs: Curve,
    validation: Curve,
}

impl Plot {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            steps: Curve::new("steps", "#9db8d9"),
            epochs: Curve::new("epochs", "#1f4e96"),
            validation: Curve::new("validation", "#c8501e"),
        }
    }

    /// Takes note of an event, and writes the picture where an epoch or the
    /// training is complete.
    fn add(&mut self, event: &Event) -> Result<(), Failure> {
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
            Event::Accepted(_) | Event::Checkpoint(_) => return Ok(()),
        }
        let curves = [&self.steps, &self.epochs, &self.validation].map(Clone::clone);
        let picture = plot::svg("Loss of the training", &curves);
        std::fs::write(&self.path, picture).map_err(|error| Failure::Io {
            what: format!("write {}", self.path.display()),
            source: error,
        })
    }
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
            bar: bar(None, output, "{bar:24} {percent:>3}%  {msg}"),
            last_line: None,
            epochs: 0,
            plot: None,
        }
    }

    /// Also draws the losses into an SVG file.
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
        if let (Some(plot), Some(event)) = (&mut self.plot, &response.event) {
            plot.add(event)?;
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
                self.result(&epoch_lines(epoch, self.epochs))
            }
            Some(Event::Checkpoint(_)) | None => Ok(()),
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

/// A state in small letters, as people say it.
pub(crate) fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Running => "running",
        State::Succeeded => "succeeded",
        State::Cancelled => "cancelled",
        State::Failed => "failed",
        State::Interrupted => "interrupted",
        State::Queued => "queued",
    }
}

fn accepted_line(training_id: &str, accepted: &TrainingAccepted) -> String {
    let mut line = format!(
        "training {training_id}: {} characters, {} distinct; {} parameters; \
         {} steps an epoch on {}",
        human::count(accepted.corpus_chars),
        accepted.vocabulary_size,
        human::count(accepted.parameters),
        human::count(accepted.steps_per_epoch),
        accepted.device,
    );
    if let Some(spec) = &accepted.resolved_spec {
        line.push_str(&format!(
            "\n{} epochs, recipe {}, {} x {} hidden, batches of {} x {}, dropout {}, \
             learning rate {}, seed {}",
            spec.epochs(),
            spec.recipe(),
            spec.num_layers(),
            spec.hidden_size(),
            spec.batch_size(),
            spec.sequence_length(),
            spec.dropout(),
            spec.learning_rate(),
            spec.seed(),
        ));
    }
    line
}

fn step_line(step: &StepProgress, epochs: u32) -> String {
    format!(
        "epoch {}{}  step {}/{}  loss {:.3}  {:.2} bits/char  {} chars/s  {} left",
        step.epoch,
        of(epochs),
        step.step,
        step.total_steps,
        step.loss,
        human::bits(step.loss),
        human::rate(step.chars_per_second),
        human::seconds(step.eta_seconds),
    )
}

/// The losses of an epoch, and below them its sample.
fn epoch_lines(epoch: &EpochProgress, epochs: u32) -> String {
    let validation = epoch
        .validation_loss
        .map(|loss| format!("  validation {loss:.3}"))
        .unwrap_or_default();
    let mut lines = format!(
        "epoch {}{}  loss {:.3}{validation}  {:.2} bits/char  {} chars/s  {}",
        epoch.epoch,
        of(epochs),
        epoch.train_loss,
        epoch.bits_per_char,
        human::rate(epoch.chars_per_second),
        human::seconds(epoch.seconds),
    );
    if !epoch.sample.is_empty() {
        for line in epoch.sample.lines() {
            lines.push_str("\n  | ");
            lines.push_str(line);
        }
    }
    lines
}

fn of(epochs: u32) -> String {
    if epochs == 0 {
        String::new()
    } else {
        format!("/{epochs}")
    }
}

fn finished_line(finished: &TrainingFinished) -> String {
    let state = state_name(finished.state());
    let mut line = if finished.version == 0 {
        format!("{state}: {}", finished.model)
    } else {
        format!("{state}: {}@{}", finished.model, finished.version)
    };
    if finished.train_loss > 0.0 {
        line.push_str(&format!(", loss {:.3}", finished.train_loss));
    }
    if let Some(loss) = finished.validation_loss {
        line.push_str(&format!(", validation {loss:.3}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_where_it_is_and_how_long_it_takes() {
        let step = StepProgress {
            epoch: 2,
            step: 30,
            total_steps: 580,
            loss: std::f64::consts::LN_2,
            chars_per_second: 9290.2,
            eta_seconds: 65.0,
            ..Default::default()
        };
        assert_eq!(
            step_line(&step, 20),
            "epoch 2/20  step 30/580  loss 0.693  1.00 bits/char  9,290 chars/s  1 min 05 s left"
        );
    }

    #[test]
    fn an_epoch_shows_its_losses_and_its_sample_line_by_line() {
        let epoch = EpochProgress {
            epoch: 1,
            train_loss: 3.398,
            validation_loss: Some(3.185),
            bits_per_char: 4.595,
            seconds: 40.0,
            chars_per_second: 9290.0,
            sample: "As a\nmatter".into(),
            step: 29,
        };
        assert_eq!(
            epoch_lines(&epoch, 0),
            "epoch 1  loss 3.398  validation 3.185  4.59 bits/char  9,290 chars/s  40 s\n  \
             | As a\n  | matter"
        );
    }

    #[test]
    fn the_end_names_the_version_that_was_published() {
        let finished = TrainingFinished {
            state: State::Succeeded.into(),
            model: "nietzsche".into(),
            version: 3,
            train_loss: 1.872,
            validation_loss: None,
            message: String::new(),
        };
        assert_eq!(
            finished_line(&finished),
            "succeeded: nietzsche@3, loss 1.872"
        );
    }
}
