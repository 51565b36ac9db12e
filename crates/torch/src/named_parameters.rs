//! The parameters of a network by name, as tensors on a device.

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

impl<T> LayerParameters<T> {
    /// Returns the parameters, in the order of [`layout`].
    pub(crate) fn all(&self) -> [&T; 4] {
        [
            &self.weight_ih,
            &self.weight_hh,
            &self.bias_ih,
            &self.bias_hh,
        ]
    }

    fn all_mut(&mut self) -> [&mut T; 4] {
        [
            &mut self.weight_ih,
            &mut self.weight_hh,
            &mut self.bias_ih,
            &mut self.bias_hh,
        ]
    }
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
    ///
    /// # Errors
    /// The first error among the parameters.
    pub(crate) fn assign(
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

    /// Returns all parameters, in the order of [`layout`].
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        let layers = self.layers.iter().flat_map(LayerParameters::all);
        layers.chain([&self.fc_weight, &self.fc_bias])
    }

    /// As [`Self::all`], to be replaced.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let layers = self.layers.iter_mut().flat_map(LayerParameters::all_mut);
        layers.chain([&mut self.fc_weight, &mut self.fc_bias])
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
    fn tensors_and_the_layout_name_the_same_values() {
        let architecture = Architecture {
            vocabulary_size: 5,
            hidden_size: 3,
            num_layers: 2,
        };
        let flat: Vec<f32> = (0..architecture.parameter_count())
            .map(|index| index as f32)
            .collect();
        let tensors = NamedParameters::tensors(&architecture, &Tensor::from_slice(&flat))
            .expect("a long tensor");
        let view = layout(&architecture)
            .into_iter()
            .find(|view| view.name == "lstm.weight_ih_l1")
            .expect("a name of the layout");
        let weight = tensors.layers[1].weight_ih.reshape(-1);
        let weight = Vec::<f32>::try_from(weight).expect("float32");
        assert_eq!(weight, flat[view.range]);
    }
}
