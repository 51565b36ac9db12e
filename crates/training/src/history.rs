//! The events of one training: kept in memory and in a file, and read by any
//! number of watchers, each from its own position. `events` defines them.
//!
//! The file has one event per line, as JSON with a checksum. Both it and the
//! memory are bounded: see `Kept`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use charlstm_store::atomic_file::{self, AtomicFile};
use charlstm_store::checksummed_json;
use tokio::sync::watch;

use super::events::{Accepted, Event, EventKind, State, Summary};

mod shared_log;
#[cfg(test)]
mod tests;

pub use self::shared_log::EventSink;
use self::shared_log::SharedLog;

// The maxima are even, so that thinning out keeps the last event of its kind.

/// Maximum number of step events that are kept: enough for a smooth curve.
const MAX_STEP_EVENTS: usize = 1000;
/// Maximum number of epoch events that are kept. Only a training of more epochs
/// than any preset has ever reaches it.
const MAX_EPOCH_EVENTS: usize = 1000;
/// Maximum number of events about checkpoints that are kept: one a minute for
/// most of a day.
const MAX_CHECKPOINT_EVENTS: usize = 1000;
/// Maximum number of events about resuming and rollbacks that are kept.
const MAX_RUN_EVENTS: usize = 200;
/// Maximum total bytes of the samples that are kept: a thousand samples of the
/// default length.
const MAX_SAMPLE_BYTES: usize = 256 * 1024;
/// Bytes by which the file may exceed twice its useful content before it is
/// rewritten.
const REWRITE_SLACK_BYTES: u64 = 64 * 1024;
/// Damaged lines are moved to a file with this extension.
const DAMAGED: &str = "damaged";

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

struct Writer {
    path: PathBuf,
    /// Closed once the training has ended: there may be a thousand of them.
    file: Option<File>,
    /// Bytes of the file that are events. What is beyond is overwritten.
    length: u64,
    next_sequence: u64,
    /// True if an event is not in the file. The file is rewritten as soon as
    /// the disk accepts events again.
    behind: bool,
    /// True if the last rewrite failed: only the first failure is logged.
    rewrite_failed: bool,
}

/// The events in memory.
///
/// Events of a kind of which there are many are thinned out: beyond a maximum,
/// every second one is dropped. Beyond a total size, the samples of the oldest
/// epochs are dropped.
#[derive(Default)]
struct Kept {
    events: Vec<Stored>,
    counts: [usize; KINDS],
    /// Total length of the lines of all events.
    line_bytes: u64,
    sample_bytes: usize,
    summary: Summary,
}

struct Stored {
    event: Arc<Event>,
    /// Length of its line in the file.
    line_bytes: u64,
}

/// The kinds of events that are bounded together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Step,
    Epoch,
    Checkpoint,
    Run,
}

const KINDS: usize = 4;

/// Reads a history from some position on, each event once.
pub struct Watcher {
    history: Arc<History>,
    changes: watch::Receiver<u64>,
    position: u64,
    ended: bool,
}

enum Next {
    Event(Arc<Event>),
    Wait,
    Ended,
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

    fn next(&self, position: u64) -> Next {
        let kept = lock(&self.kept);
        let ended = kept.summary.state.has_ended();
        let events = &kept.events;
        let start = events.partition_point(|stored| stored.event.sequence < position);
        for (index, Stored { event, .. }) in events.iter().enumerate().skip(start) {
            // If the training was resumed, an earlier end is not its end.
            let is_end = ended && index + 1 == events.len();
            if is_end || !is_finished(event) {
                return Next::Event(Arc::clone(event));
            }
        }
        if ended || self.is_closed() {
            Next::Ended
        } else {
            Next::Wait
        }
    }
}

impl Watcher {
    /// Watches a history from the event with that sequence number on.
    pub fn new(history: Arc<History>, from_sequence: u64) -> Self {
        Self {
            changes: history.changes.subscribe(),
            history,
            position: from_sequence,
            ended: false,
        }
    }

    /// Returns the next event, or `None` after the last event of a training
    /// that has ended. Waits without blocking; may be dropped at any time.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        while !self.ended {
            // Before reading, so that a later change wakes the wait.
            self.changes.borrow_and_update();
            match self.history.next(self.position) {
                Next::Event(event) => {
                    self.position = event.sequence + 1;
                    self.ended = is_finished(&event);
                    return Some(event);
                }
                Next::Ended => break,
                Next::Wait => {
                    if self.changes.changed().await.is_err() {
                        break;
                    }
                }
            }
        }
        self.ended = true;
        None
    }
}

impl Kind {
    const ALL: [(Kind, usize); KINDS] = [
        (Kind::Step, MAX_STEP_EVENTS),
        (Kind::Epoch, MAX_EPOCH_EVENTS),
        (Kind::Checkpoint, MAX_CHECKPOINT_EVENTS),
        (Kind::Run, MAX_RUN_EVENTS),
    ];

    /// Returns the kind of an event; `None` for the first event, which is
    /// always kept.
    fn of(event: &Event) -> Option<Self> {
        match event.event {
            EventKind::Accepted(_) => None,
            EventKind::Step(_) => Some(Self::Step),
            EventKind::Epoch(_) => Some(Self::Epoch),
            EventKind::Checkpoint(_) | EventKind::CheckpointFailed(_) => Some(Self::Checkpoint),
            EventKind::RolledBack(_) | EventKind::Resumed(_) | EventKind::Finished(_) => {
                Some(Self::Run)
            }
        }
    }
}

impl Kept {
    /// True if the training has ended and was not resumed since.
    fn has_ended(&self) -> bool {
        let last = self.events.last();
        last.is_some_and(|last| is_finished(&last.event))
    }

