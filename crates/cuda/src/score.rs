//! Scores in float32 on a device: the logits after each character of a known
//! text, bit for bit those of the CPU.

pub(crate) mod chunk;
pub(crate) mod launch;
pub(crate) mod network;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DriverError, result, sys};

use self::chunk::{pack_chunk, unpack_state};
use self::launch::{CHUNK_HEADER, SCORE_CHUNK, ScoreAddresses, score_chunk};
pub use self::network::CudaFloatNetwork;
use crate::error::CudaError;
use crate::graph::{Graph, launch_kernel};
use crate::launch::chunk_characters;
use crate::memory::{DeviceMemory, PinnedMemory};

/// Maximum bytes of the logits of a chunk, unless one character has more:
/// bounds the memory and the time of a copy. Up to a vocabulary of 16,384, a
/// chunk has [`SCORE_CHUNK`] characters.
const LOGITS_BYTES: usize = 4 << 20;

/// Scores texts on a stream of its own, one chunk of characters at a time. The
/// results are bit for bit those of the CPU's float32 decode step, however a
/// text is divided.
///
/// Memory on the device: h of all layers for 64 characters, and their logits,
/// which page-locked host memory also holds.
pub struct CudaScorer {
    graphs: HashMap<usize, Graph>,
    stream: Arc<CudaStream>,
    chunk: DeviceMemory,
    results: DeviceMemory,
    h: DeviceMemory,
    c: DeviceMemory,
    sums: DeviceMemory,
    host_chunk: PinnedMemory<u32>,
    host_results: PinnedMemory<f32>,
    max_characters: usize,
    failure: Option<CudaError>,
    network: Arc<CudaFloatNetwork>,
}

impl CudaScorer {
    /// Allocates all memory that scores of a network need.
    ///
    /// # Errors
    /// Fails if the device has too little memory or is lost.
    pub fn new(network: Arc<CudaFloatNetwork>) -> Result<Self, CudaError> {
        const WHAT: &str = "the memory of a score";
        let device = network.device();
        device.bind()?;
        let stream = device.stream()?;
        let context = stream.context().clone();
        let sizes = network.sizes();
        let max_characters = max_characters(sizes.vocabulary);
        let chunk = CHUNK_HEADER + sizes.state_len();
        let results = sizes.state_len() + max_characters * sizes.vocabulary;
        let numbers = |count: usize| DeviceMemory::zeroed(&stream, WHAT, count * size_of::<f32>());
        let mut scorer = Self {
            graphs: HashMap::new(),
            chunk: numbers(chunk)?,
            results: numbers(results)?,
            h: numbers(sizes.layers * SCORE_CHUNK * sizes.columns())?,
            c: numbers(sizes.layers * sizes.columns())?,
            sums: numbers((sizes.layers - 1) * 2 * sizes.rows())?,
            host_chunk: PinnedMemory::zeroed(&context, WHAT, chunk)?,
            host_results: PinnedMemory::zeroed(&context, WHAT, results)?,
            max_characters,
            failure: None,
            stream,
            network,
        };
        scorer.complete("preparing a score", Ok(()))?;
        Ok(scorer)
    }

    /// Feeds characters to a sequence and appends the logits after each of
    /// them, `[tokens][vocabulary]`, to `logits`. `state` is `[layers][2]
    /// [hidden]`, h before c. Blocks until the device has finished, some
    /// microseconds per character.
    ///
    /// # Errors
    /// Fails if the state has another shape or a token id is outside the
    /// vocabulary, or if the device fails; then the scorer cannot be used any
    /// more. `state` and `logits` are as before after every error.
    pub fn feed(
        &mut self,
        state: &mut [f32],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        let mut after = state.to_vec();
        let length = logits.len();
        match self.feed_chunks(&mut after, tokens, logits) {
            Ok(()) => {
                state.copy_from_slice(&after);
                Ok(())
            }
            Err(error) => {
                logits.truncate(length);
                Err(error)
            }
        }
    }

