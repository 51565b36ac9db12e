//! One decode step of all rows.

use super::layers::{
    FirstLayerPanel, NewStates, StoredSums, UpperLayerPanel, load_sums, logits, scale_panel,
};
use super::rows::{Ahead, LayerRows};
use crate::kernel::{Registers, Task};
use crate::packed::PackedWeights;
use crate::sums::{HiddenRows, for_row_blocks};

/// The order in which the panels of weights are read. Consecutive steps read
/// them in opposite directions, so that those read last, which are still in
/// the cache, are read first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the first panel to the last.
    Forward,
    /// From the last panel to the first.
    Reverse,
}

impl Direction {
    /// The other direction.
    pub(super) fn reversed(self) -> Self {
        match self {
            Self::Forward => Self::Reverse,
            Self::Reverse => Self::Forward,
        }
    }

    /// The panel that is read as number `index` of `panels`.
    #[inline(always)]
    pub(super) fn panel(self, index: usize, panels: usize) -> usize {
        match self {
            Self::Forward => index,
            Self::Reverse => panels - 1 - index,
        }
    }
}

/// A step, layer by layer.
pub(super) struct BatchStep<'a, R: Registers> {
    pub(super) weights: &'a PackedWeights<R>,
    pub(super) layers: &'a mut [LayerRows<R>],
    pub(super) tokens: &'a [u32],
    pub(super) direction: Direction,
    /// `[rows, vocabulary]`.
    pub(super) logits: &'a mut [f32],
}

impl<R: Registers> Task<R> for BatchStep<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, registers: R) {
        self.first_layer(registers);
        for index in 1..self.layers.len() {
            for panel in 0..self.weights.panels {
                self.upper_panel(registers, index, panel);
            }
            self.layers[index].publish();
        }
        self.logits(registers);
    }
}

impl<R: Registers> LayerRows<R> {
    /// Makes the new h the present one.
    #[inline(always)]
    pub(super) fn publish(&mut self) {
        std::mem::swap(&mut self.h, &mut self.next_h);
    }
}

impl<R: Registers> BatchStep<'_, R> {
    fn stride(&self) -> usize {
        self.weights.hidden_words()
    }

    #[inline(always)]
    fn first_layer(&mut self, registers: R) {
        let stride = self.stride();
        let layer = &mut self.layers[0];
        for panel in 0..self.weights.panels {
            let mut block = FirstLayerPanel {
                layer: &self.weights.layers[0],
                panels: self.weights.panels,
                panel,
                tokens: self.tokens,
                h: HiddenRows {
                    words: &layer.h,
                    stride,
                },
                new: NewStates {
                    c: &mut layer.c,
                    h: &mut layer.next_h,
                },
            };
            for_row_blocks(registers, self.tokens.len(), &mut block);
        }
        layer.publish();
    }

    /// One panel of a layer other than the first; the new h of the layer below
    /// has been published.
    #[inline(always)]
    fn upper_panel(&mut self, registers: R, index: usize, panel: usize) {
        let stride = self.stride();
        let weights = &self.weights.layers[index];
        let Some(input) = &weights.input else {
            unreachable!("only the first layer has no input matrix");
        };
        let (below, rest) = self.layers.split_at_mut(index);
        let layer = &mut rest[0];
        let mut block = UpperLayerPanel {
            layer: weights,
            input,
            panels: self.weights.panels,
            panel,
            below: HiddenRows {
                words: &below[index - 1].h,
                stride,
            },
            h: HiddenRows {
                words: &layer.h,
                stride,
            },
            new: NewStates {
                c: &mut layer.c,
                h: &mut layer.next_h,
            },
        };
        for_row_blocks(registers, self.tokens.len(), &mut block);
    }

    #[inline(always)]
    fn logits(&mut self, registers: R) {
        let stride = self.stride();
        let last = &self.layers[self.layers.len() - 1];
        let h = HiddenRows {
            words: &last.h,
            stride,
        };
        logits(registers, self.weights, h, self.tokens.len(), self.logits);
    }
}

/// A step of few rows, whose time is the time to read the weights.
///
/// The recurrent sums of the first layer for the *next* character need nothing
/// but the new h of that layer. They are computed together with the sums of
/// the second layer, so that one pass goes over all weights of a network of
/// two layers in any order, and consecutive passes in opposite directions.
/// Layer by layer, the end of a step (the second layer) would never be what
/// the next step starts with (the first).
pub(super) struct AheadStep<'a, R: Registers> {
    pub(super) step: BatchStep<'a, R>,
    pub(super) ahead: &'a mut Ahead<R>,
}

impl<R: Registers> Task<R> for AheadStep<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, registers: R) {
        let rows = self.step.tokens.len();
        let panels = self.step.weights.panels;
        if self.ahead.valid[..rows].contains(&false) {
            for panel in 0..panels {
                self.sums_ahead(registers, panel);
            }
        }
        self.first_cells(registers);
        self.ahead.valid.fill(false);
        self.ahead.valid[..rows].fill(true);
        let direction = self.step.direction;
        let layers = self.step.layers.len();
        for index in 0..panels {
            let panel = direction.panel(index, panels);
            self.sums_ahead(registers, panel);
            if layers > 1 {
                self.step.upper_panel(registers, 1, panel);
            }
        }
        for index in 1..layers {
            if index > 1 {
                for at in 0..panels {
                    let panel = direction.panel(at, panels);
                    self.step.upper_panel(registers, index, panel);
                }
            }
            self.step.layers[index].publish();
        }
        self.step.logits(registers);
    }
}

impl<R: Registers> AheadStep<'_, R> {
    /// The first layer's recurrent sums over its present h.
    #[inline(always)]
    fn sums_ahead(&mut self, registers: R, panel: usize) {
        let weights = self.step.weights;
        let mut block = StoredSums {
            matrix: &weights.layers[0].recurrent,
            panels: weights.panels,
            panel,
            h: HiddenRows {
                words: &self.step.layers[0].h,
                stride: weights.hidden_words(),
            },
            sums: &mut self.ahead.sums,
        };
        for_row_blocks(registers, self.step.tokens.len(), &mut block);
    }

    /// The first layer's cells, from sums that are there.
    #[inline(always)]
    fn first_cells(&mut self, registers: R) {
        let weights = self.step.weights;
        let (layer, panels) = (&weights.layers[0], weights.panels);
        let rows = &mut self.step.layers[0];
        let mut new = NewStates {
            c: &mut rows.c,
            h: &mut rows.next_h,
        };
        for (row, &token) in self.step.tokens.iter().enumerate() {
            for panel in 0..panels {
                let dots = load_sums(registers, &self.ahead.sums[row * panels + panel]);
                let initial = layer.initial(token as usize, panel, panels);
                let pre = scale_panel(registers, &layer.recurrent, panel, dots, initial);
                new.cells(registers, panels, panel, row, pre);
            }
        }
        rows.publish();
    }
}
