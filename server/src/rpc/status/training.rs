//! How the errors of trainings become statuses.

use std::time::Duration;

use tonic::{Code, Status};

use super::disk::disk;
use super::{
    SHARED_STORAGE_RETRY, full, invalid, invalid_because, quota, refused, repository,
    shared_storage_unavailable, unavailable,
};
use charlstm_training::jobs::JobsError;

/// Retry delay of a full queue: trainings take minutes.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Returns the status of an error of the trainings.
pub(in crate::rpc) fn of_jobs(error: &JobsError) -> Status {
    let text = error.to_string();
    match error {
        JobsError::Unsupported(_) => refused(Code::Unimplemented, "TRAINING_UNSUPPORTED", text),
        JobsError::Spec(spec) => invalid(spec.field, &spec.message),
        JobsError::Corpus(corpus) => invalid("corpus", corpus.to_string()),
        JobsError::UnknownCharacters { .. } => invalid_because("corpus", "UNKNOWN_CHARACTER", text),
        JobsError::Model(error) => repository("init_from", error),
        JobsError::NotFound { .. } => refused(Code::NotFound, "TRAINING_NOT_FOUND", text),
        JobsError::Unavailable { .. } => {
            tracing::error!(%error, "the shared trainings are not available");
            let text = "the storage that the replicas share is not available; try again";
            shared_storage_unavailable(text)
        }
        JobsError::QueueFull { .. } => full("TRAINING_QUEUE_FULL", text, RETRY_AFTER),
        JobsError::TrainingQuota { .. } => quota(text, Some(RETRY_AFTER)),
        // The same corpus is too long at any time.
        JobsError::CorpusQuota { .. } => quota(text, None),
        JobsError::TooManyUploads { .. } => full("TOO_MANY_UPLOADS", text, RETRY_AFTER),
        JobsError::OutOfMemory(_) => refused(Code::ResourceExhausted, "OUT_OF_MEMORY", text),
        JobsError::NotResumable { .. } => {
            refused(Code::FailedPrecondition, "TRAINING_NOT_RESUMABLE", text)
        }
        JobsError::NotDeletable { .. } => {
            refused(Code::FailedPrecondition, "TRAINING_NOT_ENDED", text)
        }
        JobsError::NoCheckpoint { .. } => refused(Code::FailedPrecondition, "NO_CHECKPOINT", text),
        JobsError::NoCorpus { .. } => refused(Code::FailedPrecondition, "NO_CORPUS", text),
        JobsError::Stopping => refused(Code::Unavailable, "SERVER_STOPPING", text),
        JobsError::Io(error) => disk(error),
    }
}

/// Returns the status of a watch that ends because this replica stops: the
/// training continues on another one.
pub(in crate::rpc) fn continues_elsewhere() -> Status {
    let text = "this replica stops, and the training continues on another one; watch it there";
    unavailable("SERVER_STOPPING", text, SHARED_STORAGE_RETRY)
}

/// Returns the status of a stream whose first message has no spec.
pub(in crate::rpc) fn spec_missing() -> Status {
    invalid("spec", "must be in the first message")
}

/// Returns the status of a stream with a later message that has no chunk.
pub(in crate::rpc) fn chunk_missing() -> Status {
    invalid(
        "payload",
        "must be a corpus_chunk in each message after the first",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_repository::{ModelId, RepositoryError};
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn a_repeat_is_suggested_only_if_it_can_succeed() {
        let delay = |error: &JobsError| {
            let status = of_jobs(error);
            assert!(status.get_details_quota_failure().is_some());
            status.get_details_retry_info().is_some()
        };
        assert!(delay(&JobsError::TrainingQuota { limit: 1 }));
        assert!(!delay(&JobsError::CorpusQuota { limit: 1 }));
    }

    #[test]
    fn a_damaged_model_of_init_from_is_data_loss() {
        let id = ModelId {
            name: "m".to_owned(),
            version: 1,
        };
        let reason = "a test says so".to_owned();
        let error = JobsError::Model(RepositoryError::Damaged { id, reason });
        let status = of_jobs(&error);
        assert_eq!(status.code(), Code::DataLoss);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "MODEL_DAMAGED");
    }
}
