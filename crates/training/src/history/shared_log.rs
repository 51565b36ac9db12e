//! The events of a training that replicas share. Nobody sees an event before it
//! is in the shared store, so all replicas number the same events alike.

use std::io;
use std::sync::Arc;

use super::kept::Kept;
use super::{Event, EventKind, History, Log, lock};

/// After this many events of a run, the shared store is asked to drop those that
/// the history has dropped.
const TRIM_INTERVAL: usize = 500;

/// Where the replica that runs a training stores its events.
pub trait EventSink: Send + Sync {
    /// Stores events, in this order. Those that are there already are not stored
    /// again.
    ///
    /// # Errors
    /// They could not be stored; some of them may be, all the same.
    fn append(&self, events: &[Arc<Event>]) -> io::Result<()>;

    /// Deletes all events but those with these sequence numbers.
    ///
    /// # Errors
    /// They could not be deleted.
    fn keep_only(&self, sequences: &[u64]) -> io::Result<()>;
}

/// The end of a shared history on one replica.
#[derive(Default)]
pub(super) struct SharedLog {
    /// Sequence number of the next event from the shared store: this replica has
    /// all events before it.
    next_stored: u64,
    /// Events of this replica that are not stored yet, as far as it knows.
    /// Their sequence numbers begin at `next_stored`.
    pending: Vec<Arc<Event>>,
    /// Set while this replica runs the training.
    sink: Option<Arc<dyn EventSink>>,
    /// Events stored since the last time that the store was trimmed.
    untrimmed: usize,
    trouble: bool,
}

impl SharedLog {
    fn next_sequence(&self) -> u64 {
        self.next_stored + self.pending.len() as u64
    }
}

impl History {
    /// A history that other replicas may add to. It has no events yet.
    pub(crate) fn shared() -> Self {
        Self {
            log: Log::Shared(SharedLog::default().into()),
            kept: Kept::default().into(),
            changes: tokio::sync::watch::Sender::new(0),
            closed: false.into(),
        }
    }

    /// Adds events that are in the shared store, unless they are here already.
    /// They replace events of this replica with the same sequence numbers: those
    /// are the same, stored although the answer was lost, or are never stored,
    /// because another replica runs the training.
    pub(crate) fn follow(&self, events: impl IntoIterator<Item = Event>) {
        let Log::Shared(log) = &self.log else {
            return;
        };
        let mut log = lock(log);
        for event in events {
            if event.sequence >= log.next_stored {
                log.next_stored = event.sequence + 1;
                lock(&self.kept).add(Arc::new(event), 0);
            }
        }
        let next_stored = log.next_stored;
        log.pending.retain(|event| event.sequence >= next_stored);
        drop(log);
        self.wake();
    }

    /// From now on, this replica adds events. The history must have all events
    /// that are in the shared store.
    pub(crate) fn attach(&self, sink: Arc<dyn EventSink>) {
        if let Log::Shared(log) = &self.log {
            let mut log = lock(log);
            log.sink = Some(sink);
            log.untrimmed = 0;
            log.trouble = false;
        }
    }

    /// From now on, other replicas add events. Those of this one that were not
    /// stored are lost.
    pub(crate) fn detach(&self) {
        if let Log::Shared(log) = &self.log {
            let mut log = lock(log);
            log.sink = None;
            log.pending.clear();
        }
    }

    /// Stores the events of this replica that are not stored yet.
    ///
    /// # Errors
    /// They could not be stored; they are kept, and stored later.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let Log::Shared(log) = &self.log else {
            return Ok(());
        };
        let mut log = lock(log);
        let flushed = self.flush_log(&mut log);
        drop(log);
        self.wake();
        flushed
    }

    /// Adds an event of this replica. If it cannot be stored, it is kept for
    /// later, and a warning is logged.
    pub(super) fn append_shared(&self, log: &mut SharedLog, event: EventKind) -> Arc<Event> {
        let sequence = log.next_sequence();
        let event = Arc::new(Event { sequence, event });
        log.pending.push(Arc::clone(&event));
        if let Err(error) = self.flush_log(log)
            && !std::mem::replace(&mut log.trouble, true)
        {
            tracing::warn!(%error, "events of a training cannot be stored; they are kept in memory");
        }
        self.wake();
        event
    }

    fn flush_log(&self, log: &mut SharedLog) -> io::Result<()> {
        if log.pending.is_empty() {
            return Ok(());
        }
        let Some(sink) = &log.sink else {
            return Err(io::Error::other("another replica runs the training"));
        };
        let sink = Arc::clone(sink);
        sink.append(&log.pending)?;
        log.trouble = false;
        let mut kept = lock(&self.kept);
        log.untrimmed += log.pending.len();
        log.next_stored = log.next_sequence();
        for event in log.pending.drain(..) {
            kept.add(event, 0);
        }
        if log.untrimmed < TRIM_INTERVAL {
            return Ok(());
        }
        let sequences: Vec<u64> = kept.events.iter().map(|one| one.event.sequence).collect();
        drop(kept);
        log.untrimmed = 0;
        if let Err(error) = sink.keep_only(&sequences) {
            tracing::warn!(%error, "old events of a training could not be dropped");
        }
        Ok(())
    }
}
