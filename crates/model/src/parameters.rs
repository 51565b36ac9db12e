//! The parameters of a network as one flat vector, and the names and shapes of
//! its parts in PyTorch.

use std::ops::Range;

use super::architecture::Architecture;

/// A named part of the flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterView {
    /// Name in the `state_dict` of the notebook's class, for example
    /// `lstm.weight_ih_l0`.
    pub name: String,
    /// Shape; the last dimension is contiguous.
    pub shape: Vec<usize>,
    /// Range in the flat vector.
    pub range: Range<usize>,
}

/// Returns the parts of the flat vector in the order in which PyTorch lists
/// them: for each layer `weight_ih` `[4 hidden, input]`, `weight_hh` `[4
/// hidden, hidden]`, `bias_ih` and `bias_hh` `[4 hidden]` (gates in the order
/// input, forget, cell, output), then `fc.weight` `[vocabulary, hidden]` and
/// `fc.bias` `[vocabulary]`.
pub fn layout(architecture: &Architecture) -> Vec<ParameterView> {
    let gates = 4 * architecture.hidden_size;
    let hidden = architecture.hidden_size;
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for layer in 0..architecture.num_layers {
        let input = architecture.input_size(layer);
        shapes.push((format!("lstm.weight_ih_l{layer}"), vec![gates, input]));
        shapes.push((format!("lstm.weight_hh_l{layer}"), vec![gates, hidden]));
        shapes.push((format!("lstm.bias_ih_l{layer}"), vec![gates]));
        shapes.push((format!("lstm.bias_hh_l{layer}"), vec![gates]));
    }
    shapes.push((
        "fc.weight".to_owned(),
        vec![architecture.vocabulary_size, hidden],
    ));
    shapes.push(("fc.bias".to_owned(), vec![architecture.vocabulary_size]));

    let mut start = 0;
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let end = start + shape.iter().product::<usize>();
            let view = ParameterView {
                name,
                shape,
                range: start..end,
            };
            start = end;
            view
        })
        .collect()
}

/// All parameters of a network, in the order of [`layout`].
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// Shape of the network.
    pub architecture: Architecture,
    /// `architecture.parameter_count()` values.
    pub values: Vec<f32>,
}

impl Parameters {
    /// Creates parameters of zero.
    pub fn zeros(architecture: Architecture) -> Self {
        Self {
            architecture,
            values: vec![0.0; architecture.parameter_count()],
        }
    }

    /// Returns the values of a named part, or `None` if the architecture has no
    /// part of that name.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        layout(&self.architecture)
            .into_iter()
            .find(|view| view.name == name)
            .map(|view| &self.values[view.range])
    }
}
