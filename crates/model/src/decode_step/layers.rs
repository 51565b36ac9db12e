//! What is computed in a step and in a prefill, layer by layer, on SIMD
//! registers. The sums themselves are in `kernel`; whose states they are is
//! in `simd`.

use pulp::{Simd, WithSimd};

use super::simd::{CHUNK_CHARS, LayerState, PrefillChunk};
use crate::kernel::{Finish, Product, Sums, cell, for_rows, store};
use crate::packed::{GATES, PackedNetwork};

/// Most numbers in a register of any machine.
const MAX_LANES: usize = 16;

/// How many numbers a register of this machine holds.
pub(super) struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// One step of all rows: `layers[..].h` to `layers[..].next_h`.
pub(super) struct BatchStep<'a> {
    pub(super) network: &'a PackedNetwork,
    pub(super) layers: &'a mut [LayerState],
    pub(super) tokens: &'a [u32],
    pub(super) logits: &'a mut [f32],
}

impl WithSimd for BatchStep<'_> {
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
            output(simd, self.network, &last.next_h, rows, self.logits);
        }
    }
}

#[inline(always)]
fn step_layer<S: Simd>(
    simd: S,
    network: &PackedNetwork,
    index: usize,
    tokens: &[u32],
    below: Option<&[f32]>,
    state: &mut LayerState,
) {
    let (lanes, padded) = (network.lanes, network.padded_hidden());
    let (hidden, width) = (network.architecture.hidden_size, GATES * network.lanes);
    let layer = &network.layers[index];
    for panel in 0..network.panels {
        let weights = panel * hidden * width..(panel + 1) * hidden * width;
        let recurrent = Product {
            weights: &layer.recurrent[weights.clone()],
            rows: &state.h,
            stride: padded,
            inputs: hidden,
        };
        let begin = |row: usize| {
            let token = if index == 0 { tokens[row] as usize } else { 0 };
            &layer.initial[(token * network.panels + panel) * width..][..width]
        };
        let mut cells = Cells {
            c: &mut state.c,
            h: &mut state.next_h,
            offset: panel * lanes,
            stride: padded,
        };
        match below {
            None => for_rows(simd, tokens.len(), &[recurrent], begin, &mut cells),
            Some(rows) => {
                let input = Product {
                    weights: &layer.input[weights],
                    rows,
                    ..recurrent
                };
                for_rows(simd, tokens.len(), &[input, recurrent], begin, &mut cells);
            }
        }
    }
}

/// Cells of one panel: sums to c and h, `[rows, stride]`.
struct Cells<'a> {
    c: &'a mut [f32],
    h: &'a mut [f32],
    offset: usize,
    stride: usize,
}

impl Finish for Cells<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, row: usize, sums: Sums<S>) {
        let at = row * self.stride + self.offset;
        let units = at..at + S::F32_LANES;
        cell(simd, sums, &mut self.c[units.clone()], &mut self.h[units]);
    }
}

/// Sums of one panel as they are, `[rows, 4, lanes]`.
struct Kept<'a>(&'a mut [f32]);

impl Finish for Kept<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, row: usize, sums: Sums<S>) {
        let width = GATES * S::F32_LANES;
        store::<S>(&mut self.0[row * width..][..width], sums);
    }
}

/// Logits of one panel, `[rows, vocabulary]`.
struct Logits<'a> {
    logits: &'a mut [f32],
    offset: usize,
    columns: usize,
    vocabulary: usize,
}

impl Finish for Logits<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, row: usize, sums: Sums<S>) {
        let mut numbers = [0.0; GATES * MAX_LANES];
        store::<S>(&mut numbers, sums);
        self.logits[row * self.vocabulary + self.offset..][..self.columns]
            .copy_from_slice(&numbers[..self.columns]);
    }
}

/// The linear layer: h `[rows, padded]` to logits `[rows, vocabulary]`.
#[inline(always)]
fn output<S: Simd>(simd: S, network: &PackedNetwork, h: &[f32], rows: usize, logits: &mut [f32]) {
    let (hidden, width) = (network.architecture.hidden_size, GATES * network.lanes);
    let vocabulary = network.architecture.vocabulary_size;
    for panel in 0..network.output_panels {
        let product = Product {
            weights: &network.output[panel * hidden * width..][..hidden * width],
            rows: h,
            stride: network.padded_hidden(),
            inputs: hidden,
        };
        let mut finish = Logits {
            offset: panel * width,
            columns: width.min(vocabulary - panel * width),
            vocabulary,
            logits,
        };
        let begin = |_| &network.output_initial[panel * width..][..width];
        for_rows(simd, rows, &[product], begin, &mut finish);
    }
}

/// A stretch of characters through one sequence, layer by layer: the product
/// with the layer below for all characters at once, the recurrent one
/// character by character.
pub(super) struct Prefill<'a> {
    pub(super) network: &'a PackedNetwork,
    pub(super) layers: &'a mut [LayerState],
    pub(super) stretch: &'a mut PrefillChunk,
    pub(super) tokens: &'a [u32],
    pub(super) logits: Option<&'a mut [f32]>,
}

impl WithSimd for Prefill<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let PrefillChunk { below, above, sums } = self.stretch;
        for (index, state) in self.layers.iter_mut().enumerate() {
            if index > 0 {
                std::mem::swap(below, above);
                sums_over_below(simd, self.network, index, self.tokens.len(), below, sums);
            }
            prefill_layer(simd, self.network, index, self.tokens, sums, state, above);
        }
        if let Some(logits) = self.logits {
            output(simd, self.network, above, self.tokens.len(), logits);
        }
    }
}

#[inline(always)]
fn sums_over_below<S: Simd>(
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
        let product = Product {
            weights: &layer.input[panel * hidden * width..][..hidden * width],
            rows: below,
            stride: network.padded_hidden(),
            inputs: hidden,
        };
        let begin = |_| &layer.initial[panel * width..][..width];
        let mut kept = Kept(&mut sums[panel * CHUNK_CHARS * width..][..count * width]);
        for_rows(simd, count, &[product], begin, &mut kept);
    }
}

#[inline(always)]
fn prefill_layer<S: Simd>(
    simd: S,
    network: &PackedNetwork,
    index: usize,
    tokens: &[u32],
    sums: &[f32],
    state: &mut LayerState,
    above: &mut [f32],
) {
    let (lanes, padded) = (network.lanes, network.padded_hidden());
    let (hidden, width) = (network.architecture.hidden_size, GATES * network.lanes);
    let layer = &network.layers[index];
    for (at, &token) in tokens.iter().enumerate() {
        for panel in 0..network.panels {
            // There and back: what the cache still holds of the weights is
            // what was read last.
            let panel = if at % 2 == 0 {
                panel
            } else {
                network.panels - 1 - panel
            };
            let recurrent = Product {
                weights: &layer.recurrent[panel * hidden * width..][..hidden * width],
                rows: &state.h,
                stride: padded,
                inputs: hidden,
            };
            let begin = |_| {
                if index == 0 {
                    &layer.initial[(token as usize * network.panels + panel) * width..][..width]
                } else {
                    &sums[(panel * CHUNK_CHARS + at) * width..][..width]
                }
            };
            let mut cells = Cells {
                c: &mut state.c,
                h: &mut state.next_h,
                offset: panel * lanes,
                stride: padded,
            };
            for_rows(simd, 1, &[recurrent], begin, &mut cells);
        }
        std::mem::swap(&mut state.h, &mut state.next_h);
        above[at * padded..][..padded].copy_from_slice(&state.h);
    }
}
