//! A backend under test, and short ways to use it.

use std::sync::Arc;

use bytes::Bytes;

use crate::session::{
    ARITHMETIC_REVISION, CommitOutcome, LastCall, ModelVersion, OpenRequest, OpenedSession, Owner,
    ParametersDigest, Precision, RandomState, RunningClock, SessionCommit, SessionError, SessionId,
    SessionIdentity, SessionInfo, SessionKey, SessionLease, SessionLimits, SessionRecord,
    SessionState, SessionStorage, TokenIds,
};

/// Builds a backend with some limits.
pub(crate) type Start = fn(SessionLimits) -> Fixture;

pub(crate) struct Fixture {
    pub(crate) storage: Arc<dyn SessionStorage>,
    pub(crate) clock: Arc<RunningClock>,
    /// Removed at the end.
    _folder: Option<tempfile::TempDir>,
}

impl Fixture {
    pub(crate) fn new(storage: Arc<dyn SessionStorage>, clock: Arc<RunningClock>) -> Self {
        Self {
            storage,
            clock,
            _folder: None,
        }
    }

    pub(crate) fn keeping(self, folder: tempfile::TempDir) -> Self {
        Self {
            _folder: Some(folder),
            ..self
        }
    }

    pub(crate) async fn open(&self, id: &str) -> Result<OpenedSession, SessionError> {
        self.storage.open(request(id)).await
    }

    pub(crate) async fn open_at(
        &self,
        id: &str,
        position: u64,
    ) -> Result<OpenedSession, SessionError> {
        let expected_position = Some(position);
        let request = OpenRequest {
            expected_position,
            ..request(id)
        };
        self.storage.open(request).await
    }

    /// A whole call that adds `chars` characters.
    pub(crate) async fn call(&self, id: &str, chars: u64) -> Result<CommitOutcome, SessionError> {
        let opened = self.open(id).await?;
        self.finish(opened, chars, "call").await
    }

    /// Commits a call that added `chars` characters with some parameters.
    pub(crate) async fn finish(
        &self,
        opened: OpenedSession,
        chars: u64,
        parameters: &str,
    ) -> Result<CommitOutcome, SessionError> {
        let commit = commit(&opened, chars, parameters);
        self.storage.commit(opened.lease, commit).await
    }

    /// Commits a call that was cut off after `chars` characters.
    pub(crate) async fn cut_off(
        &self,
        opened: OpenedSession,
        chars: u64,
        parameters: &str,
    ) -> Result<CommitOutcome, SessionError> {
        let commit = SessionCommit {
            cut_off: true,
            ..commit(&opened, chars, parameters)
        };
        self.storage.commit(opened.lease, commit).await
    }

    pub(crate) async fn get(&self, id: &str) -> Result<SessionInfo, SessionError> {
        self.storage.get(&key(id)).await
    }

    pub(crate) async fn export(&self, id: &str) -> Result<SessionRecord, SessionError> {
        self.storage.export(&key(id)).await
    }

    pub(crate) async fn position(&self, id: &str) -> u64 {
        self.get(id).await.unwrap().position
    }

    /// The ids of all sessions, the most recently used first.
    pub(crate) async fn ids(&self) -> Vec<String> {
        let list = crate::session::ListRequest {
            owner: None,
            max_sessions: 1_000,
            after: None,
        };
        let page = self.storage.list(list).await.unwrap();
        let ids = page.sessions.into_iter();
        ids.map(|info| info.key.id.as_str().to_owned()).collect()
    }
}

pub(crate) fn key(id: &str) -> SessionKey {
    SessionKey::new(Owner::admin(), SessionId::new(id).unwrap())
}

pub(crate) fn request(id: &str) -> OpenRequest {
    OpenRequest {
        key: key(id),
        expected_position: None,
        create: Some(identity("book", 1)),
        owner_limit: None,
    }
}

pub(crate) fn model(name: &str, version: u64) -> ModelVersion {
    ModelVersion {
        name: name.into(),
        version,
    }
}

pub(crate) fn identity(name: &str, version: u64) -> SessionIdentity {
    SessionIdentity {
        model: model(name, version),
        digest: [u8::try_from(version).unwrap(); 32],
        precision: Precision::Int8,
        revision: ARITHMETIC_REVISION,
    }
}

pub(crate) fn parameters(text: &str) -> ParametersDigest {
    let mut digest = [0; 32];
    digest[..text.len()].copy_from_slice(text.as_bytes());
    ParametersDigest(digest)
}

/// The only state at a position: the bytes depend on it, so that a mixture is
/// noticed.
pub(crate) fn state(position: u64) -> SessionState {
    if position == 0 {
        return SessionState::origin(7);
    }
    let network: Vec<u8> = (0..64)
        .map(|at| u8::try_from((position * 31 + at) % 251).unwrap())
        .collect();
    SessionState {
        network: Some(Bytes::from(network)),
        unfed: [token(position)].as_slice().into(),
        random: RandomState {
            seed: 7,
            draws: position,
        },
        position,
    }
}

fn token(position: u64) -> u32 {
    u32::try_from(position % 90).unwrap()
}

/// The commit of a call that added `chars` characters.
pub(crate) fn commit(opened: &OpenedSession, chars: u64, text: &str) -> SessionCommit {
    let (identity, begin) = match &opened.start {
        Some(start) => (start.identity.clone(), start.state.clone()),
        None => (identity("book", 1), state(0)),
    };
    let from = begin.position;
    let tokens: TokenIds = (from + 1..=from + chars).map(token).collect();
    SessionCommit {
        identity,
        end: state(from + chars),
        begin,
        last_call: LastCall {
            tokens: Some(tokens),
            parameters: Some(parameters(text)),
        },
        cut_off: false,
    }
}

/// Gives the lease back without a commit.
pub(crate) fn abandon(opened: OpenedSession) {
    let lease: SessionLease = opened.lease;
    drop(lease);
}
