//! Writes the events of a training to its file.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use charlstm_store::atomic_file::{self, AtomicFile};

use super::kept::{Kept, is_finished};
use super::lines::line;
use crate::events::{Event, EventKind};

pub(super) struct Writer {
    pub(super) path: PathBuf,
    /// Closed once the training has ended: there may be a thousand of them.
    pub(super) file: Option<File>,
    /// Bytes of the file that are events. What is beyond is overwritten.
    pub(super) length: u64,
    pub(super) next_sequence: u64,
    /// True if an event is not in the file. The file is rewritten as soon as
    /// the disk accepts events again.
    pub(super) behind: bool,
    /// True if the last rewrite failed: only the first failure is logged.
    pub(super) rewrite_failed: bool,
}

impl Writer {
    pub(super) fn next(&mut self, event: EventKind) -> Arc<Event> {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Arc::new(Event { sequence, event })
    }

    /// Appends an event, and makes it durable unless it is a step. Returns the
    /// length of its line, even if it could not be written.
    pub(super) fn write(&mut self, event: &Event) -> (u64, io::Result<()>) {
        let line = match line(event) {
            Ok(line) => line,
            Err(error) => return (0, Err(error)),
        };
        let bytes = line.len() as u64;
        (bytes, self.write_line(&line, event))
    }

    fn write_line(&mut self, line: &[u8], event: &Event) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            closed => closed.insert(OpenOptions::new().write(true).open(&self.path)?),
        };
        // If only a part is written, the next event overwrites it.
        file.write_all_at(line, self.length)?;
        self.length += line.len() as u64;
        if !matches!(event.event, EventKind::Step(_)) {
            file.sync_data()?;
        }
        if is_finished(event) {
            self.file = None;
        }
        Ok(())
    }

    /// Replaces the file by one with the events that are kept.
    pub(super) fn rewrite(&mut self, kept: &mut Kept) -> io::Result<()> {
        let mut out = BufWriter::new(AtomicFile::create(&self.path)?);
        let mut length = 0;
        for stored in &mut kept.events {
            let line = line(&stored.event)?;
            out.write_all(&line)?;
            stored.line_bytes = line.len() as u64;
            length += stored.line_bytes;
        }
        kept.line_bytes = length;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        // From here on, events go to the new file, whatever else fails.
        let file = file.replace()?;
        self.file = (!kept.has_ended()).then_some(file);
        self.length = length;
        self.behind = true;
        atomic_file::sync_folder(self.path.parent().unwrap_or(Path::new(".")))?;
        self.behind = false;
        Ok(())
    }
}
