//! How the errors of the disk under the data folder become statuses.

use std::io;

use charlstm_store::disk_error;
use tonic::{Code, Status};

use super::{internal, refused};

/// Returns the status of a call that could not write to the data folder. A full
/// or read-only disk is named, so that the client can wait or call the operator;
/// other errors are only logged.
pub(super) fn disk(error: &io::Error) -> Status {
    let (code, reason) = if disk_error::is_full(error) {
        (Code::ResourceExhausted, "DISK_FULL")
    } else if disk_error::is_read_only(error) {
        (Code::FailedPrecondition, "DATA_FOLDER_NOT_WRITABLE")
    } else {
        return internal(error);
    };
    tracing::error!(%error, "the data folder cannot be written to");
    refused(code, reason, disk_error::message(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_or_read_only_disk_is_named_and_other_errors_are_for_the_log() {
        let of = |kind: io::ErrorKind| disk(&kind.into());
        let full = of(io::ErrorKind::StorageFull);
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert!(full.message().contains("no space left"), "{full}");
        let read_only = of(io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(read_only.code(), Code::FailedPrecondition);
        assert!(read_only.message().contains("cannot write"), "{read_only}");
        assert_eq!(of(io::ErrorKind::Other).code(), Code::Internal);
    }
}
