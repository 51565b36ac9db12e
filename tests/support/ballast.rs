//! A file that fills a disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file that takes the space of a disk. Deleted when this is dropped.
pub(crate) struct Ballast {
    path: PathBuf,
    file: Option<File>,
}

impl Ballast {
    /// Takes all space of the disk of `folder`, to the last byte.
    pub(crate) fn fill(folder: &Path) -> Self {
        let path = folder.join("ballast");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        while file.write_all(&[1]).is_ok() {}
        Self {
            path,
            file: Some(file),
        }
    }

    /// As [`Self::fill`], but leaves this number of bytes.
    pub(crate) fn fill_except(folder: &Path, free: u64) -> Self {
        let ballast = Self::fill(folder);
        let file = ballast.file.as_ref().unwrap();
        let taken = file.metadata().unwrap().len();
        file.set_len(taken - free).unwrap();
        ballast
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // The space is free when the file is closed and deleted.
        self.file.take();
        let _ = fs::remove_file(&self.path);
    }
}
