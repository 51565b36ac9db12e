//! Sessions: the state of a text, kept between two calls.
//!
//! [`SessionStorage`] is the interface that the generation engine uses.
//! [`EmbeddedSessions`] implements it in a folder, [`MemorySessions`] without
//! a disk. All backends follow the same rules, and the same tests run against
//! each of them. [`SnapshotKeys`] seals sessions that clients hold.
//!
//! A call goes through three steps, and only these change a session:
//!
//! 1. [`SessionStorage::open`] takes the session's lease and returns the state
//!    from which the call continues.
//! 2. The engine computes. It checks [`SessionLease::status`] before it emits
//!    text, and ends the call if the lease is gone.
//! 3. [`SessionStorage::commit`] stores the new state and releases the lease.
//!    When its future completes, the change is durable, and only then is the
//!    client informed that the call has finished. A call that is to change
//!    nothing drops the lease instead.

mod cache;
mod clock;
mod commit_plan;
mod embedded;
mod encoding;
mod error;
mod identity;
mod index;
mod lease;
mod local;
mod memory;
mod name;
mod record;
mod seal;
mod storage;
mod token_ids;
mod tombstones;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use clock::RunningClock;
pub use commit_plan::{CommitPlan, HeldSession};
pub use embedded::{
    EmbeddedSessions, EmbeddedSettings, ImportedLegacy, OpenError, default_max_bytes,
};
pub use encoding::RECORD_FORMAT;
pub use error::{EvictionReason, RecordError, SessionError, StorageUnavailable};
pub use identity::{ARITHMETIC_REVISION, ModelVersion, Precision, SessionIdentity};
pub use lease::{
    BootTime, LeaseHandle, LeaseState, LeaseStatus, LeaseToken, ReleaseLease, SessionLease,
    StartPoint,
};
pub use memory::MemorySessions;
pub use name::{MAX_NAME_CHARS, NameError, Owner, SessionId, SessionKey};
pub use record::{
    LastCall, MAX_POSITION, MAX_REPLAY_CHARS, MAX_STATE_BYTES, MAX_UNFED_CHARS, ParametersDigest,
    RandomState, SessionRecord, SessionState,
};
pub use seal::{
    KeyFileError, PortableSession, SNAPSHOT_FORMAT, SealError, SessionSnapshot, SnapshotKeys,
};
pub use storage::{
    AllowedSessions, CommitOutcome, Durability, ForkRequest, ImportRequest, ListRequest,
    OpenRequest, OpenedSession, PageToken, SessionCommit, SessionInfo, SessionLimits, SessionPage,
    SessionStart, SessionStats, SessionStorage, StorageFuture,
};
pub use token_ids::TokenIds;
