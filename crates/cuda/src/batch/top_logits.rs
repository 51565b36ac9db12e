//! The highest logits of a step.

use charlstm_model::decode_step::HighestOfRows;

use crate::launch::TOP;

/// The highest logits of several rows; see [`CudaBatch::step_top`](super::CudaBatch::step_top).
#[derive(Clone, Copy, Debug)]
pub struct TopLogits<'a> {
    pub(super) log_sums: &'a [f64],
    pub(super) ids: &'a [u32],
    pub(super) logits: &'a [f32],
    /// Logits per row.
    pub(super) count: usize,
}

/// The highest logits of one row.
#[derive(Clone, Copy, Debug)]
pub struct TopRow<'a> {
    /// Token ids, by falling logit; equal logits by rising id. -0 equals 0.
    pub ids: &'a [u32],
    /// Their logits.
    pub logits: &'a [f32],
    /// [`charlstm_int8::logsumexp::log_sum_exp`] of all logits of the row.
    pub log_sum_exp: f64,
}

impl<'a> TopLogits<'a> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.log_sums.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.log_sums.is_empty()
    }

    /// The results of all rows, as the engine takes them.
    pub(crate) fn all(&self) -> HighestOfRows<'a> {
        HighestOfRows {
            ids: self.ids,
            logits: self.logits,
            log_sums: self.log_sums,
            count: self.count,
            stride: TOP,
        }
    }

    /// The result for a row.
    ///
    /// # Panics
    /// Panics if there is no such row.
    pub fn row(&self, row: usize) -> TopRow<'a> {
        TopRow {
            ids: &self.ids[row * TOP..][..self.count],
            logits: &self.logits[row * TOP..][..self.count],
            log_sum_exp: self.log_sums[row],
        }
    }
}
