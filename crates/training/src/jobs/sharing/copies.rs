//! The copies of the files of shared trainings, in the folder of a replica.

use std::fs;
use std::io;
use std::path::Path;

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
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "copies of a training's files stay until the next start");
    }
}
