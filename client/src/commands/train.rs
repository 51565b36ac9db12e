//! `train`: uploads a text and shows the training. How its events look is in
//! `progress`; how they are followed is in `follow`.

use std::sync::atomic::Ordering;

use charlstm_proto::v1::TrainRequest;
use charlstm_proto::v1::train_request::Payload;

use super::corpus::Corpus;
use super::follow::{self, Ending, Source};
use super::input::unreadable;
use super::upload;
use crate::args::{Global, TrainArgs};
use crate::connect::Connection;
use crate::exit::{Failure, Interrupts};
use crate::human;
use crate::output::Output;
use crate::progress::{self, TrainingView};

/// Uploads the text, then shows the training until it ends.
pub(crate) async fn run(args: TrainArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let corpus = Corpus::open(&args.corpus.text, args.corpus.crlf)?;
    for path in corpus.passed_over() {
        output.note(&format!(
            "passed over: {} is not UTF-8 text",
            path.display()
        ));
    }
    let converted = corpus.converted();
    let mut input = corpus.into_input();
    input.check_not_empty(&args.corpus.text[0])?;
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
        Ok(error) = read_error => return Err(unreadable(error, &args.corpus.text[0])),
        () = interrupts.next() => return Err(Failure::Interrupted),
    };
    upload_bar.finish_and_clear();
    let line_ends = converted.load(Ordering::Relaxed);
    if line_ends > 0 {
        output.note(&format!(
            "{} line ends CR LF became LF; --crlf keep leaves them",
            human::count(line_ends)
        ));
    }
    let source = Source::Train(response?.into_inner());
    let view = TrainingView::new(output).with_plot(args.plot);
    let ending = if args.detach {
        Ending::Accepted
    } else {
        Ending::Finished
    };
    follow::follow(&connection, source, view, ending, Some(interrupts)).await
}
