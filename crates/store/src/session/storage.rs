//! The interface of session storage, which every backend implements.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use super::error::{EvictionReason, SessionError, StorageUnavailable};
use super::identity::{ModelVersion, SessionIdentity};
use super::lease::SessionLease;
use super::name::{Owner, SessionId, SessionKey};
use super::record::{LastCall, SessionRecord, SessionState};

/// The future of a storage operation. It needs no particular runtime.
pub type StorageFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Stores sessions. All methods return at once; the futures wait for the disk
/// or the network without blocking the thread that polls them.
///
/// # Durability
/// If the future of a method that changes something completes with `Ok`, the
/// change survives a crash and a power cut ([`Durability::Committed`]), or
/// does so within one second ([`Durability::Relaxed`]). Until then neither
/// `get`, `list`, `fork`, `export` nor `open` shows the change. If it
/// completes with an error, nothing was changed, except that after
/// `CommitUnknown` either may be the case.
///
/// # Cancellation
/// Dropping a future before it completes is always safe. For `commit` see
/// there; for the others, a change that was under way may still happen.
///
/// # Errors of all methods
/// `Unavailable` if the storage cannot be read, or, for changes, not written.
/// `Stopping` after [`SessionStorage::shutdown`].
pub trait SessionStorage: fmt::Debug + Send + Sync + 'static {
    /// Opens a session for a call and takes its lease. Nobody else can open
    /// it until the lease is committed or dropped.
    ///
    /// The call continues from the session's end, or, if
    /// [`OpenRequest::expected_position`] is the beginning of the session's
    /// last call, from that beginning.
    ///
    /// If there is no session of this key and [`OpenRequest::create`] is
    /// given, the session is reserved: it counts towards the limits and pins
    /// its model version, but `get` and `list` do not show it, and it exists
    /// only once it is committed.
    ///
    /// This is the check before a call generates anything: it fails with
    /// `Unavailable` while the storage cannot accept the commit that is to
    /// follow.
    ///
    /// # Errors
    /// `Unknown` (no such session, and `create` is `None`), `Evicted`, `Busy`,
    /// `PositionMismatch` (an unknown session is at position 0),
    /// `UnknownRevision`, `Full`, `OwnerLimit`, `ModelRetired` (only if the
    /// session would be created), `Unavailable`, `Stopping`.
    fn open(&self, request: OpenRequest) -> StorageFuture<'_, Result<OpenedSession, SessionError>>;

    /// Stores where a call has brought its session, and releases the lease.
    ///
    /// The commit is submitted when the method is called, before the future
    /// is polled, and is carried out even if the future is dropped. Whatever
    /// the outcome, the session is free afterwards.
    ///
    /// Two kinds of commits change nothing and succeed:
    /// - a call that added no characters: the session, and which call can be
    ///   repeated, stay as they were (if the session was to be created, it
    ///   does not exist);
    /// - a repeat of the last call ([`SessionCommit::cut_off`] is set and the
    ///   digests of the parameters match) that ended before the end of the
    ///   original: an interrupted retry never moves a session back.
    ///
    /// # Errors
    /// `Deleted`, `Fenced`, `Record` (the commit breaks a rule, which is an
    /// error of the caller), `Unavailable`, `CommitUnknown`, `Stopping`. The
    /// session stays at its last commit.
    fn commit(
        &self,
        lease: SessionLease,
        commit: SessionCommit,
    ) -> StorageFuture<'static, Result<CommitOutcome, SessionError>>;

    /// Completes once the lease that a call holds on the session now has
    /// ended, immediately if there is none. The session may be taken again by
    /// the time the caller looks; callers bound the wait.
    fn released(&self, key: &SessionKey) -> StorageFuture<'static, ()>;

    /// Describes a session as of its last commit.
    ///
    /// # Errors
    /// `Unknown`, `Evicted`, `Unavailable`.
    fn get(&self, key: &SessionKey) -> StorageFuture<'_, Result<SessionInfo, SessionError>>;

    /// Returns a page of sessions, the most recently used first.
    ///
    /// # Errors
    /// `Unavailable`.
    fn list(&self, request: ListRequest) -> StorageFuture<'_, Result<SessionPage, SessionError>>;

    /// Creates a second session of the same owner that is where the first one
    /// is, and can repeat the same call. A tombstone of the new id is removed.
    ///
    /// # Errors
    /// `Unknown`, `Evicted` and `Busy` about the first session, `Exists` about
    /// the second; `Full`, `OwnerLimit`, `ModelRetired`, `UnknownRevision`,
    /// `Unavailable`, `Stopping`.
    fn fork(&self, request: ForkRequest) -> StorageFuture<'_, Result<SessionInfo, SessionError>>;

    /// Deletes a session and all that is kept of it, or the tombstone of an
    /// evicted one, so that the id can be used again. A call that runs in the
    /// session loses its lease immediately and ends with
    /// [`LeaseStatus::Deleted`], even if the deletion then fails.
    ///
    /// # Errors
    /// `Unknown`, `Unavailable`, `Stopping`.
    ///
    /// [`LeaseStatus::Deleted`]: super::LeaseStatus::Deleted
    fn delete(&self, key: &SessionKey) -> StorageFuture<'_, Result<(), SessionError>>;

    /// Returns the record of a session as of its last commit.
    ///
    /// # Errors
    /// `Unknown`, `Evicted`, `Busy`, `UnknownRevision`, `Unavailable`.
    fn export(&self, key: &SessionKey) -> StorageFuture<'_, Result<SessionRecord, SessionError>>;

    /// Creates a session from a record, under the record's key. The storage
    /// checks the record itself; whether it fits its model is for the caller
    /// to check. A tombstone of the id is removed.
    ///
    /// # Errors
    /// `Exists`, `Full`, `OwnerLimit`, `ModelRetired`, `UnknownRevision`,
    /// `Record`, `Unavailable`, `Stopping`.
    fn import(
        &self,
        request: ImportRequest,
    ) -> StorageFuture<'_, Result<SessionInfo, SessionError>>;

    /// Number of sessions that belong to a model version, including those
    /// that a running call is about to create.
    ///
    /// # Errors
    /// `Unavailable`.
    fn count_by_model(&self, model: &ModelVersion) -> StorageFuture<'_, Result<u64, SessionError>>;

    /// Prevents new sessions on a model version that is about to be deleted,
    /// in one step with the check that it has only sessions that are `allowed`:
    /// they stay, and the engine reports that their model is gone. Undone by
    /// [`SessionStorage::reinstate_model`].
    ///
    /// # Errors
    /// `ModelInUse` with the number of sessions that are not allowed,
    /// `Unavailable`, `Stopping`.
    fn retire_model(
        &self,
        model: &ModelVersion,
        allowed: AllowedSessions,
    ) -> StorageFuture<'_, Result<(), SessionError>>;

    /// Allows sessions on a model version again whose deletion failed.
    ///
    /// # Errors
    /// `Unavailable`, `Stopping`.
    fn reinstate_model(&self, model: &ModelVersion) -> StorageFuture<'_, Result<(), SessionError>>;

    /// Evicts all sessions of a model version that no call uses, with
    /// tombstones that say so. Returns their number.
    ///
    /// # Errors
    /// `Unavailable`, `Stopping`.
    fn evict_model_sessions(
        &self,
        model: &ModelVersion,
    ) -> StorageFuture<'_, Result<u64, SessionError>>;

    /// Whether the storage accepts changes now. Answers from memory; `open`
    /// checks the same.
    ///
    /// # Errors
    /// Why it does not, and when to try again.
    fn check_available(&self) -> Result<(), StorageUnavailable>;

    /// Counters for metrics, from memory. Those of a shared database may be
    /// some seconds old.
    fn stats(&self) -> SessionStats;

    /// Writes a consistent copy of all sessions and tombstones to a folder,
    /// which is created, while the storage is in use. To restore, start the
    /// server on the copy.
    ///
    /// # Errors
    /// `Unavailable` with the cause, also if the folder already has a store or
    /// if the backend has nothing on disk.
    fn backup(&self, folder: &Path) -> StorageFuture<'_, Result<(), SessionError>>;

    /// Rejects all further changes, waits until every change that was accepted
    /// is durable, and closes the storage. A second call waits for the same.
    ///
    /// # Errors
    /// `Unavailable` if something that was accepted could not be made durable.
    fn shutdown(&self) -> StorageFuture<'_, Result<(), SessionError>>;
}

