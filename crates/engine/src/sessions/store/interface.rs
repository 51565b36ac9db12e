//! What goes into the session store and what comes out of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use thiserror::Error;

use crate::sessions::id::SessionId;
use crate::sessions::state::{ModelKey, SessionState, TokenIds};
use crate::sessions::tombstones::Reason;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Most sessions.
    pub max_sessions: usize,
    /// Most bytes of all sessions together.
    pub max_bytes: usize,
    /// A session that is not used for so long is let go.
    pub max_idle: Duration,
    /// Names of sessions that were let go and are remembered.
    pub max_remembered: usize,
    /// So many of the most recently used sessions keep two states, that at
    /// the beginning and that at the end of their last call. Of older ones
    /// only the first is kept, with the characters since: to go on costs them
    /// one priming, and an idle session takes one state instead of two.
    pub max_ready: usize,
}

impl Default for SessionLimits {
    /// 100,000 sessions in 1 GiB for a day: with 8 KiB for the state of
    /// 2 x 512, the count is reached first.
    fn default() -> Self {
        Self {
            max_sessions: 100_000,
            max_bytes: 1 << 30,
            max_idle: Duration::from_secs(24 * 3600),
            max_remembered: 200_000,
            max_ready: 1024,
        }
    }
}

/// The right to move a session on. Settled or abandoned exactly once.
#[derive(Debug)]
pub struct Lease {
    pub(super) id: SessionId,
    pub(super) ticket: u64,
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Lease {
    /// The session.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// What names this lease without holding it.
    pub fn mark(&self) -> LeaseMark {
        LeaseMark {
            id: self.id.clone(),
            ticket: self.ticket,
        }
    }

    /// True once the session was deleted: the call must end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// The name of a lease.
#[derive(Clone, Debug)]
pub struct LeaseMark {
    pub(super) id: SessionId,
    pub(super) ticket: u64,
}

/// A session was opened for a call.
#[derive(Debug)]
pub struct Opening {
    /// The right to move it on.
    pub lease: Lease,
    /// Its model and the point from which the call goes on; `None` for a
    /// session that is to be created.
    pub kept: Option<(Arc<ModelKey>, SessionState)>,
}

/// How far a call moved its session.
#[derive(Debug)]
pub struct Commit {
    /// The model it belongs to.
    pub model: ModelKey,
    /// Where the call began.
    pub begin: SessionState,
    /// Where it ended.
    pub end: SessionState,
    /// The characters in between, if they are few enough to be kept.
    pub call: Option<TokenIds>,
}

/// A session that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// There is none of that name.
    #[error("there is no such session")]
    Unknown,
    /// There was one, and it was let go.
    #[error("the session was let go: {}", reason_text(*.0))]
    Evicted(Reason),
    /// Another call generates in it.
    #[error("another call generates in the session")]
    Busy {
        /// The reader of that call has left, and it will be over in a moment.
        leaving: bool,
    },
    /// It stands elsewhere than expected.
    #[error(
        "the session is at position {position}, and its last call began at {last_call_position}; \
         {expected} was expected"
    )]
    PositionMismatch {
        /// Where the caller took it to be.
        expected: u64,
        /// Where it is.
        position: u64,
        /// Where its last call began.
        last_call_position: u64,
    },
    /// Every session is in use, and there is no room for one more.
    #[error("there are too many sessions in use")]
    Full,
    /// There is one of that name already.
    #[error("there is a session of that name already")]
    Exists,
}

/// What a person reads about a reason.
fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::Idle => "it was not used for too long",
        Reason::Capacity => "room was needed for others",
        Reason::Restart => "it was lost when the server stopped",
    }
}

/// What is told about a session.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSummary {
    /// Its name.
    pub id: SessionId,
    /// Its model; `None` while its first call runs.
    pub model: Option<Arc<ModelKey>>,
    /// Characters seen.
    pub position: u64,
    /// Where its last call began.
    pub last_call_position: u64,
    /// Whether a call generates in it.
    pub busy: bool,
    /// Time since it was last used.
    pub idle: Duration,
    /// Memory it takes.
    pub bytes: usize,
}

/// A page of sessions.
#[derive(Debug, Default)]
pub struct SessionPage {
    /// The most recently used first.
    pub sessions: Vec<SessionSummary>,
    /// Mark of the next page, if there is one.
    pub next: Option<u64>,
    /// Sessions there are.
    pub total: usize,
}
