//! The rules, for any backend.

mod administration;
mod calls;
mod eviction;
mod random_calls;

pub use administration::*;
pub use calls::*;
pub use eviction::*;
pub use random_calls::*;

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
