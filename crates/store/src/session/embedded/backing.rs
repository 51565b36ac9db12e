//! What the threads of a store share, and how others reach them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::database::{Database, DatabaseError};
use super::disk::Disk;
use super::log::LogWriter;
use super::opened::Opened;
use super::pending::Pending;
use super::rows::database_key;
use crate::session::clock::RunningClock;
use crate::session::error::{RecordError, SessionError, StorageUnavailable};
use crate::session::index::Change;
use crate::session::local::{Backing, Done, LocalSessions, ReadError, Submitted};
use crate::session::name::SessionKey;
use crate::session::storage::{Durability, StorageFuture};

/// How the store works; tests use small numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) durability: Durability,
    /// Bytes after which a log is closed and moved into the database.
    pub(crate) log_bytes: u64,
    /// Time after which it is, even if it is smaller.
    pub(crate) log_age: Duration,
    /// Space that a log always has left, so that calls that have begun can
    /// still commit when the disk is full.
    pub(crate) reserve_bytes: u64,
    /// Changes that are not in the database may take so much memory before
    /// no more are accepted.
    pub(crate) max_pending_bytes: u64,
    /// Page cache of the database.
    pub(crate) page_cache_bytes: usize,
    /// Time between two attempts after an error.
    pub(crate) retry_after: Duration,
    /// Time between two looks at idle sessions.
    pub(crate) tick: Duration,
}

/// A change that waits for the log.
pub(super) struct Queued {
    pub(super) change: Change,
    pub(super) done: Done,
}

/// What the log thread is to do.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) changes: VecDeque<Queued>,
    pub(super) is_closing: bool,
    /// How often somebody asked for the active log to be closed.
    pub(super) closes_requested: u64,
    /// Something else has changed that the log thread waits for.
    pub(super) is_poked: bool,
}

/// What the checkpoint thread is to do.
#[derive(Default)]
pub(super) struct Checkpoints {
    /// Requests to close the log that the log thread has met.
    pub(super) closes_done: u64,
    /// The next log, ready for use.
    pub(super) prepared: Option<LogWriter>,
    /// So much is written that the next log is worth being filled: see
    /// [`LogWriter::fill`].
    pub(super) wants_filled: bool,
    /// The log thread has ended, and this is how.
    pub(super) log_outcome: Option<Result<(), SessionError>>,
    /// The database reported an error to a reader.
    pub(super) must_reopen: bool,
    pub(super) backups: Vec<Backup>,
    /// Whether everything that was accepted became durable, once the threads
    /// have ended.
    pub(super) outcome: Option<Result<(), SessionError>>,
    pub(super) waiting: Vec<oneshot::Sender<Result<(), SessionError>>>,
}

/// A backup that was asked for.
pub(super) struct Backup {
    pub(super) folder: PathBuf,
    /// It can begin when this request to close the log is met.
    pub(super) after: u64,
    pub(super) done: oneshot::Sender<Result<(), SessionError>>,
}

/// Why changes are not accepted, in the order in which it is reported.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The log could not be written or synced.
    pub(super) log: Option<Arc<str>>,
    /// The disk has no space beyond the reserve.
    pub(super) space: Option<Arc<str>>,
    /// The last error of the database.
    pub(super) database: Option<Arc<str>>,
}

