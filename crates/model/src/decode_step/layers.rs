//! The arithmetic of a decode step and of a prefill, layer by layer, on SIMD
//! registers. The matrix products are in `kernel`; the states are in `simd`.

use pulp::{Simd, WithSimd};

use super::simd::{CHUNK_CHARS, CpuLayerState, PrefillBuffers};
use crate::kernel::{PanelProduct, SumsConsumer, SumsOfRow, activate_cells, multiply_rows, store};
use crate::packed::{GATES, PackedNetwork};

/// Maximum number of float32 values in a register of any CPU (AVX-512).
const MAX_LANES: usize = 16;

/// A decode step of all rows: from `layers[..].h` to `layers[..].next_h`.
pub(super) struct StepRows<'a> {
    pub(super) network: &'a PackedNetwork,
    pub(super) layers: &'a mut [CpuLayerState],
    /// One token id for each row.
    pub(super) tokens: &'a [u32],
    /// `[rows, vocabulary]`, overwritten.
    pub(super) logits: &'a mut [f32],
}

impl WithSimd for StepRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.tokens.len();
        for index in 0..self.layers.len() {
            let (below, rest) = self.layers.split_at_mut(index);
            let below = below.last().map(|layer| layer.next_h.as_slice());
            step_layer(simd, self.network, index, self.tokens, below, &mut rest[0]);
        }
        if let Some(last) = self.layers.last() {
            output_layer(simd, self.network, &last.next_h, rows, self.logits);
        }
    }
}

/// Steps one layer for all rows. `below` is the new h of the layer below,
/// `None` for the first layer.
#[inline(always)]
fn step_layer<S: Simd>(
    simd: S,
    network: &PackedNetwork,
    index: usize,
    tokens: &[u32],
    below: Option<&[f32]>,
    state: &mut CpuLayerState,
) {
    let (lanes, padded) = (network.lanes, network.padded_hidden());
    let (hidden, width) = (network.architecture.hidden_size, GATES * network.lanes);
    let layer = &network.layers[index];
    for panel in 0..network.panels {
        let weights = panel * hidden * width..(panel + 1) * hidden * width;
        let recurrent = PanelProduct {
            weights: &layer.recurrent[weights.clone()],
            rows: &state.h,
            stride: padded,
            inputs: hidden,
        };
        let initial = |row: usize| {
            let token = if index == 0 { tokens[row] as usize } else { 0 };
            &layer.initial[(token * network.panels + panel) * width..][..width]
        };
        let mut cells = ActivateCells {
            c: &mut state.c,
            h: &mut state.next_h,
            offset: panel * lanes,
            stride: padded,
        };
        match below {
            None => multiply_rows(simd, tokens.len(), &[recurrent], initial, &mut cells),
            Some(rows) => {
                let input = PanelProduct {
                    weights: &layer.input[weights],
                    rows,
                    ..recurrent
                };
                let products = [input, recurrent];
                multiply_rows(simd, tokens.len(), &products, initial, &mut cells);
            }
        }
    }
}

/// Turns the sums of one panel into c and h, both `[rows, stride]`.
struct ActivateCells<'a> {
    c: &'a mut [f32],
    h: &'a mut [f32],
    /// First unit of the panel.
    offset: usize,
    stride: usize,
}

impl SumsConsumer for ActivateCells<'_> {
    #[inline(always)]
    fn consume<S: Simd>(&mut self, simd: S, row: usize, sums: SumsOfRow<S>) {
        let start = row * self.stride + self.offset;
        let units = start..start + S::F32_LANES;
        activate_cells(simd, sums, &mut self.c[units.clone()], &mut self.h[units]);
    }
}

/// Stores the sums of one panel unchanged, `[rows, 4, lanes]`.
struct StoreSums<'a>(&'a mut [f32]);

impl SumsConsumer for StoreSums<'_> {
    #[inline(always)]
    fn consume<S: Simd>(&mut self, _: S, row: usize, sums: SumsOfRow<S>) {
        let width = GATES * S::F32_LANES;
        store::<S>(&mut self.0[row * width..][..width], sums);
    }
}

/// Stores the sums of one panel as logits, `[rows, vocabulary]`.
struct StoreLogits<'a> {
    logits: &'a mut [f32],
    /// First token of the panel.
    offset: usize,
    /// Tokens of the panel, without padding.
    count: usize,
    vocabulary: usize,
}

impl SumsConsumer for StoreLogits<'_> {
    #[inline(always)]
    fn consume<S: Simd>(&mut self, _: S, row: usize, sums: SumsOfRow<S>) {
        let mut values = [0.0; GATES * MAX_LANES];
        store::<S>(&mut values, sums);
        self.logits[row * self.vocabulary + self.offset..][..self.count]
            .copy_from_slice(&values[..self.count]);
    }
}

