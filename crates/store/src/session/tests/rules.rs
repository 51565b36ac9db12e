//! The rules, for any backend.

mod administration;
mod calls;
mod eviction;
mod random_calls;

pub(super) use administration::*;
pub(super) use calls::*;
pub(super) use eviction::*;
pub(super) use random_calls::*;

use crate::session::{EvictionReason, SessionError, SessionLimits};

fn plenty() -> SessionLimits {
    SessionLimits::default()
}

fn at_most(max_sessions: u64) -> SessionLimits {
    SessionLimits {
        max_sessions,
        ..plenty()
    }
}

fn evicted<T>(reason: EvictionReason) -> Result<T, SessionError> {
    Err(SessionError::Evicted(reason))
}
