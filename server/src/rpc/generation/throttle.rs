//! Slows a generation down to the rate that its principal may have.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use charlstm_engine::{GenerateError, GenerationEvent, GenerationStream};
use futures_util::Stream;
use tokio::time::{Sleep, sleep};

use crate::rpc::usage::CharThrottle;

/// Maximum time between two calls of `keep_alive`, without which the engine ends
/// a generation as one whose reader is gone: well below `--reader-timeout`, which
/// is at least a second.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// The events of a generation, at the rate of its principal. Nothing is taken
/// from the engine before it may be sent, so the session is where its reader is.
pub(super) struct ThrottledEvents {
    events: GenerationStream,
    throttle: Option<Throttle>,
}

struct Throttle {
    chars: CharThrottle,
    pause: Option<Pin<Box<Sleep>>>,
}

impl ThrottledEvents {
    pub(super) fn new(events: GenerationStream, throttle: Option<CharThrottle>) -> Self {
        match throttle {
            None => Self {
                events,
                throttle: None,
            },
            Some(chars) => Self {
                events: events.with_max_chars(chars.piece()),
                throttle: Some(Throttle { chars, pause: None }),
            },
        }
    }

    /// See [`GenerationStream::whole`].
    pub(super) fn whole(mut self) -> Self {
        self.events = self.events.whole();
        self
    }
}

impl Stream for ThrottledEvents {
    type Item = Result<GenerationEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { events, throttle } = &mut *self;
        if let Some(throttle) = throttle {
            loop {
                if let Some(pause) = &mut throttle.pause {
                    ready!(pause.as_mut().poll(context));
                    throttle.pause = None;
                    events.keep_alive();
                }
                let delay = throttle.chars.delay();
                if delay.is_zero() {
                    break;
                }
                throttle.pause = Some(Box::pin(sleep(delay.min(MAX_PAUSE))));
            }
        }
        let event = ready!(Pin::new(&mut *events).poll_next(context));
        if let (Some(throttle), Some(Ok(GenerationEvent::Text(text)))) = (throttle, &event) {
            throttle.chars.charge(text.text.chars().count() as u64);
        }
        Poll::Ready(event)
    }
}