    fn feed_chunks(
        &mut self,
        state: &mut [f32],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        self.check(state, tokens)?;
        let sizes = *self.network.sizes();
        let mut left = tokens;
        while !left.is_empty() {
            // Few different numbers, so that few graphs are needed.
            let characters = chunk_characters(left.len()).min(self.max_characters);
            let (now, later) = left.split_at(characters.min(left.len()));
            left = later;
            if !self.graphs.contains_key(&characters) {
                let captured = self.capture(characters);
                let graph = captured.inspect_err(|error| self.failure = Some(error.clone()))?;
                self.graphs.insert(characters, graph);
            }
            // SAFETY: every call waits for the device before it returns, or
            // leaves the scorer unusable.
            pack_chunk(&sizes, now, state, unsafe { self.host_chunk.values_mut() });
            let Some(graph) = self.graphs.get_mut(&characters) else {
                unreachable!("inserted above");
            };
            // SAFETY: the stream is waited for before the host's memory is
            // used again.
            let launched = unsafe { graph.launch() };
            self.complete("a score", launched)?;
            // SAFETY: the stream has completed.
            let results = unsafe { self.host_results.values() };
            let (end, of_chunk) = results.split_at(sizes.state_len());
            unpack_state(&sizes, end, state);
            logits.extend_from_slice(&of_chunk[..now.len() * sizes.vocabulary]);
        }
        Ok(())
    }

    /// Waits until the device has done everything that was submitted, and
    /// marks the scorer as failed if that or the submission fails.
    fn complete(
        &mut self,
        operation: &'static str,
        submitted: Result<(), DriverError>,
    ) -> Result<(), CudaError> {
        let completed = self.stream.synchronize();
        submitted.and(completed).map_err(|error| {
            let error = CudaError::driver(operation, error);
            self.failure = Some(error.clone());
            error
        })
    }

    fn check(&self, state: &[f32], tokens: &[u32]) -> Result<(), CudaError> {
        match &self.failure {
            None => {}
            Some(cause @ CudaError::DeviceLost { .. }) => return Err(cause.clone()),
            Some(cause) => return Err(CudaError::BatchFailed(Box::new(cause.clone()))),
        }
        let architecture = self.network.architecture();
        if state.len() != architecture.state_len() {
            return Err(CudaError::StateShape {
                given: state.len() / 2,
                expected: architecture.state_len() / 2,
            });
        }
        let vocabulary = architecture.vocabulary_size;
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(CudaError::InvalidToken { token, vocabulary }),
            None => Ok(()),
        }
    }

    /// Prepares a chunk of up to `characters` characters: copies it to the
    /// device, launches the kernels, and copies the results back.
    fn capture(&self, characters: usize) -> Result<Graph, CudaError> {
        let failed = |error| CudaError::driver("preparing a score", error);
        let (device, sizes) = (self.network.device(), self.network.sizes());
        let buffers = ScoreAddresses {
            chunk: self.chunk.address(),
            results: self.results.address(),
            h: self.h.address(),
            c: self.c.address(),
            sums: self.sums.address(),
        };
        let launches = score_chunk(sizes, self.network.addresses(), &buffers, characters);
        let results = sizes.state_len() + characters * sizes.vocabulary;
        let stream = self.stream.cu_stream();
        device.bind()?;
        let operations = || {
            // SAFETY: recorded, not executed: the copies themselves happen in
            // launches of the graph. Both sides have this size.
            let host_chunk = unsafe { self.host_chunk.values() };
            // SAFETY: as above.
            unsafe { result::memcpy_htod_async(self.chunk.address(), host_chunk, stream) }
                .map_err(failed)?;
            for (place, launch) in launches.iter().enumerate() {
                // The first kernel follows a copy, which must be complete.
                let overlap = device.programmatic_launch() && place > 0;
                // SAFETY: the addresses are those of the scorer and its
                // network, whose sizes are those of the grid.
                unsafe { launch_kernel(device, &self.stream, launch, overlap) }?;
            }
            // SAFETY: as for the first copy.
            unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    self.host_results.address() as *mut c_void,
                    self.results.address(),
                    results * size_of::<f32>(),
                    stream,
                )
            }
            .result()
            .map_err(failed)
        };
        // SAFETY: graphs are dropped before the memory (the order of fields),
        // and no memory of a scorer or its network is ever replaced.
        unsafe { Graph::capture(&self.stream, operations) }
    }
}

impl Drop for CudaScorer {
    fn drop(&mut self) {
        // Nothing may be in progress when the memory is freed. An error is one
        // that the caller has already seen, or will see on the device's next
        // use.
        let _ = self.stream.synchronize();
    }
}

/// Maximum number of characters of a chunk: a power of two.
fn max_characters(vocabulary: usize) -> usize {
    let fitting = LOGITS_BYTES / size_of::<f32>() / vocabulary.max(1);
    1 << fitting.clamp(1, SCORE_CHUNK).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_has_fewer_characters_if_the_vocabulary_is_very_large() {
        for (vocabulary, characters) in [
            (1, 64),
            (83, 64),
            (16_384, 64),
            (16_385, 32),
            (100_000, 8),
            (1 << 21, 1),
        ] {
            assert_eq!(max_characters(vocabulary), characters, "{vocabulary}");
        }
    }
}