/// What the threads of a store share. Locks are taken for a moment only, in
/// the order of the fields.
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) tuning: Tuning,
    pub(super) clock: Arc<RunningClock>,
    queue: Mutex<Queue>,
    pub(super) queue_changed: Condvar,
    checkpoints: Mutex<Checkpoints>,
    pub(super) checkpoints_changed: Condvar,
    pending: Mutex<Pending>,
    health: Mutex<Health>,
    pub(super) database: Opened,
    pub(super) next_log: AtomicU64,
    /// Number of the last log whose changes are all in the database.
    pub(super) applied_log: AtomicU64,
    pub(super) damaged: AtomicU64,
    /// The sessions on top, for the regular look at idle ones.
    sessions: Mutex<Weak<LocalSessions>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("disk", &self.disk)
            .field("tuning", &self.tuning)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        tuning: Tuning,
        clock: Arc<RunningClock>,
        database: Database,
        pending: Pending,
        next_log: u64,
    ) -> Arc<Self> {
        let damaged = database.damaged().unwrap_or(0);
        Arc::new(Self {
            disk,
            tuning,
            clock,
            queue: Mutex::default(),
            queue_changed: Condvar::new(),
            checkpoints: Mutex::default(),
            checkpoints_changed: Condvar::new(),
            pending: Mutex::new(pending),
            health: Mutex::default(),
            database: Opened::new(database),
            next_log: AtomicU64::new(next_log),
            applied_log: AtomicU64::new(0),
            damaged: AtomicU64::new(damaged),
            sessions: Mutex::new(Weak::new()),
        })
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    pub(super) fn checkpoints(&self) -> MutexGuard<'_, Checkpoints> {
        lock(&self.checkpoints)
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        lock(&self.health)
    }

    /// The sessions on top, unless they were dropped.
    pub(super) fn sessions(&self) -> Option<Arc<LocalSessions>> {
        lock(&self.sessions).upgrade()
    }

    pub(super) fn set_sessions(&self, sessions: &Arc<LocalSessions>) {
        *lock(&self.sessions) = Arc::downgrade(sessions);
    }

    /// Makes the log thread look around.
    pub(super) fn poke(&self) {
        self.queue().is_poked = true;
        self.queue_changed.notify_all();
    }

    pub(super) fn new_log_number(&self) -> u64 {
        self.next_log.fetch_add(1, Ordering::Relaxed)
    }

    /// An answer for changes that cannot be accepted.
    pub(super) fn unavailable(&self, cause: &str) -> StorageUnavailable {
        StorageUnavailable {
            retry_after: self.tuning.retry_after.max(Duration::from_secs(1)),
            cause: cause.into(),
        }
    }

    /// Takes the log that is ready, if it comes after log `number`.
    pub(super) fn take_prepared(&self, number: u64) -> Option<LogWriter> {
        let prepared = self.checkpoints().prepared.take();
        self.checkpoints_changed.notify_all();
        prepared.filter(|log| log.number > number)
    }

    /// Begins to close. The log thread writes what is queued, the checkpoint
    /// thread moves it into the database, and both end.
    fn close(&self) {
        self.queue().is_closing = true;
        self.queue_changed.notify_all();
    }
}

/// The store as its sessions see it.
#[derive(Debug)]
pub(super) struct EmbeddedBacking {
    shared: Arc<Shared>,
    readers: mpsc::Sender<Read>,
}

/// A record that is to be read from the database.
pub(super) struct Read {
    key: Vec<u8>,
    done: oneshot::Sender<Result<Bytes, ReadError>>,
}

/// Threads that read records. A read is a few page reads; two of them keep a
/// disk busy, and a slow one does not hold up all others.
const READERS: usize = 2;

impl EmbeddedBacking {
    /// Starts the threads that read.
    pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let (readers, reads) = mpsc::channel::<Read>();
        let reads = Arc::new(Mutex::new(reads));
        for number in 0..READERS {
            let reads = Arc::clone(&reads);
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("session-read-{number}"))
                .spawn(move || {
                    loop {
                        // Ends when the store is dropped.
                        let Ok(read) = lock(&reads).recv() else {
                            break;
                        };
                        // Nobody waits if the call has ended.
                        let _ = read.done.send(shared.read(&read.key));
                    }
                })?;
        }
        Ok(Self { shared, readers })
    }
}

/// Maximum time that a read waits for the database to be opened again: that takes
/// a moment, after [`Tuning::retry_after`] if an attempt has just failed.
const REOPENING: Duration = Duration::from_secs(5);

/// Why the database cannot be used, if no error is known.
pub(super) const NOT_OPEN: &str = "the database is not open";

impl Shared {
    /// Reads a record. After an error of the disk, in any thread, redb reads
    /// nothing more until the file is opened again. So a read that fails is
    /// repeated once when it has been. Blocks.
    fn read(&self, key: &[u8]) -> Result<Bytes, ReadError> {
        let closed = || {
            let cause = self.health().database.clone();
            let cause = cause.unwrap_or_else(|| NOT_OPEN.into());
            ReadError::Unavailable(self.unavailable(&cause))
        };
        let mut database = self.database.wait(None, REOPENING).ok_or_else(closed)?;
        let mut record = database.record(key);
        if let Err(DatabaseError::Redb(_)) = record {
            self.request_reopening(&database);
            if let Some(reopened) = self.database.wait(Some(&database), REOPENING) {
                database = reopened;
                record = database.record(key);
            }
        }
        match record {
            Ok(Some(record)) => Ok(record),
            Ok(None) => Err(ReadError::Damaged(RecordError::Content(
                "the record is missing",
            ))),
            Err(error) => {
                tracing::error!(%error, "a session could not be read from the database");
                if let DatabaseError::Redb(_) = error {
                    self.request_reopening(&database);
                }
                let cause = format!("the session cannot be read: {error}");
                Err(ReadError::Unavailable(self.unavailable(&cause)))
            }
        }
    }

    /// Requests that the database is opened again if it is still the one that
    /// `failed` a reader.
    fn request_reopening(&self, failed: &Arc<Database>) {
        let is_current = |current: Arc<Database>| Arc::ptr_eq(failed, &current);
        if self.database.get().is_some_and(is_current) {
            self.checkpoints().must_reopen = true;
            self.checkpoints_changed.notify_all();
        }
    }
}

