//! `score`: reports how well a model predicts a text of any size.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use charlstm_proto::v1::score_stream_request::Payload;
use charlstm_proto::v1::{
    ScoreResponse, ScoreStreamHeader, ScoreStreamRequest, ScoreStreamResponse,
};
use indicatif::ProgressBar;
use tonic::Status;

use super::corpus::Corpus;
use super::generation::UNKNOWN_REMEDY;
use super::input::unreadable;
use super::upload;
use crate::args::{GlobalFlags, ScoreArgs};
use crate::connection::Connection;
use crate::display;
use crate::failure::{Failure, is_unknown_character};
use crate::json;
use crate::output::Output;
use crate::progress;

/// Streams the text, shows the score so far and prints the final one.
pub(crate) async fn run(
    args: ScoreArgs,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    let corpus = Corpus::open(std::slice::from_ref(&args.text), &args.reading)?;
    for message in corpus.messages() {
        output.note(&message);
    }
    let changes = corpus.changes();
    let mut input = corpus.into_input();
    input.check_not_empty(&args.text)?;
    let connection = Connection::open(global).await?;
    let message = |payload| ScoreStreamRequest {
        payload: Some(payload),
    };
    let header = ScoreStreamHeader {
        model: args.model,
        logprobs: None,
        unknown: args.unknown.to_contract().into(),
    };
    let view = ScoreView::new(input.bytes, output);
    let sent = Arc::clone(&view.sent);
    let (requests, read_error) = upload::stream(
        message(Payload::Header(header)),
        input,
        ProgressBar::hidden(),
        move |chunk| {
            sent.add(&chunk);
            message(Payload::TextChunk(chunk))
        },
    );
    let mut client = connection.generation();
    let score = async {
        let mut scores = client.score_stream(requests).await?.into_inner();
        while let Some(score) = scores.message().await? {
            if score.done {
                return Ok(score);
            }
            view.show(&score);
        }
        Err(Status::unavailable(
            "the stream ended before the text was scored",
        ))
    };
    let score = tokio::select! {
        score = score => score,
        Ok(error) = read_error => return Err(unreadable(error, &args.text)),
    };
    view.bar.finish_and_clear();
    for message in changes.messages() {
        output.note(&message);
    }
    let score = score.map_err(failure)?;
    if let Some(message) = args.unknown.message(score.unknown_chars, "the text") {
        output.note(&message);
    }
    let score = ScoreResponse {
        chars: score.chars,
        bits_per_char: score.bits_per_char,
        loss: score.loss,
        perplexity: score.perplexity,
        logprobs: Vec::new(),
        unknown_chars: score.unknown_chars,
    };
    output.result(
        || json::named("score", json::object("ScoreResponse", &score)),
        || {
            format!(
                "{:.4} bits per character over {} (loss {:.4} nats, perplexity {:.3})",
                score.bits_per_char,
                display::plural(score.chars, "character"),
                score.loss,
                score.perplexity
            )
        },
    )
}

fn failure(status: Status) -> Failure {
    let is_unknown = is_unknown_character(&status);
    let failure = Failure::from(status);
    if is_unknown {
        return failure.with_remedy(UNKNOWN_REMEDY);
    }
    failure
}

/// How much of the text has been sent.
#[derive(Debug, Default)]
struct Sent {
    bytes: AtomicU64,
    chars: AtomicU64,
}

impl Sent {
    fn add(&self, chunk: &[u8]) {
        // A character has one byte that does not continue another.
        let chars = chunk.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        self.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        self.chars.fetch_add(chars as u64, Ordering::Relaxed);
    }

    /// Returns about how many bytes `chars` characters have.
    fn bytes_of(&self, chars: u64) -> u64 {
        let sent = self.chars.load(Ordering::Relaxed).max(1) as f64;
        let bytes = self.bytes.load(Ordering::Relaxed) as f64;
        (chars as f64 * bytes / sent) as u64
    }
}

/// Shows the progress of a score.
struct ScoreView {
    bar: ProgressBar,
    sent: Arc<Sent>,
    since: Instant,
}

impl ScoreView {
    fn new(bytes: Option<u64>, output: Output) -> Self {
        Self {
            bar: progress::message_bar(bytes, output),
            sent: Arc::default(),
            since: Instant::now(),
        }
    }

    fn show(&self, score: &ScoreStreamResponse) {
        let seconds = self.since.elapsed().as_secs_f64();
        let speed = (score.chars as f64 / seconds.max(1e-3)) as u64;
        self.bar.set_position(self.sent.bytes_of(score.chars));
        self.bar.set_message(format!(
            "{:.3} bits/char  {} chars/s",
            score.bits_per_char,
            display::count(speed)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_counts_characters_as_bytes_of_the_text() {
        let sent = Sent::default();
        sent.add("éa".as_bytes());
        sent.add("é".as_bytes());
        assert_eq!((sent.bytes_of(3), sent.bytes_of(0)), (5, 0));
    }
}
