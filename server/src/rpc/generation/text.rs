//! `GenerateText`: collects the messages of a generation into one.

use charlstm_proto::v1 as pb;
use charlstm_proto::v1::generate_response::Event;
use futures_util::StreamExt;
use tonic::Status;

use super::GenerateResponses;
use crate::rpc::status;

/// Maximum number of characters of a text that is sent in one message: with 4
/// bytes each and as many for its logarithm, it is far below the 4 MiB that
/// gRPC clients accept.
const MAX_WHOLE_CHARS: u32 = 100_000;

/// Returns the request of the stream that is collected.
pub(super) fn stream_request(
    request: pb::GenerateTextRequest,
) -> Result<pb::GenerateRequest, Status> {
    let pb::GenerateTextRequest {
        model,
        prime,
        max_chars,
        session_id,
        sampling,
        stop,
        logprobs,
        expected_position,
        precision,
        session_snapshot,
        return_session,
        unknown,
        owner,
    } = request;
    if let Some(chars) = max_chars.filter(|&chars| chars > MAX_WHOLE_CHARS) {
        let message =
            format!("must be 0 to {MAX_WHOLE_CHARS}, not {chars}; use Generate for longer texts");
        return Err(status::invalid("max_chars", message));
    }
    Ok(pb::GenerateRequest {
        model,
        prime,
        max_chars,
        session_id,
        sampling,
        stop,
        logprobs,
        expected_position,
        precision,
        session_snapshot,
        return_session,
        unknown,
        owner,
    })
}

/// Collects a generation to its end. If that fails, or is dropped, the session
/// stays as it was.
///
/// # Errors
/// Those of `Generate`.
pub(crate) async fn collect(
    responses: GenerateResponses,
) -> Result<pb::GenerateTextResponse, Status> {
    let mut responses = responses.whole();
    let mut whole = pb::GenerateTextResponse::default();
    while let Some(response) = responses.next().await {
        match response?.event {
            Some(Event::Started(started)) => whole.started = Some(started),
            Some(Event::Text(text)) => {
                whole.text.push_str(&text.text);
                whole.logprobs.extend(text.logprobs);
            }
            Some(Event::Finished(finished)) => whole.finished = Some(finished),
            None => {}
        }
    }
    Ok(whole)
}
