//! The session store as the engine shares it: under a lock, with the clock,
//! the list of names on disk, and a bell for those who wait for a session.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::sessions::disk::{self, Restored, SessionLog};
use crate::sessions::store::{Commit, Lease, LeaseMark, Opening, SessionError, SessionLimits};
use crate::sessions::{SessionId, SessionStore};

/// The sessions of an engine.
pub(super) struct SessionManager {
    store: Mutex<SessionStore>,
    names: Mutex<Option<SessionLog>>,
    folder: Option<PathBuf>,
    /// Rung whenever a session becomes free.
    pub(super) freed: Notify,
}

impl SessionManager {
    /// The sessions that are in `folder`, if one is given.
    pub(super) fn open(
        limits: SessionLimits,
        folder: Option<&Path>,
    ) -> std::io::Result<(Arc<Self>, Restored)> {
        let mut store = SessionStore::new(limits);
        let mut names = None;
        let mut restored = Restored::default();
        if let Some(folder) = folder {
            restored = disk::restore(folder, &mut store, Instant::now())?;
            names = Some(SessionLog::begin(folder, &store)?);
        }
        let book = Self {
            store: Mutex::new(store),
            names: Mutex::new(names),
            folder: folder.map(Path::to_owned),
            freed: Notify::new(),
        };
        Ok((Arc::new(book), restored))
    }

    /// The store. Held for a moment only: its methods are quick.
    pub(super) fn store(&self) -> MutexGuard<'_, SessionStore> {
        // The store's methods do not leave it half changed but for a bug.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session for a call.
    pub(super) fn open_session(
        self: &Arc<Self>,
        id: &SessionId,
        expected: Option<u64>,
    ) -> Result<(SessionGuard, Opened), SessionError> {
        let Opening { lease, kept } = self.store().open(id, expected, Instant::now())?;
        let guard = SessionGuard {
            is_new: kept.is_none(),
            lease: Some(lease),
            book: Arc::clone(self),
        };
        Ok((guard, kept))
    }

    /// Writes a name to the list. What goes wrong is logged: the call itself
    /// went well.
    pub(super) fn note(&self, write: impl FnOnce(&mut SessionLog) -> std::io::Result<()>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(list) = names.as_mut() else {
            return;
        };
        let result = write(list).and_then(|()| {
            let store = self.store();
            if list.is_stale(store.len()) {
                *list = SessionLog::begin(list.folder(), &store)?;
            }
            Ok(())
        });
        if let Err(error) = result {
            tracing::warn!(%error, "a session's name could not be written");
        }
    }

    /// Tells that the reader of a call has left.
    pub(super) fn leave(&self, mark: &LeaseMark) {
        self.store().leave(mark);
    }

    /// Writes all sessions to the folder, if there is one. Blocks.
    pub(super) fn save(&self) -> std::io::Result<()> {
        match &self.folder {
            Some(folder) => disk::save(folder, &self.store()),
            None => Ok(()),
        }
    }
}

/// The model and the point of a session that is there.
pub(super) type Opened = Option<(
    Arc<crate::sessions::ModelKey>,
    crate::sessions::SessionState,
)>;

/// An opened session. Dropped without being settled, the session stands as
/// before.
pub(super) struct SessionGuard {
    is_new: bool,
    lease: Option<Lease>,
    book: Arc<SessionManager>,
}

impl SessionGuard {
    /// True once the session was deleted.
    pub(super) fn is_cancelled(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_cancelled)
    }

    /// What tells the store which call has left.
    pub(super) fn mark(&self) -> Option<LeaseMark> {
        self.lease.as_ref().map(Lease::mark)
    }

    /// Ends the call where `commit` says.
    pub(super) fn commit(mut self, commit: Commit) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        let id = lease.id().clone();
        let cancelled = lease.is_cancelled();
        self.book.store().commit(lease, commit, Instant::now());
        if self.is_new && !cancelled {
            self.book.note(|names| names.add(&id));
        }
        self.book.freed.notify_waiters();
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.book.store().abandon(lease);
            self.book.freed.notify_waiters();
        }
    }
}
