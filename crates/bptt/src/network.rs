//! Loss and gradient of a batch of sequences: backpropagation through time
//! (Werbos, 1990) for the LSTM, written out and computed by a team of threads.
//!
//! Only the recurrent product depends on the previous time step; it runs once
//! per step. Everything else is one large product per layer. The team divides
//! each phase in its own way, with a barrier between phases:
//!
//! - outputs by rows of the batch, or, for a batch of few rows, by hidden
//!   units, so that each core keeps its part of the recurrent weights in its
//!   cache for the whole sequence, with a barrier per time step;
//! - the products with the layer below by rows;
//! - the gradient of a weight matrix by rows of that matrix.
//!
//! No sum is divided among threads, so the number of threads does not change
//! any bit of the result.

mod backward;
mod buffers;
mod forward;
mod output_layer;
mod weights;

use std::ops::Range;

use self::buffers::{LayerBuffers, Scratch, StepBuffers};
use self::weights::PackedWeights;
use super::dropout::Dropout;
use super::named_ranges::NamedRanges;
use super::product::Arithmetic;
use super::shared_buffer::SharedBuffer;
use super::team::Member;
use charlstm_model::architecture::Architecture;

/// Sequences of a row group, at least, for which dividing by rows is better
/// than dividing by hidden units: with fewer, the products do not use the
/// registers well, and reading the weights takes longer than computing.
const MIN_ROWS_OF_A_GROUP: usize = 16;

/// Rows that are multiplied at a time by all panels of a matrix: with this many,
/// reading the panels takes little of the time, and the rows stay in the cache.
const ROWS_AT_ONCE: usize = 128;

/// Sizes of the work. Time comes first in every array: `[time, batch, ...]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    /// Sequences in a batch.
    pub(crate) batch: usize,
    /// Characters of a sequence.
    pub(crate) time: usize,
}

impl Sizes {
    pub(crate) fn new(architecture: &Architecture, batch: usize, time: usize) -> Self {
        Self {
            vocabulary: architecture.vocabulary_size,
            hidden: architecture.hidden_size,
            layers: architecture.num_layers,
            batch,
            time,
        }
    }

    /// Returns the number of characters of a batch.
    pub(crate) fn characters(&self) -> usize {
        self.batch * self.time
    }

    /// Returns the number of gates of a layer.
    fn gates(&self) -> usize {
        4 * self.hidden
    }
}

/// The forms of dropout in a training.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dropouts {
    /// Of the outputs of each layer.
    pub(crate) outputs: Option<Dropout>,
    /// Whether the mask of the outputs is the same at all time steps of a
    /// sequence (Gal and Ghahramani, 2016).
    pub(crate) locked: bool,
    /// Of the recurrent weights, one mask for each batch (DropConnect: Wan et
    /// al., 2013; Merity et al., 2018).
    pub(crate) recurrent: Option<Dropout>,
    /// Of characters of the vocabulary as inputs, one mask for each batch.
    pub(crate) inputs: Option<Dropout>,
}

/// What to compute the gradient of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<'a> {
    /// Token ids, `[time, batch]`.
    pub(crate) inputs: &'a [u32],
    /// `[time, batch]`.
    pub(crate) targets: &'a [u32],
    /// Start from hidden states of zero.
    pub(crate) reset_state: bool,
    /// Determines the dropout masks.
    pub(crate) key: u64,
}

/// The parameters' gradient, the buffers to compute it, and the hidden states
/// that are carried from one batch to the next.
pub(crate) struct Network<A: Arithmetic> {
    arithmetic: A,
    sizes: Sizes,
    dropouts: Dropouts,
    names: NamedRanges,
    weights: PackedWeights<A>,
    layers: Vec<LayerBuffers<A::Element>>,
    buffers: StepBuffers<A::Element>,
    /// In the order of `charlstm_model::parameters::layout`.
    gradient: SharedBuffer<f32>,
}

/// What a member computes between two barriers of the recurrence.
#[derive(Clone, Debug)]
struct Part {
    /// Rows of the batch.
    rows: Range<usize>,
    /// Panels of each gate.
    panels: Range<usize>,
    /// Hidden units of these panels.
    units: Range<usize>,
    /// Whether other members compute other units of the same rows.
    shares_rows: bool,
}

impl<A: Arithmetic> Network<A> {
    /// Allocates all buffers. The hidden states are zero.
    pub(crate) fn new(
        arithmetic: A,
        architecture: &Architecture,
        sizes: Sizes,
        dropouts: Dropouts,
    ) -> Self {
        Self {
            arithmetic,
            sizes,
            dropouts,
            names: NamedRanges::new(architecture),
            weights: PackedWeights::new(arithmetic, &sizes, dropouts.recurrent.is_some()),
            layers: (0..sizes.layers)
                .map(|_| LayerBuffers::new::<A>(&sizes, dropouts.outputs.is_some()))
                .collect(),
            buffers: StepBuffers::new(arithmetic, &sizes),
            gradient: SharedBuffer::new(architecture.parameter_count()),
        }
    }

