//! The files from which a training can be resumed, and what resuming would do.

use std::fs;
use std::io;

use super::Job;
use super::tokens::TOKENS;
use crate::events::State;

/// What resuming a training would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumability {
    FromCheckpoint,
    /// No checkpoint was ever saved.
    FromBeginning,
    /// The corpus is gone.
    Impossible,
}

impl Resumability {
    /// Says it, as the end of a sentence on how a training ended.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::FromCheckpoint => "the training can be resumed",
            Self::FromBeginning => {
                "the training can be resumed, but no checkpoint was saved: it starts from the \
                 beginning"
            }
            Self::Impossible => "the training cannot be resumed: its corpus is missing or damaged",
        }
    }
}

impl Job {
    /// Returns what resuming would do, by the files that exist.
    pub(crate) fn resumability(&self) -> Resumability {
        if let Some(sharing) = self.sharing() {
            return match sharing.checkpoint_step {
                Some(_) => Resumability::FromCheckpoint,
                None => Resumability::FromBeginning,
            };
        }
        let expected = self.metadata.corpus_chars * self.metadata.tokens_width.bytes();
        let tokens = fs::metadata(self.folder.join(TOKENS));
        if !tokens.is_ok_and(|tokens| tokens.len() == expected as u64) {
            Resumability::Impossible
        } else if self.checkpoints().exist() {
            Resumability::FromCheckpoint
        } else {
            Resumability::FromBeginning
        }
    }

    /// Deletes corpus and checkpoints of a training that has succeeded: it
    /// cannot be resumed, and its model is published.
    pub(crate) fn delete_spent_files(&self) {
        if self.summary().state != State::Succeeded {
            return;
        }
        let tokens = match fs::remove_file(self.folder.join(TOKENS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        if let Err(error) = tokens.and(self.checkpoints().delete()) {
            tracing::warn!(%error, id = self.id(), "files of a training that are no longer needed remain");
        }
    }
}
