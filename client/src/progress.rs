//! Shows the progress of a training: a bar on a terminal, lines otherwise, JSON
//! objects with `--json`. Results (epochs, the end) go to standard output,
//! everything else to standard error.

mod lines;

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{
    EpochProgress, State, StepProgress, TrainingAccepted, WatchTrainingResponse,
};
use console::Style;
use indicatif::{ProgressBar, ProgressStyle, WeakProgressBar};

pub(crate) use self::lines::state_name;
use self::lines::{
    STEP_IMPORTANCE, accepted_lines, epoch_segments, finished_line, resumed_line, rolled_back_line,
    step_segments,
};
use crate::args::PlotFlags;
use crate::failure::Failure;
use crate::json;
use crate::output::{self, Output};
use crate::plot::LossPlot;
use crate::terminal_text;

/// Minimum interval between two lines of progress when there is no bar: short
/// enough to see that the training is alive, long enough for a log file.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Width of a terminal below which the bar is short.
const WIDE_COLUMNS: usize = 80;

/// Between a sample and the edge of the terminal.
const GUTTER: &str = "  | ";

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
            bar: bar(None, output, training_template()),
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
                self.result(&self.epoch_text(epoch))
            }
            Some(Event::Checkpoint(_)) | None => Ok(()),
            Some(Event::CheckpointFailed(failed)) => {
                self.note(&failed.message);
                Ok(())
            }
            Some(Event::Resumed(resumed)) => {
                self.bar.set_position(resumed.step);
                self.note(&resumed_line(resumed));
                Ok(())
            }
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
            return;
        }
        let columns = output::stderr_columns().unwrap_or(usize::MAX);
        let is_too_long = message.chars().count() > columns.saturating_sub(bar_columns(columns));
        // On a narrow terminal, without the ids of those trainings.
        let shown = match message.split_once(": ") {
            Some((short, _)) if is_too_long => short.to_owned(),
            _ => message,
        };
        self.bar.set_message(shown);
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

    /// Formats the losses and the sample of an epoch. On a terminal they are
    /// highlighted, and broken to fit.
    fn epoch_text(&self, epoch: &EpochProgress) -> String {
        let columns = output::stdout_columns();
        let losses = epoch_segments(epoch, self.epochs);
        let losses = terminal_text::joined_segments(&losses, columns);
        let mut text = styled_lines(&losses, &Style::new().bold());
        if !epoch.sample.is_empty() {
            let sample = match columns {
                Some(_) => terminal_text::escaped(&epoch.sample),
                None => epoch.sample.as_str().into(),
            };
            let sample = terminal_text::with_gutter(&sample, GUTTER, columns);
            text.push('\n');
            text.push_str(&styled_lines(&sample, &Style::new().cyan()));
        }
        text
    }

    fn step(&mut self, step: &StepProgress) {
        let segments = step_segments(step, self.epochs);
        if !self.bar.is_hidden() {
            let columns = output::stderr_columns().unwrap_or(WIDE_COLUMNS);
            let room = columns.saturating_sub(bar_columns(columns));
            let message = terminal_text::fitting_segments(&segments, &STEP_IMPORTANCE, room);
            self.bar.set_length(step.total_steps);
            self.bar.set_position(step.step);
            self.bar.set_message(message);
            return;
        }
        let is_due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if is_due {
            self.last_line = Some(Instant::now());
            self.output.note(&segments.join("  "));
        }
    }
}

impl Drop for TrainingView {
    fn drop(&mut self) {
        // A bar must not stay on the screen after an error.
        self.bar.finish_and_clear();
    }
}

/// Styles each line, so that a line break is never within an escape sequence.
fn styled_lines(text: &str, style: &Style) -> String {
    let lines = text.lines().map(|line| style.apply_to(line).to_string());
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the template of the bar of a training.
fn training_template() -> &'static str {
    if output::stderr_columns().is_some_and(|columns| columns < WIDE_COLUMNS) {
        "[{bar:8.cyan}] {percent:>3}%  {wide_msg}"
    } else {
        "[{bar:16.cyan}] {percent:>3}%  {wide_msg}"
    }
}

/// Returns the width of the bar of a training without its message.
fn bar_columns(columns: usize) -> usize {
    let bar = if columns < WIDE_COLUMNS { 8 } else { 16 };
    // The frame, the percentage and the spaces; the last column stays empty.
    bar + 2 + 7 + 1
}

/// Creates a bar for the transfer of a file of `bytes` bytes, or of unknown
/// size.
pub(crate) fn transfer_bar(bytes: Option<u64>, output: Output) -> ProgressBar {
    let template = match bytes {
        Some(_) => "[{bar:8.cyan}] {percent:>3}%  {bytes} of {total_bytes}, {bytes_per_sec}",
        None => "{spinner} {bytes}, {bytes_per_sec}",
    };
    bar(bytes, output, template)
}

/// Creates a bar for work on a file of `bytes` bytes, or of unknown size, with a
/// message.
pub(crate) fn message_bar(bytes: Option<u64>, output: Output) -> ProgressBar {
    let template = match bytes {
        Some(_) => "[{bar:8.cyan}] {percent:>3}%  {wide_msg}",
        None => "{spinner} {wide_msg}",
    };
    bar(bytes, output, template)
}

/// The bars that are shown.
static SHOWN: Mutex<Vec<WeakProgressBar>> = Mutex::new(Vec::new());

/// Removes all bars from the screen: a command that Ctrl-C has interrupted does
/// not do it.
pub(crate) fn remove_bars() {
    let shown = std::mem::take(&mut *SHOWN.lock().unwrap_or_else(PoisonError::into_inner));
    for bar in shown.iter().filter_map(WeakProgressBar::upgrade) {
        bar.finish_and_clear();
    }
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
    let bar = match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::no_length(),
    }
    .with_style(style);
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    shown.push(bar.downgrade());
    drop(shown);
    bar
}
