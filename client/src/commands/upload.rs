//! Streams a file to the server: a first message, then the chunks of the file,
//! which a blocking task reads. The caller defines the messages.

use std::io;

use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::input::Input;

/// Number of chunks that are read ahead of the network.
const READ_AHEAD: usize = 2;

/// Returns the messages of an upload, and a channel that delivers the error if
/// the file cannot be read.
///
/// After such an error the stream stays open, because its end would tell the
/// server that the file is complete. The caller must drop the call, which also
/// ends the task that reads.
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
            // The call has ended: its status says why.
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
                    // If the call was dropped, nobody needs the error.
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

    /// Returns one byte, then fails.
    struct FailingReader {
        has_read: bool,
    }

    impl Read for FailingReader {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.has_read, true) {
                return Err(io::Error::other("disk failure"));
            }
            buffer[0] = b'a';
            Ok(1)
        }
    }

    #[tokio::test]
    async fn an_upload_whose_file_cannot_be_read_does_not_end_as_complete() {
        let input = Input::from_reader(FailingReader { has_read: false });
        let (mut messages, error) =
            stream(vec![], input, ProgressBar::hidden(), |chunk| chunk.to_vec());
        assert_eq!(messages.next().await.unwrap(), b"");
        assert_eq!(error.await.unwrap().to_string(), "disk failure");
        // The stream is still open.
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut messages).poll_next(&mut context).is_pending());
    }
}
