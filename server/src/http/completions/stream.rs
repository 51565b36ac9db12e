//! Completions as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use charlstm_proto::v1 as pb;
use charlstm_proto::v1::generate_response::Event as Generated;
use futures_util::stream::{SelectAll, StreamExt, select_all};
use futures_util::{Stream, stream};
use serde::Serialize;

use super::OpenText;
use super::echo::Echo;
use super::request::CompletionRequest;
use super::response::{Choice, Completion, Logprobs, Usage, finish_reason};
use crate::http::api_error::ApiError;
use crate::rpc::layers::call_outcome::CallOutcome;

/// The last event of a stream that did not fail.
const DONE: &str = "[DONE]";

/// Interval of comments while a text waits in the queue: proxies close
/// connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A message of the generation with this index.
type Message = (usize, Result<pb::GenerateResponse, tonic::Status>);

/// A stream of all generations of one request.
struct Completions {
    messages: SelectAll<stream::BoxStream<'static, Message>>,
    texts: Vec<TextProgress>,
    /// The event that all others are made from, once one text has started.
    template: Option<Completion>,
    with_logprobs: bool,
    prompt_chars: u64,
    includes_usage: bool,
    phase: Phase,
    outcome: CallOutcome,
}

/// How far one text is.
struct TextProgress {
    /// What is to be sent before the text.
    echo: Echo,
    /// Number of characters that were sent before the text.
    echo_chars: usize,
    chars: usize,
}

/// What the stream sends next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Texts,
    Usage,
    Done,
    Ended,
}

/// Sends the texts as they are generated. Records in `outcome` if one fails.
pub(super) fn respond(
    request: &CompletionRequest,
    prompt_chars: u64,
    texts: Vec<OpenText>,
    outcome: CallOutcome,
) -> impl IntoResponse {
    let (messages, texts): (Vec<_>, Vec<_>) = texts
        .into_iter()
        .enumerate()
        .map(|(index, OpenText { messages, echo })| {
            let numbered = messages.map(move |message| (index, message));
            let progress = TextProgress {
                echo_chars: echo.text.chars().count(),
                echo,
                chars: 0,
            };
            (numbered.boxed(), progress)
        })
        .unzip();
    let completions = Completions {
        messages: select_all(messages),
        template: None,
        with_logprobs: request.logprobs.is_some(),
        prompt_chars,
        includes_usage: request.includes_usage(),
        texts,
        phase: Phase::Texts,
        outcome,
    };
    let no_buffering = [("cache-control", "no-cache"), ("x-accel-buffering", "no")];
    let events = Sse::new(completions.events());
    (
        no_buffering,
        events.keep_alive(KeepAlive::new().interval(KEEP_ALIVE)),
    )
}

impl Completions {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut completions| {
            let event = completions.next().await?;
            Some((Ok(event), completions))
        })
    }

    /// Returns the next event; `None` after the last one.
    async fn next(&mut self) -> Option<Event> {
        while self.phase == Phase::Texts {
            match self.messages.next().await {
                Some((index, Ok(message))) => {
                    if let Some(completion) = self.part(index, message) {
                        return Some(json(&completion));
                    }
                }
                Some((_, Err(status))) => {
                    self.phase = Phase::Ended;
                    self.outcome.fail(status.code());
                    return Some(json(&ApiError::from(status).body()));
                }
                None => self.phase = Phase::Usage,
            }
        }
        if self.phase == Phase::Usage {
            self.phase = Phase::Done;
            if let Some(template) = self.template.as_ref().filter(|_| self.includes_usage) {
                let chars = self.texts.iter().map(|text| text.chars as u64).sum();
                return Some(json(&Completion {
                    usage: Some(Usage::new(self.prompt_chars, chars)),
                    ..template.clone()
                }));
            }
        }
        if self.phase == Phase::Done {
            self.phase = Phase::Ended;
            return Some(Event::default().data(DONE));
        }
        None
    }

    /// Returns the event of a message.
    fn part(&mut self, index: usize, message: pb::GenerateResponse) -> Option<Completion> {
        let text = self.texts.get_mut(index)?;
        let mut choice = Choice {
            text: String::new(),
            index,
            logprobs: None,
            finish_reason: None,
            seed: None,
        };
        let position = match message.event? {
            Generated::Started(started) => {
                let echo = std::mem::take(&mut text.echo);
                if self.with_logprobs && !echo.text.is_empty() {
                    choice.logprobs = Some(echo.logprobs());
                }
                choice.text = echo.text.as_ref().to_owned();
                choice.seed = Some(started.seed);
                self.template
                    .get_or_insert_with(|| Completion::new(&started));
                started.position
            }
            Generated::Text(part) => {
                let offset = text.echo_chars + text.chars;
                text.chars += part.text.chars().count();
                if self.with_logprobs {
                    let values = part.logprobs.into_iter().map(Some);
                    choice.logprobs = Some(Logprobs::new(&part.text, values, offset));
                }
                choice.text = part.text;
                part.position
            }
            Generated::Finished(finished) => {
                choice.finish_reason = Some(finish_reason(&finished));
                finished.position
            }
        };
        let template = self.template.as_mut()?;
        template.position = template.position.map(|_| position);
        Some(Completion {
            choices: vec![choice],
            ..template.clone()
        })
    }
}

fn json(value: &impl Serialize) -> Event {
    // Strings, numbers and options: nothing that JSON does not have.
    Event::default().data(serde_json::to_string(value).unwrap_or_default())
}
