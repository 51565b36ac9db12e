//! A network in float32, as PyTorch stores it, and in int8.

use crate::quantisation::{QuantisationError, QuantisedMatrix, check_tensor};
use crate::shape::Shape;

/// The float32 tensors of one LSTM layer, in PyTorch's layout: row-major, and
/// rows in the order of the gates (input, forget, cell, output).
#[derive(Clone, Copy, Debug)]
pub struct FloatLayer<'a> {
    /// `weight_ih`, `[4 * hidden, inputs]`; the first layer has an input per
    /// character, the others `hidden`.
    pub weight_ih: &'a [f32],
    /// `weight_hh`, `[4 * hidden, hidden]`.
    pub weight_hh: &'a [f32],
    /// `bias_ih`, `[4 * hidden]`.
    pub bias_ih: &'a [f32],
    /// `bias_hh`, `[4 * hidden]`.
    pub bias_hh: &'a [f32],
}

/// The float32 tensors of a network.
#[derive(Clone, Debug)]
pub struct FloatNetwork<'a> {
    /// The LSTM layers, the one that reads the characters first.
    pub layers: Vec<FloatLayer<'a>>,
    /// `fc.weight`, `[vocabulary, hidden]`.
    pub fc_weight: &'a [f32],
    /// `fc.bias`, `[vocabulary]`.
    pub fc_bias: &'a [f32],
}

/// One LSTM layer in int8.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantisedLayer {
    input: Option<QuantisedMatrix>,
    recurrent: QuantisedMatrix,
    initial: Vec<f32>,
}

impl QuantisedLayer {
    /// `weight_ih`, `[4 * hidden, hidden]`; `None` for the first layer, whose
    /// input product is a row of [`Self::initial`].
    pub fn input(&self) -> Option<&QuantisedMatrix> {
        self.input.as_ref()
    }

    /// `weight_hh`, `[4 * hidden, hidden]`.
    pub fn recurrent(&self) -> &QuantisedMatrix {
        &self.recurrent
    }

    /// What the pre-activations start from, in float32. For the first layer
    /// `init0`, `[vocabulary, 4 * hidden]`: row t is `weight_ih[:, t] +
    /// bias_ih + bias_hh`, added in this order. For the other layers one row,
    /// `bias_ih + bias_hh`, `[4 * hidden]`.
    pub fn initial(&self) -> &[f32] {
        &self.initial
    }
}

/// A network in int8: what [`reference`](mod@crate::reference) computes with and
/// what every kernel, on whatever device, packs its weights from.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantisedNetwork {
    shape: Shape,
    layers: Vec<QuantisedLayer>,
    output: QuantisedMatrix,
    output_bias: Vec<f32>,
}

impl QuantisedNetwork {
    /// Quantises a network. The result is a function of the float32 numbers
    /// alone, the same on every machine.
    ///
    /// # Errors
    /// Fails if a tensor does not have the size that `shape` requires, or if a
    /// weight or bias is not finite or over
    /// [`MAX_WEIGHT`](crate::MAX_WEIGHT) in magnitude.
    pub fn new(shape: Shape, network: &FloatNetwork<'_>) -> Result<Self, QuantisationError> {
        if network.layers.len() != shape.num_layers() {
            return Err(QuantisationError::Layers {
                given: network.layers.len(),
                expected: shape.num_layers(),
            });
        }
        let layers = network
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| quantise_layer(&shape, index, layer))
            .collect::<Result<_, _>>()?;
        let (vocabulary, hidden) = (shape.vocabulary_size(), shape.hidden_size());
        let name = |tensor: &'static str| move || format!("fc.{tensor}");
        check_tensor(name("weight"), network.fc_weight, vocabulary * hidden)?;
        check_tensor(name("bias"), network.fc_bias, vocabulary)?;
        Ok(Self {
            shape,
            layers,
            output: QuantisedMatrix::quantise(network.fc_weight, hidden),
            output_bias: network.fc_bias.to_vec(),
        })
    }

    /// The sizes of the network.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The LSTM layers, the one that reads the characters first.
    pub fn layers(&self) -> &[QuantisedLayer] {
        &self.layers
    }

    /// `fc.weight`, `[vocabulary, hidden]`.
    pub fn output(&self) -> &QuantisedMatrix {
        &self.output
    }

    /// `fc.bias`, `[vocabulary]`, in float32.
    pub fn output_bias(&self) -> &[f32] {
        &self.output_bias
    }
}

