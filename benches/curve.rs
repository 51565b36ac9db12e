//! Trains on a text without a server, and prints the losses of each epoch as
//! one line of JSON: the data for the learning curves in docs/training.md, and a
//! tool for tuning hyperparameters.
//! `cargo bench --bench curve -- --text FILE --recipe fast`.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Instant;

use charlstm_model::device::Device;
use charlstm_model::kernels::FloatKernels;
use charlstm_model::learner::{LearnerConfig, LearnerFactory, Techniques, TrainingPrecision};
use charlstm_model::tokens::CorpusTokens;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_torch::learner::TorchLearnerFactory;
use charlstm_training::spec::TrainingSpec;
use clap::Parser;

/// Hyperparameters; those that are not given have the default of the preset.
#[derive(Parser)]
struct Options {
    /// The text to train on.
    #[arg(long)]
    text: PathBuf,
    #[arg(long)]
    recipe: Option<String>,
    #[arg(long)]
    hidden_size: Option<u32>,
    #[arg(long)]
    num_layers: Option<u32>,
    #[arg(long)]
    batch_size: Option<u32>,
    #[arg(long)]
    sequence_length: Option<u32>,
    #[arg(long)]
    epochs: Option<u32>,
    #[arg(long)]
    dropout: Option<f64>,
    #[arg(long)]
    learning_rate: Option<f64>,
    #[arg(long)]
    clip_norm: Option<f64>,
    /// Fraction of the text, at its beginning, that is used at all: a search for
    /// hyperparameters must not see the text on which they are compared.
    #[arg(long, default_value_t = 1.0)]
    text_fraction: f64,
    /// Fraction of the text that is used, at its end, that is held out.
    #[arg(long, default_value_t = 0.1)]
    validation_fraction: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long)]
    beta2: Option<f64>,
    #[arg(long)]
    weight_decay: Option<f64>,
    #[arg(long)]
    locked_dropout: bool,
    #[arg(long, default_value_t = 0.0)]
    recurrent_dropout: f64,
    #[arg(long, default_value_t = 0.0)]
    input_dropout: f64,
    #[arg(long)]
    average_decay: Option<f64>,
    /// float32 or bf16.
    #[arg(long, default_value = "float32")]
    precision: String,
    /// Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Ignored; `cargo bench` passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let text = std::fs::read_to_string(&options.text).expect("a text file in UTF-8");
    let vocabulary = Vocabulary::of(text.chars());
    let mut tokens = vocabulary.encode(&text).expect("its own characters");
    tokens.truncate((tokens.len() as f64 * options.text_fraction) as usize);
    let spec = TrainingSpec {
        model: "curve".to_owned(),
        recipe: options.recipe,
        hidden_size: options.hidden_size,
        num_layers: options.num_layers,
        batch_size: options.batch_size,
        sequence_length: options.sequence_length,
        epochs: options.epochs,
        dropout: options.dropout,
        learning_rate: options.learning_rate,
        clip_norm: options.clip_norm,
        validation_fraction: Some(options.validation_fraction),
        seed: Some(options.seed),
        ..TrainingSpec::default()
    };
    let spec = spec
        .resolve(TrainingPrecision::Float32, || 1)
        .expect("a valid spec");
    let mut method = spec.recipe.method();
    method.beta2 = options.beta2.unwrap_or(method.beta2);
    method.weight_decay = options.weight_decay.unwrap_or(method.weight_decay);
    let config = LearnerConfig {
        architecture: spec.architecture(vocabulary.len()),
        batch_size: spec.batch_size as usize,
        sequence_length: spec.sequence_length as usize,
        epochs: spec.epochs,
        dropout: spec.dropout,
        learning_rate: spec.learning_rate,
        clip_norm: spec.clip_norm,
        seed: spec.seed,
        optimizer: method,
        techniques: Techniques {
            locked_dropout: options.locked_dropout,
            recurrent_dropout: options.recurrent_dropout,
            input_dropout: options.input_dropout,
            average_decay: options.average_decay,
        },
        precision: match options.precision.as_str() {
            "bf16" => TrainingPrecision::Bf16,
            "float32" => TrainingPrecision::Float32,
            other => panic!("unknown precision {other}"),
        },
    };
    let factory = TorchLearnerFactory {
        device: Device::Cpu,
        kernels: FloatKernels::best(),
        threads: options
            .threads
            .unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
    };
    let held_out = (tokens.len() as f64 * spec.validation_fraction) as usize;
    let (training, validation) = tokens.split_at(tokens.len() - held_out);
    let (training, validation) = (CorpusTokens::from(training), CorpusTokens::from(validation));
    println!("{config:?}, {factory:?}, {} tokens", training.len());
    let begin = Instant::now();
    let mut learner = factory.start(&config, training, None).expect("a learner");
    let mut evaluating = 0.0;
    for _ in 0..learner.steps_per_epoch() * u64::from(spec.epochs) {
        let outcome = learner.step().expect("a step");
        if let Some(train_loss) = outcome.epoch_loss {
            let pause = Instant::now();
            let parameters = learner.parameters().expect("parameters");
            let loss = learner.evaluate(&parameters, &validation).expect("a loss");
            let average_loss = learner
                .average()
                .expect("an average")
                .map(|average| learner.evaluate(&average, &validation).expect("a loss"));
            evaluating += pause.elapsed().as_secs_f64();
            println!(
                "{}",
                serde_json::json!({
                    "epoch": outcome.epoch,
                    "step": outcome.step,
                    "seconds": begin.elapsed().as_secs_f64(),
                    "evaluating": evaluating,
                    "train_loss": train_loss,
                    "validation_loss": loss,
                    "average_validation_loss": average_loss,
                })
            );
        }
    }
}
