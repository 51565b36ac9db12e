//! Conversions of trainings between protobuf and the domain.

use charlstm_proto::v1 as pb;
use charlstm_proto::v1::{train_response, watch_training_response};

use charlstm_training::events::{Event, EventKind, State};
use charlstm_training::job::Job;
use charlstm_training::spec::{ResolvedSpec, TrainingSpec};

/// Converts the spec of a request.
pub(super) fn spec_from(spec: pb::TrainingSpec) -> TrainingSpec {
    TrainingSpec {
        model: spec.model,
        hidden_size: spec.hidden_size,
        num_layers: spec.num_layers,
        batch_size: spec.batch_size,
        sequence_length: spec.sequence_length,
        epochs: spec.epochs,
        dropout: spec.dropout,
        learning_rate: spec.learning_rate,
        clip_norm: spec.clip_norm,
        validation_fraction: spec.validation_fraction,
        seed: spec.seed,
        skip_chars: spec.skip_chars,
        recipe: spec.recipe,
        init_from: spec.init_from,
        cancel_on_disconnect: spec.cancel_on_disconnect,
        sample_prime: spec.sample_prime,
        sample_chars: spec.sample_chars,
        extend_vocabulary: spec.extend_vocabulary,
        precision: spec.precision,
        weight_decay: spec.weight_decay,
        locked_dropout: spec.locked_dropout,
        recurrent_dropout: spec.recurrent_dropout,
        input_dropout: spec.input_dropout,
        average_decay: spec.average_decay,
    }
}

fn spec_to(spec: &ResolvedSpec) -> pb::TrainingSpec {
    pb::TrainingSpec {
        model: spec.model.clone(),
        hidden_size: Some(spec.hidden_size),
        num_layers: Some(spec.num_layers),
        batch_size: Some(spec.batch_size),
        sequence_length: Some(spec.sequence_length),
        epochs: Some(spec.epochs),
        dropout: Some(spec.dropout),
        learning_rate: Some(spec.learning_rate),
        clip_norm: Some(spec.clip_norm),
        validation_fraction: Some(spec.validation_fraction),
        seed: Some(spec.seed),
        skip_chars: Some(spec.skip_chars),
        recipe: Some(spec.recipe.name().to_owned()),
        init_from: spec.init_from.clone(),
        cancel_on_disconnect: Some(spec.cancel_on_disconnect),
        sample_prime: spec.sample_prime.clone(),
        sample_chars: Some(spec.sample_chars),
        extend_vocabulary: Some(spec.extend_vocabulary),
        precision: Some(spec.precision.name().to_owned()),
        weight_decay: Some(spec.optimizer().weight_decay),
        locked_dropout: Some(spec.locked_dropout),
        recurrent_dropout: Some(spec.recurrent_dropout),
        input_dropout: Some(spec.input_dropout),
        average_decay: Some(spec.average_decay),
    }
}

/// Converts an event for the stream that started the training.
pub(super) fn train_response(job: &Job, event: &Event) -> pb::TrainResponse {
    pb::TrainResponse {
        training_id: job.id().to_owned(),
        sequence: event.sequence,
        event: Some(event_to(job, &event.event)),
    }
}

/// Converts an event for the stream of a watcher.
pub(super) fn watch_response(job: &Job, event: &Event) -> pb::WatchTrainingResponse {
    use train_response::Event as From;
    use watch_training_response::Event as To;
    pb::WatchTrainingResponse {
        training_id: job.id().to_owned(),
        sequence: event.sequence,
        event: Some(match event_to(job, &event.event) {
            From::Accepted(accepted) => To::Accepted(accepted),
            From::Step(step) => To::Step(step),
            From::Epoch(epoch) => To::Epoch(epoch),
            From::Checkpoint(checkpoint) => To::Checkpoint(checkpoint),
            From::CheckpointFailed(failed) => To::CheckpointFailed(failed),
            From::RolledBack(back) => To::RolledBack(back),
            From::Resumed(resumed) => To::Resumed(resumed),
            From::Finished(finished) => To::Finished(finished),
        }),
    }
}

