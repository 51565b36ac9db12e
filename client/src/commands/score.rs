//! `score`: reports how well a model predicts a text.

use charlstm_proto::v1::ScoreRequest;
use tonic::Code;

use super::corpus::Corpus;
use crate::args::{GlobalFlags, ScoreArgs};
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::json;
use crate::output::Output;
use crate::progress;

/// Sends the text and prints the score.
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
    let text = corpus.into_text()?;
    for message in changes.messages() {
        output.note(&message);
    }
    let connection = Connection::open(global).await?;
    let request = ScoreRequest {
        model: args.model,
        text,
    };
    let bytes = request.text.len() as u64;
    let bar = progress::spinner(&format!("scoring {}", display::bytes(bytes)), output);
    let score = connection.generation().score(request).await;
    bar.finish_and_clear();
    let score = match score {
        Ok(score) => score.into_inner(),
        // The message is larger than the server accepts.
        Err(status) if status.code() == Code::OutOfRange => {
            return Err(Failure::Refused(format!(
                "a text of {} is too long for one call",
                display::bytes(bytes)
            ))
            .with_remedy("score it in parts, for example those of `split -C 3M FILE part-`"));
        }
        Err(status) => return Err(status.into()),
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
