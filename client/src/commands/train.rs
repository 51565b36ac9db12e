//! `train`: uploads a text and shows the training. How its events look is in
//! `progress`; how they are followed is in `follow`.

use charlstm_proto::v1::TrainRequest;
use charlstm_proto::v1::train_request::Payload;

use super::follow::{self, Ending, Source};
use super::input::{Input, words};
use super::upload;
use crate::args::{Global, TrainArgs};
use crate::connect::Connection;
use crate::exit::{Failure, Interrupts};
use crate::output::Output;
use crate::progress::{self, TrainingView};

/// Uploads the text, then shows the training until it ends.
pub(crate) async fn run(args: TrainArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let mut input = Input::open(&args.text)?;
    input.check_not_empty(&args.text)?;
    let connection = Connection::open(global).await?;
    let mut interrupts = Interrupts::listen();

    let upload_bar = progress::upload_bar(input.bytes, output);
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
        Ok(error) = read_error => return Err(Failure::Unreadable {
            path: args.text.clone(),
            reason: words(&error),
        }),
        () = interrupts.next() => return Err(Failure::Interrupted),
    };
    upload_bar.finish_and_clear();
    let source = Source::Train(response?.into_inner());
    let view = TrainingView::new(output).with_plot(args.plot);
    let ending = if args.detach {
        Ending::Accepted
    } else {
        Ending::Finished
    };
    follow::follow(&connection, source, view, ending, Some(interrupts)).await
}
