//! `trainings`: lists, describes, watches, cancels and resumes trainings.

use std::path::PathBuf;

use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{
    CancelTrainingRequest, GetTrainingRequest, ListTrainingsRequest, ResumeTrainingRequest, State,
    Training,
};

use super::follow::{self, Ending, Source};
use super::models;
use crate::args::TrainingsCommand;
use crate::connect::Connection;
use crate::exit::{Failure, Interrupts};
use crate::human;
use crate::json;
use crate::output::Output;
use crate::progress::{Plot, TrainingView, state_name};

/// Does what `command` says.
pub(crate) async fn run(
    command: TrainingsCommand,
    connection: &Connection,
    output: Output,
) -> Result<(), Failure> {
    match command {
        TrainingsCommand::List => list(connection, output).await,
        TrainingsCommand::Show { id, plot } => show(connection, id, plot, output).await,
        TrainingsCommand::Watch { id } => watch(connection, &id, output).await,
        TrainingsCommand::Cancel { id } => cancel(connection, id, output).await,
        TrainingsCommand::Resume { id } => resume(connection, id, output).await,
    }
}

async fn list(connection: &Connection, output: Output) -> Result<(), Failure> {
    let request = ListTrainingsRequest {};
    let response = connection.training().list_trainings(request).await?;
    let trainings = response.into_inner().trainings;
    if output.json {
        return trainings
            .iter()
            .try_for_each(|training| output.object(&json::object("Training", training)));
    }
    if trainings.is_empty() {
        output.note("no trainings yet; `charlstm-client train` starts one");
        return Ok(());
    }
    output.line(&table(&trainings))
}

async fn show(
    connection: &Connection,
    id: String,
    plot: Option<PathBuf>,
    output: Output,
) -> Result<(), Failure> {
    let request = GetTrainingRequest { training_id: id };
    let response = connection.training().get_training(request).await?;
    let training = response.into_inner().training.unwrap_or_default();
    if let Some(path) = plot {
        draw(connection, &training, path).await?;
    }
    output.result(
        || json::object("Training", &training),
        || description(&training),
    )
}

/// Draws the losses up to where the training stands now.
async fn draw(connection: &Connection, training: &Training, path: PathBuf) -> Result<(), Failure> {
    let mut plot = Plot::new(path);
    let mut source = Source::watch(connection, &training.training_id, None).await?;
    // Without a step there is nothing to wait for but the description.
    let waiting = training.state() == State::Queued;
    while let Some(response) = source.next_if_any().await? {
        let Some(event) = response.event else {
            continue;
        };
        plot.add(&event);
        let step = match event {
            Event::Accepted(_) if waiting => break,
            Event::Step(step) => step.step,
            Event::Epoch(epoch) => epoch.step,
            _ => continue,
        };
        // The events of a training that runs do not end; its next one comes
        // soon.
        if training.state() == State::Running && step >= training.step.max(1) {
            break;
        }
    }
    plot.write()
}

/// Ctrl-C only leaves: the training is not this client's.
pub(crate) async fn watch(
    connection: &Connection,
    id: &str,
    output: Output,
) -> Result<(), Failure> {
    let source = Source::watch(connection, id, None).await?;
    let view = TrainingView::new(output);
    follow::follow(connection, source, view, Ending::Finished, None).await
}

async fn cancel(connection: &Connection, id: String, output: Output) -> Result<(), Failure> {
    let request = CancelTrainingRequest { training_id: id };
    let response = connection.training().cancel_training(request).await?;
    let training = response.into_inner().training.unwrap_or_default();
    output.result(
        || json::named("cancelling", json::object("Training", &training)),
        || {
            format!(
                "cancelling {}; it was {} at step {}",
                training.training_id,
                state_name(training.state()),
                training.step
            )
        },
    )
}