impl Backing for EmbeddedBacking {
    fn submit(&self, change: Change, done: Done) -> Submitted {
        let shared = &self.shared;
        let mut queue = shared.queue();
        if queue.is_closing {
            let closed = shared.unavailable("the store is closed");
            return Submitted::Now(done, Err(closed));
        }
        if shared.tuning.durability == Durability::Relaxed {
            if let Some(cause) = shared.health().log.clone() {
                // Otherwise what is acknowledged would pile up in memory.
                return Submitted::Now(done, Err(shared.unavailable(&cause)));
            }
            let clock_ms = shared.clock.now_ms();
            shared.pending().add(change.clone(), clock_ms);
        }
        queue.changes.push_back(Queued { change, done });
        drop(queue);
        shared.queue_changed.notify_all();
        Submitted::Queued
    }

    fn read(&self, key: &SessionKey) -> StorageFuture<'static, Result<Bytes, ReadError>> {
        let missing = || ReadError::Damaged(RecordError::Content("the record is missing"));
        if let Some(found) = self.shared.pending().find(key) {
            return Box::pin(std::future::ready(found.ok_or_else(missing)));
        }
        let (done, record) = oneshot::channel();
        let key = database_key(key);
        let sent = self.readers.send(Read { key, done });
        let closed = ReadError::Unavailable(self.shared.unavailable("the store is closed"));
        Box::pin(async move {
            if sent.is_err() {
                return Err(closed);
            }
            record.await.unwrap_or(Err(closed))
        })
    }

    fn check(&self) -> Result<(), StorageUnavailable> {
        let health = self.shared.health();
        if let Some(cause) = health.log.as_ref().or(health.space.as_ref()) {
            return Err(self.shared.unavailable(cause));
        }
        let database = health.database.clone();
        drop(health);
        if self.shared.pending().bytes() > self.shared.tuning.max_pending_bytes {
            let cause = database.unwrap_or_else(|| "the disk is too slow".into());
            return Err(self.shared.unavailable(&cause));
        }
        Ok(())
    }

    fn damaged(&self) -> u64 {
        self.shared.damaged.load(Ordering::Relaxed)
    }

    fn memory_bytes(&self) -> u64 {
        self.shared.tuning.page_cache_bytes as u64 + self.shared.pending().bytes()
    }

    fn backup(&self, folder: &Path) -> StorageFuture<'static, Result<(), SessionError>> {
        let shared = &self.shared;
        let after = {
            let mut queue = shared.queue();
            queue.closes_requested += 1;
            queue.is_poked = true;
            queue.closes_requested
        };
        shared.queue_changed.notify_all();
        let (done, outcome) = oneshot::channel();
        let backup = Backup {
            folder: folder.to_owned(),
            after,
            done,
        };
        let mut checkpoints = shared.checkpoints();
        if checkpoints.outcome.is_some() {
            return Box::pin(std::future::ready(Err(SessionError::Stopping)));
        }
        checkpoints.backups.push(backup);
        drop(checkpoints);
        shared.checkpoints_changed.notify_all();
        Box::pin(async move { outcome.await.unwrap_or(Err(SessionError::Stopping)) })
    }

    fn shutdown(&self) -> StorageFuture<'static, Result<(), SessionError>> {
        self.shared.close();
        let mut checkpoints = self.shared.checkpoints();
        if let Some(outcome) = &checkpoints.outcome {
            return Box::pin(std::future::ready(outcome.clone()));
        }
        let (done, outcome) = oneshot::channel();
        checkpoints.waiting.push(done);
        Box::pin(async move {
            // Dropped without an answer only if a thread has panicked.
            let lost = SessionError::Unavailable(StorageUnavailable {
                retry_after: Duration::MAX,
                cause: "a thread of the session store has failed".into(),
            });
            outcome.await.unwrap_or(Err(lost))
        })
    }
}

impl Drop for EmbeddedBacking {
    /// A store that nobody holds any more ends its threads.
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Ends the process's trust in a store one of whose threads has panicked:
/// nothing more is accepted, and those that wait get an error.
pub(super) struct PanicGuard {
    pub(super) shared: Arc<Shared>,
    pub(super) has_ended: AtomicBool,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if self.has_ended.load(Ordering::Relaxed) {
            return;
        }
        let shared = &self.shared;
        shared.health().log = Some("a thread of the session store has failed".into());
        let mut queue = shared.queue();
        queue.is_closing = true;
        let changes = std::mem::take(&mut queue.changes);
        drop(queue);
        for queued in changes {
            let failed = shared.unavailable("a thread of the session store has failed");
            (queued.done)(Err(failed));
        }
        let mut checkpoints = shared.checkpoints();
        let failed = shared.unavailable("a thread of the session store has failed");
        checkpoints.outcome = Some(Err(failed.into()));
        // Those that wait get the same.
        checkpoints.waiting.clear();
        checkpoints.backups.clear();
    }
}
