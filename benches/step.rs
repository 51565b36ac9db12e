//! Measures the speed of the decode step for several batch sizes, and of prefill,
//! without a server, in characters per second. `cargo bench --bench step`.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{DecodeBatch, DecodeWeights};
use charlstm_model::parameters::Parameters;

/// The notebook's model, with the vocabulary of its text.
const ARCHITECTURE: Architecture = Architecture {
    vocabulary_size: 78,
    hidden_size: 512,
    num_layers: 2,
};

/// Floating-point operations per character, two per multiply-add: the recurrent
/// matrices, the input matrix of the second layer, and the linear layer.
const FLOP_PER_CHAR: f64 = 2.0 * (3.0 * 4.0 * 512.0 * 512.0 + 512.0 * 78.0);

fn main() {
    let mut parameters = Parameters::zeros(ARCHITECTURE);
    for (k, value) in parameters.values.iter_mut().enumerate() {
        *value = 0.04 * (k as f32 * 12.9898).sin();
    }
    let weights = Arc::new(DecodeWeights::on_processor(&parameters));
    println!("one thread, {ARCHITECTURE:?}");
    for rows in [1, 2, 3, 4, 8, 16, 32, 64, 128, 256] {
        let mut batch = DecodeBatch::new(weights.clone(), rows).expect("a batch");
        for _ in 0..rows {
            batch.push(&weights.zero_state());
        }
        let tokens: Vec<u32> = (0..rows as u32).map(|row| row % 78).collect();
        let mut steps = 0;
        let begin = Instant::now();
        while begin.elapsed().as_secs_f64() < 1.0 {
            black_box(batch.step(&tokens).expect("a step"));
            steps += 1;
        }
        report(&format!("decode, batch {rows}"), steps * rows, begin);
    }
    let mut batch = DecodeBatch::new(weights.clone(), 1).expect("a batch");
    let tokens: Vec<u32> = (0..2000).map(|i| i % 78).collect();
    let mut state = weights.zero_state();
    let begin = Instant::now();
    batch.prefill(&mut state, &tokens).expect("a prefill");
    black_box(&state);
    report("prefill", tokens.len(), begin);
}

fn report(name: &str, chars: usize, begin: Instant) {
    let rate = chars as f64 / begin.elapsed().as_secs_f64();
    println!(
        "{name:16} {rate:9.0} characters/s {:7.1} GFLOP/s",
        rate * FLOP_PER_CHAR / 1e9
    );
}
