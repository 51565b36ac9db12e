//! The invariants of a decode step, as assertions that every
//! [`DecodeDevice`] must pass: the tests of this crate and of the crates that
//! implement other devices call them. They panic if an invariant is broken.

use std::sync::Arc;

use super::*;
use crate::parameters::layout;

/// Returns pseudo-random parameters, the same on every computer.
fn parameters(architecture: Architecture) -> Parameters {
    let mut parameters = Parameters::zeros(architecture);
    for (k, value) in parameters.values.iter_mut().enumerate() {
        *value = (0.3 * (k as f64 * 12.9898).sin() + 0.1 * (k as f64 * 0.37).cos()) as f32;
    }
    parameters
}

fn architecture(vocabulary_size: usize, hidden_size: usize, num_layers: usize) -> Architecture {
    Architecture {
        vocabulary_size,
        hidden_size,
        num_layers,
    }
}

fn prepare(device: &dyn DecodeDevice, parameters: &Parameters) -> Arc<DecodeWeights> {
    Arc::new(device.prepare(parameters).expect("the device has memory"))
}

/// Returns the logits after `tokens`, computed by the textbook LSTM in double
/// precision.
fn reference(parameters: &Parameters, tokens: &[u32]) -> Vec<f64> {
    let Architecture {
        vocabulary_size,
        hidden_size,
        num_layers,
    } = parameters.architecture;
    let get = |name: &str| -> Vec<f64> {
        let view = layout(&parameters.architecture)
            .into_iter()
            .find(|view| view.name == name)
            .expect("a name of the layout");
        parameters.values[view.range]
            .iter()
            .map(|&x| f64::from(x))
            .collect()
    };
    let matrix_vector = |matrix: &[f64], vector: &[f64]| -> Vec<f64> {
        matrix
            .chunks_exact(vector.len())
            .map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum())
            .collect()
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut states = vec![(vec![0.0; hidden_size], vec![0.0; hidden_size]); num_layers];
    let mut x = Vec::new();
    for &token in tokens {
        x = vec![0.0; vocabulary_size];
        x[token as usize] = 1.0;
        for (layer, (h, c)) in states.iter_mut().enumerate() {
            let part = |name: &str| get(&format!("lstm.{name}_l{layer}"));
            let from_input = matrix_vector(&part("weight_ih"), &x);
            let from_hidden = matrix_vector(&part("weight_hh"), h);
            let (b1, b2) = (part("bias_ih"), part("bias_hh"));
            let gate = |g: usize, u: usize| {
                let i = g * hidden_size + u;
                from_input[i] + from_hidden[i] + b1[i] + b2[i]
            };
            for u in 0..hidden_size {
                c[u] = sigmoid(gate(1, u)) * c[u] + sigmoid(gate(0, u)) * gate(2, u).tanh();
                h[u] = sigmoid(gate(3, u)) * c[u].tanh();
            }
            x.clone_from(h);
        }
    }
    let bias = get("fc.bias");
    let logits = matrix_vector(&get("fc.weight"), &x);
    logits.iter().zip(bias).map(|(a, b)| a + b).collect()
}

/// Asserts that the logits are those of the textbook LSTM in double precision,
/// up to rounding.
pub fn logits_match_the_textbook_network(device: &dyn DecodeDevice) {
    for architecture in [
        architecture(5, 7, 1),
        architecture(11, 16, 2),
        architecture(70, 33, 3),
    ] {
        let parameters = parameters(architecture);
        let tokens: Vec<u32> = (0..20)
            .map(|i| (i * i + 3) % architecture.vocabulary_size as u32)
            .collect();
        let weights = prepare(device, &parameters);
        let tolerance = match weights.arithmetic().precision {
            Precision::Float32 => 1e-5,
            // h and the weights are rounded to 1/254 of their range.
            Precision::Int8 => 0.05,
        };
        let mut batch = DecodeBatch::new(weights.clone(), 1).expect("a batch");
        batch.push(&weights.zero_state());
        let mut logits = Vec::new();
        for &token in &tokens {
            logits = batch.step(&[token]).expect("a step").to_vec();
        }
        for (ours, exact) in logits.iter().zip(reference(&parameters, &tokens)) {
            let error = (f64::from(*ours) - exact).abs();
            assert!(error < tolerance, "{device:?}: {ours} {exact}");
        }
    }
}

