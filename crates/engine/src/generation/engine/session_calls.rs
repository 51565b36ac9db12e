//! What can be done with sessions between two texts.

use std::time::Instant;

use super::super::error::{GenerateError, ImportError};
use super::super::models::ModelSourceError;
use super::{Engine, fits};
use crate::sessions::store::{SessionError, SessionPage, SessionSummary};
use crate::sessions::{SessionId, Snapshot};
use charlstm_repository::ModelId;

impl Engine {
    /// Describes a session.
    ///
    /// # Errors
    /// `Unknown` or `Evicted`.
    pub fn session(&self, id: &SessionId) -> Result<SessionSummary, SessionError> {
        self.shared.book.store().get(id, Instant::now())
    }

    /// A page of sessions.
    pub fn sessions(&self, most: usize, after: Option<u64>) -> SessionPage {
        self.shared.book.store().list(most, after, Instant::now())
    }

    /// Makes a second session that stands where the first one stands.
    ///
    /// # Errors
    /// `Unknown` or `Evicted` for the first, `Exists` for the second, `Busy`,
    /// `Full`.
    pub fn fork_session(
        &self,
        id: &SessionId,
        new: &SessionId,
    ) -> Result<SessionSummary, SessionError> {
        let facts = self.shared.book.store().fork(id, new, Instant::now())?;
        self.shared.book.note(|names| names.add(new));
        Ok(facts)
    }

    /// Forgets a session; a text under way in it ends as cancelled.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn delete_session(&self, id: &SessionId) -> Result<(), SessionError> {
        self.shared.book.store().delete(id)?;
        self.shared.book.note(|names| names.strike(id));
        self.shared.book.freed.notify_waiters();
        for worker in &self.shared.workers {
            worker.inbox.wake();
        }
        Ok(())
    }

    /// A session as bytes.
    ///
    /// # Errors
    /// `Unknown`, `Evicted` or `Busy`.
    pub fn export_session(&self, id: &SessionId) -> Result<Vec<u8>, SessionError> {
        let snapshot = self.shared.book.store().export(id, Instant::now())?;
        // Outside of the lock: hashing takes longer than looking up.
        Ok(snapshot.to_bytes())
    }

    /// Makes a session from bytes, under its old name or a new one.
    ///
    /// # Errors
    /// Why not.
    pub async fn import_session(
        &self,
        bytes: &[u8],
        name: Option<SessionId>,
    ) -> Result<SessionSummary, ImportError> {
        let snapshot = Snapshot::from_bytes(bytes)?;
        let key = &snapshot.model;
        let model = self
            .load(key.id.clone())
            .await
            .map_err(|error| match error {
                GenerateError::Model(ModelSourceError::Failed(error))
                | GenerateError::Internal(error) => ImportError::Internal(error),
                _ => ImportError::ModelMissing(key.id.clone()),
            })?;
        if model.digest != key.digest {
            return Err(ImportError::ModelDiffers(key.id.clone()));
        }
        if !fits(&snapshot.begin, &model) || !fits(&snapshot.end, &model) {
            return Err(ImportError::Unfit);
        }
        let vocabulary = model.vocabulary.len();
        let call_fits = |call: &crate::sessions::TokenIds| {
            call.iter().all(|token| (token as usize) < vocabulary)
        };
        if !snapshot.call.as_ref().is_none_or(call_fits) {
            return Err(ImportError::Unfit);
        }
        let id = name.unwrap_or_else(|| snapshot.id.clone());
        let book = &self.shared.book;
        let facts = book
            .store()
            .import(&id, snapshot, Instant::now())
            .map_err(|error| ImportError::Session {
                id: id.clone(),
                error,
            })?;
        book.note(|names| names.add(&id));
        Ok(facts)
    }
    /// Sessions that belong to a model version. Looks at every session.
    pub fn sessions_of(&self, id: &ModelId) -> usize {
        let page = self.sessions(usize::MAX, None);
        let of_model =
            |facts: &&SessionSummary| facts.model.as_ref().is_some_and(|model| model.id == *id);
        page.sessions.iter().filter(of_model).count()
    }
}
