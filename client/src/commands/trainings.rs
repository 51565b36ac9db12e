//! `trainings`: lists, shows, watches, cancels, resumes and deletes trainings.

use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{
    CancelTrainingRequest, DeleteTrainingRequest, GetTrainingRequest, ListTrainingsRequest,
    ResumeTrainingRequest, State, Training,
};

use super::follow::{self, EventStream, FollowUntil};
use crate::args::{GlobalFlags, PlotFlags, TrainingsCommand};
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::json;
use crate::output::{self, Output};
use crate::plot::LossPlot;
use crate::progress::{TrainingView, state_name};

/// Runs a command of `trainings`.
pub(crate) async fn run(
    command: TrainingsCommand,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    let connection = &Connection::open(global).await?;
    match command {
        TrainingsCommand::List => list(connection, output).await,
        TrainingsCommand::Show { id, plot } => show(connection, id, plot, output).await,
        TrainingsCommand::Watch { id, plot } => watch(connection, &id, plot, output).await,
        TrainingsCommand::Cancel { id } => cancel(connection, id, output).await,
        TrainingsCommand::Delete { id } => delete(connection, id, output).await,
        TrainingsCommand::Resume { id, detach, plot } => {
            resume(connection, id, detach, plot, output).await
        }
    }
}

async fn list(connection: &Connection, output: Output) -> Result<(), Failure> {
    let request = ListTrainingsRequest { owner: None };
    let response = connection.training().list_trainings(request).await?;
    let trainings = response.into_inner().trainings;
    if output.json {
        return trainings
            .iter()
            .try_for_each(|training| output.object(&json::object("Training", training)));
    }
    if trainings.is_empty() {
        output.note("no trainings yet; start one with `charlstm-client train`");
        return Ok(());
    }
    output.line(&table(&trainings))
}

async fn get(connection: &Connection, id: &str) -> Result<Training, Failure> {
    let request = GetTrainingRequest {
        training_id: id.to_owned(),
    };
    let response = connection.training().get_training(request).await?;
    Ok(response.into_inner().training.unwrap_or_default())
}

async fn show(
    connection: &Connection,
    id: String,
    plot: PlotFlags,
    output: Output,
) -> Result<(), Failure> {
    let plot = plot.loss_plot()?;
    let training = get(connection, &id).await?;
    if let Some(plot) = plot {
        plot_losses(connection, &training, plot).await?;
    }
    output.result(
        || json::object("Training", &training),
        || description(&training),
    )
}

/// Plots the losses up to the current step of the training.
async fn plot_losses(
    connection: &Connection,
    training: &Training,
    mut plot: LossPlot,
) -> Result<(), Failure> {
    let mut events = EventStream::watch(connection, &training.training_id, None).await?;
    let is_queued = training.state() == State::Queued;
    while let Some(response) = events.next().await? {
        let Some(event) = response.event else {
            continue;
        };
        plot.add(&event);
        let step = match event {
            // A queued training has no other event yet.
            Event::Accepted(_) if is_queued => break,
            Event::Step(step) => step.step,
            Event::Epoch(epoch) => epoch.step,
            _ => continue,
        };
        // The events of a running training do not end: stop at the step that
        // it had reached before, or at its first one.
        if training.state() == State::Running && step >= training.step.max(1) {
            break;
        }
    }
    plot.write(true)
}

/// Shows the progress of a training until it ends. Ctrl-C does not cancel it,
/// because another client may have started it.
pub(super) async fn watch(
    connection: &Connection,
    id: &str,
    plot: PlotFlags,
    output: Output,
) -> Result<(), Failure> {
    let view = TrainingView::new(output).with_plot(plot)?;
    let events = EventStream::watch(connection, id, None).await?;
    follow::follow(connection, events, view, FollowUntil::Finished, None).await
}

