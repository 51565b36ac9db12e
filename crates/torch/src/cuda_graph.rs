//! Streams and CUDA graphs of libtorch (`shim.cpp`).

use std::ffi::{CStr, c_char};
use std::ptr;

use tch::TchError;

use super::device_step::DeviceStep;
use super::step_launcher::{Capture, CapturedStep};

/// A stream of a GPU, `c10::cuda::CUDAStream`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RawStream {
    device_type: i8,
    device_index: i8,
    id: i64,
}

/// An `at::cuda::CUDAGraph`.
#[repr(C)]
struct RawGraph {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn charlstm_stream_new(
        device: i8,
        stream: *mut RawStream,
        message: *mut c_char,
        size: usize,
    ) -> bool;
    fn charlstm_stream_enter(
        stream: *const RawStream,
        before: *mut RawStream,
        message: *mut c_char,
        size: usize,
    ) -> bool;
    fn charlstm_graph_begin(graph: *mut *mut RawGraph, message: *mut c_char, size: usize) -> bool;
    fn charlstm_graph_end(graph: *mut RawGraph, message: *mut c_char, size: usize) -> bool;
    fn charlstm_graph_replay(graph: *mut RawGraph, message: *mut c_char, size: usize) -> bool;
    fn charlstm_graph_free(graph: *mut RawGraph, message: *mut c_char, size: usize) -> bool;
}

/// Calls a function of the shim with a buffer for the message of an exception.
fn call(function: impl FnOnce(*mut c_char, usize) -> bool) -> Result<(), TchError> {
    let mut message: [c_char; 2048] = [0; 2048];
    if function(message.as_mut_ptr(), message.len()) {
        return Ok(());
    }
    // SAFETY: the shim has written a text that ends in 0.
    let text = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy();
    // The other lines are a backtrace.
    let first_line = text.lines().next().unwrap_or_default();
    Err(TchError::Torch(first_line.to_owned()))
}

/// The stream of one training: it runs concurrently with those of other threads, and
/// libtorch can capture a graph only on a stream that is not the default one. The
/// default value keeps the current stream of the thread.
#[derive(Debug, Default)]
pub(super) struct TrainingStream {
    stream: Option<RawStream>,
}

impl TrainingStream {
    /// Reserves a stream of a GPU.
    ///
    /// # Errors
    /// libtorch failed, or has another version.
    pub(super) fn new(gpu: usize) -> Result<Self, TchError> {
        let index = i8::try_from(gpu)
            .map_err(|_| TchError::Torch(format!("there is no GPU number {gpu}")))?;
        let mut stream = RawStream::default();
        // SAFETY: `stream` is writable.
        call(|message, size| unsafe { charlstm_stream_new(index, &mut stream, message, size) })?;
        Ok(Self {
            stream: Some(stream),
        })
    }

    /// Makes this the current stream of the calling thread until the guard is
    /// dropped.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn enter(&self) -> Result<CurrentStream, TchError> {
        let Some(stream) = &self.stream else {
            return Ok(CurrentStream { before: None });
        };
        let mut before = RawStream::default();
        // SAFETY: both are valid.
        call(|message, size| unsafe { charlstm_stream_enter(stream, &mut before, message, size) })?;
        Ok(CurrentStream {
            before: Some(before),
        })
    }
}

/// The calling thread uses the stream of a training.
#[must_use = "the thread uses the stream until this is dropped"]
pub(super) struct CurrentStream {
    before: Option<RawStream>,
}

impl Drop for CurrentStream {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let mut ours = RawStream::default();
            // SAFETY: as in `enter`. A stream that was current once is accepted.
            let _ = call(|message, size| unsafe {
                charlstm_stream_enter(before, &mut ours, message, size)
            });
        }
    }
}

/// Captures training steps as CUDA graphs, on the current stream, which must not be
/// the default one.
#[derive(Debug)]
pub(super) struct CudaGraphs;

impl Capture for CudaGraphs {
    fn capture(&self, step: &mut DeviceStep) -> Result<Box<dyn CapturedStep>, TchError> {
        let mut graph = CudaGraph {
            raw: ptr::null_mut(),
        };
        // SAFETY: `raw` is writable.
        call(|message, size| unsafe { charlstm_graph_begin(&mut graph.raw, message, size) })?;
        let ran = step.run();
        // Ended in any case: nothing else could be launched before.
        // SAFETY: the graph has been started.
        let ended = call(|message, size| unsafe { charlstm_graph_end(graph.raw, message, size) });
        ran.and(ended)?;
        Ok(Box::new(graph))
    }
}

/// A captured step. Its tensors are in memory that the graph owns, or outlive it.
struct CudaGraph {
    raw: *mut RawGraph,
}

impl CapturedStep for CudaGraph {
    fn replay(&mut self) -> Result<(), TchError> {
        // SAFETY: the graph is complete.
        call(|message, size| unsafe { charlstm_graph_replay(self.raw, message, size) })
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the graph has no other owner. If this fails, its memory is not
            // freed before the process ends.
            let _ = call(|message, size| unsafe { charlstm_graph_free(self.raw, message, size) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_there_is_an_error_and_not_a_crash() {
        if tch::Cuda::is_available() {
            return;
        }
        let error = TrainingStream::new(0).expect_err("no GPU");
        assert!(!error.to_string().is_empty());
    }
}
