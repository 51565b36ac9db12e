//! Why a folder of sessions cannot be opened.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A folder of sessions that cannot be opened. Nothing in it was deleted.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The disk reports an error.
    #[error("cannot use the session folder {}: {source}", .folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Another process uses the folder.
    #[error("the session folder {} is in use by another server", .0.display())]
    InUse(PathBuf),
    /// A file was written by another version.
    #[error(
        "{} was written by another version of the server: {detail}; start that version, or move \
         the folder aside to begin without sessions. Nothing was changed", .file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
        /// Which version it has and which would be right.
        detail: String,
    },
    /// A file is damaged as a whole.
    #[error(
        "{} is damaged ({detail}); restore the folder from a backup, or move it aside to begin \
         without sessions. Nothing was changed", .file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// There are logs without their database.
    #[error(
        "{} is missing although there are session logs next to it; restore it from a backup, or \
         move the folder aside to begin without sessions. Nothing was changed", .0.display()
    )]
    DatabaseMissing(PathBuf),
    /// A file of version 0.1 appeared after its sessions had been imported.
    #[error(
        "{} was written by version 0.1 after the sessions had been imported, and is not merged: \
         move it aside to start with the sessions of this version, or start version 0.1 to \
         continue those in the file", .0.display()
    )]
    LegacyFileAppeared(PathBuf),
}
