//! A session storage whose commits a test delays or lets fail.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use charlstm_store::session::{
    AllowedSessions, CommitOutcome, ForkRequest, ImportRequest, ModelVersion, OpenRequest,
    OpenedSession, SessionCommit, SessionLease, SessionPage, SessionRecord, SessionStats,
    StorageFuture, StorageUnavailable,
};
use tokio::sync::watch;

use super::*;

/// What happens to the next commit instead of being stored.
#[derive(Debug)]
pub(super) enum Failure {
    Error(SessionError),
    Panic,
}

/// Sessions in memory, under the control of a test.
#[derive(Debug)]
pub(super) struct ControlledStorage {
    sessions: Arc<MemorySessions>,
    are_commits_held: watch::Sender<bool>,
    next_failure: Mutex<Option<Failure>>,
    is_unavailable: AtomicBool,
    submitted: AtomicUsize,
    is_shut_down: AtomicBool,
}

impl ControlledStorage {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            sessions: Arc::new(MemorySessions::new(SessionLimits::default())),
            are_commits_held: watch::Sender::new(false),
            next_failure: Mutex::default(),
            is_unavailable: AtomicBool::new(false),
            submitted: AtomicUsize::new(0),
            is_shut_down: AtomicBool::new(false),
        })
    }

    /// Holds commits back until [`Self::release_commits`].
    pub(super) fn hold_commits(&self) {
        self.are_commits_held.send_replace(true);
    }

    pub(super) fn release_commits(&self) {
        self.are_commits_held.send_replace(false);
    }

    pub(super) fn fail_next_commit(&self, failure: Failure) {
        *self.next_failure.lock().unwrap() = Some(failure);
    }

    pub(super) fn set_unavailable(&self, is_unavailable: bool) {
        self.is_unavailable.store(is_unavailable, Ordering::SeqCst);
    }

    /// Number of commits that were submitted so far.
    pub(super) fn submitted(&self) -> usize {
        self.submitted.load(Ordering::SeqCst)
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.is_shut_down.load(Ordering::SeqCst)
    }
}

pub(super) fn unavailable() -> StorageUnavailable {
    StorageUnavailable {
        retry_after: Duration::from_secs(3),
        cause: "the disk is full".into(),
    }
}

impl SessionStorage for ControlledStorage {
    fn open(&self, request: OpenRequest) -> StorageFuture<'_, Result<OpenedSession, SessionError>> {
        if let Err(error) = self.check_available() {
            return Box::pin(std::future::ready(Err(error.into())));
        }
        self.sessions.open(request)
    }

    fn commit(
        &self,
        lease: SessionLease,
        commit: SessionCommit,
    ) -> StorageFuture<'static, Result<CommitOutcome, SessionError>> {
        self.submitted.fetch_add(1, Ordering::SeqCst);
        let sessions = Arc::clone(&self.sessions);
        let failure = self.next_failure.lock().unwrap().take();
        let mut held = self.are_commits_held.subscribe();
        Box::pin(async move {
            held.wait_for(|is_held| !is_held).await.unwrap();
            match failure {
                Some(Failure::Panic) => panic!("a test lets a commit panic"),
                Some(Failure::Error(error)) => Err(error),
                None => sessions.commit(lease, commit).await,
            }
        })
    }

    fn released(&self, key: &SessionKey) -> StorageFuture<'static, ()> {
        self.sessions.released(key)
    }

    fn get(&self, key: &SessionKey) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        self.sessions.get(key)
    }

    fn list(&self, request: ListRequest) -> StorageFuture<'_, Result<SessionPage, SessionError>> {
        self.sessions.list(request)
    }

    fn fork(&self, request: ForkRequest) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        self.sessions.fork(request)
    }

    fn delete(&self, key: &SessionKey) -> StorageFuture<'_, Result<(), SessionError>> {
        self.sessions.delete(key)
    }

    fn export(&self, key: &SessionKey) -> StorageFuture<'_, Result<SessionRecord, SessionError>> {
        self.sessions.export(key)
    }

    fn import(
        &self,
        request: ImportRequest,
    ) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        self.sessions.import(request)
    }

    fn count_by_model(&self, model: &ModelVersion) -> StorageFuture<'_, Result<u64, SessionError>> {
        self.sessions.count_by_model(model)
    }

    fn retire_model(
        &self,
        model: &ModelVersion,
        allowed: AllowedSessions,
    ) -> StorageFuture<'_, Result<(), SessionError>> {
        self.sessions.retire_model(model, allowed)
    }

    fn reinstate_model(&self, model: &ModelVersion) -> StorageFuture<'_, Result<(), SessionError>> {
        self.sessions.reinstate_model(model)
    }

    fn evict_model_sessions(
        &self,
        model: &ModelVersion,
    ) -> StorageFuture<'_, Result<u64, SessionError>> {
        self.sessions.evict_model_sessions(model)
    }

    fn check_available(&self) -> Result<(), StorageUnavailable> {
        if self.is_unavailable.load(Ordering::SeqCst) {
            return Err(unavailable());
        }
        self.sessions.check_available()
    }

    fn stats(&self) -> SessionStats {
        self.sessions.stats()
    }

    fn backup(&self, folder: &Path) -> StorageFuture<'_, Result<(), SessionError>> {
        self.sessions.backup(folder)
    }

    fn shutdown(&self) -> StorageFuture<'_, Result<(), SessionError>> {
        self.is_shut_down.store(true, Ordering::SeqCst);
        self.sessions.shutdown()
    }
}
