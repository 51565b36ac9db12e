//! How the errors of trainings become statuses.

use std::io;
use std::time::Duration;

use tonic::{Code, Status};

use super::{full, internal, invalid, refused};
use charlstm_training::jobs::JobsError;
use charlstm_training::models::ModelsError;

/// Retry delay of a full queue: trainings take minutes.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Returns the status of an error of the trainings.
pub(in crate::rpc) fn of_jobs(error: &JobsError) -> Status {
    let text = error.to_string();
    match error {
        JobsError::Unsupported(_) => refused(Code::Unimplemented, "TRAINING_UNSUPPORTED", text),
        JobsError::Spec(spec) => invalid(spec.field, &spec.message),
        JobsError::Corpus(corpus) => invalid("corpus", corpus.to_string()),
        JobsError::UnknownCharacters { .. } => invalid("corpus", text),
        JobsError::Models(ModelsError::BadReference(text)) => invalid("init_from", text),
        JobsError::Models(ModelsError::NotFound(_)) => {
            refused(Code::NotFound, "MODEL_NOT_FOUND", text)
        }
        JobsError::Models(ModelsError::Broken(_)) => internal(error),
        JobsError::Models(ModelsError::DiskFull) => of_disk(&io::ErrorKind::StorageFull.into()),
        JobsError::NotFound { .. } => refused(Code::NotFound, "TRAINING_NOT_FOUND", text),
        JobsError::QueueFull { .. } => full("TRAINING_QUEUE_FULL", text, RETRY_AFTER),
        JobsError::TooManyUploads { .. } => full("TOO_MANY_UPLOADS", text, RETRY_AFTER),
        JobsError::OutOfMemory(_) => refused(Code::ResourceExhausted, "OUT_OF_MEMORY", text),
        JobsError::NotResumable { .. } => {
            refused(Code::FailedPrecondition, "TRAINING_NOT_RESUMABLE", text)
        }
        JobsError::NoCheckpoint { .. } => refused(Code::FailedPrecondition, "NO_CHECKPOINT", text),
        JobsError::Stopping => refused(Code::Unavailable, "STOPPING", text),
        JobsError::Io(io) => of_disk(io),
    }
}

/// Returns the status of an I/O error. A full or read-only disk is reported,
/// so that the client can wait or call the operator; other errors are only
/// logged.
fn of_disk(error: &io::Error) -> Status {
    let (code, reason, message) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
            Code::ResourceExhausted,
            "DISK_FULL",
            "no space left in the data folder of the server",
        ),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => (
            Code::FailedPrecondition,
            "DATA_FOLDER_NOT_WRITABLE",
            "the server cannot write to its data folder",
        ),
        _ => return internal(error),
    };
    tracing::error!(%error, "cannot write to the folder of the trainings");
    refused(code, reason, message)
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
mod tests {
    use super::*;

    #[test]
    fn a_full_or_read_only_disk_is_reported_and_other_errors_are_only_logged() {
        let of = |kind: io::ErrorKind| of_jobs(&JobsError::Io(kind.into()));
        let full = of(io::ErrorKind::StorageFull);
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert!(full.message().contains("no space left"), "{full}");
        let read_only = of(io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(read_only.code(), Code::FailedPrecondition);
        assert!(read_only.message().contains("cannot write"), "{read_only}");
        assert_eq!(of(io::ErrorKind::Other).code(), Code::Internal);
    }
}
