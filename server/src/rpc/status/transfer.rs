//! Statuses of requests and responses that are transferred too slowly, or of
//! which there are too many.

use std::time::Duration;

use tonic::{Code, Status};

use super::{full, refused};

/// Returns RESOURCE_EXHAUSTED: the client has sent nothing for this time.
pub(in crate::rpc) fn request_stalled(time: Duration) -> Status {
    let text = format!("the client has sent nothing for {} s", time.as_secs());
    refused(Code::ResourceExhausted, "STREAM_STALLED", text)
}

/// Returns RESOURCE_EXHAUSTED: the client has not read a response for too long.
pub(in crate::rpc) fn response_unread() -> Status {
    refused(
        Code::ResourceExhausted,
        "STREAM_STALLED",
        "the client has read nothing for too long",
    )
}

/// Returns RESOURCE_EXHAUSTED: too many large messages are incomplete.
pub(in crate::rpc) fn too_many_large_messages(retry_after: Duration) -> Status {
    let text = "the server is receiving too many large messages";
    full("TOO_MANY_LARGE_MESSAGES", text, retry_after)
}

/// Returns RESOURCE_EXHAUSTED: there are too many transfers, of this caller or
/// of all. One may be idle for long enough after the delay.
pub(in crate::rpc) fn too_many_transfers(retry_after: Duration) -> Status {
    let text = "too many models and corpora are being transferred";
    full("TOO_MANY_TRANSFERS", text, retry_after)
}

/// Returns RESOURCE_EXHAUSTED: a transfer has lost its slot to another one.
pub(in crate::rpc) fn transfer_evicted() -> Status {
    refused(
        Code::ResourceExhausted,
        "TRANSFER_EVICTED",
        "the client was idle while others were waiting to transfer models and corpora; \
         start again",
    )
}

/// Returns RESOURCE_EXHAUSTED: the uploads under way are too large in total.
pub(in crate::rpc) fn transfers_too_large(max_bytes: u64) -> Status {
    let text = format!(
        "the uploads under way are too large: at most {max_bytes} bytes in total, \
         and half of that for one caller"
    );
    full("UPLOADS_TOO_LARGE", text, Duration::from_secs(60))
}
