//! Who asks for a training, and what they may have.

use charlstm_repository::Publisher;

use super::{JobsError, ListState};

/// A principal that starts or resumes trainings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The owner of its trainings, and of the models that they publish.
    pub publisher: Publisher,
    /// Maximum number of its trainings that wait or run at a time.
    pub max_trainings: Option<u64>,
    /// Maximum bytes of a corpus.
    pub max_corpus_bytes: Option<u64>,
}

impl Requester {
    /// The requester of a server without principals: no quotas.
    pub fn admin() -> Self {
        Self {
            publisher: Publisher::admin(),
            max_trainings: None,
            max_corpus_bytes: None,
        }
    }

    /// Checks that one more training may wait or run.
    pub(super) fn check_trainings(&self, state: &ListState) -> Result<(), JobsError> {
        match self.max_trainings {
            Some(limit) if state.unfinished_of(&self.publisher.owner) >= limit => {
                Err(JobsError::TrainingQuota { limit })
            }
            _ => Ok(()),
        }
    }
}