/// Which sessions a model version may have when it is retired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedSessions {
    /// None.
    None,
    /// Those of one owner.
    OfOwner(Owner),
    /// All.
    All,
}

/// When a change is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged. One sync covers all waiting changes.
    #[default]
    Committed,
    /// Within one second after it is acknowledged.
    Relaxed,
}

/// How much is stored. The least recently used session that no call uses is
/// evicted first and leaves a tombstone.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Maximum number of sessions.
    pub max_sessions: u64,
    /// Maximum space of all sessions together, in bytes. A session takes its
    /// record, rounded up to a power of two of 4 KB.
    pub max_bytes: u64,
    /// A session that is not used for this time, while the server runs, is
    /// evicted.
    pub max_idle: Duration,
    /// Maximum number of tombstones; the oldest are dropped first.
    pub max_tombstones: usize,
}

impl SessionLimits {
    /// Nothing is evicted and no tombstone dropped: for a program that opens the
    /// store of a server without knowing its limits.
    pub const UNLIMITED: Self = Self {
        max_sessions: u64::MAX,
        max_bytes: u64::MAX,
        max_idle: Duration::MAX,
        max_tombstones: usize::MAX,
    };
}

impl Default for SessionLimits {
    /// A million sessions, 10 GB, 30 days, 200,000 tombstones (some 10 MB of
    /// memory).
    fn default() -> Self {
        Self {
            max_sessions: 1_000_000,
            max_bytes: 10_000_000_000,
            max_idle: Duration::from_secs(30 * 24 * 3600),
            max_tombstones: 200_000,
        }
    }
}

