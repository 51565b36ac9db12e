//! The time limit for the beginning of HTTP on a connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What a client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of the header of a frame: the preface is followed by a SETTINGS
/// frame, which may be empty.
const FRAME_HEADER: usize = 9;

/// A connection whose reads fail if the client has not begun HTTP/2 within a
/// time limit: its preface and the header of its SETTINGS frame. A client that
/// begins anything else is left to the time limit of HTTP/1.
pub(super) struct HandshakeLimit<IO> {
    io: IO,
    /// `None` once the client has begun.
    deadline: Option<Pin<Box<Sleep>>>,
    received: usize,
    has_expired: Arc<AtomicBool>,
}

impl<IO> HandshakeLimit<IO> {
    pub(super) fn new(io: IO, limit: Duration) -> Self {
        Self {
            io,
            deadline: Some(Box::pin(sleep(limit))),
            received: 0,
            has_expired: Arc::default(),
        }
    }

    /// The connection itself.
    pub(super) fn get_ref(&self) -> &IO {
        &self.io
    }

    /// Is set when the time limit has passed.
    pub(super) fn expired_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_expired)
    }

    /// Examines bytes that the client has sent.
    fn received(&mut self, bytes: &[u8]) {
        let expected = &PREFACE[self.received.min(PREFACE.len())..];
        let compared = expected.len().min(bytes.len());
        let is_http2 = bytes[..compared] == expected[..compared];
        self.received += bytes.len();
        if !is_http2 || self.received >= PREFACE.len() + FRAME_HEADER {
            self.deadline = None;
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for HandshakeLimit<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        let Some(deadline) = &mut self.deadline else {
            return read;
        };
        if read.is_ready() {
            let bytes = &buffer.filled()[before..];
            self.received(bytes);
            return read;
        }
        match deadline.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                self.has_expired.store(true, Ordering::Relaxed);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for HandshakeLimit<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}
