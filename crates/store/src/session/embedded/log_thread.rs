//! The thread that writes the log: one write and one sync for all changes
//! that wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::backing::{PanicGuard, Queue, Queued, Shared};
use super::change::Payload;
use super::log::LogWriter;
use crate::session::error::SessionError;
use crate::session::local::Done;
use crate::session::storage::Durability;

/// In relaxed mode, a change is synced at most this long after it was made.
/// Together with the sync itself that is less than a second.
const RELAXED_SYNC: Duration = Duration::from_millis(500);

/// In relaxed mode, so much is synced at once, even if it is not due.
const MAX_UNSYNCED_BYTES: usize = 16 << 20;

/// Attempts at shutdown to write what was accepted in relaxed mode.
const LAST_ATTEMPTS: u32 = 3;

pub(super) struct LogThread {
    shared: Arc<Shared>,
    log: Log,
    /// Where the valid parts of earlier logs end that the database may not
    /// have yet.
    ends: Vec<(u64, u64)>,
    /// In relaxed mode: what was accepted and not synced yet.
    unsynced: Vec<(Vec<u8>, Done)>,
    unsynced_since: Option<Instant>,
    opened: Instant,
    /// The log is to be closed, and the one before is not in the database yet.
    is_close_blocked: bool,
    closes_done: u64,
    /// Number of the log whose successor was filled last.
    filled_for: u64,
    last_tick: Instant,
}

enum Log {
    Open(LogWriter),
    Broken {
        /// The log that failed.
        number: u64,
        retry_at: Instant,
        /// The next log, once it was created.
        next: Option<LogWriter>,
    },
}

impl LogThread {
    /// Starts the thread. It ends after the store was closed. `log` is the
    /// first log; if it could not be created, the thread creates one as soon
    /// as that is possible. `last` is the number of the log before.
    pub(super) fn start(
        shared: Arc<Shared>,
        log: std::io::Result<LogWriter>,
        last: u64,
        ends: Vec<(u64, u64)>,
    ) -> std::io::Result<()> {
        let now = Instant::now();
        let log = log.map(Log::Open).unwrap_or_else(|error| {
            tracing::error!(%error, "no session log can be created; no changes are accepted");
            shared.health().log = Some(format!("no log can be created: {error}").into());
            Log::Broken {
                number: last,
                retry_at: now + shared.tuning.retry_after,
                next: None,
            }
        });
        let mut thread = Self {
            shared: Arc::clone(&shared),
            log,
            ends,
            unsynced: Vec::new(),
            unsynced_since: None,
            opened: now,
            is_close_blocked: false,
            closes_done: 0,
            filled_for: 0,
            last_tick: now,
        };
        std::thread::Builder::new()
            .name("session-log".to_owned())
            .spawn(move || {
                let guard = PanicGuard {
                    shared,
                    has_ended: AtomicBool::new(false),
                };
                thread.run();
                guard.has_ended.store(true, Ordering::Relaxed);
            })?;
        Ok(())
    }

    fn is_relaxed(&self) -> bool {
        self.shared.tuning.durability == Durability::Relaxed
    }

    fn run(&mut self) {
        loop {
            let (changes, is_closing) = self.wait();
            self.write(changes);
            if is_closing && self.shared.queue().changes.is_empty() {
                break;
            }
            self.sync_if_due();
            self.repair_if_due();
            self.keep_space();
            self.fill_next_if_due();
            self.close_log_if_due();
            self.tick();
        }
        self.finish();
    }

    /// Waits for something to do.
    fn wait(&self) -> (Vec<Queued>, bool) {
        let mut timeout = self.shared.tuning.tick;
        let mut until = |moment: Instant| {
            timeout = timeout.min(moment.saturating_duration_since(Instant::now()));
        };
        if let Some(since) = self.unsynced_since {
            until(since + RELAXED_SYNC);
        }
        match &self.log {
            Log::Broken { retry_at, .. } => until(*retry_at),
            // The checkpoint thread pokes this one when it has made way.
            Log::Open(_) if self.is_close_blocked => {}
            Log::Open(_) => until(self.opened + self.shared.tuning.log_age),
        }
        let is_idle =
            |queue: &mut Queue| queue.changes.is_empty() && !queue.is_closing && !queue.is_poked;
        let (mut queue, _) = self
            .shared
            .queue_changed
            .wait_timeout_while(self.shared.queue(), timeout, is_idle)
            .unwrap_or_else(PoisonError::into_inner);
        queue.is_poked = false;
        let changes = std::mem::take(&mut queue.changes);
        (changes.into(), queue.is_closing)
    }

