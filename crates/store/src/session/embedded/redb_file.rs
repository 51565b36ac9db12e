//! The database file as redb accesses it, until it is detached.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::DiskFile;

/// The database file as redb wants it.
#[derive(Debug)]
pub(super) struct RedbFile {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) is_detached: Arc<AtomicBool>,
}

impl RedbFile {
    fn file(&self) -> io::Result<&dyn DiskFile> {
        if self.is_detached.load(Ordering::Acquire) {
            return Err(io::Error::other("the database was closed"));
        }
        Ok(&*self.file)
    }
}

impl redb::StorageBackend for RedbFile {
    fn len(&self) -> io::Result<u64> {
        self.file()?.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file()?.read_at(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file()?.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file()?.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file()?.write_at(offset, data)
    }
}
