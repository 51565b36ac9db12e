//! A backend under test, and short ways to use it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::session::{
    ARITHMETIC_REVISION, CommitOutcome, LastCall, ListRequest, ModelVersion, OpenRequest,
    OpenedSession, Owner, ParametersDigest, Precision, RandomState, RunningClock, SessionCommit,
    SessionError, SessionId, SessionIdentity, SessionInfo, SessionKey, SessionLease, SessionLimits,
    SessionRecord, SessionState, SessionStats, SessionStorage, StorageFuture, TokenIds,
};

/// Builds a backend with some limits.
pub type Start = fn(SessionLimits) -> StartFuture;

/// A backend that is being built.
pub type StartFuture = StorageFuture<'static, Fixture>;

/// A backend that needs nothing to be waited for.
impl From<Fixture> for StartFuture {
    fn from(fixture: Fixture) -> Self {
        Box::pin(std::future::ready(fixture))
    }
}

/// What only tests do with a backend.
pub trait Controls: Send + Sync {
    /// Moves the clock on that idle time is measured with. It stands still
    /// otherwise.
    fn advance(&self, time: Duration) -> StorageFuture<'_, ()>;

    /// Waits until all that the backend does in the background is done, and the
    /// counters of [`SessionStorage::stats`] are up to date.
    fn settle(&self) -> StorageFuture<'_, ()>;
}

/// A backend in this process does nothing in the background.
impl Controls for Arc<RunningClock> {
    fn advance(&self, time: Duration) -> StorageFuture<'_, ()> {
        RunningClock::advance(self, time);
        Box::pin(std::future::ready(()))
    }

    fn settle(&self) -> StorageFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A backend under test. Clones share it.
#[derive(Clone)]
pub struct Fixture {
    pub storage: Arc<dyn SessionStorage>,
    controls: Arc<dyn Controls>,
    /// Removed at the end.
    _folder: Option<Arc<tempfile::TempDir>>,
}

impl Fixture {
    pub fn new(storage: Arc<dyn SessionStorage>, controls: impl Controls + 'static) -> Self {
        Self {
            storage,
            controls: Arc::new(controls),
            _folder: None,
        }
    }

    pub fn keeping(self, folder: tempfile::TempDir) -> Self {
        Self {
            _folder: Some(Arc::new(folder)),
            ..self
        }
    }

    pub async fn advance(&self, time: Duration) {
        self.controls.advance(time).await;
    }

    pub async fn stats(&self) -> SessionStats {
        self.controls.settle().await;
        self.storage.stats()
    }

    /// Gives a lease back without a commit.
    pub async fn abandon(&self, opened: OpenedSession) {
        let released = self.storage.released(opened.lease.key());
        abandon(opened);
        released.await;
    }

    pub async fn open(&self, id: &str) -> Result<OpenedSession, SessionError> {
        self.storage.open(request(id)).await
    }

    pub async fn open_at(&self, id: &str, position: u64) -> Result<OpenedSession, SessionError> {
        let expected_position = Some(position);
        let request = OpenRequest {
            expected_position,
            ..request(id)
        };
        self.storage.open(request).await
    }

    /// A whole call that adds `chars` characters.
    pub async fn call(&self, id: &str, chars: u64) -> Result<CommitOutcome, SessionError> {
        let opened = self.open(id).await?;
        self.finish(opened, chars, "call").await
    }

    /// Commits a call that added `chars` characters with some parameters.
    pub async fn finish(
        &self,
        opened: OpenedSession,
        chars: u64,
        parameters: &str,
    ) -> Result<CommitOutcome, SessionError> {
        let commit = commit(&opened, chars, parameters);
        self.commit(opened.lease, commit).await
    }

    async fn commit(
        &self,
        lease: SessionLease,
        commit: SessionCommit,
    ) -> Result<CommitOutcome, SessionError> {
        let outcome = self.storage.commit(lease, commit).await;
        self.controls.settle().await;
        outcome
    }

    /// Commits a call that was cut off after `chars` characters.
    pub async fn cut_off(
        &self,
        opened: OpenedSession,
        chars: u64,
        parameters: &str,
    ) -> Result<CommitOutcome, SessionError> {
        let commit = SessionCommit {
            cut_off: true,
            ..commit(&opened, chars, parameters)
        };
        self.commit(opened.lease, commit).await
    }

    pub async fn get(&self, id: &str) -> Result<SessionInfo, SessionError> {
        self.storage.get(&key(id)).await
    }

    pub async fn export(&self, id: &str) -> Result<SessionRecord, SessionError> {
        self.storage.export(&key(id)).await
    }

    pub async fn position(&self, id: &str) -> u64 {
        self.get(id).await.unwrap().position
    }

    /// The ids of all sessions, the most recently used first.
    pub async fn ids(&self) -> Vec<String> {
        self.controls.settle().await;
        let list = ListRequest {
            owner: None,
            max_sessions: 1_000,
            after: None,
        };
        let page = self.storage.list(list).await.unwrap();
        let ids = page.sessions.into_iter();
        ids.map(|info| info.key.id.as_str().to_owned()).collect()
    }
}

pub fn key(id: &str) -> SessionKey {
    SessionKey::new(Owner::admin(), SessionId::new(id).unwrap())
}

pub fn request(id: &str) -> OpenRequest {
    OpenRequest {
        key: key(id),
        expected_position: None,
        create: Some(identity("book", 1)),
        owner_limit: None,
    }
}

pub fn model(name: &str, version: u64) -> ModelVersion {
    ModelVersion {
        name: name.into(),
        version,
    }
}

pub fn identity(name: &str, version: u64) -> SessionIdentity {
    SessionIdentity {
        model: model(name, version),
        digest: [u8::try_from(version).unwrap(); 32],
        precision: Precision::Int8,
        revision: ARITHMETIC_REVISION,
    }
}

pub fn parameters(text: &str) -> ParametersDigest {
    let mut digest = [0; 32];
    digest[..text.len()].copy_from_slice(text.as_bytes());
    ParametersDigest(digest)
}

/// The only state at a position: the bytes depend on it, so that a mixture is
/// noticed.
pub fn state(position: u64) -> SessionState {
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
pub fn commit(opened: &OpenedSession, chars: u64, text: &str) -> SessionCommit {
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
pub fn abandon(opened: OpenedSession) {
    drop(opened.lease);
}