async fn cancel(connection: &Connection, id: String, output: Output) -> Result<(), Failure> {
    // The answer to the cancellation does not tell a training that it has ended
    // from one that had ended before.
    let before = get(connection, &id).await?;
    let state = state_name(before.state());
    if !matches!(before.state(), State::Running | State::Queued) {
        return Err(Failure::Refused(format!(
            "there is nothing to cancel: {id} has already ended ({state} at step {})",
            before.step
        )));
    }
    let request = CancelTrainingRequest { training_id: id };
    let response = connection.training().cancel_training(request).await?;
    let training = response.into_inner().training.unwrap_or_default();
    output.result(
        || json::named("cancelling", json::object("Training", &training)),
        || {
            let (id, step) = (&before.training_id, before.step);
            format!("cancelling {id} ({state} at step {step})")
        },
    )
}

async fn delete(connection: &Connection, id: String, output: Output) -> Result<(), Failure> {
    let request = DeleteTrainingRequest {
        training_id: id.clone(),
    };
    let response = connection.training().delete_training(request).await?;
    let training = response.into_inner().training.unwrap_or_default();
    output.result(
        || json::named("deleted", json::object("Training", &training)),
        || {
            let kept = match training.version {
                0 => String::new(),
                _ => format!("; its model {} stays", model(&training)),
            };
            format!("deleted {id} ({}){kept}", state_name(training.state()))
        },
    )
}

/// Resumes a training and shows its progress from there on. From then on, the
/// first Ctrl-C cancels the training.
pub(super) async fn resume(
    connection: &Connection,
    id: String,
    detach: bool,
    plot: PlotFlags,
    output: Output,
) -> Result<(), Failure> {
    let mut view = TrainingView::new(output).with_plot(plot)?;
    let next_sequence = next_event(connection, &id, &mut view).await?;
    let request = ResumeTrainingRequest {
        training_id: id.clone(),
    };
    let response = connection.training().resume_training(request).await?;
    let interrupts = Interrupts::listen();
    let training = response.into_inner().training.unwrap_or_default();
    if !output.json {
        // Not next to the bar, which is on the screen already.
        view.note(&format!(
            "resuming {id}: {} epochs done, step {} of {}",
            epochs(&training),
            training.step,
            training.total_steps
        ));
    }
    if detach {
        return view.detach(&id);
    }
    let events = EventStream::watch(connection, &id, Some(next_sequence)).await?;
    let until = FollowUntil::Finished;
    follow::follow(connection, events, view, until, Some(interrupts)).await
}

/// Passes the past events of a training to a view without showing them, and
/// returns the sequence number of the next one. The last of the past events is
/// that the training ended.
async fn next_event(
    connection: &Connection,
    id: &str,
    view: &mut TrainingView,
) -> Result<u64, Failure> {
    let training = get(connection, id).await?;
    let ended = matches!(
        training.state(),
        State::Cancelled | State::Failed | State::Interrupted
    );
    if !ended {
        // The server will refuse to resume it and report the reason.
        return Ok(0);
    }
    let mut events = EventStream::watch(connection, id, None).await?;
    let mut next_sequence = 0;
    while let Some(event) = events.next().await? {
        next_sequence = event.sequence + 1;
        view.skip(&event);
    }
    Ok(next_sequence)
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
        "STARTED",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(trainings.iter().map(|training| {
        vec![
            training.training_id.clone(),
            state_name(training.state()).to_owned(),
            model(training),
            epochs(training),
            format!("{}/{}", training.step, training.total_steps),
            display::loss(training.train_loss),
            display::loss(training.validation_loss),
            display::ago(training.created_unix_ms),
        ]
    }));
    let drop_first = ["STEP", "STARTED", "LOSS", "VALIDATION"];
    display::table(&rows, output::stdout_columns(), &drop_first)
}

fn description(training: &Training) -> String {
    let mut pairs = vec![
        ("training", training.training_id.clone()),
        ("state", state_name(training.state()).to_owned()),
        ("model", model(training)),
        ("started", display::ago(training.created_unix_ms)),
        ("epochs", epochs(training)),
        (
            "step",
            format!("{} of {}", training.step, training.total_steps),
        ),
        ("loss", display::loss(training.train_loss)),
        ("validation", display::loss(training.validation_loss)),
    ];
    if let Some(spec) = &training.spec {
        pairs.push((
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
        pairs.push(("message", training.message.clone()));
    }
    display::key_values(&pairs, output::stdout_columns())
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
