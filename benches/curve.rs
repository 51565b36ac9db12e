//! Trains on a text without a server, and prints the losses of each epoch as
//! one line of JSON: the data for the learning curves in docs/training.md, and a
//! tool for tuning hyperparameters.
//! `cargo bench -p charlstm-bptt --bench curve -- --text FILE --recipe fast`.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Instant;

use charlstm_bptt::learner::CpuLearnerFactory;
use charlstm_model::kernels::FloatKernels;
use charlstm_model::learner::{LearnerConfig, LearnerFactory};
use charlstm_model::tokens::CorpusTokens;
use charlstm_model::vocabulary::Vocabulary;
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
    #[arg(long)]
    recurrent_dropout: Option<f64>,
    #[arg(long)]
    input_dropout: Option<f64>,
    #[arg(long)]
    average_decay: Option<f64>,
    #[arg(long)]
    precision: Option<String>,
    /// Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Also print the loss and the norm of the gradient of each step, to standard error.
    #[arg(long)]
    steps: bool,
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
    let requested = TrainingSpec {
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
        weight_decay: options.weight_decay,
        locked_dropout: options.locked_dropout.then_some(true),
        recurrent_dropout: options.recurrent_dropout,
        input_dropout: options.input_dropout,
        average_decay: options.average_decay,
        precision: options.precision,
        ..TrainingSpec::default()
    };
    let factory = CpuLearnerFactory {
        kernels: FloatKernels::best(),
        threads: options
            .threads
            .unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
    };
    let mut spec = requested
        .resolve(factory.fastest_precision(), || 1)
        .expect("a valid spec");
    let held_out = (tokens.len() as f64 * spec.validation_fraction) as usize;
    let (training, validation) = tokens.split_at(tokens.len() - held_out);
    let (training, validation) = (CorpusTokens::from(training), CorpusTokens::from(validation));
    spec.adapt_to_length(&requested, training.len());
    let mut optimizer = spec.optimizer();
    optimizer.beta2 = options.beta2.unwrap_or(optimizer.beta2);
    let config = LearnerConfig {
        architecture: spec.architecture(vocabulary.len()),
        batch_size: spec.batch_size as usize,
        sequence_length: spec.sequence_length as usize,
        epochs: spec.epochs,
        dropout: spec.dropout,
        learning_rate: spec.learning_rate,
        clip_norm: spec.clip_norm,
        seed: spec.seed,
        optimizer,
        techniques: spec.techniques(),
        precision: spec.precision,
    };
    println!("{config:?}, {factory:?}, {} tokens", training.len());
    let begin = Instant::now();
    let mut learner = factory.start(&config, training, None).expect("a learner");
    let mut evaluating = 0.0;
    for _ in 0..learner.steps_per_epoch() * u64::from(spec.epochs) {
        let outcome = learner.step().expect("a step");
        if options.steps {
            eprintln!(
                "step {}: loss {:.4}, gradient norm {:.3}",
                outcome.step, outcome.loss, outcome.gradient_norm
            );
        }
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
                    "trained_chars": outcome.step
                        * (config.batch_size * config.sequence_length) as u64,
                    "train_loss": train_loss,
                    "validation_loss": loss,
                    "average_validation_loss": average_loss,
                })
            );
        }
    }
}
