//! Streams a file to the server: a first message, then chunks, read on a
//! thread of their own. What the messages are is the caller's.

use std::io;

use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::input::Input;

/// Chunks that are read ahead of the network.
const READ_AHEAD: usize = 2;

/// The messages of an upload, and where a reading error comes out. After an
/// error the stream does not end, because its end would say that the file is
/// complete: the caller drops the call.
pub(crate) fn stream<Message: Send + 'static>(
    first: Message,
    mut input: Input,
    bar: ProgressBar,
    message: impl Fn(Bytes) -> Message + Send + 'static,
) -> (ReceiverStream<Message>, oneshot::Receiver<io::Error>) {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let (error_sender, error_receiver) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let mut next = first;
        loop {
            // The server may have answered already; its answer says why.
            if sender.blocking_send(next).is_err() {
                return;
            }
            next = match input.chunk() {
                Ok(Some(chunk)) => {
                    bar.inc(chunk.len() as u64);
                    message(chunk)
                }
                Ok(None) => return,
                Err(error) => {
                    // Nobody listens any more: then nobody needs it.
                    let _ = error_sender.send(error);
                    Handle::current().block_on(sender.closed());
                    return;
                }
            };
        }
    });
    (ReceiverStream::new(receiver), error_receiver)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use tokio_stream::{Stream, StreamExt};

    use super::*;

    /// Gives one chunk, then fails.
    struct Broken(bool);

    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(io::Error::other("the disk is gone"));
            }
            buffer[0] = b'a';
            Ok(1)
        }
    }

    #[tokio::test]
    async fn a_file_that_breaks_midway_is_never_taken_for_a_complete_one() {
        let input = Input::from_reader(Broken(false));
        let (mut messages, error) =
            stream(vec![], input, ProgressBar::hidden(), |chunk| chunk.to_vec());
        assert_eq!(messages.next().await.unwrap(), b"");
        assert_eq!(error.await.unwrap().to_string(), "the disk is gone");
        // Still open: the end has not been told.
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut messages).poll_next(&mut context).is_pending());
    }
}
