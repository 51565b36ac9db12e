//! The events of a training in words. No input or output.

use charlstm_proto::v1::{
    EpochProgress, State, StepProgress, TrainingAccepted, TrainingFinished, TrainingRolledBack,
};

use crate::human;

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

pub(super) fn accepted_line(training_id: &str, accepted: &TrainingAccepted) -> String {
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

/// Where the training is. What matters most stands first: a narrow terminal
/// cuts the end off.
pub(super) fn step_line(step: &StepProgress, epochs: u32) -> String {
    format!(
        "epoch {}{}  loss {:.3}  {:.2} bits/char  {} left  {} chars/s  rate {}  step {}/{}",
        step.epoch,
        of(epochs),
        step.loss,
        human::bits(step.loss),
        human::seconds(step.eta_seconds),
        human::rate(step.chars_per_second),
        human::small(step.learning_rate),
        step.step,
        step.total_steps,
    )
}

/// The losses of an epoch, and below them its sample.
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

/// What went wrong, and from where and how the training goes on.
pub(super) fn rolled_back_line(back: &TrainingRolledBack) -> String {
    format!(
        "step {}: {}; back to step {} with learning rate {} (attempt {})",
        back.step, back.message, back.checkpoint_step, back.learning_rate, back.attempt,
    )
}

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
            line.push_str(&format!(" (epoch {epoch}, the best)"));
        }
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
            learning_rate: 0.0029876,
            ..Default::default()
        };
        assert_eq!(
            step_line(&step, 20),
            "epoch 2/20  loss 0.693  1.00 bits/char  1 min 05 s left  9,290 chars/s  rate 0.00299  \
             step 30/580"
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
            best: true,
        };
        assert_eq!(
            epoch_lines(&epoch, 0),
            "epoch 1  loss 3.398  validation 3.185 (best)  4.59 bits/char  9,290 chars/s  40 s\n  \
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
            validation_loss: Some(1.9),
            message: String::new(),
            best_epoch: Some(4),
        };
        assert_eq!(
            finished_line(&finished),
            "succeeded: nietzsche@3, loss 1.872, validation 1.900 (epoch 4, the best)"
        );
    }

    #[test]
    fn a_return_to_a_checkpoint_says_why_and_how_it_goes_on() {
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
            "step 90: the loss is not a number; back to step 60 with learning rate 0.0005 \
             (attempt 1)"
        );
    }
}