/// Asks to open a session for a call.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The session.
    pub key: SessionKey,
    /// Where the session must be, or where its last call must have begun.
    pub expected_position: Option<u64>,
    /// What the session is to belong to if it does not exist yet; `None`: it
    /// must exist. Ignored if it exists: it keeps its own identity.
    pub create: Option<SessionIdentity>,
    /// Maximum number of sessions of the owner.
    pub owner_limit: Option<u64>,
}

/// A session that was opened for a call.
#[derive(Debug)]
pub struct OpenedSession {
    /// The right to change the session.
    pub lease: SessionLease,
    /// The session as it is; `None` if it is to be created.
    pub start: Option<SessionStart>,
}

/// An existing session from which a call continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStart {
    /// Model, precision and arithmetic that the session is bound to.
    pub identity: SessionIdentity,
    /// The state from which the call continues.
    pub state: SessionState,
    /// The call repeats the session's last call or replaces it: `state` is
    /// the beginning of that call.
    pub is_rewind: bool,
}

/// Where a call has brought its session.
#[derive(Clone, Debug)]
pub struct SessionCommit {
    /// What the session belongs to: that of `OpenRequest::create` for a new
    /// session, its own for an existing one.
    pub identity: SessionIdentity,
    /// Where the call began; the position must be that of the opened state,
    /// though it may be written with fewer unfed characters.
    pub begin: SessionState,
    /// Where the session is now: after the last character that the reader
    /// received, or at the end of a call that is complete.
    pub end: SessionState,
    /// The call's characters and parameters. Pass the digest always.
    pub last_call: LastCall,
    /// The call ended early: cancelled, disconnected, shut down, failed. False
    /// if it reached its length or a stop string.
    pub cut_off: bool,
}

/// What a commit has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitOutcome {
    /// The session's position now; 0 if there is no session.
    pub position: u64,
    /// Where the call began that can be repeated now.
    pub last_call_position: u64,
    /// False if the commit changed nothing (see [`SessionStorage::commit`]).
    pub changed: bool,
}

/// Asks for a copy of a session.
#[derive(Clone, Debug)]
pub struct ForkRequest {
    /// The session to copy.
    pub key: SessionKey,
    /// The id of the copy.
    pub new_id: SessionId,
    /// Maximum number of sessions of the owner.
    pub owner_limit: Option<u64>,
}

/// Asks to create a session from a record.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// The session. Its `last_used_ms` is ignored: it was used now.
    pub record: SessionRecord,
    /// Maximum number of sessions of the owner.
    pub owner_limit: Option<u64>,
}

/// Asks for a page of sessions.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// Only sessions of this owner; `None`: all.
    pub owner: Option<Owner>,
    /// Maximum number of sessions on the page.
    pub max_sessions: usize,
    /// Where the page begins: the token of the page before.
    pub after: Option<PageToken>,
}

/// The place after a page. Opaque to clients; valid as long as the store.
/// Sessions that are used in between move to the front and are not listed
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken(pub u64);

/// A page of sessions.
#[derive(Clone, Debug, Default)]
pub struct SessionPage {
    /// The most recently used first.
    pub sessions: Vec<SessionInfo>,
    /// Where the next page begins; `None` on the last one.
    pub next: Option<PageToken>,
    /// Number of sessions on all pages.
    pub total: u64,
}

/// What is known of a session without reading its states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Owner and id.
    pub key: SessionKey,
    /// Model, precision and arithmetic.
    pub identity: SessionIdentity,
    /// Characters seen.
    pub position: u64,
    /// Where its last call began.
    pub last_call_position: u64,
    /// Whether a call holds its lease.
    pub busy: bool,
    /// Running time of the server since it was last used.
    pub idle: Duration,
    /// Space that it takes in the store, in bytes.
    pub bytes: u64,
    /// When it was created, in milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// Counters of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Sessions that exist.
    pub sessions: u64,
    /// Sessions that running calls are about to create.
    pub pending_creates: u64,
    /// Sessions whose lease is held.
    pub in_use: u64,
    /// Space that they take, in bytes, see [`SessionLimits::max_bytes`].
    pub bytes: u64,
    /// Memory of the states that are cached, in bytes.
    pub cached_bytes: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Sessions evicted since the start, by reason.
    pub evicted: BTreeMap<EvictionReason, u64>,
    /// Records moved aside because they were damaged, over all runs.
    pub damaged: u64,
    /// Whether changes are accepted.
    pub available: bool,
}
