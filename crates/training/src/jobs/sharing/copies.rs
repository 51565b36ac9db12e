//! The copies of the files of shared trainings, in the folder of a replica.

use std::fs;
use std::io;
use std::path::Path;

/// In the folder of a training: stays when the other copies are deleted.
const TENSORBOARD: &str = "tensorboard";

/// Deletes the copies that an earlier process has left.
pub(in crate::jobs) fn clear(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => delete_copies(&path),
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

/// Deletes the copies of a training's files.
pub(super) fn delete_copies(folder: &Path) {
    let deleted = fs::read_dir(folder).and_then(|entries| {
        let mut is_empty = true;
        for entry in entries {
            let entry = entry?;
            if entry.file_name() == TENSORBOARD {
                is_empty = false;
            } else if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        match is_empty {
            true => fs::remove_dir(folder),
            false => Ok(()),
        }
    });
    if let Err(error) = deleted
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "copies of a training's files stay until the next start");
    }
}
