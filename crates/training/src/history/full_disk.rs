//! A disk that is full, for tests.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::MutexGuard;

use super::writer::Writer;
use super::{History, Log, lock};

/// Lets writes to a history fail as on a full disk, until it is dropped.
pub(crate) struct FullDisk<'a> {
    history: &'a History,
    path: PathBuf,
    file: Option<File>,
}

impl History {
    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        match &self.log {
            Log::File(writer) => lock(writer),
            Log::Shared(_) => unreachable!("the tests with a full disk use files"),
        }
    }
}

impl<'a> FullDisk<'a> {
    pub(crate) fn under(history: &'a History) -> Self {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let mut writer = history.writer();
        // Nothing can be created in the folder of this path either.
        let path = std::mem::replace(&mut writer.path, "/dev/full/events.jsonl".into());
        let file = std::mem::replace(&mut writer.file, full.ok());
        Self {
            history,
            path,
            file,
        }
    }
}

impl Drop for FullDisk<'_> {
    fn drop(&mut self) {
        let mut writer = self.history.writer();
        writer.path = std::mem::take(&mut self.path);
        writer.file = self.file.take();
    }
}
