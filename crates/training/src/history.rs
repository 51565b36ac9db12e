//! The events of one training: kept in memory and in a file, and read by any
//! number of watchers, each from its own position. `events` defines them.
//!
//! The file has one event per line, as JSON with a checksum. Both it and the
//! memory are bounded: see `kept`.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use self::kept::Kept;
use self::shared_log::SharedLog;
use self::writer::Writer;
use super::events::{Event, EventKind, State, Summary};

#[cfg(test)]
mod full_disk;
mod kept;
mod lines;
mod opening;
mod shared_log;
#[cfg(test)]
mod tests;
mod watcher;
mod writer;

#[cfg(test)]
pub(crate) use self::full_disk::FullDisk;
pub use self::shared_log::EventSink;
pub use self::watcher::Watcher;

/// Bytes by which the file may exceed twice its useful content before it is
/// rewritten.
const REWRITE_SLACK_BYTES: u64 = 64 * 1024;

/// The history of one training.
///
/// An event is in the file before a watcher sees it, so a crash of the program
/// never takes back what a watcher has seen.
pub struct History {
    log: Log,
    kept: Mutex<Kept>,
    /// Counts the changes, to wake the watchers.
    changes: watch::Sender<u64>,
    /// Whether the server stops, and what is to come is seen on other replicas.
    closed: AtomicBool,
}

/// Where the events are. Held while an event is written; only writers wait for
/// it. Locked before [`History::kept`].
enum Log {
    File(Mutex<Writer>),
    Shared(Mutex<SharedLog>),
}

impl History {
    /// Creates a history in a new file.
    ///
    /// # Errors
    /// The file exists or cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Self::with(path, file, 0, Kept::default()))
    }

    fn with(path: &Path, file: File, length: u64, kept: Kept) -> Self {
        let last = kept.events.last();
        Self {
            log: Log::File(Mutex::new(Writer {
                path: path.to_owned(),
                file: (!kept.has_ended()).then_some(file),
                length,
                next_sequence: last.map_or(0, |last| last.event.sequence + 1),
                behind: false,
                rewrite_failed: false,
            })),
            kept: Mutex::new(kept),
            changes: watch::Sender::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Adds an event. Blocks on the disk. If the disk fails, the event is in
    /// memory only, and a warning is logged; it is written together with the
    /// next event that the disk accepts. Returns the event.
    ///
    /// If replicas share the training, the event is stored for all of them, and
    /// nobody sees it before.
    pub fn append(&self, event: EventKind) -> Arc<Event> {
        let writer = match &self.log {
            Log::File(writer) => writer,
            Log::Shared(log) => return self.append_shared(&mut lock(log), event),
        };
        let mut writer = lock(writer);
        let event = writer.next(event);
        let (line_bytes, written) = writer.write(&event);
        if let Err(error) = &written
            && !std::mem::replace(&mut writer.behind, true)
        {
            let path = writer.path.display();
            tracing::warn!(%error, %path, "events of a training cannot be written; they are kept in memory");
        }
        let mut kept = lock(&self.kept);
        kept.add(Arc::clone(&event), line_bytes);
        let bytes = kept.line_bytes;
        drop(kept);
        let catches_up = writer.behind && written.is_ok();
        if catches_up || writer.length > 2 * bytes + REWRITE_SLACK_BYTES {
            let rewritten = writer.rewrite(&mut lock(&self.kept));
            let failed_before = std::mem::replace(&mut writer.rewrite_failed, rewritten.is_err());
            if let Err(error) = rewritten
                && !failed_before
            {
                let path = writer.path.display();
                tracing::warn!(%error, %path, "the events of a training could not be rewritten");
            }
        }
        drop(writer);
        self.wake();
        event
    }

    /// Adds an event that the file has lost, with its own sequence number if
    /// that is still free. Blocks on the disk, as [`Self::append`].
    pub(super) fn append_from(&self, event: Event) {
        if let Log::File(writer) = &self.log {
            let mut writer = lock(writer);
            writer.next_sequence = writer.next_sequence.max(event.sequence);
        }
        self.append(event.event);
    }

    /// Adds an event that must not be lost: it is durable when this returns,
    /// and if it is not, it does not exist. Blocks on the disk.
    ///
    /// # Errors
    /// The disk did not accept it, or an earlier event.
    pub fn append_durable(&self, event: EventKind) -> io::Result<()> {
        let writer = match &self.log {
            Log::File(writer) => writer,
            Log::Shared(log) => {
                self.append_shared(&mut lock(log), event);
                return self.flush();
            }
        };
        let mut writer = lock(writer);
        if writer.behind {
            writer.rewrite(&mut lock(&self.kept))?;
        }
        let length = writer.length;
        let event = writer.next(event);
        let (line_bytes, written) = writer.write(&event);
        if let Err(error) = written {
            // It may be in the file: that is rewritten, now or later.
            writer.next_sequence = event.sequence;
            writer.length = length;
            writer.behind = true;
            if let Err(error) = writer.rewrite(&mut lock(&self.kept)) {
                tracing::warn!(%error, "the events of a training could not be rewritten");
            }
            return Err(error);
        }
        lock(&self.kept).add(event, line_bytes);
        drop(writer);
        self.wake();
        Ok(())
    }

    /// Ends all watches: the server stops, and the training continues on
    /// another replica.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the server stops, and what is to come is seen on other replicas.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Sets the state to waiting: the replica that ran the training has given it
    /// back.
    pub(crate) fn set_queued(&self) {
        lock(&self.kept).summary.state = State::Queued;
        self.wake();
    }

    /// Sets the state to running when the turn of a waiting training comes.
    pub fn set_running(&self) {
        lock(&self.kept).summary.set_running();
        self.wake();
    }

    /// Returns the summary of all events.
    pub fn summary(&self) -> Summary {
        lock(&self.kept).summary.clone()
    }

    /// Returns the events that are kept.
    pub fn events(&self) -> Vec<Arc<Event>> {
        let kept = lock(&self.kept);
        let events = kept.events.iter();
        events.map(|stored| Arc::clone(&stored.event)).collect()
    }

    fn wake(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// A panic while a lock was held leaves nothing half done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
