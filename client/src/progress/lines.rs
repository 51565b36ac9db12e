//! Formats the events of a training for people. Performs no I/O.

use charlstm_proto::v1::{
    EpochProgress, State, StepProgress, TrainingAccepted, TrainingFinished, TrainingResumed,
    TrainingRolledBack,
};

use crate::display;

/// Returns the name of a state for people.
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

/// Describes the corpus, the model and the spec of a training.
pub(super) fn accepted_lines(training_id: &str, accepted: &TrainingAccepted) -> String {
    let mut line = format!(
        "training {training_id}: {} characters, {} distinct; {} parameters; \
         {} steps per epoch on {}",
        display::count(accepted.corpus_chars),
        accepted.vocabulary_size,
        display::count(accepted.parameters),
        display::count(accepted.steps_per_epoch),
        accepted.device,
    );
    if let Some(spec) = &accepted.resolved_spec {
        line.push_str(&format!(
            "\n{}, recipe {}, {} x {} hidden, batches of {} x {}, dropout {}, \
             learning rate {}, {}, seed {}",
            display::plural(spec.epochs().into(), "epoch"),
            spec.recipe(),
            spec.num_layers(),
            spec.hidden_size(),
            spec.batch_size(),
            spec.sequence_length(),
            spec.dropout(),
            spec.learning_rate(),
            // A server of version 0.1 does not say it.
            spec.precision.as_deref().unwrap_or("float32"),
            spec.seed(),
        ));
    }
    line
}

/// The segments of a line of progress in the order of their importance.
pub(super) const STEP_IMPORTANCE: [usize; 7] = [1, 3, 0, 2, 4, 6, 5];

/// Describes the progress of a training in segments.
pub(super) fn step_segments(step: &StepProgress, epochs: u32) -> [String; 7] {
    [
        format!("epoch {}{}", step.epoch, of_total(epochs)),
        format!("loss {:.3}", step.loss),
        format!("{:.2} bits/char", display::bits(step.loss)),
        format!("{} left", display::seconds(step.eta_seconds)),
        format!("{} chars/s", display::rate(step.chars_per_second)),
        format!("lr {}", display::significant(step.learning_rate)),
        format!("step {}/{}", step.step, step.total_steps),
    ]
}

/// Describes the losses of an epoch in segments.
pub(super) fn epoch_segments(epoch: &EpochProgress, epochs: u32) -> Vec<String> {
    let mut segments = vec![
        format!("epoch {}{}", epoch.epoch, of_total(epochs)),
        format!("loss {:.3}", epoch.train_loss),
    ];
    if let Some(loss) = epoch.validation_loss {
        let best = if epoch.best { " (best)" } else { "" };
        segments.push(format!("validation {loss:.3}{best}"));
    }
    segments.extend([
        format!("{:.2} bits/char", epoch.bits_per_char),
        format!("{} chars/s", display::rate(epoch.chars_per_second)),
        display::seconds(epoch.seconds),
    ]);
    segments
}

/// Formats the total number of epochs, or nothing if it is unknown.
fn of_total(epochs: u32) -> String {
    if epochs == 0 {
        String::new()
    } else {
        format!("/{epochs}")
    }
}

/// Describes why a training was rolled back, and to which checkpoint.
pub(super) fn rolled_back_line(back: &TrainingRolledBack) -> String {
    format!(
        "step {}: {}; rolled back to step {} with learning rate {} (attempt {})",
        back.step, back.message, back.checkpoint_step, back.learning_rate, back.attempt,
    )
}

/// Describes where a training was resumed.
pub(super) fn resumed_line(resumed: &TrainingResumed) -> String {
    let line = match resumed.step {
        0 => "resumed from the beginning".to_owned(),
        step => format!("resumed at step {step}"),
    };
    if resumed.message.is_empty() {
        line
    } else {
        format!("{line}; {}", resumed.message)
    }
}

