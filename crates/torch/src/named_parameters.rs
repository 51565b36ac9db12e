//! The parameters of a network by name, in whatever form they are accessed:
//! as slices of a flat buffer on the CPU, or as tensors on a device.

use tch::{TchError, Tensor};

use charlstm_model::architecture::Architecture;
use charlstm_model::parameters::layout;

/// The parameters of one LSTM layer. The gates are in the order input, forget,
/// cell, output.
#[derive(Debug)]
pub(crate) struct LayerParameters<T> {
    /// `[4 hidden, input]`.
    pub(crate) weight_ih: T,
    /// `[4 hidden, hidden]`.
    pub(crate) weight_hh: T,
    /// `[4 hidden]`.
    pub(crate) bias_ih: T,
    /// `[4 hidden]`.
    pub(crate) bias_hh: T,
}

/// All parameters of a network.
#[derive(Debug)]
pub(crate) struct NamedParameters<T> {
    /// The LSTM layers, bottom first.
    pub(crate) layers: Vec<LayerParameters<T>>,
    /// `[vocabulary, hidden]`.
    pub(crate) fc_weight: T,
    /// `[vocabulary]`.
    pub(crate) fc_bias: T,
}

impl<T> NamedParameters<T> {
    /// Assigns names to parameters that come in the order of [`layout`].
    fn assign(
        architecture: &Architecture,
        parameters: impl IntoIterator<Item = Result<T, TchError>>,
    ) -> Result<Self, TchError> {
        let mut parameters = parameters.into_iter();
        let mut next = || {
            parameters
                .next()
                .expect("the layout has four parameters per layer and two more")
        };
        let layers = (0..architecture.num_layers)
            .map(|_| {
                Ok(LayerParameters {
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

impl<'a> NamedParameters<&'a [f32]> {
    /// Returns the slices of `flat`, which is in the order of [`layout`].
    ///
    /// # Panics
    /// If `flat` is shorter than the layout.
    pub(crate) fn slices(architecture: &Architecture, flat: &'a [f32]) -> Self {
        let slices = layout(architecture)
            .into_iter()
            .map(|view| Ok(&flat[view.range]));
        Self::assign(architecture, slices).expect("slicing has no libtorch errors")
    }
}

impl<'a> NamedParameters<&'a mut [f32]> {
    /// Returns the mutable slices of `flat`, which is in the order of
    /// [`layout`].
    ///
    /// # Panics
    /// If `flat` is shorter than the layout.
    pub(crate) fn slices_mut(architecture: &Architecture, flat: &'a mut [f32]) -> Self {
        let mut rest = flat;
        let slices = layout(architecture).into_iter().map(|view| {
            let (slice, after) = std::mem::take(&mut rest).split_at_mut(view.range.len());
            rest = after;
            Ok(slice)
        });
        Self::assign(architecture, slices).expect("slicing has no libtorch errors")
    }
}

impl NamedParameters<Tensor> {
    /// Returns views of the tensor `flat`, which is in the order of [`layout`].
    ///
    /// # Errors
    /// libtorch failed, for example because `flat` is shorter than the layout.
    pub(crate) fn tensors(architecture: &Architecture, flat: &Tensor) -> Result<Self, TchError> {
        let tensors = layout(architecture).into_iter().map(|view| {
            let shape: Vec<i64> = view.shape.iter().map(|&size| size as i64).collect();
            flat.f_narrow(0, view.range.start as i64, view.range.len() as i64)?
                .f_view(shape.as_slice())
        });
        Self::assign(architecture, tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_tensors_and_the_layout_name_the_same_values() {
        let architecture = Architecture {
            vocabulary_size: 5,
            hidden_size: 3,
            num_layers: 2,
        };
        let mut flat: Vec<f32> = (0..architecture.parameter_count())
            .map(|index| index as f32)
            .collect();
        let tensor = Tensor::from_slice(&flat);
        let tensors = NamedParameters::tensors(&architecture, &tensor).expect("a long tensor");
        let expected = flat.clone();
        let views = layout(&architecture);
        let named = |name: &str| {
            let view = views.iter().find(|view| view.name == name);
            expected[view.expect("a name of the layout").range.clone()].to_vec()
        };
        let slices = NamedParameters::slices_mut(&architecture, &mut flat);
        assert_eq!(*slices.layers[1].weight_hh, named("lstm.weight_hh_l1"));
        assert_eq!(*slices.layers[0].bias_ih, named("lstm.bias_ih_l0"));
        assert_eq!(*slices.fc_bias, named("fc.bias"));
        let slices = NamedParameters::slices(&architecture, &expected);
        assert_eq!(*slices.layers[1].weight_hh, named("lstm.weight_hh_l1"));
        assert_eq!(*slices.fc_weight, named("fc.weight"));
        let weight = tensors.layers[1].weight_ih.reshape(-1);
        let weight = Vec::<f32>::try_from(weight).expect("float32");
        assert_eq!(weight, named("lstm.weight_ih_l1"));
    }
}
