//! Finds out what a queued training waits for.

use std::time::Duration;

use charlstm_proto::v1::{ListTrainingsRequest, State, Training};
use tokio::time::Instant;

use crate::connection::Connection;
use crate::display;

/// Time without progress after which the server is asked why: longer than a
/// training that is not queued takes to start, short enough not to wonder.
const FIRST_CHECK: Duration = Duration::from_secs(1);

/// Interval of the further checks; the trainings before this one take minutes.
const INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of trainings that are named.
const MAX_NAMES: usize = 3;

/// Asks the server from time to time.
pub(super) struct QueueMonitor {
    next_check: Instant,
    /// What was reported last.
    reported: Option<String>,
}

impl QueueMonitor {
    pub(super) fn new() -> Self {
        Self {
            next_check: Instant::now() + FIRST_CHECK,
            reported: None,
        }
    }

    /// Waits for the next check and describes what training `id` waits for.
    /// Returns `None` if it is not waiting, or if nothing has changed since the
    /// last check. Cancel safe.
    pub(super) async fn next(&mut self, connection: &Connection, id: &str) -> Option<String> {
        tokio::time::sleep_until(self.next_check).await;
        let request = ListTrainingsRequest { owner: None };
        let trainings = connection.training().list_trainings(request).await;
        self.next_check = Instant::now() + INTERVAL;
        // An error is reported by the stream of events, if it matters.
        let waits_for = describe(&trainings.ok()?.into_inner().trainings, id)?;
        if self.reported.as_ref() == Some(&waits_for) {
            return None;
        }
        self.reported = Some(waits_for.clone());
        Some(waits_for)
    }
}

/// Describes the trainings before `id`; `None` if it is not queued.
fn describe(trainings: &[Training], id: &str) -> Option<String> {
    let own = trainings
        .iter()
        .find(|training| training.training_id == id)?;
    if own.state() != State::Queued {
        return None;
    }
    let is_before = |training: &&Training| match training.state() {
        State::Running => true,
        State::Queued => {
            training.training_id != id && training.created_unix_ms <= own.created_unix_ms
        }
        _ => false,
    };
    let mut before: Vec<&Training> = trainings.iter().filter(is_before).collect();
    before.sort_by_key(|training| (training.state() != State::Running, training.created_unix_ms));
    if before.is_empty() {
        return Some("its turn".into());
    }
    let names = before.iter().map(|training| {
        let model = training.spec.as_ref().map_or("", |spec| &spec.model);
        format!("{} (model {model})", training.training_id)
    });
    Some(format!(
        "{}: {}",
        display::plural(before.len() as u64, "training"),
        display::list(names, MAX_NAMES)
    ))
}

#[cfg(test)]
mod tests {
    use charlstm_proto::v1::TrainingSpec;

    use super::*;

    fn training(id: &str, state: State, created_unix_ms: u64) -> Training {
        Training {
            training_id: id.into(),
            state: state.into(),
            created_unix_ms,
            spec: Some(TrainingSpec {
                model: format!("m-{id}"),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_queued_training_waits_for_the_running_one_and_for_those_that_came_before() {
        let trainings = [
            training("t5", State::Queued, 50),
            training("t4", State::Queued, 40),
            training("t3", State::Queued, 30),
            training("t2", State::Running, 20),
            training("t1", State::Succeeded, 10),
        ];
        let waits_for = |id| describe(&trainings, id);
        assert_eq!(
            waits_for("t4").as_deref(),
            Some("2 trainings: t2 (model m-t2), t3 (model m-t3)")
        );
        assert_eq!(waits_for("t2"), None);
        assert_eq!(waits_for("unknown"), None);
        assert_eq!(describe(&trainings[..1], "t5").as_deref(), Some("its turn"));
    }
}
