//! `train`: uploads a text and shows the progress of the training. `follow`
//! follows its events and `progress` prints them.

use charlstm_proto::v1::TrainRequest;
use charlstm_proto::v1::train_request::Payload;

use super::corpus::Corpus;
use super::follow::{self, EventStream, FollowUntil};
use super::input::unreadable;
use super::upload;
use crate::args::{GlobalFlags, TrainArgs};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::progress::{self, TrainingView};

/// Uploads the text, then shows the progress until the training ends or, with
/// `--detach`, is accepted. Ctrl-C during the upload drops the call.
pub(crate) async fn run(
    args: TrainArgs,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    let corpus = Corpus::open(&args.corpus.text, &args.corpus.reading)?;
    for message in corpus.messages() {
        output.note(&message);
    }
    let view = TrainingView::new(output).with_plot(args.plot)?;
    let changes = corpus.changes();
    let mut input = corpus.into_input();
    input.check_not_empty(&args.corpus.text[0])?;
    let connection = Connection::open(global).await?;
    let mut interrupts = Interrupts::listen();

    let upload_bar = progress::transfer_bar(input.bytes, output);
    let message = |payload| TrainRequest {
        payload: Some(payload),
    };
    let (requests, read_error) = upload::stream(
        message(Payload::Spec(args.spec.to_spec(&args.model))),
        input,
        upload_bar.clone(),
        move |chunk| message(Payload::CorpusChunk(chunk)),
    );
    let mut client = connection.training();
    let response = tokio::select! {
        response = client.train(requests) => response,
        Ok(error) = read_error => return Err(unreadable(error, &args.corpus.text[0])),
        () = interrupts.next() => return Err(Failure::Interrupted),
    };
    upload_bar.finish_and_clear();
    for message in changes.messages() {
        output.note(&message);
    }
    let events = EventStream::Train(response?.into_inner());
    let until = if args.detach {
        FollowUntil::Accepted
    } else {
        FollowUntil::Finished
    };
    follow::follow(&connection, events, view, until, Some(interrupts)).await
}
