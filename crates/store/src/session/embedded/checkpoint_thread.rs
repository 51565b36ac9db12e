//! The thread that moves closed logs into the database and prepares new ones.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::DATABASE;
use super::backing::{Backup, Checkpoints, NOT_OPEN, PanicGuard, Shared};
use super::database::{Database, DatabaseError};
use super::disk::{Disk, Folder, remove_if_there};
use super::log::{self, LogWriter};
use super::view::View;
use crate::session::error::SessionError;

pub(super) struct CheckpointThread {
    shared: Arc<Shared>,
    /// File of a log that the database has, to be used for a new log.
    spare: Option<String>,
    /// The database is open on a [`View`] and accepts no writes.
    is_view: bool,
    /// When to try again what has failed.
    retry_at: Option<Instant>,
    /// No new log could be created, which has been logged. It is tried every
    /// second, and a full disk can last for days.
    cannot_prepare: bool,
}

/// What there is to do.
enum Work {
    Apply,
    Prepare,
    Fill(LogWriter),
    Reopen,
    Backup(Backup),
    Finish(Result<(), SessionError>),
}

impl CheckpointThread {
    /// Starts the thread. It ends after the log thread.
    /// `is_view`: the database is open on a [`View`].
    pub(super) fn start(shared: Arc<Shared>, is_view: bool) -> std::io::Result<()> {
        let mut thread = Self {
            shared: Arc::clone(&shared),
            spare: None,
            is_view,
            retry_at: None,
            cannot_prepare: false,
        };
        std::thread::Builder::new()
            .name("session-checkpoint".to_owned())
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

    fn run(&mut self) {
        loop {
            match self.wait() {
                Work::Apply => self.apply(),
                Work::Prepare => self.prepare(),
                Work::Fill(log) => self.fill(log),
                Work::Reopen => self.reopen(),
                Work::Backup(backup) => self.back_up(backup),
                Work::Finish(outcome) => return self.finish(outcome),
            }
        }
    }

    /// Waits for something to do, or for the time to try again.
    fn wait(&mut self) -> Work {
        let shared = Arc::clone(&self.shared);
        let mut checkpoints = shared.checkpoints();
        loop {
            let now = Instant::now();
            let must_wait = self.retry_at.filter(|&at| at > now);
            if must_wait.is_none() {
                self.retry_at = None;
            }
            if let Some(work) = self.next(&mut checkpoints, must_wait.is_some()) {
                return work;
            }
            let timeout = must_wait.map_or(Duration::MAX, |at| at - now);
            let timeout = timeout.min(Duration::from_secs(3600));
            let (guard, _) = shared
                .checkpoints_changed
                .wait_timeout(checkpoints, timeout)
                .unwrap_or_else(PoisonError::into_inner);
            checkpoints = guard;
        }
    }

    fn next(&self, checkpoints: &mut Checkpoints, must_wait: bool) -> Option<Work> {
        let has_closed = self.shared.pending().has_closed();
        if let Some(outcome) = &checkpoints.log_outcome
            && (!has_closed || must_wait)
        {
            return Some(Work::Finish(outcome.clone()));
        }
        if must_wait {
            return None;
        }
        if checkpoints.must_reopen || self.is_view {
            checkpoints.must_reopen = false;
            return Some(Work::Reopen);
        }
        if has_closed {
            return Some(Work::Apply);
        }
        let is_due = |backup: &Backup| backup.after <= checkpoints.closes_done;
        if let Some(at) = checkpoints.backups.iter().position(is_due) {
            return Some(Work::Backup(checkpoints.backups.swap_remove(at)));
        }
        if checkpoints.wants_filled
            && let Some(log) = checkpoints.prepared.take()
        {
            checkpoints.wants_filled = false;
            return Some(Work::Fill(log));
        }
        let needs_log = checkpoints.prepared.is_none() && checkpoints.log_outcome.is_none();
        needs_log.then_some(Work::Prepare)
    }

    fn retry_later(&mut self) {
        self.retry_at = Some(Instant::now() + self.shared.tuning.retry_after);
    }

    /// Moves the oldest closed log into the database.
    fn apply(&mut self) {
        let Some((number, batch)) = self.shared.pending().oldest_closed() else {
            return;
        };
        let Some(database) = self.shared.database.get() else {
            return self.reopen();
        };
        if let Err(error) = database.apply(&batch, number) {
            self.report(&error);
            drop(database);
            self.reopen();
            // Whatever failed is tried again, but not at once.
            return self.retry_later();
        }
        let damaged = batch.damaged.len() as u64;
        self.shared.damaged.fetch_add(damaged, Ordering::Relaxed);
        self.shared.applied_log.store(number, Ordering::Relaxed);
        self.shared.pending().forget_oldest();
        if self.shared.health().database.take().is_some() {
            tracing::info!("the session database can be written again");
        }
        self.remove_logs(number);
        self.shared.poke();
    }

    /// Removes the logs that the database has; one of them is used again.
    fn remove_logs(&mut self, up_to: u64) {
        let removed = self.shared.disk.names().and_then(|names| {
            for name in names {
                if log::number_of(&name).is_none_or(|number| number > up_to) {
                    continue;
                }
                if self.spare.is_none() {
                    self.spare = Some(name);
                } else if self.spare.as_ref() != Some(&name) {
                    self.shared.disk.remove(&name)?;
                }
            }
            Ok(())
        });
        if let Err(error) = removed {
            // They are known to be old at the next start, and removed then.
            tracing::warn!(%error, "an old session log cannot be removed");
        }
    }

    fn prepare(&mut self) {
        let tuning = &self.shared.tuning;
        let space = tuning.log_bytes + tuning.reserve_bytes;
        let number = self.shared.new_log_number();
        let spare = self.spare.take();
        match LogWriter::create(&*self.shared.disk, number, space, spare.as_deref()) {
            Ok(log) => {
                if std::mem::take(&mut self.cannot_prepare) {
                    tracing::info!("new session logs can be created again");
                }
                self.shared.checkpoints().prepared = Some(log);
                self.shared.poke();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.cannot_prepare, true) {
                    tracing::warn!(%error, "no new session log can be created; trying again");
                }
                self.retry_later();
            }
        }
    }

