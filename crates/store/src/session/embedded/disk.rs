//! The files of a store, behind an interface that tests replace by one that
//! loses power, fails, or is slow.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::atomic_file;

/// A folder with files, without subfolders. All methods block.
pub(crate) trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates an empty file. Fails if it exists.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, in place of what had the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Makes creations, renames and removals durable.
    fn sync_folder(&self) -> io::Result<()>;

    /// Lets others use the folder.
    fn unlock(&self);
}

/// A file of a [`Disk`]. All methods block.
pub(crate) trait DiskFile: fmt::Debug + Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;

    /// Fills the buffer. Fails if the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all bytes, making the file longer if necessary.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file, or makes it longer with zeros.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Makes sure that writes below `length` find space on the disk. The file
    /// is at least that long afterwards.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Writes zeros to at most `max_bytes` of the space that was allocated and
    /// never written to, and syncs them. Returns whether it wrote any. A later
    /// sync of data in this space does not have to wait for the journal of the
    /// file system, which would have to record first that the space is in use.
    fn fill_unwritten(&self, _max_bytes: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// Makes everything that was written durable.
    fn sync(&self) -> io::Result<()>;
}

/// A real folder, locked against a second server.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    lock: Mutex<Option<File>>,
}

impl Folder {
    /// Name of the file that a server locks.
    const LOCK: &str = "lock";

    /// Opens and locks a folder, which is created if necessary (mode 700).
    ///
    /// # Errors
    /// `ResourceBusy` if another process has it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            create_folder(path)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(Self::LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                lock: Mutex::new(Some(lock)),
            }),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

fn create_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)?;
    match path.parent() {
        Some(parent) if parent != Path::new("") => atomic_file::sync_folder(parent),
        _ => atomic_file::sync_folder(Path::new(".")),
    }
}

impl Disk for Folder {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // No file of a store has a name that is not UTF-8.
            if let Ok(name) = entry?.file_name().into_string()
                && name != Self::LOCK
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_folder(&self) -> io::Result<()> {
        atomic_file::sync_folder(&self.path)
    }

    fn unlock(&self) {
        // Closing the file releases its lock.
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[derive(Debug)]
struct RealFile(File);

impl RealFile {
    fn write_zeros(&self, mut from: u64, to: u64) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        while from < to {
            let count = usize::try_from(to - from).unwrap_or(usize::MAX);
            let count = count.min(zeros.len());
            self.0.write_all_at(&zeros[..count], from)?;
            from += count as u64;
        }
        Ok(())
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let old = self.len()?;
        if old >= length {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{FallocateFlags, fallocate};
            use rustix::io::Errno;
            match fallocate(&self.0, FallocateFlags::empty(), old, length - old) {
                Ok(()) => return Ok(()),
                // The file system cannot: zeros take the space as well.
                Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.write_zeros(old, length)
    }

    #[cfg(target_os = "linux")]
    fn fill_unwritten(&self, max_bytes: u64) -> io::Result<bool> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        let length = self.len()?;
        // Space without data is a hole to this call. A file system that does
        // not know its holes reports one at the end.
        let begin = seek(&self.0, SeekFrom::Hole(0))?;
        if begin >= length {
            return Ok(false);
        }
        let end = match seek(&self.0, SeekFrom::Data(begin)) {
            Ok(data) => data,
            Err(Errno::NXIO) => length,
            Err(error) => return Err(error.into()),
        };
        self.write_zeros(begin, end.min(begin.saturating_add(max_bytes)))?;
        self.sync()?;
        Ok(true)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Removes a file if there is one.
pub(crate) fn remove_if_there(disk: &dyn Disk, name: &str) -> io::Result<()> {
    match disk.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn space_that_was_never_written_is_filled_in_parts_and_data_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Folder::open(folder.path()).unwrap();
        let file = disk.create("log").unwrap();
        file.allocate(3 << 20).unwrap();
        file.write_at(1 << 20, &[7; 4096]).unwrap();
        file.sync().unwrap();
        let mut parts = 0;
        while file.fill_unwritten(1 << 20).unwrap() {
            parts += 1;
            assert!(parts < 10, "it never ends");
        }
        // One before the data and two after it; none on a file system that
        // does not know what was written.
        assert!(matches!(parts, 0 | 3), "{parts}");
        assert_eq!(file.len().unwrap(), 3 << 20);
        let mut content = vec![1; 3 << 20];
        file.read_at(0, &mut content).unwrap();
        let (data, rest): (Vec<_>, Vec<_>) = content
            .iter()
            .enumerate()
            .partition(|(at, _)| (1 << 20..(1 << 20) + 4096).contains(at));
        assert!(data.iter().all(|(_, byte)| **byte == 7));
        assert!(rest.iter().all(|(_, byte)| **byte == 0));
    }
}
