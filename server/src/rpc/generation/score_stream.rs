//! `ScoreStream`: decodes a text as it arrives, scores it part by part, and
//! reports the score so far after each part. One part is in memory at a time.
//! As in every call, the layers end it if the client neither sends nor reads
//! (`--transfer-timeout`).

use std::time::Instant;

use charlstm_engine::{Engine, ScoreCall, Scored, TextScorer};
use charlstm_proto::v1 as pb;
use pb::score_stream_request::Payload;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{before, status, unknown_characters};
use crate::rpc::call_context::CallContext;

/// Maximum number of characters of a part: a fraction of a second for a large
/// model, so that the progress is visible, and far more than the cost of a
/// message.
const PART_CHARS: usize = 4096;

/// The messages of a call.
pub(super) type Responses = ReceiverStream<Result<pb::ScoreStreamResponse, Status>>;

type Sender = mpsc::Sender<Result<pb::ScoreStreamResponse, Status>>;

/// Reads the header and starts to score. The rest of the call runs in a task,
/// which ends when the client leaves.
pub(super) async fn start(
    engine: Engine,
    mut messages: Streaming<pb::ScoreStreamRequest>,
    context: &CallContext,
) -> Result<Responses, Status> {
    let deadline = context.deadline;
    let first = messages.message().await?;
    let Some(Payload::Header(header)) = first.and_then(|first| first.payload) else {
        return Err(status::invalid("header", "must be in the first message"));
    };
    let call = ScoreCall {
        caller: context.caller.name().into(),
        model: header.model,
        unknown: unknown_characters(header.unknown)?,
        logprobs: header.logprobs.unwrap_or_default(),
        deadline,
    };
    let scorer = before(deadline, engine.score(call)).await;
    let scorer = scorer.map_err(|error| status::generate_error(&error, "text_chunk"))?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            outcome = score(&mut messages, scorer, deadline, &sender) => {
                if let Err(status) = outcome {
                    // Fails only if the client has left.
                    let _ = sender.send(Err(status)).await;
                }
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}

async fn score(
    messages: &mut Streaming<pb::ScoreStreamRequest>,
    mut scorer: TextScorer,
    deadline: Option<Instant>,
    sender: &Sender,
) -> Result<(), Status> {
    let failed = |error| status::generate_error(&error, "text_chunk");
    let mut decoder = Utf8Decoder::default();
    while let Some(message) = messages.message().await? {
        let Some(Payload::TextChunk(chunk)) = message.payload else {
            let requirement = "must be in each message after the first";
            return Err(status::invalid("text_chunk", requirement));
        };
        let text = decoder.push(&chunk).map_err(invalid_utf8)?;
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let part;
            (part, rest) = split(rest);
            let scored = before(deadline, scorer.push(part.to_owned())).await;
            let scored = scored.map_err(failed)?;
            send(sender, response(scored.so_far, scored.logprobs, false)).await;
        }
    }
    if let Some(byte) = decoder.incomplete() {
        return Err(invalid_utf8(byte));
    }
    let scored = scorer.finish().map_err(failed)?;
    send(sender, response(scored, Vec::new(), true)).await;
    Ok(())
}

fn invalid_utf8(byte: u64) -> Status {
    status::invalid("text_chunk", format!("is not valid UTF-8 at byte {byte}"))
}

/// Sends a response. Waits until the client has room for it.
async fn send(sender: &Sender, response: pb::ScoreStreamResponse) {
    // Fails only if the client has left, and then so does the task.
    let _ = sender.send(Ok(response)).await;
}

fn response(scored: Scored, logprobs: Vec<f32>, done: bool) -> pb::ScoreStreamResponse {
    pb::ScoreStreamResponse {
        chars: scored.chars,
        loss: scored.loss,
        bits_per_char: scored.loss / std::f64::consts::LN_2,
        logprobs,
        done,
        unknown_chars: scored.unknown_chars,
        perplexity: scored.loss.exp(),
    }
}

/// Divides a text after [`PART_CHARS`] characters.
fn split(text: &str) -> (&str, &str) {
    let end = text.char_indices().nth(PART_CHARS);
    text.split_at(end.map_or(text.len(), |(byte, _)| byte))
}

/// Decodes UTF-8 whose characters may be divided between two chunks.
#[derive(Debug, Default)]
struct Utf8Decoder {
    /// The first bytes of a character that continues in the next chunk.
    pending: Vec<u8>,
    /// Number of bytes before `pending`.
    decoded: u64,
}

impl Utf8Decoder {
    /// Returns the complete characters. Fails with the number of bytes before
    /// the first invalid one.
    fn push(&mut self, chunk: &[u8]) -> Result<String, u64> {
        self.pending.extend_from_slice(chunk);
        let valid = match std::str::from_utf8(&self.pending) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(error) => return Err(self.decoded + error.valid_up_to() as u64),
        };
        let rest = self.pending.split_off(valid);
        let complete = std::mem::replace(&mut self.pending, rest);
        self.decoded += complete.len() as u64;
        String::from_utf8(complete).map_err(|_| self.decoded)
    }

    /// Returns the position of a character that was not completed.
    fn incomplete(&self) -> Option<u64> {
        (!self.pending.is_empty()).then_some(self.decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_may_be_divided_between_chunks() {
        let mut decoder = Utf8Decoder::default();
        let text = "aé€🦀b";
        let decoded: Result<String, u64> = text
            .as_bytes()
            .iter()
            .map(|byte| decoder.push(&[*byte]))
            .collect();
        assert_eq!(decoded, Ok(text.to_owned()));
        assert_eq!(decoder.incomplete(), None);
    }

    #[test]
    fn invalid_and_incomplete_utf8_is_reported_with_its_position() {
        let mut decoder = Utf8Decoder::default();
        assert_eq!(decoder.push(b"abc\xe2\x82"), Ok("abc".to_owned()));
        assert_eq!(decoder.incomplete(), Some(3));
        assert_eq!(decoder.push(b"x"), Err(3));
    }

    #[test]
    fn parts_end_between_characters() {
        let text = "é".repeat(PART_CHARS + 3);
        let (part, rest) = split(&text);
        assert_eq!((part.chars().count(), rest), (PART_CHARS, "ééé"));
        assert_eq!(split("ab"), ("ab", ""));
    }
}