/// Goes on with a training and shows what comes from now on.
pub(crate) async fn resume(
    connection: &Connection,
    id: String,
    output: Output,
) -> Result<(), Failure> {
    let (next_sequence, epochs) = past(connection, &id).await?;
    let request = ResumeTrainingRequest {
        training_id: id.clone(),
    };
    let response = connection.training().resume_training(request).await?;
    // Until here Ctrl-C only leaves; from here it cancels.
    let interrupts = Interrupts::listen();
    let training = response.into_inner().training.unwrap_or_default();
    if !output.json {
        output.note(&format!(
            "resuming {id}: {} of {epochs} epochs completed, step {} of {}",
            training.epochs_completed, training.step, training.total_steps
        ));
    }
    let source = Source::watch(connection, &id, Some(next_sequence)).await?;
    let view = TrainingView::resumed(output, epochs);
    let ending = Ending::Finished;
    follow::follow(connection, source, view, ending, Some(interrupts)).await
}

/// The number of the first event that is still to come, and the epochs of the
/// training. The events of the past are not shown again, least of all the one
/// that says that the training ended.
async fn past(connection: &Connection, id: &str) -> Result<(u64, u32), Failure> {
    let request = GetTrainingRequest {
        training_id: id.to_owned(),
    };
    let response = connection.training().get_training(request).await?;
    let training = response.into_inner().training.unwrap_or_default();
    let epochs = training.spec.as_ref().map_or(0, |spec| spec.epochs());
    let ended = matches!(
        training.state(),
        State::Cancelled | State::Failed | State::Interrupted
    );
    if !ended {
        // The server will refuse to resume it, and says why.
        return Ok((0, epochs));
    }
    let mut source = Source::watch(connection, id, None).await?;
    let mut next_sequence = 0;
    while let Some(event) = source.next_if_any().await? {
        next_sequence = event.sequence + 1;
    }
    Ok((next_sequence, epochs))
}

fn table(trainings: &[Training]) -> String {
    let heading = [
        "TRAINING",
        "STATE",
        "MODEL",
        "EPOCHS",
        "STEP",
        "LOSS",
        "VALIDATION",
        "BEGAN",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(trainings.iter().map(|training| {
        vec![
            training.training_id.clone(),
            state_name(training.state()).to_owned(),
            model(training),
            epochs(training),
            format!("{}/{}", training.step, training.total_steps),
            models::loss(training.train_loss),
            models::loss(training.validation_loss),
            human::ago(training.created_unix_ms),
        ]
    }));
    human::table(&rows)
}

fn description(training: &Training) -> String {
    let mut facts = vec![
        ("training", training.training_id.clone()),
        ("state", state_name(training.state()).to_owned()),
        ("model", model(training)),
        ("began", human::ago(training.created_unix_ms)),
        ("epochs", epochs(training)),
        (
            "step",
            format!("{} of {}", training.step, training.total_steps),
        ),
        ("loss", models::loss(training.train_loss)),
        ("validation", models::loss(training.validation_loss)),
    ];
    if let Some(spec) = &training.spec {
        facts.push((
            "spec",
            format!(
                "recipe {}, {} x {} hidden, batches of {} x {}, dropout {}, learning rate {}, \
                 clip {}, seed {}",
                spec.recipe(),
                spec.num_layers(),
                spec.hidden_size(),
                spec.batch_size(),
                spec.sequence_length(),
                spec.dropout(),
                spec.learning_rate(),
                spec.clip_norm(),
                spec.seed()
            ),
        ));
    }
    if !training.message.is_empty() {
        facts.push(("message", training.message.clone()));
    }
    human::facts(&facts)
}

fn model(training: &Training) -> String {
    let name = training.spec.as_ref().map_or("", |spec| &spec.model);
    match training.version {
        0 => name.to_owned(),
        version => format!("{name}@{version}"),
    }
}

fn epochs(training: &Training) -> String {
    let all = training.spec.as_ref().map_or(0, |spec| spec.epochs());
    format!("{}/{all}", training.epochs_completed)
}
