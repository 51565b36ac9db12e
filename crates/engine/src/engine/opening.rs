//! Opens what a call continues: a stored session, a snapshot, or nothing.

use std::sync::Arc;
use std::time::Duration;

use charlstm_repository::LoadedModel;
use charlstm_store::session::{
    OpenRequest, OpenedSession, RecordError, SealError, SessionError, SessionIdentity, SessionKey,
    SessionLease, SessionSnapshot, SessionState,
};

use super::model_ref::{check_model_of, identity_of, model_id, names_model};
use super::{Engine, sessions};
use crate::error::GenerateError;
use crate::request::GenerateCall;

/// Maximum time that a call waits for the end of one whose reader has left:
/// many decode steps and a sync of the disk, and too short to be noticed.
const LEAVING_WAIT: Duration = Duration::from_secs(2);

/// What a call continues.
pub(super) struct CallStart {
    pub(super) model: Arc<LoadedModel>,
    pub(super) identity: SessionIdentity,
    /// The lease of a stored session.
    pub(super) lease: Option<SessionLease>,
    /// The state of an existing session.
    pub(super) state: Option<SessionState>,
}

impl Engine {
    /// Loads the model of a call that continues no session.
    pub(super) async fn open_nothing(
        &self,
        call: &GenerateCall,
    ) -> Result<CallStart, GenerateError> {
        let model = self.load_reference(&call.model, call.precision).await?;
        Ok(CallStart {
            identity: identity_of(&model),
            model,
            lease: None,
            state: None,
        })
    }

    /// Opens the session of a call, and loads its model.
    pub(super) async fn open_session(
        &self,
        key: &SessionKey,
        call: &GenerateCall,
    ) -> Result<CallStart, GenerateError> {
        // Whether the session exists decides which model the call needs.
        let opened = match self.lease(key, call.expected_position, None, None).await {
            Err(SessionError::Unknown) => {
                let new = self.open_nothing(call).await?;
                let create = Some(new.identity.clone());
                let opened = self
                    .lease(key, call.expected_position, create, call.owner_limit)
                    .await;
                match opened.map_err(about(key))? {
                    OpenedSession { lease, start: None } => {
                        let lease = Some(lease);
                        return Ok(CallStart { lease, ..new });
                    }
                    // Another call has created it in the meantime.
                    opened => opened,
                }
            }
            opened => opened.map_err(about(key))?,
        };
        let Some(start) = opened.start else {
            let text = "the storage created a session unasked".to_owned();
            return Err(GenerateError::Internal(text));
        };
        let identity = start.identity;
        check_model_of(&key.id, &identity, &call.model)?;
        if let Some(requested) = call.precision
            && requested != identity.precision
        {
            return Err(GenerateError::OtherPrecision {
                id: key.id.clone(),
                precision: identity.precision,
                requested,
            });
        }
        Ok(CallStart {
            model: self.load_model_of(&key.id, &identity).await?,
            identity,
            lease: Some(opened.lease),
            state: Some(start.state),
        })
    }

    /// Checks a snapshot, and loads its model.
    pub(super) async fn open_snapshot(
        &self,
        snapshot: &SessionSnapshot,
        call: &GenerateCall,
    ) -> Result<CallStart, GenerateError> {
        let position = snapshot.state.position;
        if let Some(expected) = call.expected_position
            && expected != position
        {
            return Err(GenerateError::SnapshotPosition { expected, position });
        }
        let identity = snapshot.identity.clone();
        if !names_model(&identity, &call.model) {
            return Err(SealError::OtherModel.into());
        }
        let precision = identity.precision;
        let model = self
            .load(&model_id(&identity.model), Some(precision))
            .await?;
        snapshot.check(&model.digest, call.precision.unwrap_or(precision))?;
        if !sessions::fits(&snapshot.state, &model) {
            let text = "the state does not fit the model that it names";
            return Err(SealError::from(RecordError::Content(text)).into());
        }
        Ok(CallStart {
            model,
            identity,
            lease: None,
            state: Some(snapshot.state.clone()),
        })
    }

    /// Takes the lease of a session. Waits a little for a call whose reader
    /// has left, so that a client that repeats a dropped call does not get
    /// ABORTED because of its own earlier call.
    async fn lease(
        &self,
        key: &SessionKey,
        expected_position: Option<u64>,
        create: Option<SessionIdentity>,
        owner_limit: Option<u64>,
    ) -> Result<OpenedSession, SessionError> {
        let until = tokio::time::Instant::now() + LEAVING_WAIT;
        loop {
            let request = OpenRequest {
                key: key.clone(),
                expected_position,
                create: create.clone(),
                owner_limit,
            };
            let busy = match self.storage().open(request).await {
                Err(busy @ SessionError::Busy { leaving: true, .. }) => busy,
                other => return other,
            };
            let released = self.storage().released(key);
            if tokio::time::timeout_at(until, released).await.is_err() {
                return Err(busy);
            }
        }
    }
}

fn about(key: &SessionKey) -> impl FnOnce(SessionError) -> GenerateError {
    let id = key.id.clone();
    move |error| GenerateError::Session { id, error }
}
