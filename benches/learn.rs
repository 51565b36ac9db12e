//! Measures the speed of training without a server, in characters per second,
//! at the notebook's sizes and at smaller ones. `cargo bench --bench learn`.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::thread::available_parallelism;
use std::time::Instant;

use charlstm_model::architecture::Architecture;
use charlstm_model::device::{Device, GpuMath};
use charlstm_model::kernels::FloatKernels;
use charlstm_model::learner::{LearnerConfig, LearnerFactory, Techniques, TrainingPrecision};
use charlstm_model::optimizer_config::OptimizerConfig;
use charlstm_model::tokens::CorpusTokens;
use charlstm_torch::learner::TorchLearnerFactory;
use tch::{Kind, Tensor};

fn main() {
    let threads = available_parallelism().map_or(1, usize::from);
    ceiling(threads);
    for (batch_size, sequence_length, hidden_size, steps) in [
        (128, 100, 512, 4),
        (16, 64, 512, 40),
        (16, 32, 512, 80),
        (32, 50, 128, 120),
    ] {
        for precision in [TrainingPrecision::Float32, TrainingPrecision::Bf16] {
            let config = LearnerConfig {
                architecture: Architecture {
                    vocabulary_size: 78,
                    hidden_size,
                    num_layers: 2,
                },
                batch_size,
                sequence_length,
                epochs: 1,
                dropout: 0.5,
                learning_rate: 0.001,
                clip_norm: 5.0,
                seed: 1,
                optimizer: OptimizerConfig::NOTEBOOK,
                techniques: Techniques::default(),
                precision,
            };
            measure(&config, steps, threads);
        }
    }
}

fn measure(config: &LearnerConfig, steps: usize, threads: usize) {
    let factory = TorchLearnerFactory {
        device: Device::Cpu,
        threads,
        kernels: FloatKernels::best(),
        gpu_math: GpuMath::default(),
    };
    let tokens: CorpusTokens = (0..373_097u32)
        .map(|i| (i % 1000 * (i % 1000) / 7 + i) % 78)
        .collect();
    let mut learner = factory.start(config, tokens, None).expect("a learner");
    for _ in 0..2 {
        learner.step().expect("a step");
    }
    let begin = Instant::now();
    for _ in 0..steps {
        learner.step().expect("a step");
    }
    let chars = steps * config.batch_size * config.sequence_length;
    println!(
        "batch {} x {}, hidden {}, {} ({}), {threads} threads: {:.0} characters/s",
        config.batch_size,
        config.sequence_length,
        config.architecture.hidden_size,
        config.precision.name(),
        factory.instructions(config.precision),
        chars as f64 / begin.elapsed().as_secs_f64()
    );
}

/// Measures libtorch's matrix product on this machine in both precisions: 1,280 x
/// 512 by 512 x 2048.
fn ceiling(threads: usize) {
    tch::set_num_threads(threads as i32);
    for (kind, name) in [(Kind::Float, "float32"), (Kind::BFloat16, "bf16")] {
        let random = |rows, columns| Tensor::randn([rows, columns], (kind, tch::Device::Cpu));
        let (a, b) = (random(1_280, 512), random(512, 2_048));
        let _ = black_box(a.mm(&b));
        let begin = Instant::now();
        let rounds = 100;
        for _ in 0..rounds {
            let _ = black_box(a.mm(&b));
        }
        let operations = f64::from(rounds) * 2.0 * 1_280.0 * 512.0 * 2_048.0;
        println!(
            "matrix product of libtorch, {name}, {threads} threads: {:.0} GFLOP/s",
            operations / begin.elapsed().as_secs_f64() / 1e9
        );
    }
}
