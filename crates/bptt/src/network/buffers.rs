//! The buffers of a network in training, reused by every step. Rows of elements
//! are padded to the alignment of products; the padding is zero and is never
//! written.

use super::Sizes;
use crate::product::{Arithmetic, Element};
use crate::shared_buffer::SharedBuffer;

/// Buffers of one layer.
pub(super) struct LayerBuffers<E> {
    /// `[time, batch, 4 hidden]`: sums, then activated gates, then gradients of
    /// the sums.
    pub(super) gates: SharedBuffer<f32>,
    /// `[time + 1, batch, padded hidden]`; the first part is the state before the
    /// first character.
    pub(super) h: SharedBuffer<E>,
    /// `[time + 1, batch, hidden]`.
    pub(super) c: SharedBuffer<f32>,
    /// `[time, batch, padded hidden]`: h after dropout, the input of the layer
    /// above.
    pub(super) output: SharedBuffer<E>,
    /// `[time, batch, hidden]`: 1 keeps, 0 drops. Empty without dropout.
    pub(super) mask: SharedBuffer<u8>,
}

impl<E: Element> LayerBuffers<E> {
    pub(super) fn new<A: Arithmetic<Element = E>>(sizes: &Sizes, dropout: bool) -> Self {
        let characters = sizes.characters();
        let states = characters + sizes.batch;
        let hidden = sizes.hidden;
        Self {
            gates: SharedBuffer::new(characters * sizes.gates()),
            h: SharedBuffer::new(states * A::padded(hidden)),
            c: SharedBuffer::new(states * hidden),
            output: SharedBuffer::new(characters * A::padded(hidden)),
            mask: SharedBuffer::new(if dropout { characters * hidden } else { 0 }),
        }
    }
}

/// Buffers that all layers share, one after another.
pub(super) struct StepBuffers<E> {
    /// `[time, batch, vocabulary]`: logits, then their gradients.
    pub(super) logits: SharedBuffer<f32>,
    /// `[time, batch, padded vocabulary]`.
    pub(super) d_logits: SharedBuffer<E>,
    /// `[vocabulary, padded characters]`.
    pub(super) d_logits_transposed: SharedBuffer<E>,
    /// `[time, batch]`: in nats.
    pub(super) losses: SharedBuffer<f32>,
    /// Gradient of a layer's h, `[time, batch, hidden]`.
    pub(super) d_h: SharedBuffer<f32>,
    /// Gradient of c, `[batch, hidden]`.
    pub(super) d_c: SharedBuffer<f32>,
    /// Gradient of a layer's sums, `[time, batch, padded 4 hidden]`.
    pub(super) d_sums: SharedBuffer<E>,
    /// `[4 hidden, padded characters]`.
    pub(super) d_sums_transposed: SharedBuffer<E>,
    /// A layer's h before each character, in panels of `hidden` columns.
    pub(super) h_panels: SharedBuffer<E>,
    /// The outputs of the layer below, or of the last layer, in panels.
    pub(super) output_panels: SharedBuffer<E>,
    /// Gradient of the first layer's sums by token, `[vocabulary, 4 hidden]`.
    pub(super) d_embedding: SharedBuffer<f32>,
}

impl<E: Element> StepBuffers<E> {
    pub(super) fn new<A: Arithmetic<Element = E>>(arithmetic: A, sizes: &Sizes) -> Self {
        let Sizes {
            vocabulary,
            hidden,
            batch,
            ..
        } = *sizes;
        let characters = sizes.characters();
        let padded = A::padded(characters);
        let panels = hidden.next_multiple_of(arithmetic.width()) * padded;
        Self {
            logits: SharedBuffer::new(characters * vocabulary),
            d_logits: SharedBuffer::new(characters * A::padded(vocabulary)),
            d_logits_transposed: SharedBuffer::new(vocabulary * padded),
            losses: SharedBuffer::new(characters),
            d_h: SharedBuffer::new(characters * hidden),
            d_c: SharedBuffer::new(batch * hidden),
            d_sums: SharedBuffer::new(characters * A::padded(sizes.gates())),
            d_sums_transposed: SharedBuffer::new(sizes.gates() * padded),
            h_panels: SharedBuffer::new(panels),
            output_panels: SharedBuffer::new(panels),
            d_embedding: SharedBuffer::new(vocabulary * sizes.gates()),
        }
    }
}

/// Memory of one member during a step.
pub(super) struct Scratch {
    /// A row of h.
    pub(super) h: Vec<f32>,
    /// A row of h after dropout.
    pub(super) output: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(sizes: &Sizes) -> Self {
        Self {
            h: vec![0.0; sizes.hidden],
            output: vec![0.0; sizes.hidden],
        }
    }
}
