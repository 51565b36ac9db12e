//! The states of a batch on the processor, padded to whole panels, and the
//! way from a call to the passes over them.

use std::sync::Arc;

use pulp::Arch;

use super::layers::{BatchStep, Lanes, Prefill};
use super::{Arithmetic, BatchBackend, DecodeError, HiddenState, WeightLayout};
use crate::packed::{GATES, PackedNetwork};
use crate::parameters::Parameters;

/// Characters that go through one layer of a prefill together. The product
/// with the layer below is made for all of them at once; more would win
/// little and take more memory.
pub(super) const CHUNK_CHARS: usize = 64;

/// Weights laid out for the registers of this machine.
#[derive(Debug)]
pub(super) struct SimdWeights(Arc<PackedNetwork>);

impl SimdWeights {
    pub(super) fn new(parameters: &Parameters) -> Self {
        let lanes = Arch::new().dispatch(Lanes);
        Self(Arc::new(PackedNetwork::new(parameters, lanes)))
    }
}

impl WeightLayout for SimdWeights {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::FLOAT32
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn batch(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError> {
        Ok(Box::new(SimdBatch::new(Arc::clone(&self.0), max_rows)))
    }
}

/// The resident state of one layer; each row padded to whole panels.
pub(super) struct LayerState {
    /// `[max_rows, padded]`.
    pub(super) h: Vec<f32>,
    /// Where a step writes the new h, since all of the old is still read.
    pub(super) next_h: Vec<f32>,
    /// `[max_rows, padded]`.
    pub(super) c: Vec<f32>,
}

impl LayerState {
    fn new(rows: usize, padded: usize) -> Self {
        let zeros = || vec![0.0; rows * padded];
        Self {
            h: zeros(),
            next_h: zeros(),
            c: zeros(),
        }
    }
}

/// Buffers of a prefill.
pub(super) struct PrefillChunk {
    /// h of the layer below after each character, `[CHUNK_CHARS, padded]`.
    pub(super) below: Vec<f32>,
    /// h of this layer after each character, `[CHUNK_CHARS, padded]`.
    pub(super) above: Vec<f32>,
    /// Sums over the layer below, `[panels, CHUNK_CHARS, 4, lanes]`.
    pub(super) sums: Vec<f32>,
}

/// The states of a batch. Nothing here fails: there is no device to fail.
pub(super) struct SimdBatch {
    network: Arc<PackedNetwork>,
    arch: Arch,
    layers: Vec<LayerState>,
    /// `[max_rows, vocabulary]`.
    logits: Vec<f32>,
    /// One row: the sequence that is being prefilled.
    single: Vec<LayerState>,
    stretch: PrefillChunk,
}

impl SimdBatch {
    /// Room for `max_rows` rows.
    pub(super) fn new(network: Arc<PackedNetwork>, max_rows: usize) -> Self {
        let padded = network.padded_hidden();
        let layers = network.architecture.num_layers;
        let states = |rows| (0..layers).map(|_| LayerState::new(rows, padded)).collect();
        Self {
            arch: Arch::new(),
            layers: states(max_rows),
            logits: vec![0.0; max_rows * network.architecture.vocabulary_size],
            single: states(1),
            stretch: PrefillChunk {
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

    fn copy(&mut self, from: usize, to: usize) -> Result<(), DecodeError> {
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
        self.arch.dispatch(BatchStep {
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
        write_row(network, &mut self.single, 0, state);
        for tokens in tokens.chunks(CHUNK_CHARS) {
            let logits = logits.as_deref_mut().map(|all| {
                let begin = all.len();
                all.resize(
                    begin + tokens.len() * network.architecture.vocabulary_size,
                    0.0,
                );
                &mut all[begin..]
            });
            self.arch.dispatch(Prefill {
                network,
                layers: &mut self.single,
                stretch: &mut self.stretch,
                tokens,
                logits,
            });
        }
        *state = read_row(network, &self.single, 0);
        Ok(())
    }
}

fn write_row(network: &PackedNetwork, layers: &mut [LayerState], row: usize, state: &HiddenState) {
    let (hidden, padded) = (network.architecture.hidden_size, network.padded_hidden());
    for (layer, numbers) in layers.iter_mut().zip(state.0.chunks_exact(2 * hidden)) {
        let (h, c) = numbers.split_at(hidden);
        for (row, numbers) in [
            (&mut layer.h[row * padded..][..padded], h),
            (&mut layer.c[row * padded..][..padded], c),
        ] {
            row[..hidden].copy_from_slice(numbers);
            row[hidden..].fill(0.0);
        }
    }
}

fn read_row(network: &PackedNetwork, layers: &[LayerState], row: usize) -> HiddenState {
    let (hidden, padded) = (network.architecture.hidden_size, network.padded_hidden());
    let mut numbers = Vec::with_capacity(network.architecture.state_len());
    for layer in layers {
        numbers.extend_from_slice(&layer.h[row * padded..][..hidden]);
        numbers.extend_from_slice(&layer.c[row * padded..][..hidden]);
    }
    HiddenState(numbers.into_boxed_slice())
}
