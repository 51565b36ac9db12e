//! Errors of the disk as messages that may be shown to a client: without paths,
//! and with what to do about them.

use std::io;

/// Returns true if the disk, or the quota on it, is full.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Returns true if the disk is read-only or its permissions forbid writing.
pub fn is_read_only(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), ReadOnlyFilesystem | PermissionDenied)
}

/// Says why the data folder cannot be written to.
pub fn message(error: &io::Error) -> &'static str {
    if is_full(error) {
        "the server's data folder has no space left"
    } else if is_read_only(error) {
        "the server cannot write to its data folder"
    } else {
        "the server's data folder cannot be written to; the server's log has the details"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_and_a_read_only_disk_are_told_apart_from_other_errors() {
        let of = |kind: io::ErrorKind| message(&kind.into());
        assert!(of(io::ErrorKind::QuotaExceeded).contains("no space left"));
        assert!(of(io::ErrorKind::ReadOnlyFilesystem).contains("cannot write"));
        assert!(of(io::ErrorKind::Other).contains("log"));
    }
}
