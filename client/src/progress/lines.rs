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
             learning rate {}, seed {}",
            display::plural(spec.epochs().into(), "epoch"),
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

/// Describes the progress of a training, most important values first, because
/// a narrow terminal truncates the line.
pub(super) fn step_line(step: &StepProgress, epochs: u32) -> String {
    format!(
        "epoch {}{}  loss {:.3}  {:.2} bits/char  {} left  {} chars/s  lr {}  step {}/{}",
        step.epoch,
        of_total(epochs),
        step.loss,
        display::bits(step.loss),
        display::seconds(step.eta_seconds),
        display::rate(step.chars_per_second),
        display::significant(step.learning_rate),
        step.step,
        step.total_steps,
    )
}

/// Describes an epoch: its losses, and on the next lines its sample.
pub(super) fn epoch_lines(epoch: &EpochProgress, epochs: u32) -> String {
    let validation = epoch
        .validation_loss
        .map(|loss| {
            format!(
                "  validation {loss:.3}{}",
                if epoch.best { " (best)" } else { "" }
            )
        })
        .unwrap_or_default();
    let mut lines = format!(
        "epoch {}{}  loss {:.3}{validation}  {:.2} bits/char  {} chars/s  {}",
        epoch.epoch,
        of_total(epochs),
        epoch.train_loss,
        epoch.bits_per_char,
        display::rate(epoch.chars_per_second),
        display::seconds(epoch.seconds),
    );
    if !epoch.sample.is_empty() {
        for line in epoch.sample.lines() {
            lines.push_str("\n  | ");
            lines.push_str(line);
        }
    }
    lines
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
    match resumed.step {
        0 => "resumed from the beginning".to_owned(),
        step => format!("resumed at step {step}"),
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
        line.push_str(&format!(", loss {:.3}", finished.train_loss));
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
            step_line(&step, 20),
            "epoch 2/20  loss 0.693  1.00 bits/char  1 min 05 s left  9,290 chars/s  lr 0.00299  \
             step 30/580"
        );
    }

    #[test]
    fn an_epoch_shows_its_losses_and_its_sample_on_lines_of_its_own() {
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
            epoch_lines(&epoch, 0),
            "epoch 1  loss 3.398  validation 3.185 (best)  4.59 bits/char  9,290 chars/s  40 s\n  \
             | As a\n  | matter"
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
