//! Why a session cannot be used, and why a record cannot be read.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::encoding::RECORD_FORMAT;
use super::identity::{ARITHMETIC_REVISION, ModelVersion};

/// Why the server no longer has a session. Kept in a tombstone, so that a call
/// that names the session fails instead of starting a new text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EvictionReason {
    /// It was not used for longer than the limit on idle time.
    Idle,
    /// A limit on the number or the size of sessions was reached.
    Capacity,
    /// It was lost when the server stopped without saving it (version 0.1).
    Restart,
    /// The model version that it belongs to was deleted.
    ModelGone,
    /// Its record was damaged on disk and moved aside.
    Damaged,
}

impl EvictionReason {
    /// What happened, and what to do about it, for a person.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Idle => "it was idle for longer than --session-ttl",
            Self::Capacity => "a limit (--max-sessions or --session-store-bytes) was reached",
            Self::Restart => "it was lost when the server stopped without saving it",
            Self::ModelGone => "its model version was deleted",
            Self::Damaged => "its record on disk was damaged; a copy was kept",
        }
    }
}

/// The store cannot accept changes at the moment. Sessions stay at their last
/// commit, and reads continue to work. The store recovers without
/// intervention once the cause is gone.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the session store cannot accept changes: {cause}; retry in {} ms", .retry_after.as_millis())]
pub struct StorageUnavailable {
    /// When it is worth trying again.
    pub retry_after: Duration,
    /// What went wrong, for the log.
    pub cause: Arc<str>,
}

/// A session cannot be used. Every method of the storage documents which
/// variants it returns.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// There is no session of this id.
    #[error("there is no such session")]
    Unknown,
    /// There was one, and the server no longer has it. The id can be used
    /// again after the session was deleted.
    #[error("session evicted: {}; delete it to use its id again", .0.describe())]
    Evicted(EvictionReason),
    /// Another call holds the session's lease.
    #[error("another call generates in the session")]
    Busy {
        /// The reader of that call has left, and the call is about to end: it
        /// is worth waiting for [`SessionStorage::released`].
        ///
        /// [`SessionStorage::released`]: super::SessionStorage::released
        leaving: bool,
        /// The replica that runs the other call; `None` if it is this one.
        replica: Option<Arc<str>>,
    },
    /// The session is at another position than the caller expected.
    #[error(
        "the session is at position {position} and its last call began at {last_call_position}; \
         {expected} was expected"
    )]
    PositionMismatch {
        /// The position that the caller expected.
        expected: u64,
        /// The session's position.
        position: u64,
        /// The position at which its last call began.
        last_call_position: u64,
    },
    /// The session was stored by another definition of the arithmetic, and its
    /// text would change.
    #[error(
        "the session was computed with revision {0} of the arithmetic; \
         this server computes with revision {ARITHMETIC_REVISION}"
    )]
    UnknownRevision(u16),
    /// The limit on sessions is reached and every session is in use.
    #[error("the session limit is reached and every session is in use")]
    Full,
    /// The owner's own limit on sessions is reached.
    #[error("the limit of {limit} sessions for this principal is reached")]
    OwnerLimit {
        /// Maximum number of sessions of the owner.
        limit: u64,
    },
    /// There is a session of this id already.
    #[error("a session of this id exists already")]
    Exists,
    /// The model version was deleted, and no session can start on it.
    #[error("model version {0} was deleted")]
    ModelRetired(ModelVersion),
    /// Sessions belong to the model version that is to be deleted.
    #[error("model version {model} is in use by {sessions} sessions")]
    ModelInUse {
        /// The version.
        model: ModelVersion,
        /// Sessions that belong to it, first calls that are running included.
        sessions: u64,
    },
    /// The session was deleted while the call ran. Nothing was stored.
    #[error("the session was deleted")]
    Deleted,
    /// Another replica took the session over. Nothing was stored.
    #[error("another replica took the session over")]
    Fenced {
        /// The other replica, if it is known.
        replica: Option<Arc<str>>,
    },
    /// The lease could not be renewed in time, and the call ended before another
    /// replica could take the session over.
    #[error(
        "the session's lease could not be renewed in time; its last commit is at position \
         {position}"
    )]
    LeaseExpired {
        /// Where the call began, which is the session's last commit.
        position: u64,
    },
    /// The change breaks a limit or a rule of the record. Nothing was stored.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The change could not be stored; the session is at its last commit.
    #[error(transparent)]
    Unavailable(#[from] StorageUnavailable),
    /// The connection to the database broke during the commit, and its outcome
    /// is not known. Repeating the call with `expected_position` resolves it.
    #[error("the outcome of the commit is not known")]
    CommitUnknown,
    /// The server is shutting down and accepts no further changes.
    #[error("the session store is shutting down")]
    Stopping,
}

/// Bytes that are not the record of a session.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// They do not begin as a record does.
    #[error("the bytes are not a session record")]
    Magic,
    /// They are of another format.
    #[error("record format {0} is not supported; this version reads format {RECORD_FORMAT}")]
    Format(u16),
    /// They were changed or cut off.
    #[error("the checksum does not match: the record was changed or cut off")]
    Checksum,
    /// The precision is none that this version knows.
    #[error("precision {0} is not known")]
    Precision(u8),
    /// The checksum is right and the content is not.
    #[error("invalid session record: {0}")]
    Content(&'static str),
    /// A part is larger than its limit.
    #[error("invalid session record: {what}: {value} is more than the maximum of {max}")]
    TooLarge {
        /// The part and its unit.
        what: &'static str,
        /// Its size.
        value: usize,
        /// The limit.
        max: usize,
    },
}
