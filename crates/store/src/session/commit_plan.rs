//! The rules of a commit, which all backends share.

use super::error::RecordError;
use super::identity::SessionIdentity;
use super::lease::SessionLease;
use super::record::SessionRecord;
use super::storage::{CommitOutcome, SessionCommit};

/// What a lease holds.
#[derive(Clone, Debug)]
pub struct HeldSession {
    /// What the session belongs to.
    pub identity: SessionIdentity,
    /// `None` if the session is to be created.
    pub created_unix_ms: Option<u64>,
    /// The session's position.
    pub position: u64,
    /// Where its last call began.
    pub last_call_position: u64,
}

/// What a commit changes.
#[derive(Debug)]
pub enum CommitPlan {
    /// The session stays as it is; only its lease ends.
    Unchanged(CommitOutcome),
    /// The session gets a new record.
    Put(Box<SessionRecord>, CommitOutcome),
}

impl CommitPlan {
    /// Applies the rules of `SessionStorage::commit` to a lease that is held.
    /// `now_unix_ms` is the time of creation of a new session.
    ///
    /// # Errors
    /// The commit does not fit what was opened.
    pub fn new(
        lease: &SessionLease,
        held: &HeldSession,
        commit: SessionCommit,
        now_unix_ms: u64,
    ) -> Result<Self, RecordError> {
        if held.identity != commit.identity {
            return Err(RecordError::Content(
                "a commit must not change the identity",
            ));
        }
        let start = lease.start().map_or(0, |start| start.position);
        if commit.begin.position != start {
            return Err(RecordError::Content(
                "a commit must begin where the session was opened",
            ));
        }
        let unchanged = CommitOutcome {
            position: held.position,
            last_call_position: held.last_call_position,
            changed: false,
        };
        if commit.end.position == commit.begin.position {
            return Ok(Self::Unchanged(unchanged));
        }
        let goes_back = commit.end.position < held.position;
        if goes_back && commit.cut_off && repeats_last_call(lease, &commit) {
            return Ok(Self::Unchanged(unchanged));
        }
        let outcome = CommitOutcome {
            position: commit.end.position,
            last_call_position: commit.begin.position,
            changed: true,
        };
        let record = SessionRecord {
            key: lease.key().clone(),
            identity: commit.identity,
            begin: commit.begin,
            end: commit.end,
            last_call: commit.last_call,
            created_unix_ms: held.created_unix_ms.unwrap_or(now_unix_ms),
            last_used_ms: 0,
        };
        Ok(Self::Put(Box::new(record), outcome))
    }
}

/// Whether a call repeats the last call of its session, instead of replacing
/// it by another.
fn repeats_last_call(lease: &SessionLease, commit: &SessionCommit) -> bool {
    lease.start().is_some_and(|start| {
        start.is_rewind
            && start.parameters.is_some()
            && start.parameters == commit.last_call.parameters
    })
}
