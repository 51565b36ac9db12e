//! What can be done with sessions between two calls.

use charlstm_model::decode_step::HiddenState;
use charlstm_repository::{LoadedModel, ModelId};
use charlstm_store::session::{
    AllowedSessions, ForkRequest, ImportRequest, ListRequest, PortableSession, SessionError,
    SessionId, SessionInfo, SessionKey, SessionPage, SessionSnapshot, SessionState, TokenIds,
};

use super::Engine;
use super::model_ref::{model_id, model_version};
use crate::error::ImportError;
use crate::model_source::ModelSourceError;

impl Engine {
    /// Describes a session as of its last commit.
    ///
    /// # Errors
    /// `Unknown`, `Evicted`, `Unavailable`.
    pub async fn session(&self, key: &SessionKey) -> Result<SessionInfo, SessionError> {
        self.storage().get(key).await
    }

    /// Returns a page of sessions, the most recently used first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn sessions(&self, request: ListRequest) -> Result<SessionPage, SessionError> {
        self.storage().list(request).await
    }

    /// Creates a second session that is where the first one is. Durable when
    /// the future completes.
    ///
    /// # Errors
    /// `Exists` is about the new session, the others are about the first:
    /// `Unknown`, `Evicted`, `Busy`, `Full`, `OwnerLimit`, `UnknownRevision`,
    /// `Unavailable`, `Stopping`.
    pub async fn fork_session(
        &self,
        key: &SessionKey,
        new_id: &SessionId,
        owner_limit: Option<u64>,
    ) -> Result<SessionInfo, SessionError> {
        let request = ForkRequest {
            key: key.clone(),
            new_id: new_id.clone(),
            owner_limit,
        };
        self.storage().fork(request).await
    }

    /// Deletes a session, or the tombstone of an evicted one. A generation in
    /// the session ends as cancelled. Durable when the future completes.
    ///
    /// # Errors
    /// `Unknown`, `Unavailable`, `Stopping`.
    pub async fn delete_session(&self, key: &SessionKey) -> Result<(), SessionError> {
        let deleted = self.storage().delete(key).await;
        // A generation in the session has lost its lease, even if the deletion
        // failed.
        for worker in &self.shared.workers {
            worker.inbox.wake();
        }
        deleted
    }

    /// Returns a session as of its last commit, without its last call.
    ///
    /// # Errors
    /// `Unknown`, `Evicted`, `Busy`, `UnknownRevision`, `Unavailable`.
    pub async fn export_session(&self, key: &SessionKey) -> Result<SessionSnapshot, SessionError> {
        let record = self.storage().export(key).await?;
        Ok(SessionSnapshot::of(&record))
    }

    /// Creates a session from outside. Durable when the future completes. Its
    /// content may be hostile.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn import_session(
        &self,
        key: SessionKey,
        session: PortableSession,
        owner_limit: Option<u64>,
    ) -> Result<SessionInfo, ImportError> {
        let identity = &session.identity;
        let wanted = model_id(&identity.model);
        let model = match self.load(&wanted, Some(identity.precision)).await {
            Ok(model) => model,
            Err(ModelSourceError::Failed(error)) => return Err(ImportError::Internal(error)),
            Err(ModelSourceError::Unavailable(error)) => {
                return Err(ImportError::Unavailable(error));
            }
            Err(error @ ModelSourceError::PrecisionUnavailable { .. }) => {
                return Err(ImportError::PrecisionUnavailable(error.to_string()));
            }
            Err(_) => return Err(ImportError::ModelMissing(wanted)),
        };
        if model.digest != identity.digest {
            return Err(ImportError::ModelDiffers(wanted));
        }
        let tokens = session.last_call.tokens.as_ref();
        if !fits(&session.begin, &model)
            || !fits(&session.end, &model)
            || !tokens.is_none_or(|tokens| are_known(tokens, &model))
        {
            return Err(ImportError::StateMismatch);
        }
        let id = key.id.clone();
        let request = ImportRequest {
            record: session.into_record(key),
            owner_limit,
        };
        let imported = self.storage().import(request).await;
        imported.map_err(|error| ImportError::Session { id, error })
    }

    /// Returns the number of sessions that belong to a model version,
    /// including those that running calls are about to create.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn count_sessions_of(&self, model: &ModelId) -> Result<u64, SessionError> {
        self.storage().count_by_model(&model_version(model)).await
    }

    /// Prevents new sessions on a model version that is about to be deleted,
    /// in one step with the check that it has only sessions that are `allowed`;
    /// they stay and report that their model is gone. Undone by
    /// [`Engine::reinstate_model`].
    ///
    /// # Errors
    /// `ModelInUse` with the number of sessions that are not allowed,
    /// `Unavailable`, `Stopping`.
    pub async fn retire_model(
        &self,
        model: &ModelId,
        allowed: AllowedSessions,
    ) -> Result<(), SessionError> {
        let version = model_version(model);
        self.storage().retire_model(&version, allowed).await
    }

    /// Allows sessions on a model version again whose deletion failed.
    ///
    /// # Errors
    /// `Unavailable`, `Stopping`.
    pub async fn reinstate_model(&self, model: &ModelId) -> Result<(), SessionError> {
        self.storage().reinstate_model(&model_version(model)).await
    }
}

/// Whether a state fits the network of a model.
pub(super) fn fits(state: &SessionState, model: &LoadedModel) -> bool {
    hidden_state(state, model).is_some()
}

/// Reads the state of the network, in the precision of the model. `None` if it
/// does not fit the model.
pub(super) fn hidden_state(state: &SessionState, model: &LoadedModel) -> Option<HiddenState> {
    if !are_known(&state.unfed, model) {
        return None;
    }
    match &state.network {
        None => Some(model.weights.zero_state()),
        Some(bytes) => {
            let architecture = model.weights.architecture();
            HiddenState::from_bytes(model.precision(), architecture, bytes)
        }
    }
}

/// Whether every token is a character of the model's vocabulary.
fn are_known(tokens: &TokenIds, model: &LoadedModel) -> bool {
    let known = model.vocabulary.len();
    tokens.iter().all(|token| (token as usize) < known)
}
