//! The float32 decode step on the CPU: packed weights, and the states of a
//! batch, padded to whole panels.

use std::sync::Arc;

use pulp::Arch;

use super::layers::{PrefillChunk, StepRows};
use super::{Arithmetic, BatchBackend, DecodeError, HiddenState, WeightLayout};
use crate::kernel::register_lanes;
use crate::packed::{GATES, PackedNetwork};
use crate::parameters::Parameters;

/// Characters that pass through one layer of a prefill together. Their product
/// with the layer below is computed at once; more would gain little and take
/// more memory.
pub(super) const CHUNK_CHARS: usize = 64;

/// Weights packed for the registers of this CPU.
#[derive(Debug)]
pub(super) struct SimdWeights {
    network: Arc<PackedNetwork>,
    arch: Arch,
}

impl SimdWeights {
    /// Packs the weights for these registers. Blocks for some milliseconds per
    /// million parameters.
    pub(super) fn new(parameters: &Parameters, arch: Arch) -> Self {
        let network = PackedNetwork::new(parameters, register_lanes(arch));
        Self {
            network: Arc::new(network),
            arch,
        }
    }
}

impl WeightLayout for SimdWeights {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::FLOAT32
    }

    fn bytes(&self) -> usize {
        self.network.bytes()
    }

    fn batch(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError> {
        let network = Arc::clone(&self.network);
        Ok(Box::new(SimdBatch::new(network, self.arch, max_rows)))
    }
}

/// The states of one layer; each row is padded to whole panels.
pub(super) struct CpuLayerState {
    /// `[max_rows, padded]`.
    pub(super) h: Vec<f32>,
    /// The new h during a step, which still reads all of the old one.
    pub(super) next_h: Vec<f32>,
    /// `[max_rows, padded]`.
    pub(super) c: Vec<f32>,
}

impl CpuLayerState {
    fn new(rows: usize, padded: usize) -> Self {
        let zeros = || vec![0.0; rows * padded];
        Self {
            h: zeros(),
            next_h: zeros(),
            c: zeros(),
        }
    }
}

/// Buffers of a prefill, for one chunk.
pub(super) struct PrefillBuffers {
    /// h of the layer below after each character, `[CHUNK_CHARS, padded]`.
    pub(super) below: Vec<f32>,
    /// h of this layer after each character, `[CHUNK_CHARS, padded]`.
    pub(super) above: Vec<f32>,
    /// Sums over the layer below, `[panels, CHUNK_CHARS, 4, lanes]`.
    pub(super) sums: Vec<f32>,
}

/// The states of a batch on the CPU. Its operations never return an error,
/// because there is no device that could fail.
pub(super) struct SimdBatch {
    network: Arc<PackedNetwork>,
    arch: Arch,
    layers: Vec<CpuLayerState>,
    /// `[max_rows, vocabulary]`.
    logits: Vec<f32>,
    /// One row: the sequence that is being prefilled.
    prefill_layers: Vec<CpuLayerState>,
    prefill_buffers: PrefillBuffers,
}

impl SimdBatch {
    /// Allocates the states of `max_rows` rows.
    pub(super) fn new(network: Arc<PackedNetwork>, arch: Arch, max_rows: usize) -> Self {
        let padded = network.padded_hidden();
        let layers = network.architecture.num_layers;
        let states = |rows| {
            (0..layers)
                .map(|_| CpuLayerState::new(rows, padded))
                .collect()
        };
        Self {
            arch,
            layers: states(max_rows),
            logits: vec![0.0; max_rows * network.architecture.vocabulary_size],
            prefill_layers: states(1),
            prefill_buffers: PrefillBuffers {
                below: vec![0.0; CHUNK_CHARS * padded],
                above: vec![0.0; CHUNK_CHARS * padded],
                sums: vec![0.0; CHUNK_CHARS * padded * GATES],
            },
            network,
        }
    }
}

impl BatchBackend for SimdBatch {
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), DecodeError> {
        write_row(&self.network, &mut self.layers, row, state);
        Ok(())
    }

    fn read(&self, row: usize) -> Result<HiddenState, DecodeError> {
        Ok(read_row(&self.network, &self.layers, row))
    }

    fn move_last(&mut self, from: usize, to: usize) -> Result<(), DecodeError> {
        let padded = self.network.padded_hidden();
        let from = from * padded..(from + 1) * padded;
        for layer in &mut self.layers {
            layer.h.copy_within(from.clone(), to * padded);
            layer.c.copy_within(from.clone(), to * padded);
        }
        Ok(())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError> {
        let network = &self.network;
        self.arch.dispatch(StepRows {
            network,
            layers: &mut self.layers,
            tokens,
            logits: &mut self.logits,
        });
        for layer in &mut self.layers {
            std::mem::swap(&mut layer.h, &mut layer.next_h);
        }
        Ok(&self.logits[..tokens.len() * network.architecture.vocabulary_size])
    }

    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        mut logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError> {
        let network = &self.network;
        write_row(network, &mut self.prefill_layers, 0, state);
        for tokens in tokens.chunks(CHUNK_CHARS) {
            let logits = logits.as_deref_mut().map(|all| {
                let start = all.len();
                all.resize(
                    start + tokens.len() * network.architecture.vocabulary_size,
                    0.0,
                );
                &mut all[start..]
            });
            self.arch.dispatch(PrefillChunk {
                network,
                layers: &mut self.prefill_layers,
                buffers: &mut self.prefill_buffers,
                tokens,
                logits,
            });
        }
        *state = read_row(network, &self.prefill_layers, 0);
        Ok(())
    }
}

fn write_row(
    network: &PackedNetwork,
    layers: &mut [CpuLayerState],
    row: usize,
    state: &HiddenState,
) {
    let (hidden, padded) = (network.architecture.hidden_size, network.padded_hidden());
    for (layer, values) in layers
        .iter_mut()
        .zip(state.float32().chunks_exact(2 * hidden))
    {
        let (h, c) = values.split_at(hidden);
        for (row, values) in [
            (&mut layer.h[row * padded..][..padded], h),
            (&mut layer.c[row * padded..][..padded], c),
        ] {
            row[..hidden].copy_from_slice(values);
            row[hidden..].fill(0.0);
        }
    }
}

fn read_row(network: &PackedNetwork, layers: &[CpuLayerState], row: usize) -> HiddenState {
    let (hidden, padded) = (network.architecture.hidden_size, network.padded_hidden());
    let mut values = Vec::with_capacity(network.architecture.state_len());
    for layer in layers {
        values.extend_from_slice(&layer.h[row * padded..][..hidden]);
        values.extend_from_slice(&layer.c[row * padded..][..hidden]);
    }
    HiddenState::Float32(values.into_boxed_slice())
}
