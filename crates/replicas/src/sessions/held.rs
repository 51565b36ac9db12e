//! The sessions that calls of this process hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use charlstm_store::session::{HeldSession, LeaseState, LeaseStatus, SessionKey};

/// By session. A call stays listed until its lease has ended in the database,
/// or until that was given up.
#[derive(Debug, Default)]
pub(super) struct HeldCalls(Mutex<HashMap<SessionKey, HeldCall>>);

#[derive(Debug)]
struct HeldCall {
    lease: Arc<LeaseState>,
    session: HeldSession,
    /// Its commit or release was submitted: it is not renewed any more.
    is_ending: bool,
}

impl HeldCalls {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, HeldCall>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, lease: Arc<LeaseState>, session: HeldSession) {
        let call = HeldCall {
            lease: Arc::clone(&lease),
            session,
            is_ending: false,
        };
        if let Some(earlier) = self.lock().insert(lease.key().clone(), call) {
            // Its lease is over, or this one could not have been taken.
            earlier.lease.revoke(LeaseStatus::Fenced { replica: None });
        }
    }

    /// What a lease holds; `None` if it was taken away.
    pub(super) fn session(&self, lease: &LeaseState) -> Option<HeldSession> {
        let calls = self.lock();
        let call = calls.get(lease.key())?;
        (call.lease.token() == lease.token()).then(|| call.session.clone())
    }

    pub(super) fn holder(&self, key: &SessionKey) -> Option<Arc<LeaseState>> {
        self.lock().get(key).map(|call| Arc::clone(&call.lease))
    }

    /// Waits until a session is free if the call that holds it is ending. Returns
    /// its lease if that call is not ending.
    pub(super) async fn wait_if_ending(&self, key: &SessionKey) -> Option<Arc<LeaseState>> {
        let (lease, is_ending) = {
            let calls = self.lock();
            let call = calls.get(key)?;
            (Arc::clone(&call.lease), call.is_ending)
        };
        if !is_ending {
            return Some(lease);
        }
        lease.wait_until_ended().await;
        None
    }

    /// Records that a lease is about to end.
    pub(super) fn begin_ending(&self, lease: &LeaseState) {
        if let Some(call) = self.lock().get_mut(lease.key())
            && call.lease.token() == lease.token()
        {
            call.is_ending = true;
        }
    }

    /// Removes a call whose lease has ended, and wakes those that wait for it.
    pub(super) fn end(&self, lease: &LeaseState) {
        let mut calls = self.lock();
        let is_listed = calls
            .get(lease.key())
            .is_some_and(|call| call.lease.token() == lease.token());
        if is_listed {
            calls.remove(lease.key());
        }
        drop(calls);
        lease.end();
    }

    /// Ends the call in a session that is being deleted.
    pub(super) fn delete(&self, key: &SessionKey) {
        let mut calls = self.lock();
        if calls.get(key).is_some_and(|call| !call.is_ending)
            && let Some(call) = calls.remove(key)
        {
            call.lease.revoke(LeaseStatus::Deleted);
        }
    }

    /// The leases to be renewed.
    pub(super) fn renewable(&self) -> Vec<Arc<LeaseState>> {
        let calls = self.lock();
        let renewable = calls.values().filter(|call| !call.is_ending);
        renewable.map(|call| Arc::clone(&call.lease)).collect()
    }

    /// Applies what a renewal has found to a call, unless its commit or release was
    /// submitted, which will find the same.
    pub(super) fn update(&self, lease: &LeaseState, update: impl FnOnce(&LeaseState)) {
        let calls = self.lock();
        if let Some(call) = calls.get(lease.key())
            && call.lease.token() == lease.token()
            && !call.is_ending
        {
            update(&call.lease);
        }
    }

    /// Removes all calls.
    pub(super) fn take_all(&self) -> Vec<Arc<LeaseState>> {
        let calls = std::mem::take(&mut *self.lock());
        calls.into_values().map(|call| call.lease).collect()
    }
}
