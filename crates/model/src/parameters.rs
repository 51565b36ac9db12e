//! The trainable numbers of a network as one flat row, and the names and
//! shapes under which PyTorch knows its parts.

use std::ops::Range;

use super::architecture::Architecture;

/// One named parameter within the flat row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterView {
    /// Name in the `state_dict` of the notebook's class, as
    /// `lstm.weight_ih_l0`.
    pub name: String,
    /// Its shape; the last dimension is contiguous.
    pub shape: Vec<usize>,
    /// Where it lies in the flat row.
    pub range: Range<usize>,
}

/// The parameters of a network, in the order in which PyTorch lists them: for
/// each layer `weight_ih` `[4 hidden, input]`, `weight_hh` `[4 hidden,
/// hidden]`, `bias_ih` and `bias_hh` `[4 hidden]` (gates in the order input,
/// forget, cell, output), then `fc.weight` `[vocabulary, hidden]` and
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

/// All trainable numbers of a network, in the order of [`layout`].
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// The shape they fit.
    pub architecture: Architecture,
    /// The numbers; `architecture.parameter_count()` of them.
    pub values: Vec<f32>,
}

impl Parameters {
    /// All zeros.
    pub fn zeros(architecture: Architecture) -> Self {
        Self {
            architecture,
            values: vec![0.0; architecture.parameter_count()],
        }
    }

    /// The numbers of one named parameter; `None` for a name that the
    /// architecture has not.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        layout(&self.architecture)
            .into_iter()
            .find(|view| view.name == name)
            .map(|view| &self.values[view.range])
    }
}