    /// Computes the losses of a batch, in nats, and their mean's gradient.
    /// Called by all members of a team, with a barrier before and after it.
    ///
    /// # Panics
    /// If a token is outside the vocabulary.
    pub(crate) fn compute(&self, member: &Member<'_>, parameters: &[f32], batch: &Batch<'_>) {
        let mut scratch = Scratch::new(&self.sizes);
        if batch.reset_state {
            self.clear_state(member);
        }
        self.pack_weights(member, parameters, batch);
        member.barrier();
        for index in 0..self.sizes.layers {
            self.sums_of_inputs(member, index, batch);
            member.barrier();
            self.forward_layer(member, index, batch, &mut scratch);
            member.barrier();
        }
        self.output_layer(member, parameters, batch);
        member.barrier();
        self.output_layer_gradient(member);
        for index in (0..self.sizes.layers).rev() {
            self.backward_layer(member, index);
            member.barrier();
            self.prepare_gradient(member, index, batch);
            member.barrier();
            self.layer_gradient(member, index);
            member.barrier();
        }
        self.carry_state(member);
    }

    /// Returns the registers for pointwise operations.
    pub(crate) fn arch(&self) -> pulp::Arch {
        self.arithmetic.arch()
    }

    /// Returns the gradient of the last batch. Only between steps, or after a
    /// barrier.
    pub(crate) fn gradient(&self) -> &SharedBuffer<f32> {
        &self.gradient
    }

    /// Returns the gradient of the last batch.
    pub(crate) fn gradient_mut(&mut self) -> &mut [f32] {
        self.gradient.all()
    }

    /// Returns the mean loss of the last batch.
    pub(crate) fn mean_loss(&mut self) -> f64 {
        let losses = self.buffers.losses.all();
        losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
    }

    /// Returns the hidden states, `[batch, layers, 2, hidden]`.
    pub(crate) fn state(&mut self) -> Vec<f32> {
        let Sizes { hidden, batch, .. } = self.sizes;
        let stride = A::padded(hidden);
        let mut state = Vec::new();
        for row in 0..batch {
            for layer in &mut self.layers {
                let h = &layer.h.all()[row * stride..][..hidden];
                state.extend(h.iter().map(|&element| A::widen(element)));
                state.extend_from_slice(&layer.c.all()[row * hidden..][..hidden]);
            }
        }
        state
    }

    /// Sets the hidden states, in the layout of [`Self::state`].
    ///
    /// # Panics
    /// If there are fewer values.
    pub(crate) fn set_state(&mut self, state: &[f32]) {
        let Sizes { hidden, batch, .. } = self.sizes;
        let stride = A::padded(hidden);
        let mut parts = state.chunks_exact(hidden);
        let mut next = || parts.next().expect("h and c of every row and layer");
        for row in 0..batch {
            for layer in &mut self.layers {
                let h = &mut layer.h.all()[row * stride..][..hidden];
                self.arithmetic.narrow(next(), h);
                layer.c.all()[row * hidden..][..hidden].copy_from_slice(next());
            }
        }
    }

    fn clear_state(&self, member: &Member<'_>) {
        let Sizes { hidden, batch, .. } = self.sizes;
        let stride = A::padded(hidden);
        let rows = member.share(batch);
        for layer in &self.layers {
            // SAFETY: each member has its own rows.
            unsafe {
                let h = layer.h.part_mut(rows.start * stride..rows.end * stride);
                h.fill(A::Element::default());
                let c = layer.c.part_mut(rows.start * hidden..rows.end * hidden);
                c.fill(0.0);
            }
        }
    }

    /// Makes the state after the last character the one before the next batch.
    fn carry_state(&self, member: &Member<'_>) {
        let Sizes {
            hidden,
            batch,
            time,
            ..
        } = self.sizes;
        let stride = A::padded(hidden);
        let rows = member.share(batch);
        for layer in &self.layers {
            // SAFETY: each member has its own rows; with one time step, too, the
            // last and the first part do not overlap.
            unsafe {
                let last = (time * batch + rows.start) * stride;
                let from = layer.h.part(last..last + rows.len() * stride);
                let to = layer.h.part_mut(rows.start * stride..rows.end * stride);
                to.copy_from_slice(from);
                let last = (time * batch + rows.start) * hidden;
                let from = layer.c.part(last..last + rows.len() * hidden);
                let to = layer.c.part_mut(rows.start * hidden..rows.end * hidden);
                to.copy_from_slice(from);
            }
        }
    }

    /// Returns the number of panels of a gate, and of a matrix of `hidden`
    /// columns.
    fn panel_count(&self) -> usize {
        self.sizes.hidden.div_ceil(self.arithmetic.width())
    }

    /// Returns what a member computes of the recurrence.
    fn part(&self, member: &Member<'_>) -> Part {
        let Sizes { batch, hidden, .. } = self.sizes;
        let by_rows = batch >= MIN_ROWS_OF_A_GROUP * member.count() || member.count() == 1;
        let (rows, panels) = if by_rows {
            (member.share(batch), 0..self.panel_count())
        } else {
            (0..batch, member.share(self.panel_count()))
        };
        let width = self.arithmetic.width();
        Part {
            rows,
            units: (panels.start * width).min(hidden)..(panels.end * width).min(hidden),
            panels,
            shares_rows: !by_rows,
        }
    }
}

/// Divides a range of rows into ranges of at most [`ROWS_AT_ONCE`].
fn blocks(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(ROWS_AT_ONCE)
        .map(move |start| start..(start + ROWS_AT_ONCE).min(end))
}