/// Computes the logits, `[rows, vocabulary]`, from h, `[rows, padded]`.
#[inline(always)]
fn output_layer<S: Simd>(
    simd: S,
    network: &PackedNetwork,
    h: &[f32],
    rows: usize,
    logits: &mut [f32],
) {
    let (hidden, width) = (network.architecture.hidden_size, GATES * network.lanes);
    let vocabulary = network.architecture.vocabulary_size;
    for panel in 0..network.output_panels {
        let product = PanelProduct {
            weights: &network.output[panel * hidden * width..][..hidden * width],
            rows: h,
            stride: network.padded_hidden(),
            inputs: hidden,
        };
        let mut store = StoreLogits {
            offset: panel * width,
            count: width.min(vocabulary - panel * width),
            vocabulary,
            logits,
        };
        let initial = |_| &network.output_initial[panel * width..][..width];
        multiply_rows(simd, rows, &[product], initial, &mut store);
    }
}

/// Feeds a chunk of at most [`CHUNK_CHARS`] characters to one sequence, layer
/// by layer: the product with the layer below for all characters at once, the
/// recurrent product character by character.
pub(super) struct PrefillChunk<'a> {
    pub(super) network: &'a PackedNetwork,
    pub(super) layers: &'a mut [CpuLayerState],
    pub(super) buffers: &'a mut PrefillBuffers,
    pub(super) tokens: &'a [u32],
    /// `[tokens.len(), vocabulary]`, overwritten, if the caller needs them.
    pub(super) logits: Option<&'a mut [f32]>,
}

impl WithSimd for PrefillChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let PrefillBuffers { below, above, sums } = self.buffers;
        for (index, state) in self.layers.iter_mut().enumerate() {
            if index > 0 {
                std::mem::swap(below, above);
                input_sums(simd, self.network, index, self.tokens.len(), below, sums);
            }
            prefill_layer(simd, self.network, index, self.tokens, sums, state, above);
        }
        if let Some(logits) = self.logits {
            output_layer(simd, self.network, above, self.tokens.len(), logits);
        }
    }
}

/// Computes the sums over the layer below for `count` characters.
#[inline(always)]
fn input_sums<S: Simd>(
    simd: S,
    network: &PackedNetwork,
    index: usize,
    count: usize,
    below: &[f32],
    sums: &mut [f32],
) {
    let (hidden, width) = (network.architecture.hidden_size, GATES * network.lanes);
    let layer = &network.layers[index];
    for panel in 0..network.panels {
        let product = PanelProduct {
            weights: &layer.input[panel * hidden * width..][..hidden * width],
            rows: below,
            stride: network.padded_hidden(),
            inputs: hidden,
        };
        let initial = |_| &layer.initial[panel * width..][..width];
        let mut store = StoreSums(&mut sums[panel * CHUNK_CHARS * width..][..count * width]);
        multiply_rows(simd, count, &[product], initial, &mut store);
    }
}

/// Steps one layer of one sequence over all characters of a chunk, and writes
/// its h after each of them to `above`. `sums` are those of [`input_sums`];
/// the first layer does not use them.
#[inline(always)]
fn prefill_layer<S: Simd>(
    simd: S,
    network: &PackedNetwork,
    index: usize,
    tokens: &[u32],
    sums: &[f32],
    state: &mut CpuLayerState,
    above: &mut [f32],
) {
    let (lanes, padded) = (network.lanes, network.padded_hidden());
    let (hidden, width) = (network.architecture.hidden_size, GATES * network.lanes);
    let layer = &network.layers[index];
    for (position, &token) in tokens.iter().enumerate() {
        for step in 0..network.panels {
            // Consecutive characters read the panels in opposite directions,
            // so that each starts with the panels that are still in cache.
            let panel = if position % 2 == 0 {
                step
            } else {
                network.panels - 1 - step
            };
            let recurrent = PanelProduct {
                weights: &layer.recurrent[panel * hidden * width..][..hidden * width],
                rows: &state.h,
                stride: padded,
                inputs: hidden,
            };
            let initial = |_| {
                if index == 0 {
                    &layer.initial[(token as usize * network.panels + panel) * width..][..width]
                } else {
                    &sums[(panel * CHUNK_CHARS + position) * width..][..width]
                }
            };
            let mut cells = ActivateCells {
                c: &mut state.c,
                h: &mut state.next_h,
                offset: panel * lanes,
                stride: padded,
            };
            multiply_rows(simd, 1, &[recurrent], initial, &mut cells);
        }
        std::mem::swap(&mut state.h, &mut state.next_h);
        above[position * padded..][..padded].copy_from_slice(&state.h);
    }
}
