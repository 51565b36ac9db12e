//! The events of one training: kept in memory and in a file, watched by any
//! number of readers, each from a place of its own. What they mean is in
//! `events`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::events::{Event, EventKind, Finished, State, Summary};

#[cfg(test)]
mod tests;

/// Most step events that are kept: enough for a smooth curve. Once there are
/// more, every second one is let go.
pub(super) const MAX_STEP_EVENTS: usize = 1000;

/// The history of one training.
///
/// An event is in the file before a watcher sees it, so what was seen is not
/// taken back by a crash of the program.
pub struct History {
    /// Held while an event is written; only writers wait for the disk.
    writer: Mutex<Writer>,
    kept: Mutex<Kept>,
    /// Counts the changes, to wake the watchers.
    changes: watch::Sender<u64>,
}

struct Writer {
    path: PathBuf,
    file: File,
    next_sequence: u64,
    /// Whether an event could not be written: the file is written anew as
    /// soon as the disk takes events again.
    behind: bool,
}

struct Kept {
    events: Vec<Arc<Event>>,
    step_events: usize,
    summary: Summary,
}

/// Reads a history from some place on, each event once.
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
    /// Begins a history in a new file.
    ///
    /// # Errors
    /// The file's.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path)?;
        Ok(Self::with(path, file, Vec::new()))
    }

    /// Reads a history back. A last line that was cut off by a crash is taken
    /// off the file.
    ///
    /// # Errors
    /// The file's; a line in its midst that is no event.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (events, good_bytes) = parse(&fs::read(path)?)?;
        let file = OpenOptions::new().append(true).open(path)?;
        if file.metadata()?.len() > good_bytes {
            file.set_len(good_bytes)?;
        }
        Ok(Self::with(path, file, events))
    }

    fn with(path: &Path, file: File, events: Vec<Arc<Event>>) -> Self {
        let mut summary = Summary::new();
        let mut step_events = 0;
        for event in &events {
            summary.take(&event.event);
            step_events += usize::from(is_step(event));
        }
        Self {
            writer: Mutex::new(Writer {
                path: path.to_owned(),
                file,
                next_sequence: events.last().map_or(0, |event| event.sequence + 1),
                behind: false,
            }),
            kept: Mutex::new(Kept {
                events,
                step_events,
                summary,
            }),
            changes: watch::Sender::new(0),
        }
    }

    /// Adds an event. Blocks on the disk. Where the disk fails, the event is
    /// in memory only, and the log says so; it is written with the first that
    /// the disk takes again.
    pub fn append(&self, event: EventKind) {
        let mut writer = lock(&self.writer);
        let event = Arc::new(Event {
            sequence: writer.next_sequence,
            event,
        });
        writer.next_sequence += 1;
        let written = writer.write(&event);
        if let Err(error) = &written
            && !std::mem::replace(&mut writer.behind, true)
        {
            let path = writer.path.display();
            tracing::warn!(%error, %path, "events of a training cannot be written; they are kept in memory");
        }
        let mut kept = lock(&self.kept);
        kept.summary.take(&event.event);
        kept.step_events += usize::from(is_step(&event));
        kept.events.push(event);
        let thin = kept.step_events > MAX_STEP_EVENTS;
        if thin {
            kept.thin();
        }
        let catch_up = writer.behind && written.is_ok();
        let anew = (thin || catch_up).then(|| kept.events.clone());
        drop(kept);
        if let Some(events) = anew {
            match writer.rewrite(&events) {
                Ok(()) => writer.behind = false,
                Err(error) => {
                    let path = writer.path.display();
                    tracing::warn!(%error, %path, "the events of a training could not be rewritten");
                }
            }
        }
        self.wake();
    }

    /// Says that the training waits again, or trains, after it had ended or
    /// waited. Its end, where it had one, is no longer reported.
    pub fn set_active(&self, state: State) {
        let mut kept = lock(&self.kept);
        kept.summary.state = state;
        kept.summary.message.clear();
        drop(kept);
        self.wake();
    }

    /// Where the training stands.
    pub fn summary(&self) -> Summary {
        lock(&self.kept).summary.clone()
    }

    /// All events that are kept.
    pub fn events(&self) -> Vec<Arc<Event>> {
        lock(&self.kept).events.clone()
    }

    fn wake(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn next(&self, position: u64) -> Next {
        let kept = lock(&self.kept);
        let ended = kept.summary.state.has_ended();
        let start = kept.events.partition_point(|e| e.sequence < position);
        for (index, event) in kept.events.iter().enumerate().skip(start) {
            // The end of a training that was resumed is not its end.
            let is_end = ended && index + 1 == kept.events.len();
            if is_end || !is_finished(event) {
                return Next::Event(Arc::clone(event));
            }
        }
        if ended { Next::Ended } else { Next::Wait }
    }
}

impl Watcher {
    /// Watches a history from the event of that number on.
    pub fn new(history: Arc<History>, from_sequence: u64) -> Self {
        Self {
            changes: history.changes.subscribe(),
            history,
            position: from_sequence,
            ended: false,
        }
    }

    /// The next event; `None` once the training has ended and its last event
    /// was given. Waits without blocking; may be dropped at any time.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        while !self.ended {
            // Before the look, so that a change after it wakes the wait.
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

impl Kept {
    /// Lets every second step event go, never the last event.
    fn thin(&mut self) {
        let last = self.events.last().map(|event| event.sequence);
        let mut nth = 0usize;
        self.events.retain(|event| {
            if !is_step(event) || Some(event.sequence) == last {
                return true;
            }
            nth += 1;
            nth % 2 == 1
        });
        self.step_events = self.events.iter().filter(|event| is_step(event)).count();
    }
}

impl Writer {
    fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        // One write for the whole line: a crash cuts it, but never mixes it.
        let start = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all(&line) {
            // Half a line would make all that follow unreadable.
            self.file.set_len(start)?;
            return Err(error);
        }
        if is_step(event) {
            return Ok(());
        }
        self.file.sync_data()
    }

    fn rewrite(&mut self, events: &[Arc<Event>]) -> io::Result<()> {
        let aside = self.path.with_extension("new");
        if let Err(error) = write_all(&aside, events) {
            // Half a file on a full disk is only in the way.
            let _ = fs::remove_file(&aside);
            return Err(error);
        }
        fs::rename(&aside, &self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        Ok(())
    }
}

fn write_all(path: &Path, events: &[Arc<Event>]) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for event in events {
        serde_json::to_writer(&mut out, event.as_ref())?;
        out.write_all(b"\n")?;
    }
    out.into_inner()?.sync_data()
}

/// The events of a file, and the bytes up to the end of the last whole line.
fn parse(bytes: &[u8]) -> io::Result<(Vec<Arc<Event>>, u64)> {
    let mut events: Vec<Arc<Event>> = Vec::new();
    let mut good = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if !line.ends_with(b"\n") {
            break;
        }
        let event: Event = serde_json::from_slice(line).map_err(|error| {
            let text = format!("event {} of the history: {error}", events.len());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        events.push(Arc::new(event));
        good += line.len() as u64;
    }
    Ok((events, good))
}

fn is_step(event: &Event) -> bool {
    matches!(event.event, EventKind::Step(_))
}

fn is_finished(event: &Event) -> bool {
    matches!(event.event, EventKind::Finished(Finished { .. }))
}

/// A panic while the lock was held left nothing half done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