fn event_to(job: &Job, event: &EventKind) -> train_response::Event {
    use train_response::Event as To;
    match event {
        EventKind::Accepted(accepted) => To::Accepted(pb::TrainingAccepted {
            corpus_chars: accepted.corpus_chars,
            vocabulary_size: accepted.vocabulary_size,
            steps_per_epoch: accepted.steps_per_epoch,
            parameters: accepted.parameters,
            device: accepted.device.clone(),
            resolved_spec: Some(spec_to(&job.metadata().spec)),
        }),
        EventKind::Step(step) => To::Step(pb::StepProgress {
            epoch: step.epoch,
            step: step.step,
            total_steps: step.total_steps,
            loss: step.loss,
            gradient_norm: step.gradient_norm,
            chars_per_second: step.chars_per_second,
            eta_seconds: step.eta_seconds,
            learning_rate: step.learning_rate,
        }),
        EventKind::Epoch(epoch) => To::Epoch(pb::EpochProgress {
            epoch: epoch.epoch,
            train_loss: epoch.train_loss,
            validation_loss: epoch.validation_loss,
            bits_per_char: epoch.bits_per_char,
            seconds: epoch.seconds,
            chars_per_second: epoch.chars_per_second,
            sample: epoch.sample.clone(),
            step: epoch.step,
            best: epoch.best,
        }),
        EventKind::Checkpoint(saved) => To::Checkpoint(pb::CheckpointSaved { step: saved.step }),
        EventKind::CheckpointFailed(failed) => To::CheckpointFailed(pb::CheckpointFailed {
            step: failed.step,
            message: failed.message.clone(),
        }),
        EventKind::Resumed(resumed) => To::Resumed(pb::TrainingResumed {
            run: resumed.run,
            step: resumed.step,
            replica: resumed.replica.clone(),
            device: resumed.device.clone(),
            threads: resumed.threads,
            precision: resumed.precision.clone(),
            instructions: resumed.instructions.clone(),
            message: resumed.message.clone(),
        }),
        EventKind::RolledBack(back) => To::RolledBack(pb::TrainingRolledBack {
            step: back.step,
            loss: back.loss,
            checkpoint_step: back.checkpoint_step,
            learning_rate: back.learning_rate,
            attempt: back.attempt,
            message: back.message.clone(),
        }),
        EventKind::Finished(finished) => To::Finished(pb::TrainingFinished {
            state: state_to(finished.state).into(),
            model: job.metadata().spec.model.clone(),
            version: finished.version,
            train_loss: finished.train_loss.unwrap_or(0.0),
            validation_loss: finished.validation_loss,
            message: finished.message.clone(),
            best_epoch: finished.best_epoch,
        }),
    }
}

/// Converts the current state of a training.
pub(super) fn training(job: &Job) -> pb::Training {
    let (metadata, summary) = (job.metadata(), job.summary());
    pb::Training {
        training_id: job.id().to_owned(),
        state: state_to(summary.state).into(),
        spec: Some(spec_to(&metadata.spec)),
        created_unix_ms: metadata.created_unix_ms,
        epochs_completed: summary.epochs_completed,
        step: summary.step,
        total_steps: summary.total_steps,
        train_loss: summary.train_loss,
        validation_loss: summary.validation_loss,
        version: summary.version,
        message: summary.message,
        owner: job.owner().to_string(),
        corpus_sha256: metadata.corpus_sha256.clone(),
    }
}

fn state_to(state: State) -> pb::State {
    match state {
        State::Queued => pb::State::Queued,
        State::Running => pb::State::Running,
        State::Succeeded => pb::State::Succeeded,
        State::Cancelled => pb::State::Cancelled,
        State::Failed => pb::State::Failed,
        State::Interrupted => pb::State::Interrupted,
    }
}
