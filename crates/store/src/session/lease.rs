//! The right of one call to change one session.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    /// Another replica took the session over: the call ends with ABORTED.
    Fenced {
        /// The other replica, if it is known.
        replica: Option<Arc<str>>,
    },
    /// The lease could not be renewed in time, and any other replica may take
    /// the session over: the call ends with UNAVAILABLE.
    Expired,
}

/// A moment on a clock that also runs while the machine or the process is
/// suspended, and that cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Returns the current time.
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(CLOCK);
        // Counts from the start of the machine: both fields are positive.
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
        Self(Duration::new(seconds, nanoseconds))
    }

    /// Returns the moment `time` after this one.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    fn milliseconds(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

/// CLOCK_BOOTTIME; other systems count suspended time in CLOCK_MONOTONIC, or
/// cannot be suspended unnoticed.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

/// What the store, the call and its reader share about a lease. Only backends
/// use it; calls have a [`SessionLease`].
#[derive(Debug)]
pub struct LeaseState {
    pub(super) key: SessionKey,
    pub(super) token: LeaseToken,
    /// Held by the store itself, for the moment that a change takes: callers
    /// wait for its end instead of getting an error that it is busy.
    pub(super) is_internal: bool,
    leaving: AtomicBool,
    /// When it expires, in milliseconds of [`BootTime`]; `u64::MAX`: never.
    expires: AtomicU64,
    status: Mutex<LeaseStatus>,
    ended: AtomicBool,
    end: Notify,
}

impl LeaseState {
    /// A new lease, held by a call. It never expires, until
    /// [`Self::expire_at`].
    pub fn of_call(key: SessionKey) -> Arc<Self> {
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
            expires: AtomicU64::new(u64::MAX),
            status: Mutex::new(LeaseStatus::Held),
            ended: AtomicBool::new(false),
            end: Notify::new(),
        })
    }

    /// The session.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// The name of this lease.
    pub fn token(&self) -> LeaseToken {
        self.token
    }

    /// Whether the reader of the call has left.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Sets when the lease expires, unless it is renewed by another call of
    /// this method. It is `Held` again if it had expired.
    pub fn expire_at(&self, time: BootTime) {
        self.expires.store(time.milliseconds(), Ordering::Release);
    }

    /// Whether the call may continue.
    pub fn status(&self) -> LeaseStatus {
        let status = self.lock_status().clone();
        let expires = self.expires.load(Ordering::Acquire);
        let is_expired = || expires != u64::MAX && BootTime::now().milliseconds() >= expires;
        if status == LeaseStatus::Held && is_expired() {
            return LeaseStatus::Expired;
        }
        status
    }

    /// Takes the right away; the first reason stays.
    pub fn revoke(&self, reason: LeaseStatus) {
        let mut status = self.lock_status();
        if *status == LeaseStatus::Held {
            *status = reason;
        }
    }

    /// Wakes those that wait for the session. Called once the session is free.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.end.notify_waiters();
    }

    /// Completes once the lease has ended.
    pub async fn wait_until_ended(&self) {
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
pub trait ReleaseLease: fmt::Debug + Send + Sync {
    /// Ends a lease whose call changes nothing.
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
pub struct StartPoint {
    /// Position from which the call continues.
    pub position: u64,
    /// The call repeats the last call or replaces it.
    pub is_rewind: bool,
    /// The parameters of that last call, once its record was read.
    pub parameters: Option<ParametersDigest>,
}

impl SessionLease {
    /// Creates the lease of a call. `owner` releases it if the call drops it.
    pub fn new(
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
    pub fn into_state(mut self) -> Arc<LeaseState> {
        self.owner = None;
        Arc::clone(&self.state)
    }

    /// The state of the lease, which the caller does not hold. For backends.
    pub fn state(&self) -> &Arc<LeaseState> {
        &self.state
    }

    /// Where the call began, `None` if the session is to be created.
    pub fn start(&self) -> Option<&StartPoint> {
        self.start.as_ref()
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
