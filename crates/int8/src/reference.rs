//! The definition of the int8 decode step as a plain scalar program.
//!
//! Nothing here is fast. Every kernel must give the same bits as these
//! functions, for every network, state and token id.

use crate::activation::{sigmoid, tanh};
use crate::network::QuantisedNetwork;
use crate::quantisation::QuantisedMatrix;
use crate::state::State;

/// Feeds one character to a sequence: replaces its state by the state after
/// the character.
///
/// # Panics
/// Panics if the token id is outside the vocabulary or the state belongs to a
/// network of another shape.
pub fn step(network: &QuantisedNetwork, state: &mut State, token: u32) {
    let shape = network.shape();
    let hidden = shape.hidden_size();
    assert!(state.fits(shape), "the state has another shape");
    assert!(
        (token as usize) < shape.vocabulary_size(),
        "token id {token} is outside the vocabulary of {}",
        shape.vocabulary_size()
    );
    for (index, layer) in network.layers().iter().enumerate() {
        let (below, rest) = state.h.split_at_mut(index * hidden);
        let h = &mut rest[..hidden];
        let c = &mut state.c[index * hidden..][..hidden];
        let pre = match layer.input() {
            None => {
                let rows = shape.gate_rows();
                let initial = &layer.initial()[token as usize * rows..][..rows];
                add_product(layer.recurrent(), h, initial)
            }
            Some(input) => {
                let a = add_product(layer.recurrent(), h, layer.initial());
                add_product(input, &below[(index - 1) * hidden..], &a)
            }
        };
        for unit in 0..hidden {
            let gate = |gate: usize| pre[gate * hidden + unit];
            let (new_h, new_c) = cell([gate(0), gate(1), gate(2), gate(3)], c[unit]);
            h[unit] = new_h;
            c[unit] = new_c;
        }
    }
}

/// Returns the logits, `[vocabulary]`, of the character that follows a state.
///
/// # Panics
/// Panics if the state belongs to a network of another shape.
pub fn logits(network: &QuantisedNetwork, state: &State) -> Vec<f32> {
    let shape = network.shape();
    assert!(state.fits(shape), "the state has another shape");
    let last = (shape.num_layers() - 1) * shape.hidden_size();
    add_product(network.output(), &state.h[last..], network.output_bias())
}

/// Returns `fma(float(dot), s', initial)` for every row of a matrix.
pub fn add_product(matrix: &QuantisedMatrix, h: &[i8], initial: &[f32]) -> Vec<f32> {
    (0..matrix.rows())
        .map(|row| {
            let dot = dot(matrix.row(row), h);
            (dot as f32).mul_add(matrix.scales()[row], initial[row])
        })
        .collect()
}

/// Returns the exact dot product of a row of weights and h.
pub fn dot(weights: &[i8], h: &[i8]) -> i32 {
    weights
        .iter()
        .zip(h)
        .map(|(&weight, &h)| i32::from(weight) * i32::from(h))
        .sum()
}

/// Returns the new h, quantised, and the new c of one unit, from the
/// pre-activations of its gates (input, forget, cell, output) and its old c.
pub fn cell(pre: [f32; 4], c: f32) -> (i8, f32) {
    let input = sigmoid(pre[0]);
    let forget = sigmoid(pre[1]);
    let candidate = tanh(pre[2]);
    let output = sigmoid(pre[3]);
    let kept = forget * c;
    let c = input.mul_add(candidate, kept);
    let h = output * tanh(c);
    (quantise_h(h), c)
}

/// Returns h in units of 1/127, rounded half to even. The magnitude of `h` is
/// below 1.
pub fn quantise_h(h: f32) -> i8 {
    (h * 127.0).round_ties_even() as i8
}
