//! The data folder, its lock, which one server at a time holds, and what the
//! commands need that read the folder of a server that is stopped.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use charlstm_store::session::{EmbeddedSessions, EmbeddedSettings, OpenError, SessionLimits};
use thiserror::Error;

/// The folder of the models in the data folder.
pub(crate) const MODELS: &str = "models";

/// The folder of the trainings in the data folder.
pub(crate) const TRAININGS: &str = "trainings";

/// The folder of the sessions in the data folder.
pub(crate) const SESSIONS: &str = "sessions";

/// The file of the data folder with the key that session snapshots are sealed
/// with.
pub(crate) const SNAPSHOT_KEY: &str = "snapshot.key";

/// The data folder cannot be used.
#[derive(Debug, Error)]
pub enum DataFolderError {
    /// No server has used it.
    #[error("{} is not a data folder of charlstm-server; name it with --data-dir", .0.display())]
    NoData(PathBuf),
    /// Another running server uses it.
    #[error(
        "{} is in use by another charlstm-server; give each server its own --data-dir",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else has its name.
    #[error(
        "the data folder {} (--data-dir) is not a folder; choose another name",
        .0.display()
    )]
    NotAFolder(PathBuf),
    /// It cannot be created, or not be written to.
    #[error(
        "cannot {action} the data folder {} (--data-dir): {source}; choose a folder that this \
         user may write to",
        folder.display()
    )]
    Io {
        /// What failed.
        action: &'static str,
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
    let failed = |action| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                DataFolderError::NotAFolder(folder.to_owned())
            }
            _ => DataFolderError::Io {
                action,
                folder: folder.to_owned(),
                source,
            },
        }
    };
    fs::create_dir_all(folder).map_err(failed("create"))?;
    let file = File::create(folder.join("lock")).map_err(failed("write to"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataFolderError::InUse(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed("lock")(error)),
    }
}

/// Checks that a server has used the folder.
///
/// # Errors
/// `NoData`.
pub(crate) fn check_has_data(folder: &Path) -> Result<(), DataFolderError> {
    match folder.join(MODELS).is_dir() {
        true => Ok(()),
        false => Err(DataFolderError::NoData(folder.to_owned())),
    }
}

/// Opens the sessions of a locked folder to copy them. The limits of its server
/// are not known here, and nothing must be evicted. Blocks.
///
/// # Errors
/// As [`EmbeddedSessions::open`].
pub(crate) fn open_sessions_to_copy(folder: &Path) -> Result<EmbeddedSessions, OpenError> {
    let settings = EmbeddedSettings {
        limits: SessionLimits::UNLIMITED,
        ..EmbeddedSettings::default()
    };
    EmbeddedSessions::open(&folder.join(SESSIONS), settings)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_a_folder_is_named_with_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("inside")] {
            let error = lock(&path).unwrap_err().to_string();
            assert!(error.contains("(--data-dir) is not a folder"), "{error}");
        }
        let error = lock(Path::new("/proc/none")).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot create the data folder /proc/none"),
            "{error}"
        );
    }
}
