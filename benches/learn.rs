//! Speed of training, without a server around it: characters a second at the
//! notebook's sizes and at small ones. `cargo bench --bench learn`.

#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use charlstm_server::model::architecture::Architecture;
use charlstm_server::model::device::Device;
use charlstm_server::model::learner::{Learner, LearnerConfig};

fn main() {
    let threads = available_parallelism().map_or(1, usize::from);
    for (batch_size, sequence_length, hidden_size, steps) in [(128, 100, 512, 3), (32, 50, 128, 60)]
    {
        let architecture = Architecture {
            vocabulary_size: 78,
            hidden_size,
            num_layers: 2,
        };
        let config = LearnerConfig {
            architecture,
            batch_size,
            sequence_length,
            epochs: 1,
            dropout: 0.5,
            learning_rate: 0.001,
            clip_norm: 5.0,
            seed: 1,
            threads,
            device: Device::Cpu,
        };
        let tokens: Arc<[u32]> = (0..373_097u32).map(|i| (i * i / 7 + i) % 78).collect();
        let mut learner = Learner::new(config, tokens, None).expect("a learner");
        learner.step().expect("a step");
        let begin = Instant::now();
        for _ in 0..steps {
            learner.step().expect("a step");
        }
        let chars = steps * batch_size * sequence_length;
        println!(
            "batch {batch_size} x {sequence_length}, hidden {hidden_size}, {threads} threads: {:.0} characters/s",
            chars as f64 / begin.elapsed().as_secs_f64()
        );
    }
}
