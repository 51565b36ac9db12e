//! The events of a history in memory, which are bounded in number and size.

use std::sync::Arc;

use crate::events::{Event, EventKind, Summary};

// The maxima are even, so that thinning out keeps the last event of its kind.

/// Maximum number of step events that are kept: enough for a smooth curve.
pub(super) const MAX_STEP_EVENTS: usize = 1000;

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
pub(super) const MAX_SAMPLE_BYTES: usize = 256 * 1024;

/// The events in memory.
///
/// Events of a kind of which there are many are thinned out: beyond a maximum,
/// every second one is dropped. Beyond a total size, the samples of the oldest
/// epochs are dropped.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) events: Vec<Stored>,
    counts: [usize; KINDS],
    /// Total length of the lines of all events.
    pub(super) line_bytes: u64,
    sample_bytes: usize,
    pub(super) summary: Summary,
}

pub(super) struct Stored {
    pub(super) event: Arc<Event>,
    /// Length of its line in the file.
    pub(super) line_bytes: u64,
}

/// The kinds of events that are bounded together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Step,
    Epoch,
    Checkpoint,
    Run,
}

const KINDS: usize = 4;

impl Kind {
    pub(super) const ALL: [(Kind, usize); KINDS] = [
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
    pub(super) fn has_ended(&self) -> bool {
        let last = self.events.last();
        last.is_some_and(|last| is_finished(&last.event))
    }

    pub(super) fn add(&mut self, event: Arc<Event>, line_bytes: u64) {
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

fn sample_bytes(event: &Event) -> usize {
    match &event.event {
        EventKind::Epoch(epoch) => epoch.sample.len(),
        _ => 0,
    }
}

pub(super) fn is_finished(event: &Event) -> bool {
    matches!(event.event, EventKind::Finished(_))
}
