//! Where each matrix is in the flat vector of parameters.

use std::ops::Range;

use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::layout;

/// The ranges of one layer's parameters. The gates are in the order input,
/// forget, cell, output.
#[derive(Clone, Debug)]
pub(crate) struct LayerRanges {
    /// `[4 hidden, input]`.
    pub(crate) weight_ih: Range<usize>,
    /// `[4 hidden, hidden]`.
    pub(crate) weight_hh: Range<usize>,
    /// `[4 hidden]`.
    pub(crate) bias_ih: Range<usize>,
    /// `[4 hidden]`.
    pub(crate) bias_hh: Range<usize>,
}

/// The ranges of all parameters.
#[derive(Clone, Debug)]
pub(crate) struct NamedRanges {
    /// Bottom first.
    pub(crate) layers: Vec<LayerRanges>,
    /// `[vocabulary, hidden]`.
    pub(crate) fc_weight: Range<usize>,
    /// `[vocabulary]`.
    pub(crate) fc_bias: Range<usize>,
}

impl NamedRanges {
    /// Returns the ranges in the order of [`layout`].
    pub(crate) fn new(architecture: &Architecture) -> Self {
        let mut ranges = layout(architecture).into_iter().map(|view| view.range);
        let mut next = || {
            ranges
                .next()
                .expect("the layout has four parameters for each layer and two more")
        };
        Self {
            layers: (0..architecture.num_layers)
                .map(|_| LayerRanges {
                    weight_ih: next(),
                    weight_hh: next(),
                    bias_ih: next(),
                    bias_hh: next(),
                })
                .collect(),
            fc_weight: next(),
            fc_bias: next(),
        }
    }
}
