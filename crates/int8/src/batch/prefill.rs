//! Known characters of one sequence, a chunk at a time and layer by layer: the
//! sums over the layer below are one matrix product for all characters of the
//! chunk, the recurrent ones are computed character by character.

use super::layers::{NewStates, StoredSums, load_sums, logits, scale_panel};
use super::rows::LayerRows;
use super::step::Direction;
use crate::kernel::{Block, Registers, Task};
use crate::packed::{PANEL, PackedWeights, PanelInts};
use crate::sums::{HiddenRows, for_row_blocks, scale, sums};

/// Buffers of a prefill.
pub(super) struct Chunk<R: Registers> {
    /// h of the layer below after each character, `[MAX_LEN, hidden groups]`.
    below: Vec<u32>,
    /// h of the layer after each character, `[MAX_LEN, hidden groups]`.
    above: Vec<u32>,
    /// Sums over the layer below, `[MAX_LEN, panels]`.
    sums: Vec<PanelInts<R>>,
}

impl<R: Registers> Chunk<R> {
    /// Characters of a chunk. Enough to read the input weights seldom, and few
    /// enough that the sums leave the recurrent weights in the cache.
    pub(super) const MAX_LEN: usize = 32;

    pub(super) fn new(weights: &PackedWeights<R>) -> Self {
        Self {
            below: vec![0; Self::MAX_LEN * weights.hidden_groups()],
            above: vec![0; Self::MAX_LEN * weights.hidden_groups()],
            sums: vec![[R::IntBlock::ZERO; PANEL]; Self::MAX_LEN * weights.panels],
        }
    }
}

/// A chunk of characters through one sequence.
pub(super) struct Prefill<'a, R: Registers> {
    pub(super) weights: &'a PackedWeights<R>,
    /// The state of the sequence, one row.
    pub(super) layers: &'a mut [LayerRows<R>],
    pub(super) chunk: &'a mut Chunk<R>,
    /// At most [`Chunk::MAX_LEN`].
    pub(super) tokens: &'a [u32],
    /// `[tokens.len(), vocabulary]`, if they are wanted.
    pub(super) logits: Option<&'a mut [f32]>,
}

impl<R: Registers> Task<R> for Prefill<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, registers: R) {
        for index in 0..self.layers.len() {
            if index > 0 {
                std::mem::swap(&mut self.chunk.below, &mut self.chunk.above);
                self.input_sums(registers, index);
            }
            self.layer(registers, index);
        }
        if let Some(values) = self.logits {
            let h = HiddenRows {
                groups: &self.chunk.above,
                stride: self.weights.hidden_groups(),
            };
            logits(registers, self.weights, h, self.tokens.len(), values);
        }
    }
}

impl<R: Registers> Prefill<'_, R> {
    /// The sums over the layer below, for all characters.
    #[inline(always)]
    fn input_sums(&mut self, registers: R, index: usize) {
        let Some(matrix) = &self.weights.layers[index].input else {
            unreachable!("only the first layer has no input matrix");
        };
        let panels = self.weights.panels;
        for panel in 0..panels {
            let mut block = StoredSums {
                matrix,
                panels,
                panel,
                h: HiddenRows {
                    groups: &self.chunk.below,
                    stride: self.weights.hidden_groups(),
                },
                sums: &mut self.chunk.sums,
            };
            for_row_blocks(registers, self.tokens.len(), &mut block);
        }
    }

    /// One layer, character by character.
    #[inline(always)]
    fn layer(&mut self, registers: R, index: usize) {
        let layer = &self.weights.layers[index];
        let (panels, stride) = (self.weights.panels, self.weights.hidden_groups());
        let state = &mut self.layers[index];
        let mut direction = Direction::Forward;
        for (at, &token) in self.tokens.iter().enumerate() {
            for number in 0..panels {
                let panel = direction.panel(number, panels);
                let recurrent = layer.recurrent.panel::<PANEL>(panel * PANEL);
                let h = HiddenRows {
                    groups: &state.h,
                    stride,
                };
                let [dots] = sums::<R, 1, PANEL>(registers, recurrent, h, 0);
                let token = if index == 0 { token as usize } else { 0 };
                let initial = layer.initial(token, panel, panels);
                let mut pre = scale_panel(registers, &layer.recurrent, panel, dots, initial);
                if let Some(input) = &layer.input {
                    let dots = load_sums(registers, &self.chunk.sums[at * panels + panel]);
                    let scales = input.panel::<PANEL>(panel * PANEL).scales;
                    pre = scale(registers, dots, scales, pre);
                }
                let mut new = NewStates {
                    c: &mut state.c,
                    h: &mut state.next_h,
                };
                new.cells(registers, panels, panel, 0, pre);
            }
            state.publish();
            self.chunk.above[at * stride..][..stride].copy_from_slice(&state.h);
            direction = direction.reversed();
        }
    }
}
