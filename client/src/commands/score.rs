//! `score`: reports how well a model predicts a text.

use charlstm_proto::v1::ScoreRequest;

use super::corpus::Corpus;
use crate::args::{GlobalFlags, ScoreArgs};
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::json;
use crate::output::Output;

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
    let score = connection.generation().score(request).await?.into_inner();
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
