//! Measures what int8 costs on text that a model was not trained on: bits per
//! character in both precisions, with the state carried through the text.
//!
//! `cargo bench -p charlstm-model --bench quantisation -- MODEL TEXT [FRACTION]`
//!
//! MODEL is a file of `charlstm-client models export`, TEXT the text that it
//! was trained on, and FRACTION (0.1 by default) the part of the text, at its
//! end, that was held out.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;

use charlstm_model::decode_step::{DecodeBatch, DecodeDevice, Int8Processor, Processor};
use charlstm_model::model_file::ModelFile;
use charlstm_model::sampler::log_probability;

/// Characters that are fed at once.
const CHUNK_CHARS: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let [model, text, rest @ ..] = &arguments[..] else {
        // Also how `cargo test --benches` and `cargo bench` without arguments
        // run this program.
        println!("no model is given: nothing is measured");
        return;
    };
    let fraction: f64 = rest
        .first()
        .map_or(0.1, |text| text.parse().expect("a fraction"));
    let model = ModelFile::read(Path::new(model)).expect("a model file");
    let text = std::fs::read_to_string(text).expect("a text");
    let tokens = model
        .vocabulary
        .encode(&text)
        .expect("only characters of the model");
    let begin = tokens.len() - (tokens.len() as f64 * fraction) as usize;
    let held_out = &tokens[begin..];
    let bits = |device: &dyn DecodeDevice| bits_per_char(device, &model, held_out);
    let (float32, int8) = (bits(&Processor::default()), bits(&Int8Processor::default()));
    println!(
        "{} held-out characters: {float32:.5} bits per character in float32, {int8:.5} in int8, \
         {:+.5} more",
        held_out.len(),
        int8 - float32
    );
}

/// Returns the mean number of bits for each character after the first.
fn bits_per_char(device: &dyn DecodeDevice, model: &ModelFile, tokens: &[u32]) -> f64 {
    let weights = Arc::new(device.prepare(&model.parameters).expect("a CPU"));
    let mut state = weights.zero_state();
    let mut batch = DecodeBatch::new(weights, 1).expect("a batch");
    let width = model.vocabulary.len();
    let mut nats = 0.0;
    let last = tokens.len() - 1;
    for begin in (0..last).step_by(CHUNK_CHARS) {
        let end = (begin + CHUNK_CHARS).min(last);
        let logits = batch
            .prefill_logits(&mut state, &tokens[begin..end])
            .expect("a prefill");
        for (row, &next) in logits.chunks_exact(width).zip(&tokens[begin + 1..]) {
            nats -= log_probability(row, next);
        }
    }
    nats / last as f64 / std::f64::consts::LN_2
}
