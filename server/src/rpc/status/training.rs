//! How the errors of trainings become statuses.

use std::io;
use std::time::Duration;

use tonic::{Code, Status};

use super::{full, internal, invalid, refused};
use charlstm_training::jobs::JobsError;
use charlstm_training::models::ModelsError;

/// When a full queue is worth another try: trainings take minutes.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The status of an error of the trainings.
pub(in crate::rpc) fn of_jobs(error: &JobsError) -> Status {
    match error {
        JobsError::Unsupported(_) => refused(
            Code::Unimplemented,
            "TRAINING_UNSUPPORTED",
            error.to_string(),
        ),
        JobsError::Spec(spec) => invalid(spec.field, &spec.message),
        JobsError::Corpus(corpus) => invalid("corpus", corpus.to_string()),
        JobsError::UnknownCharacters { .. } => invalid("corpus", error.to_string()),
        JobsError::Models(ModelsError::BadReference(text)) => invalid("init_from", text),
        JobsError::Models(ModelsError::NotFound(_)) => {
            refused(Code::NotFound, "MODEL_NOT_FOUND", error.to_string())
        }
        JobsError::Models(ModelsError::Broken(_)) => internal(error),
        JobsError::Models(ModelsError::DiskFull) => of_disk(&io::ErrorKind::StorageFull.into()),
        JobsError::NotFound { .. } => {
            refused(Code::NotFound, "TRAINING_NOT_FOUND", error.to_string())
        }
        JobsError::QueueFull { .. } => full("TRAINING_QUEUE_FULL", error.to_string(), RETRY_AFTER),
        JobsError::TooManyUploads { .. } => {
            full("TOO_MANY_UPLOADS", error.to_string(), RETRY_AFTER)
        }
        JobsError::OutOfMemory(_) => {
            refused(Code::ResourceExhausted, "OUT_OF_MEMORY", error.to_string())
        }
        JobsError::NotResumable { .. } => refused(
            Code::FailedPrecondition,
            "TRAINING_NOT_RESUMABLE",
            error.to_string(),
        ),
        JobsError::NoCheckpoint { .. } => {
            refused(Code::FailedPrecondition, "NO_CHECKPOINT", error.to_string())
        }
        JobsError::Stopping => refused(Code::Unavailable, "STOPPING", error.to_string()),
        JobsError::Io(io) => of_disk(io),
    }
}

/// What a client can wait for or tell the operator is named; the rest is for
/// the log.
fn of_disk(error: &io::Error) -> Status {
    let (code, reason, message) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
            Code::ResourceExhausted,
            "DISK_FULL",
            "the server's data folder has no room left",
        ),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => (
            Code::FailedPrecondition,
            "DATA_FOLDER_NOT_WRITABLE",
            "the server cannot write to its data folder",
        ),
        _ => return internal(error),
    };
    tracing::error!(%error, "the trainings' folder cannot be written");
    refused(code, reason, message)
}

/// The first message of a stream holds no spec.
pub(in crate::rpc) fn spec_missing() -> Status {
    invalid("spec", "must be in the first message, and is not")
}

/// A later message holds a spec, or nothing.
pub(in crate::rpc) fn chunk_missing() -> Status {
    invalid(
        "payload",
        "must be a corpus_chunk in each message after the first",
    )
}

/// Work beside the async threads could not be done.
pub(in crate::rpc) fn of_blocking_work(error: &tokio::task::JoinError) -> Status {
    internal(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_or_read_only_disk_is_told_and_other_failures_are_for_the_log() {
        let of = |kind: io::ErrorKind| of_jobs(&JobsError::Io(kind.into()));
        let full = of(io::ErrorKind::StorageFull);
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert!(full.message().contains("no room left"), "{full}");
        let read_only = of(io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(read_only.code(), Code::FailedPrecondition);
        assert!(read_only.message().contains("cannot write"), "{read_only}");
        assert_eq!(of(io::ErrorKind::Other).code(), Code::Internal);
    }
}
