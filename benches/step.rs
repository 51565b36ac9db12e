//! Measures the speed of the decode step with sampling for several batch sizes,
//! and of prefill, without a server, in characters per second.
//!
//! `cargo bench -p charlstm-model --bench step -- [--json] [--threads N]`
//!
//! With several threads, each one steps its own batch, as the workers of the
//! server do; `rows` counts all of them.

#![allow(clippy::print_stdout)]

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{
    DecodeBatch, DecodeDevice, DecodeWeights, Int8Processor, Precision, Processor,
};
use charlstm_model::parameters::Parameters;
use charlstm_model::sampler::{Draws, RandomState, Sampler, SamplingSettings};

/// The notebook's model, with the vocabulary of its text.
const ARCHITECTURE: Architecture = Architecture {
    vocabulary_size: 78,
    hidden_size: 512,
    num_layers: 2,
};

const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 64, 128, 256];
const PREFILL_CHARS: usize = 2000;
const DURATION: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let max_threads = arguments
        .iter()
        .position(|argument| argument == "--threads")
        .and_then(|at| arguments.get(at + 1)?.parse().ok())
        .unwrap_or(1);
    let mut parameters = Parameters::zeros(ARCHITECTURE);
    for (k, value) in parameters.values.iter_mut().enumerate() {
        *value = 0.04 * (k as f32 * 12.9898).sin();
    }
    let devices: [(Precision, &dyn DecodeDevice); 2] = [
        (Precision::Int8, &Int8Processor::default()),
        (Precision::Float32, &Processor::default()),
    ];
    for (precision, device) in devices {
        let weights = Arc::new(device.prepare(&parameters).expect("a CPU"));
        let report = |name: &str, rows: usize, threads: usize, speed: f64| {
            if json {
                println!(
                    r#"{{"name":"{name}","precision":"{precision}","rows":{rows},"threads":{threads},"chars_per_second":{speed:.0}}}"#
                );
            } else {
                println!(
                    "{precision:7} {name:7} {rows:4} rows {threads:2} threads {speed:9.0} characters/s"
                );
            }
        };
        for threads in 1..=max_threads {
            for rows in ROWS.into_iter().filter(|rows| rows % threads == 0) {
                report("decode", rows, threads, decode(&weights, rows, threads));
            }
        }
        report("prefill", 1, 1, prefill(&weights));
    }
}

/// Steps `threads` batches with `rows` rows together.
fn decode(weights: &Arc<DecodeWeights>, rows: usize, threads: usize) -> f64 {
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        let batches: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| step_batch(weights, rows / threads, &start)))
            .collect();
        batches
            .into_iter()
            .map(|batch| batch.join().expect("a thread that does not panic"))
            .sum()
    })
}

/// Steps one batch; every row samples from the top 3.
fn step_batch(weights: &Arc<DecodeWeights>, rows: usize, start: &Barrier) -> f64 {
    let mut batch = DecodeBatch::new(Arc::clone(weights), rows).expect("a batch");
    let mut draws = Vec::new();
    for row in 0..rows {
        batch.push(&weights.zero_state());
        draws.push(Draws::at(RandomState::seeded(row as u64)));
    }
    let settings = SamplingSettings::new(1.0, 3, 1.0, 0.0).expect("valid settings");
    let mut sampler = Sampler::default();
    let mut tokens = vec![0; rows];
    let mut steps = 0;
    start.wait();
    let begin = Instant::now();
    while begin.elapsed() < DURATION {
        let logits = batch.step(&tokens).expect("a step");
        for ((token, draws), logits) in tokens
            .iter_mut()
            .zip(&mut draws)
            .zip(logits.chunks_exact(ARCHITECTURE.vocabulary_size))
        {
            *token = sampler.choose(&settings, logits, draws.uniform());
        }
        steps += 1;
    }
    (steps * rows) as f64 / begin.elapsed().as_secs_f64()
}

/// Feeds a long prompt.
fn prefill(weights: &Arc<DecodeWeights>) -> f64 {
    let mut batch = DecodeBatch::new(Arc::clone(weights), 1).expect("a batch");
    let tokens: Vec<u32> = (0..PREFILL_CHARS as u32).map(|i| i % 78).collect();
    let mut state = weights.zero_state();
    let begin = Instant::now();
    batch.prefill(&mut state, &tokens).expect("a prefill");
    PREFILL_CHARS as f64 / begin.elapsed().as_secs_f64()
}
