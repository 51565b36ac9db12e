//! Follows the events of a training: prints them, reconnects after the
//! connection was lost, and turns Ctrl-C into a cancellation.

use charlstm_proto::v1::train_response::Event as TrainEvent;
use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{
    CancelTrainingRequest, State, TrainResponse, TrainingFinished, WatchTrainingRequest,
    WatchTrainingResponse,
};
use tonic::{Status, Streaming};

use super::queue_monitor::QueueMonitor;
use super::retry::RetryPolicy;
use crate::connection::Connection;
use crate::display;
use crate::failure::{Failure, connection_lost};
use crate::interrupt::Interrupts;
use crate::progress::{TrainingView, state_name};

/// A stream of the events of one training.
pub(super) enum EventStream {
    /// The response of `Train`.
    Train(Streaming<TrainResponse>),
    /// The response of `WatchTraining`.
    Watch {
        stream: Streaming<WatchTrainingResponse>,
        training_id: String,
        from_sequence: u64,
    },
}

/// When to stop following a training that has not failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FollowUntil {
    /// When the training is accepted.
    Accepted,
    /// When it has ended.
    Finished,
}

/// How far a training was followed.
#[derive(Default)]
struct Followed {
    /// Empty until the first event.
    training_id: String,
    next_sequence: u64,
    cancelled_here: bool,
    /// True once the training makes progress, so that it is not waiting for
    /// others.
    has_progress: bool,
}

impl EventStream {
    /// Watches a training from an event on; `None` means from its first event.
    pub(super) async fn watch(
        connection: &Connection,
        training_id: &str,
        from_sequence: Option<u64>,
    ) -> Result<Self, Status> {
        let request = WatchTrainingRequest {
            training_id: training_id.to_owned(),
            from_sequence,
        };
        let response = connection.training().watch_training(request).await?;
        Ok(Self::Watch {
            stream: response.into_inner(),
            training_id: training_id.to_owned(),
            from_sequence: from_sequence.unwrap_or(0),
        })
    }

    /// Returns the next event, or `None` at the end of the stream. Cancel
    /// safe.
    pub(super) async fn next(&mut self) -> Result<Option<WatchTrainingResponse>, Status> {
        match self {
            Self::Train(stream) => Ok(stream.message().await?.map(from_train)),
            Self::Watch { stream, .. } => stream.message().await,
        }
    }

    /// Returns the next event of a training that has not ended: the end of the
    /// stream is UNAVAILABLE. Cancel safe.
    async fn expect_next(&mut self) -> Result<WatchTrainingResponse, Status> {
        let event = self.next().await?;
        event.ok_or_else(|| Status::unavailable("the stream ended before the training did"))
    }
}