    fn add(&mut self, event: Arc<Event>, line_bytes: u64) {
        self.summary.add(&event.event);
        self.line_bytes += line_bytes;
        self.sample_bytes += sample_bytes(&event);
        if let Some(kind) = Kind::of(&event) {
            self.counts[kind as usize] += 1;
        }
        self.events.push(Stored { event, line_bytes });
        for (kind, limit) in Kind::ALL {
            if self.counts[kind as usize] > limit {
                self.thin(kind);
            }
        }
        if self.sample_bytes > MAX_SAMPLE_BYTES {
            self.drop_samples();
        }
    }

    /// Drops every second event of a kind, never the last event of all.
    fn thin(&mut self, kind: Kind) {
        let last = self.events.last().map(|stored| stored.event.sequence);
        let mut nth = 0usize;
        self.events.retain(|stored| {
            if Kind::of(&stored.event) != Some(kind) || Some(stored.event.sequence) == last {
                return true;
            }
            nth += 1;
            let keep = nth % 2 == 1;
            if !keep {
                self.counts[kind as usize] -= 1;
                self.line_bytes -= stored.line_bytes;
                self.sample_bytes -= sample_bytes(&stored.event);
            }
            keep
        });
    }

    /// Drops the samples of the oldest epochs until half of the space is free.
    fn drop_samples(&mut self) {
        for stored in &mut self.events {
            if self.sample_bytes <= MAX_SAMPLE_BYTES / 2 {
                break;
            }
            let mut event = stored.event.as_ref().clone();
            if let EventKind::Epoch(epoch) = &mut event.event {
                self.sample_bytes -= epoch.sample.len();
                // The line is at least so much shorter when it is rewritten.
                let dropped = (epoch.sample.len() as u64).min(stored.line_bytes);
                stored.line_bytes -= dropped;
                self.line_bytes -= dropped;
                epoch.sample.clear();
                stored.event = Arc::new(event);
            }
        }
    }
}

impl Writer {
    fn next(&mut self, event: EventKind) -> Arc<Event> {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Arc::new(Event { sequence, event })
    }

    /// Appends an event, and makes it durable unless it is a step. Returns the
    /// length of its line, even if it could not be written.
    fn write(&mut self, event: &Event) -> (u64, io::Result<()>) {
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
    fn rewrite(&mut self, kept: &mut Kept) -> io::Result<()> {
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

/// The lines of a file.
#[derive(Default)]
struct Lines<'a> {
    events: Vec<SoundLine<'a>>,
    damaged: Vec<DamagedLine<'a>>,
    /// Bytes up to the end of the last line that ends in a line break.
    whole_bytes: u64,
    /// True if the last line is complete but for its line break.
    unended: bool,
}

struct SoundLine<'a> {
    event: Event,
    number: usize,
    bytes: &'a [u8],
}

struct DamagedLine<'a> {
    /// From 1.
    number: usize,
    /// Without the line break.
    bytes: &'a [u8],
    error: String,
}

impl<'a> Lines<'a> {
    fn parse(bytes: &'a [u8]) -> Self {
        let mut lines = Self::default();
        for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let is_whole = line.ends_with(b"\n");
            let content = line.strip_suffix(b"\n").unwrap_or(line);
            match checksummed_json::from_slice::<Event>(content) {
                Ok(event) => {
                    lines.add(SoundLine {
                        event,
                        number: index + 1,
                        bytes: content,
                    });
                    lines.unended = !is_whole;
                }
                // Cut off by a crash while it was written: no watcher saw it.
                Err(_) if !is_whole => break,
                Err(error) => lines.damaged.push(DamagedLine {
                    number: index + 1,
                    bytes: content,
                    error: error.to_string(),
                }),
            }
            if is_whole {
                lines.whole_bytes += line.len() as u64;
            }
        }
        lines
    }

    /// Adds an event. If its sequence number does not ascend, either it or the
    /// event before it is damaged: version 0.1 wrote no checksums.
    fn add(&mut self, line: SoundLine<'a>) {
        let sequence = line.event.sequence;
        let last = self.events.last().map(|line| line.event.sequence);
        if last.is_none_or(|last| last < sequence) {
            self.events.push(line);
            return;
        }
        let before_last = self.events.iter().nth_back(1);
        let fits_before_last = before_last.is_none_or(|line| line.event.sequence < sequence);
        let damaged = if last.is_some_and(|last| last > sequence) && fits_before_last {
            let last = self.events.pop();
            self.events.push(line);
            last
        } else {
            Some(line)
        };
        self.damaged.extend(damaged.map(|line| DamagedLine {
            number: line.number,
            bytes: line.bytes,
            error: "its sequence number does not ascend".to_owned(),
        }));
    }
}

fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = checksummed_json::to_line(event)?;
    line.push(b'\n');
    Ok(line)
}

fn sample_bytes(event: &Event) -> usize {
    match &event.event {
        EventKind::Epoch(epoch) => epoch.sample.len(),
        _ => 0,
    }
}

fn is_finished(event: &Event) -> bool {
    matches!(event.event, EventKind::Finished(_))
}

/// Lets writes to a history fail as on a full disk, until it is dropped.
#[cfg(test)]
pub(crate) struct FullDisk<'a> {
    history: &'a History,
    path: PathBuf,
    file: Option<File>,
}

#[cfg(test)]
impl History {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        match &self.log {
            Log::File(writer) => lock(writer),
            Log::Shared(_) => unreachable!("the tests with a full disk use files"),
        }
    }
}

#[cfg(test)]
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

#[cfg(test)]
impl Drop for FullDisk<'_> {
    fn drop(&mut self) {
        let mut writer = self.history.writer();
        writer.path = std::mem::take(&mut self.path);
        writer.file = self.file.take();
    }
}

/// A panic while a lock was held leaves nothing half done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
