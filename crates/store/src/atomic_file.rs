//! Files that are replaced as a whole, and files that are digested while they
//! are read or written. Every file of the data folder that is not a database
//! is written through this module.
//!
//! [`AtomicFile`] writes to a temporary file with an unpredictable name in the
//! folder of the target, syncs it, renames it over the target and syncs the
//! folder. A crash at any moment leaves the old file or the new one, and once
//! [`AtomicFile::commit`] has returned, the new one survives a power cut.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// Begin and end of the names of temporary files.
const PREFIX: &str = ".new-";
const SUFFIX: &str = ".tmp";

/// A file that is being written and does not exist under its name yet. If it
/// is dropped without a commit, nothing is left of it. All methods block on
/// the disk.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: NamedTempFile,
}

impl AtomicFile {
    /// Begins a file that only its owner can read and write (mode 600).
    ///
    /// # Errors
    /// The folder of `target` does not exist or cannot be written to.
    pub fn create(target: &Path) -> io::Result<Self> {
        Self::create_with_mode(target, 0o600)
    }

    /// Begins a file with the permissions `mode`, from which the umask is
    /// subtracted.
    ///
    /// # Errors
    /// The folder of `target` does not exist or cannot be written to.
    pub fn create_with_mode(target: &Path, mode: u32) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(mode));
        }
        #[cfg(not(unix))]
        let _ = mode;
        Ok(Self {
            target: target.to_owned(),
            temporary: builder.tempfile_in(folder_of(target))?,
        })
    }

    /// The file that the content goes to.
    pub fn file(&mut self) -> &mut File {
        self.temporary.as_file_mut()
    }

    /// Makes the content durable and puts it under its name, in place of what
    /// was there.
    ///
    /// # Errors
    /// The disk reports an error: the old file is still there, unless only the
    /// last sync of the folder failed, after which either may be the case.
    pub fn commit(self) -> io::Result<()> {
        self.temporary.as_file().sync_data()?;
        let folder = folder_of(&self.target).to_owned();
        self.temporary
            .persist(&self.target)
            .map_err(|error| error.error)?;
        sync_folder(&folder)
    }

    /// Makes the content durable, puts it under its name, and returns the open
    /// file, positioned after what was written. The new name itself is durable
    /// only after [`sync_folder`]: a caller that keeps writing to the file must
    /// have it even if that fails.
    ///
    /// # Errors
    /// The disk reports an error; the old file is still there.
    pub fn replace(self) -> io::Result<File> {
        self.temporary.as_file().sync_data()?;
        self.temporary
            .persist(&self.target)
            .map_err(|error| error.error)
    }

    /// As [`AtomicFile::commit`], but fails if there is a file of that name.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or as for `commit`.
    pub fn commit_new(self) -> io::Result<()> {
        self.temporary.as_file().sync_data()?;
        let folder = folder_of(&self.target).to_owned();
        self.temporary
            .persist_noclobber(&self.target)
            .map_err(|error| error.error)?;
        sync_folder(&folder)
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

impl Seek for AtomicFile {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.temporary.seek(to)
    }
}

/// Replaces a file by one with this content. Blocks on the disk.
///
/// # Errors
/// As for [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write(target: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(target)?;
    file.write_all(content)?;
    file.commit()
}

/// Renames a file within its folder, durably. Blocks on the disk.
///
/// # Errors
/// The disk reports an error.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(folder_of(to))
}

/// Removes the temporary files that a killed process left in a folder. No
/// [`AtomicFile`] may be in use in it. Blocks on the disk.
///
/// # Errors
/// The folder cannot be listed, or a file cannot be removed.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(PREFIX.as_bytes())
            && name.ends_with(SUFFIX.as_bytes())
            && entry.file_type()?.is_file()
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes the entries of a folder durable: files that were created, renamed or
/// removed. Blocks on the disk.
///
/// # Errors
/// The disk reports an error.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder that a file is in; the current one for a plain name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Takes the SHA-256 of everything that is read or written through it.
#[derive(Debug)]
pub struct Digesting<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Digesting<T> {
    /// A digest of nothing so far, around `inner`.
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    /// What it was around, and the digest of what went through.
    pub fn finish(self) -> (T, [u8; 32]) {
        (self.inner, self.hash.finalize().into())
    }
}

impl<T: Read> Read for Digesting<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

impl<T: Write> Write for Digesting<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.bin");
        write(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_file_that_is_dropped_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.bin");
        write(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_new_file_does_not_replace_one_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.bin");
        write(&target, b"old").unwrap();
        let file = AtomicFile::create(&target).unwrap();
        let error = file.commit_new().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_replaced_file_can_be_written_further_through_its_handle() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.bin");
        write(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        let mut file = file.replace().unwrap();
        file.write_all(b" and more").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new and more");
    }

    #[test]
    fn leftovers_of_a_killed_process_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".new-x.tmp", ".new-x", "a.tmp", "b"] {
            fs::write(folder.path().join(name), b"").unwrap();
        }
        fs::create_dir(folder.path().join(".new-folder.tmp")).unwrap();
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(
            names(folder.path()),
            [".new-folder.tmp", ".new-x", "a.tmp", "b"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_that_were_asked_for() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.bin");
        let mode = || fs::metadata(&target).unwrap().permissions().mode() & 0o777;
        write(&target, b"").unwrap();
        assert_eq!(mode(), 0o600);
        let file = AtomicFile::create_with_mode(&target, 0o640).unwrap();
        file.commit().unwrap();
        assert_eq!(mode() & 0o600, 0o600);
        assert_eq!(mode() & 0o007, 0);
    }

    #[test]
    fn what_goes_through_is_digested() {
        let expected: [u8; 32] = Sha256::digest(b"some text").into();
        let mut writer = Digesting::new(Vec::new());
        writer.write_all(b"some ").unwrap();
        writer.write_all(b"text").unwrap();
        let (written, digest) = writer.finish();
        assert_eq!(digest, expected);
        let mut reader = Digesting::new(written.as_slice());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(reader.finish().1, expected);
        assert_eq!(text, "some text");
    }
}