/// Describes how a training ended: its state, the published version and its
/// losses.
pub(super) fn finished_line(finished: &TrainingFinished) -> String {
    let state = state_name(finished.state());
    let mut line = if finished.version == 0 {
        format!("{state}: {}", finished.model)
    } else {
        format!("{state}: {}@{}", finished.model, finished.version)
    };
    if finished.train_loss > 0.0 {
        // The last step that was shown has another loss.
        let of = match finished.state() {
            State::Succeeded => "",
            _ => " in the last complete epoch",
        };
        line.push_str(&format!(", loss {:.3}{of}", finished.train_loss));
    }
    if let Some(loss) = finished.validation_loss {
        line.push_str(&format!(", validation {loss:.3}"));
        if let Some(epoch) = finished.best_epoch {
            line.push_str(&format!(" (best epoch: {epoch})"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal_text;

    #[test]
    fn a_step_shows_its_position_its_speed_and_the_time_left() {
        let step = StepProgress {
            epoch: 2,
            step: 30,
            total_steps: 580,
            loss: std::f64::consts::LN_2,
            chars_per_second: 9290.2,
            eta_seconds: 65.0,
            learning_rate: 0.0029876,
            ..Default::default()
        };
        assert_eq!(
            step_segments(&step, 20).join("  "),
            "epoch 2/20  loss 0.693  1.00 bits/char  1 min 05 s left  9,290 chars/s  lr 0.00299  \
             step 30/580"
        );
    }

    #[test]
    fn an_epoch_shows_its_losses() {
        let epoch = EpochProgress {
            epoch: 1,
            train_loss: 3.398,
            validation_loss: Some(3.185),
            bits_per_char: 4.595,
            seconds: 40.0,
            chars_per_second: 9290.0,
            sample: "As a\nmatter".into(),
            step: 29,
            best: true,
        };
        assert_eq!(
            epoch_segments(&epoch, 0).join("  "),
            "epoch 1  loss 3.398  validation 3.185 (best)  4.59 bits/char  9,290 chars/s  40 s"
        );
    }

    #[test]
    fn the_end_of_a_training_names_the_published_version() {
        let finished = TrainingFinished {
            state: State::Succeeded.into(),
            model: "nietzsche".into(),
            version: 3,
            train_loss: 1.872,
            validation_loss: Some(1.9),
            message: String::new(),
            best_epoch: Some(4),
        };
        assert_eq!(
            finished_line(&finished),
            "succeeded: nietzsche@3, loss 1.872, validation 1.900 (best epoch: 4)"
        );
    }

    #[test]
    fn the_loss_of_a_cancelled_training_is_that_of_its_last_complete_epoch() {
        let finished = TrainingFinished {
            state: State::Cancelled.into(),
            model: "book".into(),
            train_loss: 3.051,
            ..Default::default()
        };
        assert_eq!(
            finished_line(&finished),
            "cancelled: book, loss 3.051 in the last complete epoch"
        );
    }

    #[test]
    fn a_narrow_line_of_progress_shows_the_loss_and_the_time_left() {
        let step = StepProgress {
            epoch: 12,
            loss: 2.265,
            eta_seconds: 65.0,
            ..Default::default()
        };
        let segments = step_segments(&step, 40);
        assert_eq!(
            terminal_text::fitting_segments(&segments, &STEP_IMPORTANCE, 43),
            "epoch 12/40  loss 2.265  1 min 05 s left"
        );
    }

    #[test]
    fn a_rollback_shows_its_reason_and_its_checkpoint() {
        let back = TrainingRolledBack {
            step: 90,
            loss: f64::NAN,
            checkpoint_step: 60,
            learning_rate: 0.0005,
            attempt: 1,
            message: "the loss is not a number".into(),
        };
        assert_eq!(
            rolled_back_line(&back),
            "step 90: the loss is not a number; rolled back to step 60 with learning rate 0.0005 \
             (attempt 1)"
        );
    }
}