/// Asserts batch invariance, with up to 20 rows.
pub fn a_row_is_the_same_alone_and_in_any_batch(device: &dyn DecodeDevice) {
    let architecture = architecture(13, 40, 2);
    let weights = prepare(device, &parameters(architecture));
    let mut alone = DecodeBatch::new(weights.clone(), 1).expect("a batch");
    alone.push(&weights.zero_state());
    let expected: Vec<Vec<f32>> = (0..12)
        .map(|t| alone.step(&[t % 13]).expect("a step").to_vec())
        .collect();
    for rows in 1..=20 {
        for row in [0, rows / 2, rows - 1] {
            let mut batch = DecodeBatch::new(weights.clone(), rows).expect("a batch");
            (0..rows).for_each(|_| {
                batch.push(&weights.zero_state());
            });
            for (t, expected) in expected.iter().enumerate() {
                let mut tokens: Vec<u32> = (0..rows)
                    .map(|row| ((row * 5 + t * 3) % 13) as u32)
                    .collect();
                tokens[row] = t as u32 % 13;
                let logits = batch.step(&tokens).expect("a step");
                assert_eq!(
                    &logits[row * 13..][..13],
                    expected,
                    "{rows} rows, row {row}"
                );
            }
            assert_eq!(batch.state(row), alone.state(0));
        }
    }
}

/// Asserts that prefill, in chunks of any length, equals decode steps.
pub fn prefill_in_chunks_of_any_length_equals_steps(device: &dyn DecodeDevice) {
    let architecture = architecture(13, 37, 3);
    let weights = prepare(device, &parameters(architecture));
    let tokens: Vec<u32> = (0..200u32).map(|i| (i * i * 7 + i) % 13).collect();
    let mut steps = DecodeBatch::new(weights.clone(), 1).expect("a batch");
    steps.push(&weights.zero_state());
    let mut expected = Vec::new();
    for &token in &tokens {
        expected.extend_from_slice(steps.step(&[token]).expect("a step"));
    }
    for length in [1, 3, 63, 64, 65, 200] {
        let mut state = weights.zero_state();
        let mut batch = DecodeBatch::new(weights.clone(), 1).expect("a batch");
        let mut logits = Vec::new();
        for chunk in tokens.chunks(length) {
            logits.extend(batch.prefill_logits(&mut state, chunk).expect("a prefill"));
        }
        assert_eq!(state, steps.state(0), "chunks of {length}");
        assert_eq!(logits, expected, "chunks of {length}");
    }
}

/// Asserts that the last row takes the index of a removed row.
pub fn a_removed_row_is_replaced_by_the_last_one(device: &dyn DecodeDevice) {
    let architecture = architecture(6, 9, 2);
    let weights = prepare(device, &parameters(architecture));
    let mut batch = DecodeBatch::new(weights.clone(), 4).expect("a batch");
    let states: Vec<HiddenState> = (0..3)
        .map(|token| {
            let mut state = weights.zero_state();
            batch.prefill(&mut state, &[token]).expect("a prefill");
            state
        })
        .collect();
    for state in &states {
        batch.push(state);
    }
    assert_eq!(batch.swap_remove(0), states[0]);
    assert_eq!(batch.rows(), 2);
    assert_eq!(batch.state(0), states[2]);
    assert_eq!(batch.state(1), states[1]);
    assert_eq!(batch.swap_remove(1), states[1]);
    assert_eq!(batch.state(0), states[2]);
}