/// Prints the events of a training, and what it waits for until it starts.
///
/// With `interrupts`, the first Ctrl-C cancels the training and the second one
/// returns. Fails with `Refused` if the training does not succeed, and with
/// `Interrupted` if it was cancelled by Ctrl-C.
pub(super) async fn follow(
    connection: &Connection,
    mut events: EventStream,
    mut view: TrainingView,
    until: FollowUntil,
    mut interrupts: Option<Interrupts>,
) -> Result<(), Failure> {
    let mut followed = Followed::default();
    if let EventStream::Watch {
        training_id,
        from_sequence,
        ..
    } = &events
    {
        followed.training_id.clone_from(training_id);
        followed.next_sequence = *from_sequence;
    }
    let mut policy = RetryPolicy::new();
    let mut queue = QueueMonitor::new();
    loop {
        let is_waiting = !followed.has_progress && !followed.training_id.is_empty();
        let event = tokio::select! {
            event = events.expect_next() => event,
            () = next_interrupt(&mut interrupts) => {
                if followed.cancelled_here || followed.training_id.is_empty() {
                    return Err(interrupted(&followed, &view));
                }
                followed.cancelled_here = true;
                cancel(connection, &followed, &view);
                continue;
            }
            waits_for = queue.next(connection, &followed.training_id), if is_waiting => {
                if let Some(waits_for) = waits_for {
                    view.waiting(&waits_for);
                }
                continue;
            }
        };
        match event {
            Ok(event) => {
                policy.reset();
                let is_last = show(event, &mut followed, &mut view, until)?;
                if is_last && followed.cancelled_here {
                    return Err(Failure::Interrupted);
                }
                if is_last {
                    return Ok(());
                }
            }
            Err(status) if connection_lost(&status) && !followed.training_id.is_empty() => {
                events = tokio::select! {
                    events = reconnect(connection, &followed, &mut policy, status, &view) => events?,
                    () = next_interrupt(&mut interrupts) => {
                        return Err(interrupted(&followed, &view));
                    }
                };
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// Reports, before the client exits because of Ctrl-C, how to find out what
/// became of the training.
fn interrupted(followed: &Followed, view: &TrainingView) -> Failure {
    let id = &followed.training_id;
    if !id.is_empty() {
        view.end();
        view.note(&format!(
            "run `charlstm-client trainings show {id}` to see what became of the training"
        ));
        if followed.cancelled_here {
            view.note(&format!(
                "once it is cancelled, `charlstm-client trainings resume {id}` resumes it"
            ));
        }
    }
    Failure::Interrupted
}

/// Prints one event. Returns true if it is the last one to print.
fn show(
    event: WatchTrainingResponse,
    followed: &mut Followed,
    view: &mut TrainingView,
    until: FollowUntil,
) -> Result<bool, Failure> {
    followed.next_sequence = event.sequence + 1;
    if followed.training_id.is_empty() {
        followed.training_id.clone_from(&event.training_id);
    }
    view.show(&event)?;
    match event.event {
        Some(Event::Finished(finished)) => match failure_of(&finished) {
            Some(failure) => {
                let can_be_resumed =
                    matches!(finished.state(), State::Cancelled | State::Interrupted);
                let remedy = can_be_resumed.then(|| {
                    let id = &followed.training_id;
                    let what = match followed.has_progress {
                        true => "resume it from its last checkpoint",
                        false => "start it after all",
                    };
                    format!("run `charlstm-client trainings resume {id}` to {what}")
                });
                match remedy {
                    // The user knows why it ended.
                    Some(remedy) if followed.cancelled_here => {
                        view.note(&remedy);
                        Ok(true)
                    }
                    Some(remedy) => Err(failure.with_remedy(remedy)),
                    None => Err(failure),
                }
            }
            None => Ok(true),
        },
        Some(Event::Accepted(_)) if until == FollowUntil::Accepted => {
            view.detach(&followed.training_id)?;
            Ok(true)
        }
        Some(Event::Accepted(_)) | None => Ok(false),
        Some(_) => {
            followed.has_progress = true;
            Ok(false)
        }
    }
}

/// Returns the failure of a training that has ended without success.
fn failure_of(finished: &TrainingFinished) -> Option<Failure> {
    let state = match finished.state() {
        State::Succeeded => return None,
        State::Unspecified => "ended in an unknown state",
        State::Failed => "failed",
        state => &format!("was {}", state_name(state)),
    };
    Some(Failure::Refused(if finished.message.is_empty() {
        format!("the training {state}")
    } else {
        format!("the training {state}: {}", finished.message)
    }))
}

/// Asks the server to cancel the training, in a task of its own: the events
/// until its end are still to be printed.
fn cancel(connection: &Connection, followed: &Followed, view: &TrainingView) {
    let checkpoint = match followed.has_progress {
        true => " after saving a checkpoint",
        false => "",
    };
    view.note(&format!(
        "cancelling the training{checkpoint} (press Ctrl-C again to exit immediately)"
    ));
    let mut client = connection.training();
    let request = CancelTrainingRequest {
        training_id: followed.training_id.clone(),
    };
    let notes = view.notes();
    tokio::spawn(async move {
        if let Err(status) = client.cancel_training(request).await {
            notes.note(&format!(
                "cannot cancel the training: {}",
                Failure::from(status)
            ));
        }
    });
}

/// Watches the training from the first event that was not printed, after the
/// connection was lost. Fails with the last error after about a minute.
async fn reconnect(
    connection: &Connection,
    followed: &Followed,
    policy: &mut RetryPolicy,
    mut lost: Status,
    view: &TrainingView,
) -> Result<EventStream, Failure> {
    while let Some(delay) = policy.next_delay() {
        view.note(&format!(
            "{}; reconnecting in {}",
            Failure::from(lost),
            display::seconds(delay.as_secs_f64())
        ));
        tokio::time::sleep(delay).await;
        let next = Some(followed.next_sequence);
        match EventStream::watch(connection, &followed.training_id, next).await {
            Ok(events) => return Ok(events),
            Err(status) if connection_lost(&status) => lost = status,
            Err(status) => return Err(status.into()),
        }
    }
    Err(Failure::from(lost).with_remedy(format!(
        "when the server is reachable again, run `charlstm-client trainings watch {}` to see \
         what became of the training",
        followed.training_id
    )))
}

async fn next_interrupt(interrupts: &mut Option<Interrupts>) {
    match interrupts {
        Some(interrupts) => interrupts.next().await,
        None => std::future::pending().await,
    }
}

/// Converts a response of `Train`: both calls send the same events.
fn from_train(response: TrainResponse) -> WatchTrainingResponse {
    WatchTrainingResponse {
        training_id: response.training_id,
        sequence: response.sequence,
        event: response.event.map(|event| match event {
            TrainEvent::Accepted(event) => Event::Accepted(event),
            TrainEvent::Step(event) => Event::Step(event),
            TrainEvent::Epoch(event) => Event::Epoch(event),
            TrainEvent::Checkpoint(event) => Event::Checkpoint(event),
            TrainEvent::CheckpointFailed(event) => Event::CheckpointFailed(event),
            TrainEvent::Resumed(event) => Event::Resumed(event),
            TrainEvent::RolledBack(event) => Event::RolledBack(event),
            TrainEvent::Finished(event) => Event::Finished(event),
        }),
    }
}
