//! The states of a batch in the form of a kernel.

use std::io;
use std::sync::Arc;

use super::Rows;
use super::partner::Partner;
use super::prefill::{Chunk, Prefill};
use super::step::{AheadStep, BatchStep, Direction};
use crate::kernel::{Block, Registers, decode, encode};
use crate::packed::{PANEL, PackedWeights, PanelInts};
use crate::state::State;

/// The resident states of one layer.
pub(super) struct LayerRows<R: Registers> {
    /// h, `[rows, hidden groups]`.
    pub(super) h: Vec<u32>,
    /// Where a step writes the new h while the old one is still read.
    pub(super) next_h: Vec<u32>,
    /// c, `[rows, panels]`.
    pub(super) c: Vec<R::FloatBlock>,
}

impl<R: Registers> LayerRows<R> {
    pub(super) fn new(weights: &PackedWeights<R>, rows: usize) -> Self {
        let mut layer = Self {
            h: Vec::new(),
            next_h: Vec::new(),
            c: Vec::new(),
        };
        layer.resize(weights, rows);
        layer
    }

    fn resize(&mut self, weights: &PackedWeights<R>, rows: usize) {
        self.h.resize(rows * weights.hidden_groups(), 0);
        self.next_h.resize(rows * weights.hidden_groups(), 0);
        self.c.resize(rows * weights.panels, R::FloatBlock::ZERO);
    }
}

/// Up to this number of rows a step is bound by the time to read the weights,
/// not by arithmetic, and the first layer's recurrent sums are computed one
/// step ahead: see [`AheadStep`].
const MAX_AHEAD_ROWS: usize = 4;

/// Sums over h of the first layer, for the next character.
pub(super) struct Ahead<R: Registers> {
    /// `[rows, panels]`.
    pub(super) sums: Vec<PanelInts<R>>,
    /// Whether the sums of a row belong to its present h.
    pub(super) valid: [bool; MAX_AHEAD_ROWS],
}

impl<R: Registers> Ahead<R> {
    pub(super) fn new(weights: &PackedWeights<R>, rows: usize) -> Self {
        let mut ahead = Self {
            sums: Vec::new(),
            valid: [false; MAX_AHEAD_ROWS],
        };
        ahead.resize(weights, rows);
        ahead
    }

    fn resize(&mut self, weights: &PackedWeights<R>, rows: usize) {
        let sums = rows.min(MAX_AHEAD_ROWS) * weights.panels;
        self.sums.resize(sums, [R::IntBlock::ZERO; PANEL]);
    }
}

/// The states of a batch and the buffers of its arithmetic.
pub(super) struct KernelRows<R: Registers> {
    weights: Arc<PackedWeights<R>>,
    layers: Vec<LayerRows<R>>,
    ahead: Ahead<R>,
    partner: Option<Partner<R>>,
    direction: Direction,
    /// `[rows, vocabulary]`.
    logits: Vec<f32>,
    /// The sequence that is being prefilled: one row.
    single: Vec<LayerRows<R>>,
    chunk: Chunk<R>,
}

impl<R: Registers> KernelRows<R> {
    /// No rows.
    pub(super) fn new(weights: Arc<PackedWeights<R>>) -> Self {
        let layers = |rows| {
            (0..weights.shape.num_layers())
                .map(|_| LayerRows::new(&weights, rows))
                .collect()
        };
        Self {
            layers: layers(0),
            ahead: Ahead::new(&weights, 0),
            partner: None,
            direction: Direction::Forward,
            logits: Vec::new(),
            single: layers(1),
            chunk: Chunk::new(&weights),
            weights,
        }
    }
}

impl<R: Registers> Rows for KernelRows<R> {
    fn reserve(&mut self, rows: usize) {
        let vocabulary = self.weights.shape.vocabulary_size();
        let present = self.logits.len() / vocabulary;
        if rows <= present {
            return;
        }
        // Doubling, so that a batch that grows row by row is seldom moved.
        let rows = rows.next_power_of_two();
        for layer in &mut self.layers {
            layer.resize(&self.weights, rows);
        }
        self.ahead.resize(&self.weights, rows);
        self.logits.resize(rows * vocabulary, 0.0);
    }

    fn write(&mut self, row: usize, state: &State) {
        write_row(&self.weights, &mut self.layers, row, state);
        if let Some(valid) = self.ahead.valid.get_mut(row) {
            *valid = false;
        }
    }

