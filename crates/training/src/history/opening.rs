//! Reads a history from its file, and repairs the file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use super::kept::Kept;
use super::lines::{DamagedLine, Lines};
use super::{History, Log, lock};
use crate::events::{Accepted, Event, EventKind};

/// Damaged lines are moved to a file with this extension.
pub(super) const DAMAGED: &str = "damaged";

impl History {
    /// Reads a history from its file. A line that is damaged is moved to
    /// another file and logged; all other events are kept. If the first event
    /// is lost, `accepted` replaces it.
    ///
    /// # Errors
    /// The file cannot be read or opened for writing. A missing file is a
    /// history whose events are all lost.
    pub fn open(path: &Path, accepted: impl FnOnce() -> Accepted) -> io::Result<Self> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut lines = Lines::parse(&bytes);
        let first = lines.events.first().map(|line| &line.event.event);
        let lost_first = !matches!(first, Some(EventKind::Accepted(_)));
        let mut kept = Kept::default();
        if lost_first {
            let event = Event {
                sequence: 0,
                event: EventKind::Accepted(accepted()),
            };
            tracing::error!(path = %path.display(), "the first event of a training is lost");
            lines.events.retain(|line| line.event.sequence > 0);
            kept.add(Arc::new(event), 0);
        }
        for line in lines.events {
            kept.add(Arc::new(line.event), line.bytes.len() as u64 + 1);
        }
        let history = Self::with(path, file, lines.whole_bytes, kept);
        if lost_first || lines.unended || !lines.damaged.is_empty() {
            history.repair(&lines.damaged);
        }
        Ok(history)
    }

    /// Moves damaged lines to another file and rewrites this one without them.
    /// If the disk does not accept that, they stay where they are until it
    /// accepts the next event.
    fn repair(&self, damaged: &[DamagedLine<'_>]) {
        let Log::File(writer) = &self.log else {
            return;
        };
        let mut writer = lock(writer);
        let path = writer.path.clone();
        for line in damaged {
            tracing::error!(path = %path.display(), line = line.number, error = line.error,
                "an event of a training is damaged; it is moved to a file next to it");
        }
        let moved = (|| {
            if !damaged.is_empty() {
                let mut file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path.with_extension(DAMAGED))?;
                for line in damaged {
                    file.write_all(line.bytes)?;
                    file.write_all(b"\n")?;
                }
                file.sync_data()?;
            }
            writer.rewrite(&mut lock(&self.kept))
        })();
        if let Err(error) = moved {
            tracing::error!(%error, path = %path.display(), "the events of a training could not be repaired on disk");
            writer.behind = true;
        }
    }
}
