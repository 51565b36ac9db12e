//! Copies folders, for the tests of several crates.

use std::fs;
use std::io;
use std::path::Path;

/// Copies a folder with all that is in it into another one, which is created if it
/// is missing.
///
/// # Errors
/// The first one of the file system.
pub fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