fn quantise_layer(
    shape: &Shape,
    index: usize,
    layer: &FloatLayer<'_>,
) -> Result<QuantisedLayer, QuantisationError> {
    let (rows, hidden) = (shape.gate_rows(), shape.hidden_size());
    let inputs = if index == 0 {
        shape.vocabulary_size()
    } else {
        hidden
    };
    let name = |tensor: &'static str| move || format!("lstm.{tensor}_l{index}");
    check_tensor(name("weight_ih"), layer.weight_ih, rows * inputs)?;
    check_tensor(name("weight_hh"), layer.weight_hh, rows * hidden)?;
    check_tensor(name("bias_ih"), layer.bias_ih, rows)?;
    check_tensor(name("bias_hh"), layer.bias_hh, rows)?;

    let biases = || layer.bias_ih.iter().zip(layer.bias_hh);
    let (input, initial) = if index == 0 {
        let mut initial = Vec::with_capacity(inputs * rows);
        for token in 0..inputs {
            let column = layer.weight_ih[token..].iter().step_by(inputs);
            initial.extend(
                column
                    .zip(biases())
                    .map(|(weight, (bias_ih, bias_hh))| (weight + bias_ih) + bias_hh),
            );
        }
        (None, initial)
    } else {
        let initial = biases().map(|(bias_ih, bias_hh)| bias_ih + bias_hh);
        let input = QuantisedMatrix::quantise(layer.weight_ih, inputs);
        (Some(input), initial.collect())
    };
    Ok(QuantisedLayer {
        input,
        recurrent: QuantisedMatrix::quantise(layer.weight_hh, hidden),
        initial,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network of one unit and two layers over two characters.
    fn small<'a>(weight_ih: &'a [f32], fc_bias: &'a [f32]) -> FloatNetwork<'a> {
        let layer = |weight_ih| FloatLayer {
            weight_ih,
            weight_hh: &[0.5, -1.0, 0.0, 2.0],
            bias_ih: &[1e-8, 0.25, 0.0, 0.0],
            bias_hh: &[-1.0, 0.5, 0.0, 1.0],
        };
        FloatNetwork {
            layers: vec![layer(weight_ih), layer(&[1.0, 2.0, 3.0, 4.0])],
            fc_weight: &[1.0, -1.0],
            fc_bias,
        }
    }

    const WEIGHT_IH: [f32; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];

    #[test]
    fn the_first_layer_starts_from_a_row_per_character_summed_in_order() {
        let shape = Shape::new(2, 1, 2).expect("a shape");
        let network = QuantisedNetwork::new(shape, &small(&WEIGHT_IH, &[0.0, 3.0])).expect("valid");
        let [first, second] = network.layers() else {
            panic!("two layers");
        };
        // (1 + 1e-8) - 1 is 0 in float32; 1 + (1e-8 - 1) is not.
        assert_eq!(first.initial(), [0.0, 3.75, 5.0, 8.0, 1.0, 4.75, 6.0, 9.0]);
        assert!(first.input().is_none());
        assert_eq!(second.initial(), [-1.0, 0.75, 0.0, 1.0]);
        assert_eq!(
            second.input().map(QuantisedMatrix::weights),
            Some(&[127i8; 4][..])
        );
        assert_eq!(second.recurrent().weights(), [127, -127, 0, 127]);
        assert_eq!(network.output().weights(), [127, -127]);
        assert_eq!(network.output_bias(), [0.0, 3.0]);
    }

    #[test]
    fn a_tensor_of_another_size_or_with_a_bad_weight_is_named() {
        let shape = Shape::new(2, 1, 2).expect("a shape");
        let message = |network: &FloatNetwork<'_>| {
            QuantisedNetwork::new(shape, network)
                .expect_err("must be rejected")
                .to_string()
        };
        assert_eq!(
            message(&small(&WEIGHT_IH[..7], &[0.0, 3.0])),
            "lstm.weight_ih_l0 has 7 elements; it must have 8"
        );
        assert_eq!(
            message(&small(&WEIGHT_IH, &[0.0, f32::NAN])),
            "element 1 of fc.bias is NaN; weights must be finite and at most 1e6 in magnitude"
        );
        let mut network = small(&WEIGHT_IH, &[0.0, 3.0]);
        network.layers.pop();
        assert_eq!(message(&network), "1 layers were given; the shape has 2");
    }
}
