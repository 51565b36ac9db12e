//! One decode step of all rows.

use std::ops::Range;
use std::time::Instant;

use super::layers::{
    FirstLayerPanel, NewStates, StoredSums, UpperLayerPanel, load_sums, logits, scale_panel,
};
use super::partner::Partner;
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
        self.weights.hidden_groups()
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
                    groups: &layer.h,
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
                groups: &below[index - 1].h,
                stride,
            },
            h: HiddenRows {
                groups: &layer.h,
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
            groups: &last.h,
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
    /// Computes half of the panels if there is one row.
    pub(super) partner: Option<&'a mut Partner<R>>,
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
        // A network of one layer has the sums ahead to compute, too.
        for layer in 1..self.step.layers.len().max(2) {
            self.layer(registers, layer);
            if let Some(layer) = self.step.layers.get_mut(layer) {
                layer.publish();
            }
        }
        self.step.logits(registers);
    }
}

/// Some panels of a layer, as [`AheadStep`] computes them.
pub(super) struct PanelRange<'a, R: Registers> {
    pub(super) step: AheadStep<'a, R>,
    pub(super) layer: usize,
    pub(super) panels: Range<usize>,
}

impl<R: Registers> Task<R> for PanelRange<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, registers: R) {
        self.step.panels(registers, self.layer, self.panels);
    }
}

impl<R: Registers> AheadStep<'_, R> {
    /// All panels of a layer other than the first, if there is such a layer,
    /// and with those of layer 1 the sums ahead.
    #[inline(always)]
    fn layer(&mut self, registers: R, layer: usize) {
        let panels = self.step.weights.panels;
        let half = panels / 2;
        let begin = Instant::now();
        let shared = self.step.tokens.len() == 1
            && half > 0
            && self
                .partner
                .as_mut()
                .is_some_and(|partner| partner.request(layer, half, self.step.layers));
        if !shared {
            self.panels(registers, layer, 0..panels);
            return;
        }
        self.panels(registers, layer, 0..half);
        // What the own half took is what the partner may take longer.
        let patience = begin.elapsed();
        let collected = self
            .partner
            .as_mut()
            .is_some_and(|partner| partner.collect(patience, self.step.layers, self.ahead));
        if !collected {
            self.panels(registers, layer, half..panels);
        }
    }

    /// Some panels of a layer, and with those of layer 1 the sums ahead.
    #[inline(always)]
    fn panels(&mut self, registers: R, layer: usize, panels: Range<usize>) {
        for index in 0..panels.len() {
            let panel = panels.start + self.step.direction.panel(index, panels.len());
            if layer == 1 {
                self.sums_ahead(registers, panel);
            }
            if layer < self.step.layers.len() {
                self.step.upper_panel(registers, layer, panel);
            }
        }
    }

    /// The first layer's recurrent sums over its present h.
    #[inline(always)]
    fn sums_ahead(&mut self, registers: R, panel: usize) {
        let weights = self.step.weights;
        let mut block = StoredSums {
            matrix: &weights.layers[0].recurrent,
            panels: weights.panels,
            panel,
            h: HiddenRows {
                groups: &self.step.layers[0].h,
                stride: weights.hidden_groups(),
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