    /// Fills the next log, which nobody else has meanwhile.
    fn fill(&mut self, log: LogWriter) {
        match log.fill() {
            Ok(()) => {
                self.shared.checkpoints().prepared = Some(log);
                self.shared.poke();
            }
            Err(error) => {
                tracing::warn!(%error, "a new session log cannot be filled; trying another");
                let _ = self.shared.disk.remove(&log::name(log.number));
                self.retry_later();
            }
        }
    }

    /// Records that the database cannot be written, and logs it once.
    fn report(&self, error: &DatabaseError) {
        let cause = format!("the session database cannot be written: {error}");
        let before = self.shared.health().database.replace(cause.into());
        if before.is_none() {
            tracing::error!(%error, "the session database cannot be written; changes stay in the log");
        }
    }

    /// Opens the database again after an error. If that needs writes that fail
    /// as well, it is opened so that it can at least be read.
    fn reopen(&mut self) {
        self.shared.database.begin_reopening();
        match open_database(&*self.shared.disk, self.shared.tuning.page_cache_bytes) {
            Ok((database, error)) => {
                self.shared.database.reopened(database);
                self.is_view = error.is_some();
                if let Some(error) = error {
                    self.report(&error);
                    self.retry_later();
                }
            }
            Err(error) => {
                tracing::error!(%error, "the session database cannot be opened again");
                self.report(&error);
                self.shared.database.close();
                self.is_view = false;
                self.shared.checkpoints().must_reopen = true;
                self.retry_later();
            }
        }
    }

    /// Copies the database on a thread of its own: it may take minutes.
    fn back_up(&self, backup: Backup) {
        let Some(database) = self.shared.database.get() else {
            let closed = self.shared.unavailable(NOT_OPEN);
            // Nobody waits if the call has ended.
            let _ = backup.done.send(Err(closed.into()));
            return;
        };
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name("session-backup".to_owned())
            .spawn(move || {
                let copied = copy(&database, &backup.folder).map_err(|cause| {
                    let cause = format!("no backup to {}: {cause}", backup.folder.display());
                    SessionError::from(shared.unavailable(&cause))
                });
                let _ = backup.done.send(copied);
            });
        if let Err(error) = started {
            // The sender was dropped with the closure.
            tracing::error!(%error, "no thread for a backup");
        }
    }

    /// Closes the database and answers those that wait for it.
    fn finish(&mut self, outcome: Result<(), SessionError>) {
        let is_behind = self.shared.pending().has_closed();
        // Closes it cleanly, so that the next start is quick.
        self.shared.database.close();
        if is_behind {
            tracing::warn!("the last session changes are in the log only; the next start reads it");
        } else if outcome.is_ok() {
            self.spare = None;
            self.remove_logs(self.shared.next_log.load(Ordering::Relaxed));
            if let Some(spare) = self.spare.take() {
                let _ = self.shared.disk.remove(&spare);
            }
        }
        self.shared.disk.unlock();
        let mut checkpoints = self.shared.checkpoints();
        checkpoints.backups.clear();
        checkpoints.prepared = None;
        checkpoints.outcome = Some(outcome.clone());
        let waiting = std::mem::take(&mut checkpoints.waiting);
        drop(checkpoints);
        for waiting in waiting {
            let _ = waiting.send(outcome.clone());
        }
    }
}

/// Opens the database. If that needs writes that fail, it is opened so that it
/// can at least be read, and the error is returned as well.
pub(super) fn open_database(
    disk: &dyn Disk,
    cache_bytes: usize,
) -> Result<(Database, Option<DatabaseError>), DatabaseError> {
    let file = disk.open(DATABASE).map_err(redb::Error::Io)?;
    let error = match Database::open(Arc::clone(&file), cache_bytes) {
        Ok(database) => return Ok((database, None)),
        Err(error) => error,
    };
    if !error.is_of_the_disk() {
        return Err(error);
    }
    let view = View::of(file).map_err(redb::Error::Io)?;
    Ok((Database::open(Arc::new(view), cache_bytes)?, Some(error)))
}

/// Copies a database into a folder without one.
fn copy(database: &Database, folder: &Path) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let disk = Folder::open(folder).map_err(text)?;
    if disk
        .names()
        .map_err(text)?
        .iter()
        .any(|name| name == DATABASE)
    {
        return Err("it contains sessions already".to_owned());
    }
    let new = format!("{DATABASE}.new");
    remove_if_there(&disk, &new).map_err(text)?;
    let file = disk.create(&new).map_err(text)?;
    let target = Database::create(file).map_err(|error| error.to_string())?;
    let copied = database.copy_to(&target).map_err(|error| error.to_string());
    drop(target);
    if copied.is_err() {
        let _ = disk.remove(&new);
        return copied;
    }
    disk.rename(&new, DATABASE).map_err(text)?;
    disk.sync_folder().map_err(text)
}