    fn write(&mut self, changes: Vec<Queued>) {
        if changes.is_empty() {
            return;
        }
        let clock_ms = self.shared.clock.now_ms();
        if self.is_relaxed() {
            for queued in changes {
                let payload = Payload::encode_change(&queued.change, clock_ms);
                self.unsynced_since.get_or_insert_with(Instant::now);
                if let Log::Open(log) = &mut self.log {
                    begin(log, &self.ends);
                    log.push(&payload);
                }
                self.unsynced.push((payload, queued.done));
            }
            let written = match &mut self.log {
                Log::Open(log) => log.write(),
                Log::Broken { .. } => Ok(()),
            };
            if let Err(error) = written {
                self.fail(&error);
            }
            return;
        }
        let Log::Open(log) = &mut self.log else {
            let health = self.shared.health();
            let cause = health
                .log
                .clone()
                .unwrap_or_else(|| "the log failed".into());
            drop(health);
            let error = self.shared.unavailable(&cause);
            for queued in changes {
                (queued.done)(Err(error.clone()));
            }
            return;
        };
        begin(log, &self.ends);
        for queued in &changes {
            log.push(&Payload::encode_change(&queued.change, clock_ms));
        }
        let outcome = log.write().and_then(|()| log.sync());
        if let Err(error) = &outcome {
            self.fail(error);
        }
        for queued in changes {
            match &outcome {
                Ok(()) => {
                    self.shared.pending().add(queued.change, clock_ms);
                    (queued.done)(Ok(()));
                }
                Err(error) => {
                    let cause = format!("the log cannot be written: {error}");
                    (queued.done)(Err(self.shared.unavailable(&cause)));
                }
            }
        }
    }

    /// In relaxed mode: syncs what was written, if it is time.
    fn sync_if_due(&mut self) {
        let Some(since) = self.unsynced_since else {
            return;
        };
        let bytes: usize = self.unsynced.iter().map(|(payload, _)| payload.len()).sum();
        if since.elapsed() >= RELAXED_SYNC || bytes > MAX_UNSYNCED_BYTES {
            self.sync();
        }
    }