    fn read(&self, row: usize) -> State {
        read_row(&self.weights, &self.layers, row)
    }

    fn copy(&mut self, from: usize, to: usize) {
        let (groups, panels) = (self.weights.hidden_groups(), self.weights.panels);
        for layer in &mut self.layers {
            layer
                .h
                .copy_within(from * groups..(from + 1) * groups, to * groups);
            layer
                .c
                .copy_within(from * panels..(from + 1) * panels, to * panels);
        }
        if to < MAX_AHEAD_ROWS {
            let valid = self.ahead.valid.get(from) == Some(&true);
            self.ahead.valid[to] = valid;
            if valid {
                self.ahead
                    .sums
                    .copy_within(from * panels..(from + 1) * panels, to * panels);
            }
        }
    }

    fn set_partner(&mut self, wanted: bool) -> io::Result<()> {
        if !wanted {
            self.partner = None;
        } else if self.partner.is_none() {
            self.partner = Some(Partner::start(&self.weights)?);
        }
        Ok(())
    }

    fn step(&mut self, tokens: &[u32]) -> &[f32] {
        let logits = &mut self.logits[..tokens.len() * self.weights.shape.vocabulary_size()];
        let step = BatchStep {
            weights: &self.weights,
            layers: &mut self.layers,
            tokens,
            direction: self.direction,
            logits,
        };
        if tokens.len() <= MAX_AHEAD_ROWS {
            self.weights.registers.run(AheadStep {
                step,
                ahead: &mut self.ahead,
                partner: self.partner.as_mut(),
            });
        } else {
            self.weights.registers.run(step);
            self.ahead.valid.fill(false);
        }
        self.direction = self.direction.reversed();
        &self.logits[..tokens.len() * self.weights.shape.vocabulary_size()]
    }

    fn prefill(&mut self, state: &mut State, tokens: &[u32], mut logits: Option<&mut Vec<f32>>) {
        let vocabulary = self.weights.shape.vocabulary_size();
        write_row(&self.weights, &mut self.single, 0, state);
        for tokens in tokens.chunks(Chunk::<R>::MAX_LEN) {
            let logits = logits.as_deref_mut().map(|all| {
                let begin = all.len();
                all.resize(begin + tokens.len() * vocabulary, 0.0);
                &mut all[begin..]
            });
            self.weights.registers.run(Prefill {
                weights: &self.weights,
                layers: &mut self.single,
                chunk: &mut self.chunk,
                tokens,
                logits,
            });
        }
        *state = read_row(&self.weights, &self.single, 0);
    }
}

fn write_row<R: Registers>(
    weights: &PackedWeights<R>,
    layers: &mut [LayerRows<R>],
    row: usize,
    state: &State,
) {
    let (hidden, groups, panels) = (
        weights.shape.hidden_size(),
        weights.hidden_groups(),
        weights.panels,
    );
    let states = state
        .h
        .chunks_exact(hidden)
        .zip(state.c.chunks_exact(hidden));
    for (layer, (h, c)) in layers.iter_mut().zip(states) {
        encode(h, R::OFFSET, &mut layer.h[row * groups..][..groups]);
        let blocks = &mut layer.c[row * panels..][..panels];
        for (block, c) in blocks.iter_mut().zip(c.chunks(R::LANES)) {
            *block = R::FloatBlock::ZERO;
            block.values_mut()[..c.len()].copy_from_slice(c);
        }
    }
}

fn read_row<R: Registers>(
    weights: &PackedWeights<R>,
    layers: &[LayerRows<R>],
    row: usize,
) -> State {
    let (hidden, groups, panels) = (
        weights.shape.hidden_size(),
        weights.hidden_groups(),
        weights.panels,
    );
    let mut state = State::zeros(&weights.shape);
    let states = state
        .h
        .chunks_exact_mut(hidden)
        .zip(state.c.chunks_exact_mut(hidden));
    for (layer, (h, c)) in layers.iter().zip(states) {
        decode(&layer.h[row * groups..][..groups], R::OFFSET, h);
        let blocks = &layer.c[row * panels..][..panels];
        for (block, c) in blocks.iter().zip(c.chunks_mut(R::LANES)) {
            c.copy_from_slice(&block.values()[..c.len()]);
        }
    }
    state
}
