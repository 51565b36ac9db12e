use tch::{Device, Kind, Tensor};

use super::*;
use crate::autograd::AutogradNetwork;
use crate::process_state::use_calling_thread_only;
use charlstm_model::initial::Initial;
use charlstm_model::parameters::layout;

/// Parameters large enough that every gate leaves its linear range.
fn parameters(architecture: Architecture) -> charlstm_model::parameters::Parameters {
    let mut parameters = Initial::Uniform.parameters(architecture, 11);
    parameters.values.iter_mut().for_each(|value| *value *= 2.0);
    parameters
}

fn tokens(count: usize, vocabulary: usize, salt: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * i * 7 + i * 3 + salt) % vocabulary) as u32)
        .collect()
}

/// Compares two consecutive batches with libtorch's automatic differentiation
/// under the same dropout masks.
fn compare(shape: BatchShape, dropout: f64) {
    use_calling_thread_only();
    let parameters = parameters(shape.architecture);
    let count = shape.rows * shape.time;
    let vocabulary = shape.architecture.vocabulary_size;
    let mut network = AutogradNetwork::new(&parameters, Device::Cpu).expect("a network");
    let mut state = network.zero_state(shape.rows).expect("a state");

    let mut gradient = zeros(parameters.values.len());
    let mut bptt = Bptt::new(shape);
    let scale = 1.0 / count as f32;

    for step in 0..2 {
        let (inputs, targets) = (
            tokens(count, vocabulary, step),
            tokens(count, vocabulary, 5),
        );
        let dropout = (dropout > 0.0).then(|| StepDropout {
            dropout: Dropout::new(dropout),
            key: step as u64,
            first_row: 2,
        });
        let loss = bptt
            .loss_and_gradient(
                &parameters.values,
                &mut gradient,
                &inputs,
                &targets,
                dropout,
                scale,
            )
            .expect("a gradient")
            / count as f64;

        let to_tensor = |tokens: &[u32]| {
            let tokens: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
            Tensor::from_slice(&tokens).view([shape.time as i64, shape.rows as i64])
        };
        let (expected_loss, expected) = network
            .loss_and_gradient(
                &to_tensor(&inputs),
                &to_tensor(&targets),
                &mut state,
                |layer, x| {
                    let Some(StepDropout { dropout, .. }) = dropout else {
                        return Ok(x);
                    };
                    let factors: Vec<f32> = bptt.layers[layer]
                        .mask
                        .iter()
                        .map(|&keep| dropout.factor(keep))
                        .collect();
                    let factors = Tensor::from_slice(&factors).view_as(&x);
                    x.f_mul(&factors.to_kind(Kind::Float))
                },
            )
            .expect("a gradient");

        assert!(
            (loss / expected_loss - 1.0).abs() < 1e-5,
            "{loss} {expected_loss}"
        );
        for view in layout(&shape.architecture) {
            let (ours, theirs) = (&gradient[view.range.clone()], &expected[view.range]);
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
            };
            let difference = norm(&mut ours.iter().zip(theirs).map(|(a, b)| a - b));
            let size = norm(&mut theirs.iter().copied());
            assert!(
                difference <= 1e-5 * size,
                "{shape:?} {dropout:?} step {step} {}: {difference} of {size}",
                view.name
            );
        }
    }
}

fn shape(sizes: [usize; 5]) -> BatchShape {
    let [vocabulary_size, hidden_size, num_layers, rows, time] = sizes;
    BatchShape {
        architecture: Architecture {
            vocabulary_size,
            hidden_size,
            num_layers,
        },
        rows,
        time,
    }
}

#[test]
fn gradients_match_automatic_differentiation() {
    for sizes in [
        [2, 1, 1, 1, 1],
        [5, 3, 1, 2, 4],
        [11, 16, 2, 3, 7],
        [30, 19, 3, 4, 9],
        [13, 24, 4, 2, 12],
        [78, 128, 2, 8, 25],
    ] {
        compare(shape(sizes), 0.0);
    }
}

#[test]
fn gradients_with_dropout_match_automatic_differentiation_under_the_same_masks() {
    for sizes in [
        [5, 3, 1, 2, 4],
        [11, 16, 2, 3, 7],
        [13, 24, 4, 2, 12],
        [78, 128, 2, 8, 25],
    ] {
        compare(shape(sizes), 0.5);
        compare(shape(sizes), 0.2);
    }
}