    fn sync(&mut self) {
        let Log::Open(log) = &mut self.log else {
            return;
        };
        match log.sync() {
            Ok(()) => {
                self.unsynced_since = None;
                for (_, done) in std::mem::take(&mut self.unsynced) {
                    done(Ok(()));
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Stops using a log: whether what was written to it since its last sync
    /// is on the disk cannot be found out, not even by another sync.
    fn fail(&mut self, error: &std::io::Error) {
        let Log::Open(log) = &self.log else {
            return;
        };
        tracing::error!(%error, "the session log cannot be written; no changes are accepted");
        let number = log.number;
        self.ends.push((number, log.synced()));
        self.shared.health().log = Some(format!("the log cannot be written: {error}").into());
        let mut pending = self.shared.pending();
        if !pending.is_active_empty() {
            pending.close(number);
        }
        drop(pending);
        self.shared.checkpoints_changed.notify_all();
        self.log = Log::Broken {
            number,
            retry_at: Instant::now() + self.shared.tuning.retry_after,
            next: None,
        };
    }

    fn repair_if_due(&mut self) {
        if let Log::Broken { retry_at, .. } = self.log
            && Instant::now() >= retry_at
        {
            self.repair();
        }
    }

    /// Continues with a new log.
    fn repair(&mut self) {
        let Log::Broken { number, next, .. } = &mut self.log else {
            return;
        };
        let (number, next) = (*number, next.take());
        let mut log = match next.map_or_else(|| self.new_log(number), Ok) {
            Ok(log) => log,
            Err(error) => return self.retry_later(number, None, &error),
        };
        let begun = self.begin_repaired(&mut log);
        if let Err(error) = begun {
            log.restart();
            return self.retry_later(number, Some(log), &error);
        }
        tracing::info!("the session log can be written again");
        self.shared.health().log = None;
        self.log = Log::Open(log);
        self.opened = Instant::now();
        self.unsynced_since = None;
        for (_, done) in std::mem::take(&mut self.unsynced) {
            done(Ok(()));
        }
    }

    /// A log after `number`, with its whole space.
    fn new_log(&self, number: u64) -> std::io::Result<LogWriter> {
        if let Some(prepared) = self.shared.take_prepared(number) {
            return Ok(prepared);
        }
        let tuning = &self.shared.tuning;
        let space = tuning.log_bytes + tuning.reserve_bytes;
        let number = self.shared.new_log_number();
        LogWriter::create(&*self.shared.disk, number, space, None)
    }

    /// Records where the earlier logs end, and what is not in them.
    fn begin_repaired(&self, log: &mut LogWriter) -> std::io::Result<()> {
        log.push(&Payload::encode_begin(&self.ends));
        for (payload, _) in &self.unsynced {
            log.push(payload);
        }
        log.write()?;
        log.sync()
    }

    fn retry_later(&mut self, number: u64, next: Option<LogWriter>, error: &std::io::Error) {
        self.shared.health().log = Some(format!("the log cannot be written: {error}").into());
        self.log = Log::Broken {
            number,
            retry_at: Instant::now() + self.shared.tuning.retry_after,
            next,
        };
    }

    /// Makes sure that the log has its reserve, and rejects new calls if the
    /// disk does not give it.
    fn keep_space(&mut self) {
        let Log::Open(log) = &mut self.log else {
            return;
        };
        let tuning = &self.shared.tuning;
        let space = if log.space() >= tuning.reserve_bytes {
            Ok(())
        } else {
            log.extend(tuning.reserve_bytes)
        };
        let cause = space
            .err()
            .map(|error| format!("no space for the log: {error}"));
        let mut health = self.shared.health();
        if let (Some(cause), None) = (&cause, &health.space) {
            tracing::error!(%cause, "no new calls are accepted in sessions");
        }
        health.space = cause.map(Into::into);
    }

    /// Has the next log filled if this one is used so much that the next one
    /// will be, too.
    fn fill_next_if_due(&mut self) {
        let Log::Open(log) = &self.log else {
            return;
        };
        if self.filled_for == log.number || log.bytes() < self.shared.tuning.log_bytes / 4 {
            return;
        }
        self.filled_for = log.number;
        self.shared.checkpoints().wants_filled = true;
        self.shared.checkpoints_changed.notify_all();
    }

    /// Closes the log, so that it is moved into the database, if it is large
    /// or old enough or somebody asks for it, and the one before is done.
    fn close_log_if_due(&mut self) {
        let requested = self.shared.queue().closes_requested;
        let is_requested = requested > self.closes_done;
        let Log::Open(log) = &self.log else {
            return;
        };
        let tuning = &self.shared.tuning;
        let is_due = log.bytes() >= tuning.log_bytes || self.opened.elapsed() >= tuning.log_age;
        if !is_due && !is_requested {
            return;
        }
        let pending = self.shared.pending();
        let is_empty = pending.is_active_empty() && self.unsynced.is_empty();
        let is_behind = pending.has_closed();
        drop(pending);
        if is_empty {
            self.opened = Instant::now();
            return self.report_close(requested);
        }
        let number = log.number;
        let next = if is_behind {
            None
        } else {
            self.shared.take_prepared(number)
        };
        self.is_close_blocked = next.is_none();
        let Some(next) = next else {
            return;
        };
        if self.unsynced_since.is_some() {
            self.sync();
        }
        let Log::Open(log) = &self.log else {
            // The sync failed, and the repair is to have a log.
            self.shared.checkpoints().prepared.get_or_insert(next);
            return;
        };
        self.ends.push((number, log.synced()));
        self.shared.pending().close(number);
        self.log = Log::Open(next);
        self.opened = Instant::now();
        self.report_close(requested);
    }

    /// Reports that everything before a request is on its way into the
    /// database.
    fn report_close(&mut self, requested: u64) {
        self.closes_done = requested;
        self.shared.checkpoints().closes_done = requested;
        self.shared.checkpoints_changed.notify_all();
    }

    /// Looks at idle sessions now and then, and forgets logs that the database
    /// has.
    fn tick(&mut self) {
        if self.last_tick.elapsed() < self.shared.tuning.tick {
            return;
        }
        self.last_tick = Instant::now();
        let applied = self.shared.applied_log.load(Ordering::Relaxed);
        self.ends.retain(|(number, _)| *number > applied);
        if let Some(sessions) = self.shared.sessions() {
            sessions.evict_expired();
        }
    }

    /// Writes what is left and hands over to the checkpoint thread.
    fn finish(&mut self) {
        for _ in 0..LAST_ATTEMPTS {
            if self.unsynced.is_empty() {
                break;
            }
            match self.log {
                Log::Open(_) => self.sync(),
                Log::Broken { .. } => {
                    std::thread::sleep(self.shared.tuning.retry_after);
                    self.repair();
                }
            }
        }
        let lost = std::mem::take(&mut self.unsynced);
        let outcome = if lost.is_empty() {
            Ok(())
        } else {
            let error = self
                .shared
                .unavailable("the last changes could not be written");
            for (_, done) in lost {
                done(Err(error.clone()));
            }
            Err(SessionError::from(error))
        };
        if let Log::Open(log) = &self.log
            && !self.shared.pending().is_active_empty()
        {
            let number = log.number;
            self.shared.pending().close(number);
        }
        let mut checkpoints = self.shared.checkpoints();
        checkpoints.log_outcome = Some(outcome);
        drop(checkpoints);
        self.shared.checkpoints_changed.notify_all();
    }
}

/// Begins a new log, if this is the first thing that is written to it.
fn begin(log: &mut LogWriter, ends: &[(u64, u64)]) {
    if log.is_new() {
        log.push(&Payload::encode_begin(ends));
    }
}
