//! The right of one call to change one session.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::name::SessionKey;
use super::record::ParametersDigest;

/// A random 128-bit name of a lease. Never a number that could repeat: after a
/// session was deleted and created again, no old lease matches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LeaseToken(pub u128);

impl LeaseToken {
    /// A new token.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseToken({:032x})", self.0)
    }
}

/// Whether a lease is still valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseStatus {
    /// The call may continue.
    Held,
    /// The session was deleted: the call ends with CANCELLED.
    Deleted,
    /// Another replica took the session over, or the lease could not be
    /// renewed: the call ends with ABORTED.
    Fenced {
        /// The other replica, if it is known.
        replica: Option<Arc<str>>,
    },
}

/// What the store, the call and its reader share about a lease.
#[derive(Debug)]
pub(super) struct LeaseState {
    pub(super) key: SessionKey,
    pub(super) token: LeaseToken,
    /// Held by the store itself, for the moment that a change takes: callers
    /// wait for its end instead of getting an error that it is busy.
    pub(super) is_internal: bool,
    leaving: AtomicBool,
    status: Mutex<LeaseStatus>,
    ended: AtomicBool,
    end: Notify,
}

impl LeaseState {
    pub(super) fn of_call(key: SessionKey) -> Arc<Self> {
        Self::new(key, false)
    }

    pub(super) fn internal(key: SessionKey) -> Arc<Self> {
        Self::new(key, true)
    }

    fn new(key: SessionKey, is_internal: bool) -> Arc<Self> {
        Arc::new(Self {
            key,
            token: LeaseToken::random(),
            is_internal,
            leaving: AtomicBool::new(false),
            status: Mutex::new(LeaseStatus::Held),
            ended: AtomicBool::new(false),
            end: Notify::new(),
        })
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    fn status(&self) -> LeaseStatus {
        self.lock_status().clone()
    }

    /// Takes the right away; the first reason stays.
    pub(super) fn revoke(&self, reason: LeaseStatus) {
        let mut status = self.lock_status();
        if *status == LeaseStatus::Held {
            *status = reason;
        }
    }

    /// Wakes those that wait for the session. Called once the session is free.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.end.notify_waiters();
    }

    /// Completes once the lease has ended.
    pub(super) async fn wait_until_ended(&self) {
        let notified = self.end.notified();
        tokio::pin!(notified);
        // Registered before the flag is read: an end in between is not missed.
        notified.as_mut().enable();
        if !self.ended.load(Ordering::Acquire) {
            notified.await;
        }
    }

    fn lock_status(&self) -> std::sync::MutexGuard<'_, LeaseStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes back leases. Implemented by each backend; must not block.
pub(super) trait ReleaseLease: fmt::Debug + Send + Sync {
    fn release(&self, lease: &Arc<LeaseState>);
}

/// The right of one call to change one session, from `open` to `commit`. If it
/// is dropped instead of committed, the session stays as it was, and a session
/// that the call was to create does not exist. Dropping never blocks.
#[derive(Debug)]
#[must_use = "dropping the lease ends the call without a commit"]
pub struct SessionLease {
    pub(super) state: Arc<LeaseState>,
    /// Where the call began, `None` if the session is to be created.
    pub(super) start: Option<StartPoint>,
    owner: Option<Arc<dyn ReleaseLease>>,
}

/// The session as a call found it, for the rules of the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StartPoint {
    /// Position from which the call continues.
    pub(super) position: u64,
    /// The call repeats the last call or replaces it.
    pub(super) is_rewind: bool,
    /// The parameters of that last call, once its record was read.
    pub(super) parameters: Option<ParametersDigest>,
}

impl SessionLease {
    pub(super) fn new(
        state: Arc<LeaseState>,
        start: Option<StartPoint>,
        owner: Arc<dyn ReleaseLease>,
    ) -> Self {
        Self {
            state,
            start,
            owner: Some(owner),
        }
    }

    /// The session.
    pub fn key(&self) -> &SessionKey {
        &self.state.key
    }

    /// The name of this lease, for logs.
    pub fn token(&self) -> LeaseToken {
        self.state.token
    }

    /// Whether the call may continue. Cheap: checked at every step and before
    /// each message.
    pub fn status(&self) -> LeaseStatus {
        self.state.status()
    }

    /// A handle for the reader of the call's text.
    pub fn handle(&self) -> LeaseHandle {
        LeaseHandle(Arc::clone(&self.state))
    }

    /// The state of the lease, which is now the caller's to end.
    pub(super) fn into_state(mut self) -> Arc<LeaseState> {
        self.owner = None;
        Arc::clone(&self.state)
    }
}

impl Drop for SessionLease {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.release(&self.state);
        }
    }
}

/// A view of a lease that does not hold it.
#[derive(Clone, Debug)]
pub struct LeaseHandle(Arc<LeaseState>);

impl LeaseHandle {
    /// Records that the reader of the call has left: a client that repeats
    /// the call now gets `Busy { leaving: true }` and waits a moment.
    pub fn mark_leaving(&self) {
        self.0.leaving.store(true, Ordering::Release);
    }

    /// Whether the call may continue.
    pub fn status(&self) -> LeaseStatus {
        self.0.status()
    }
}
