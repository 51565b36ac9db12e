//! Follows the events of a training until it ends: shows them, comes back
//! after a broken connection, and turns Ctrl-C into a cancellation.

use charlstm_proto::v1::train_response::Event as TrainEvent;
use charlstm_proto::v1::watch_training_response::Event;
use charlstm_proto::v1::{
    CancelTrainingRequest, State, TrainResponse, TrainingFinished, WatchTrainingRequest,
    WatchTrainingResponse,
};
use tonic::{Status, Streaming};

use super::replay::Backoff;
use crate::connect::Connection;
use crate::exit::{Failure, Interrupts, lost_connection};
use crate::progress::TrainingView;

/// Where the events come from.
pub(crate) enum Source {
    /// The answer of `Train`.
    Train(Streaming<TrainResponse>),
    /// The answer of `WatchTraining`, for a training and from an event on.
    Watch(Streaming<WatchTrainingResponse>, String, u64),
}

/// Until when to follow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
    /// Until the training is accepted.
    Accepted,
    /// Until it has ended.
    Finished,
}

/// What was seen of the training so far.
#[derive(Default)]
struct Seen {
    training_id: String,
    next_sequence: u64,
    cancelled_here: bool,
}

impl Source {
    /// The events of `training_id` from `from_sequence` on.
    pub(crate) async fn watch(
        connection: &Connection,
        training_id: &str,
        from_sequence: Option<u64>,
    ) -> Result<Self, Status> {
        let request = WatchTrainingRequest {
            training_id: training_id.to_owned(),
            from_sequence,
        };
        let response = connection.training().watch_training(request).await?;
        Ok(Self::Watch(
            response.into_inner(),
            training_id.to_owned(),
            from_sequence.unwrap_or(0),
        ))
    }

    /// The next event; `None` at the end of the stream. Dropping the future
    /// loses nothing.
    pub(crate) async fn next_if_any(&mut self) -> Result<Option<WatchTrainingResponse>, Status> {
        match self {
            Self::Train(stream) => Ok(stream.message().await?.map(from_train)),
            Self::Watch(stream, ..) => stream.message().await,
        }
    }

    /// The next event of a training that has not ended.
    async fn next(&mut self) -> Result<WatchTrainingResponse, Status> {
        let event = self.next_if_any().await?;
        event.ok_or_else(|| Status::unavailable("the events ended before the training did"))
    }
}

/// Shows the events of `source`. With `interrupts`, the first Ctrl-C cancels
/// the training and the second one leaves. A training that does not succeed
/// is `Refused`, one that was cancelled here is `Interrupted`.
pub(crate) async fn follow(
    connection: &Connection,
    mut source: Source,
    mut view: TrainingView,
    ending: Ending,
    mut interrupts: Option<Interrupts>,
) -> Result<(), Failure> {
    let mut seen = Seen::default();
    if let Source::Watch(_, training_id, from_sequence) = &source {
        seen.training_id.clone_from(training_id);
        seen.next_sequence = *from_sequence;
    }
    let mut backoff = Backoff::default();
    loop {
        let event = tokio::select! {
            event = source.next() => event,
            () = next_interrupt(&mut interrupts) => {
                if seen.cancelled_here || seen.training_id.is_empty() {
                    return Err(Failure::Interrupted);
                }
                seen.cancelled_here = true;
                cancel(connection, &seen.training_id, &view);
                continue;
            }
        };
        match event {
            Ok(event) => {
                backoff.reset();
                if show(event, &mut seen, &mut view, ending)? {
                    return if seen.cancelled_here {
                        Err(Failure::Interrupted)
                    } else {
                        Ok(())
                    };
                }
            }
            Err(status) if lost_connection(&status) && !seen.training_id.is_empty() => {
                source = tokio::select! {
                    source = attach_again(connection, &seen, &mut backoff, status, &view) => source?,
                    () = next_interrupt(&mut interrupts) => return Err(Failure::Interrupted),
                };
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// Shows one event; true where it was the last one to show.
fn show(
    event: WatchTrainingResponse,
    seen: &mut Seen,
    view: &mut TrainingView,
    ending: Ending,
) -> Result<bool, Failure> {
    seen.next_sequence = event.sequence + 1;
    if seen.training_id.is_empty() {
        seen.training_id.clone_from(&event.training_id);
    }
    view.show(&event)?;
    match event.event {
        Some(Event::Finished(finished)) => match failed(&finished) {
            Some(failure) if !seen.cancelled_here => Err(failure),
            Some(_) if finished.state() == State::Cancelled => {
                view.note(&format!(
                    "`charlstm-client trainings resume {}` goes on from the checkpoint",
                    seen.training_id
                ));
                Ok(true)
            }
            _ => Ok(true),
        },
        Some(Event::Accepted(_)) if ending == Ending::Accepted => {
            view.detached(&seen.training_id)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Why a training that ended counts as a failure.
fn failed(finished: &TrainingFinished) -> Option<Failure> {
    let state = finished.state();
    if state == State::Succeeded {
        return None;
    }
    let state = crate::progress::state_name(state);
    Some(Failure::Refused(if finished.message.is_empty() {
        format!("the training ended as {state}")
    } else {
        format!("the training ended as {state}: {}", finished.message)
    }))
}

/// Asks the server to cancel, beside the events, which go on meanwhile.
fn cancel(connection: &Connection, training_id: &str, view: &TrainingView) {
    view.note("cancelling; a checkpoint is saved first (Ctrl-C again leaves at once)");
    let mut client = connection.training();
    let request = CancelTrainingRequest {
        training_id: training_id.to_owned(),
    };
    let view = view.notes();
    tokio::spawn(async move {
        if let Err(status) = client.cancel_training(request).await {
            view.note(&format!("cannot cancel: {}", Failure::from(status)));
        }
    });
}

/// Watches the training from the first event that was not seen.
async fn attach_again(
    connection: &Connection,
    seen: &Seen,
    backoff: &mut Backoff,
    lost: Status,
    view: &TrainingView,
) -> Result<Source, Failure> {
    let mut lost = lost;
    while let Some(wait) = backoff.next() {
        view.note(&format!(
            "{}; the training goes on, coming back to it",
            Failure::from(lost)
        ));
        tokio::time::sleep(wait).await;
        match Source::watch(connection, &seen.training_id, Some(seen.next_sequence)).await {
            Ok(source) => return Ok(source),
            Err(status) if lost_connection(&status) => lost = status,
            Err(status) => return Err(status.into()),
        }
    }
    view.note(&format!(
        "`charlstm-client trainings watch {}` shows it when the server is back",
        seen.training_id
    ));
    Err(lost.into())
}

async fn next_interrupt(interrupts: &mut Option<Interrupts>) {
    match interrupts {
        Some(interrupts) => interrupts.next().await,
        None => std::future::pending().await,
    }
}

/// Both streams tell the same events.
fn from_train(response: TrainResponse) -> WatchTrainingResponse {
    WatchTrainingResponse {
        training_id: response.training_id,
        sequence: response.sequence,
        event: response.event.map(|event| match event {
            TrainEvent::Accepted(event) => Event::Accepted(event),
            TrainEvent::Step(event) => Event::Step(event),
            TrainEvent::Epoch(event) => Event::Epoch(event),
            TrainEvent::Checkpoint(event) => Event::Checkpoint(event),
            TrainEvent::RolledBack(event) => Event::RolledBack(event),
            TrainEvent::Finished(event) => Event::Finished(event),
        }),
    }
}
