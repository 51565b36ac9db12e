//! Writes a file that appears under its name either complete or not at all.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Mode of a new file before the umask is applied, as `File::create` sets it.
/// Temporary files are private by default, but these become the result.
const MODE: u32 = 0o666;

/// A temporary file in the folder of its target. Dropping it without
/// [`AtomicFile::commit`] removes it and leaves the target unchanged.
pub(crate) struct AtomicFile {
    temporary: NamedTempFile,
    target: PathBuf,
}

impl AtomicFile {
    /// Creates the temporary file. It has the extension of `target`, because
    /// some libraries choose the format by it.
    ///
    /// Fails if the folder of `target` does not exist or is not writable.
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        let folder = match target.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut suffix = std::ffi::OsString::new();
        if let Some(extension) = target.extension() {
            suffix.push(".");
            suffix.push(extension);
        }
        let temporary = tempfile::Builder::new()
            .prefix(".charlstm-")
            .suffix(&suffix)
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(folder)?;
        Ok(Self {
            temporary,
            target: target.to_owned(),
        })
    }

    /// Returns the path of the temporary file, for libraries that open a file
    /// themselves.
    #[cfg(feature = "plot")]
    pub(crate) fn temporary_path(&self) -> &Path {
        self.temporary.path()
    }

    /// Syncs the temporary file to disk and renames it to the target,
    /// replacing an older file. Blocks until the data is on disk.
    ///
    /// If it fails, the target is unchanged and the temporary file is removed.
    pub(crate) fn commit(self) -> io::Result<()> {
        let file: &File = self.temporary.as_file();
        file.sync_all()?;
        self.temporary.persist(&self.target)?;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_that_is_not_committed_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!target.exists());
        drop(file);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_committed_file_replaces_the_older_one_and_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        std::fs::write(&target, "old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["model.safetensors"]);
    }

    #[test]
    fn a_committed_file_has_the_permissions_of_any_other_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| {
            let metadata = std::fs::metadata(folder.path().join(name)).unwrap();
            metadata.permissions().mode()
        };
        File::create(folder.path().join("usual")).unwrap();
        let atomic = AtomicFile::create(&folder.path().join("atomic")).unwrap();
        atomic.commit().unwrap();
        assert_eq!(mode("atomic"), mode("usual"));
    }

    #[test]
    fn two_writers_of_one_name_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        let mut first = AtomicFile::create(&target).unwrap();
        let mut second = AtomicFile::create(&target).unwrap();
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        second.commit().unwrap();
        first.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"first");
    }
}
