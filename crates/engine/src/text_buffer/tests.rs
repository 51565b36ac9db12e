//! Tests of the buffer.

#![allow(clippy::unwrap_used)]

use charlstm_model::ModelId;
use charlstm_model::decode_step::Precision;
use charlstm_store::session::{MemorySessions, SessionLimits};
use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::admission::Admission;
use crate::caller::CallerId;
use crate::stream::GenerationStream;

/// The buffer of a call without a session.
fn buffer() -> Arc<TextBuffer> {
    let storage = Arc::new(MemorySessions::new(SessionLimits::default()));
    let started = Started {
        model: ModelId {
            name: "m".to_owned(),
            version: 1,
        },
        precision: Precision::Float32,
        position: 0,
        unknown_chars: 0,
        seed: 0,
        session: None,
    };
    TextBuffer::new(TextBufferParts {
        started,
        prompt_chars: 1,
        session: None,
        capacity_chars: 10_000,
        inbox: Arc::default(),
        committer: Committer::new(storage, tokio::runtime::Handle::current()),
        permit: Admission::new(1).admit(&CallerId::default(), 1).unwrap(),
    })
}

#[tokio::test]
async fn a_reader_that_polls_all_the_time_gets_a_long_text_in_pieces_too() {
    let buffer = buffer();
    let mut stream = GenerationStream::new(Arc::clone(&buffer));
    buffer.start();
    let mut next = || stream.next().now_or_never().flatten();
    assert!(matches!(next(), Some(Ok(GenerationEvent::Started(_)))));
    let mut pieces = Vec::new();
    for _ in 0..4_000 {
        buffer.append(std::iter::once(('a', None)), 1);
        if let Some(Ok(GenerationEvent::Text(piece))) = next() {
            pieces.push(piece.text.len());
        }
    }
    assert_eq!(pieces[..2_000], [1; 2_000]);
    // Four characters each, unless this test was kept from running.
    assert!(pieces.len() < 2_600, "{}", pieces.len());
}

#[tokio::test]
async fn text_that_waits_for_the_rest_of_its_message_is_flushed() {
    let buffer = buffer();
    let mut stream = GenerationStream::new(Arc::clone(&buffer));
    buffer.start();
    let mut next = || stream.next().now_or_never().flatten();
    assert!(matches!(next(), Some(Ok(GenerationEvent::Started(_)))));
    buffer.append("0123456789".chars().map(|digit| (digit, None)), 8);
    assert!(next().is_some(), "the first characters do not wait");
    buffer.append("bc".chars().map(|character| (character, None)), 8);
    assert!(next().is_none());
    buffer.flush();
    let Some(Ok(GenerationEvent::Text(piece))) = next() else {
        panic!("no text");
    };
    assert_eq!(piece.text, "bc");
}
