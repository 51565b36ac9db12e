//! What the layers have found out about a call when it reaches its service.

use std::time::Instant;

use tonic::Status;
use tonic::codegen::http::Extensions;

use super::call_record::CallRecord;
use super::caller::Caller;
use super::deadline::Deadline;
use super::principal::Principal;

/// Who calls, until when, and the record for the log.
#[derive(Clone)]
pub struct CallContext {
    /// What the caller may do.
    pub principal: Principal,
    /// Whose share of the resources the call uses.
    pub caller: Caller,
    /// What is logged of the call.
    pub record: CallRecord,
    /// When the client stops waiting; `None` if it did not say.
    pub deadline: Option<Instant>,
}

impl CallContext {
    /// Returns what the layers have found out about the request with these
    /// extensions.
    ///
    /// # Errors
    /// INTERNAL if the request did not come through the auth layer.
    pub fn of(extensions: &Extensions) -> Result<Self, Status> {
        Ok(Self {
            principal: Principal::of_extensions(extensions)?,
            caller: Caller::of(extensions),
            record: CallRecord::of(extensions),
            deadline: extensions.get().map(|&Deadline(deadline)| deadline),
        })
    }
}
