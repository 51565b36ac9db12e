//! The data folder and its lock: one server at a time.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The file of the data folder with the key that session snapshots are sealed
/// with.
pub(crate) const SNAPSHOT_KEY: &str = "snapshot.key";

/// The data folder cannot be used.
#[derive(Debug, Error)]
pub enum DataFolderError {
    /// Another running server uses it.
    #[error(
        "{} is in use by another charlstm-server; give each server its own --data-dir",
        .0.display()
    )]
    InUse(PathBuf),
    /// It cannot be created, or not be written to.
    #[error("{}: {source}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// Creates the folder if necessary and locks it for this process, until the
/// returned file is dropped: two servers would remove each other's unfinished
/// files.
///
/// # Errors
/// [`DataFolderError`].
pub(crate) fn lock(folder: &Path) -> Result<File, DataFolderError> {
    let unusable = |source: io::Error| DataFolderError::Io {
        folder: folder.to_owned(),
        source,
    };
    fs::create_dir_all(folder).map_err(unusable)?;
    let file = File::create(folder.join("lock")).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataFolderError::InUse(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}
