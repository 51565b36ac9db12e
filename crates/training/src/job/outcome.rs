//! How a training reports its end. The last event is in a file of its own as well,
//! in case the history is damaged.

use std::fs;
use std::io;

use charlstm_store::atomic_file;
use charlstm_store::checksummed_json;
use serde::{Deserialize, Serialize};

use super::{Job, Resumability};
use crate::events::{Event, EventKind, Finished, State};

/// The last event of a training that has ended, in case its history is damaged.
const OUTCOME: &str = "outcome.json";

/// The last event of a run.
#[derive(Serialize, Deserialize)]
struct Outcome {
    run: u32,
    event: Event,
}

impl Job {
    /// Reports the end of the training. If the disk does not accept the event,
    /// it is kept in memory, and the log says so.
    pub(crate) fn finish(&self, finished: Finished) {
        let run = self.summary().run;
        let event = self.history.append(EventKind::Finished(finished));
        if self.sharing.is_some() {
            return;
        }
        let outcome = Outcome {
            run,
            event: event.as_ref().clone(),
        };
        let written = checksummed_json::to_text(&outcome)
            .map_err(io::Error::from)
            .and_then(|text| atomic_file::write(&self.folder.join(OUTCOME), &text));
        if let Err(error) = written {
            tracing::warn!(%error, id = self.id(), "the outcome of a training cannot be written");
        }
    }

    /// Reports the end of the training in a state without a model.
    pub(crate) fn finish_without_model(&self, state: State, message: String) {
        self.finish(self.without_model(state, message));
    }

    pub(crate) fn without_model(&self, state: State, message: String) -> Finished {
        Finished {
            state,
            version: 0,
            train_loss: self.summary().train_loss,
            validation_loss: None,
            message,
            best_epoch: None,
        }
    }

    /// Reports that the training was cancelled before its turn came.
    pub(crate) fn cancel_waiting(&self) {
        self.finish(self.cancelled_while_waiting());
    }

    /// Returns the last event of a training that is cancelled before its turn
    /// comes.
    pub(crate) fn cancelled_while_waiting(&self) -> Finished {
        let text = format!(
            "cancelled while it was waiting; {}",
            self.resumability().message()
        );
        self.without_model(State::Cancelled, text)
    }

    /// Reports that the server stopped, or stops, before the training ended.
    pub(crate) fn interrupt(&self, resumability: Resumability) {
        let text = format!("the server stopped; {}", resumability.message());
        self.finish_without_model(State::Interrupted, text);
    }

    /// Adds the last event again if the history has lost it.
    pub(super) fn restore_outcome(&self) {
        let path = self.folder.join(OUTCOME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(%error, path = %path.display(), "the outcome of a training cannot be read");
                }
                return;
            }
        };
        let outcome: Outcome = match checksummed_json::from_slice(&text) {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "the outcome of a training is damaged");
                return;
            }
        };
        let summary = self.summary();
        if summary.state.has_ended() || outcome.run < summary.run {
            return;
        }
        tracing::warn!(
            id = self.id(),
            "the history of a training had lost its last event"
        );
        self.history.append_from(outcome.event);
    }

    /// Forgets how the last run ended, when another one begins.
    pub(crate) fn forget_outcome(&self) {
        match fs::remove_file(self.folder.join(OUTCOME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, id = self.id(), "the outcome of an earlier run remains");
            }
            _ => {}
        }
    }
}
