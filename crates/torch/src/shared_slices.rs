//! The named parts of a flat tensor of parameters or gradients.

use tch::{TchError, Tensor};

use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::layout;

/// The parts of one layer, views of the flat tensor.
#[derive(Debug)]
pub(super) struct LayerViews {
    /// `[4 hidden, input]`.
    pub(super) weight_ih: Tensor,
    /// `[4 hidden, hidden]`.
    pub(super) weight_hh: Tensor,
    /// `[4 hidden]`.
    pub(super) bias_ih: Tensor,
    /// `[4 hidden]`.
    pub(super) bias_hh: Tensor,
}

impl LayerViews {
    /// `weight_hh` as numbers.
    pub(super) fn recurrent(&self) -> &[f32] {
        // SAFETY: `ParameterViews::of` makes contiguous views of float32 memory on the
        // CPU that live as long as it; the contract of `SharedBuffer` keeps others
        // from changing it meanwhile.
        unsafe {
            std::slice::from_raw_parts(self.weight_hh.data_ptr().cast(), self.weight_hh.numel())
        }
    }
}

/// All parts, views of the flat tensor.
#[derive(Debug)]
pub(super) struct ParameterViews {
    pub(super) layers: Vec<LayerViews>,
    /// `[vocabulary, hidden]`.
    pub(super) fc_weight: Tensor,
    /// `[vocabulary]`.
    pub(super) fc_bias: Tensor,
}

impl ParameterViews {
    /// The parts of `flat`, which is in the order of [`layout`].
    pub(super) fn of(architecture: &Architecture, flat: &Tensor) -> Result<Self, TchError> {
        let mut parts = layout(architecture).into_iter().map(|view| {
            let shape: Vec<i64> = view.shape.iter().map(|&size| size as i64).collect();
            flat.f_narrow(0, view.range.start as i64, view.range.len() as i64)?
                .f_view(shape.as_slice())
        });
        let mut next = || {
            parts
                .next()
                .expect("the layout has four parts a layer and two more")
        };
        let layers = (0..architecture.num_layers)
            .map(|_| {
                Ok(LayerViews {
                    weight_ih: next()?,
                    weight_hh: next()?,
                    bias_ih: next()?,
                    bias_hh: next()?,
                })
            })
            .collect::<Result<_, TchError>>()?;
        Ok(Self {
            layers,
            fc_weight: next()?,
            fc_bias: next()?,
        })
    }
}
