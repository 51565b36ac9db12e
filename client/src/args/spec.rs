//! Defines the training flags, one per field of `TrainingSpec`, and converts
//! them. A flag that is not given leaves its field unset, so that the default
//! of the recipe applies.

use charlstm_proto::v1::TrainingSpec;
use clap::Args;

/// Flags that choose what to train and how.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Training (defaults depend on the recipe)")]
pub(crate) struct SpecFlags {
    /// Number of passes over the text [fast: 4, best: 10, both more for a short
    /// text and fewer for a very long one; notebook: 20]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) epochs: Option<u32>,
    /// Size of each LSTM layer [best: 768; fast, notebook: 512]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) hidden_size: Option<u32>,
    /// Number of LSTM layers [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) num_layers: Option<u32>,
    /// Number of sequences per batch [fast, best: 16; notebook: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) batch_size: Option<u32>,
    /// Number of characters per sequence [fast, best: 32; notebook: 100]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) sequence_length: Option<u32>,
    /// Dropout probability [fast: 0.1, or 0.3 for more than 4 epochs; best: 0.3;
    /// both 0.5 for more than 10 epochs and 0.6 for more than 20; notebook: 0.5]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) dropout: Option<f64>,
    /// Drop the same outputs at all time steps of a sequence
    #[arg(long)]
    pub(crate) locked_dropout: bool,
    /// Probability of dropping a recurrent weight during a batch [fast: 0, or 0.1
    /// for more than 4 epochs; best: 0.1; both 0.3 for more than 10 epochs and 0.4
    /// for more than 20; notebook: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) recurrent_dropout: Option<f64>,
    /// Probability of dropping a character of the vocabulary as an input during
    /// a batch [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) input_dropout: Option<f64>,
    /// Decay rate of a moving average of the weights, which is published if it
    /// is better; 0 means no average [fast: 0, or 0.998
    /// for more than 4 epochs; best: 0.999, or 0.998 for more than 10; notebook: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) average_decay: Option<f64>,
    /// Weight decay [fast, best: 0.1; notebook: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) weight_decay: Option<f64>,
    /// Number format of the inputs of matrix products: `float32`, `bf16`, or
    /// `auto`, the faster one on the server's processor [default: auto]
    #[arg(long, value_name = "NAME")]
    pub(crate) precision: Option<String>,
    /// Learning rate of the optimizer [fast: 0.01, or 0.005 for a text of more than 4 million
    /// characters; best: 0.008; notebook: 0.001]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) learning_rate: Option<f64>,
    /// Maximum norm of the gradient; a larger gradient is scaled down
    /// [default: 5]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) clip_norm: Option<f64>,
    /// Fraction of the text, at its end, to hold out for validation [fast,
    /// best: 0.1; notebook: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) validation_fraction: Option<f64>,
    /// Seed of the initial weights, of dropout and of the samples [default:
    /// random]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,
    /// Number of characters to skip at the beginning of the text [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) skip_chars: Option<u32>,
    /// Named set of defaults: `fast`, `best` (up to ten times the time of `fast`)
    /// or `notebook` [default: fast]
    #[arg(long, value_name = "NAME")]
    pub(crate) recipe: Option<String>,
    /// Start from the weights of this model, as NAME or NAME@VERSION
    #[arg(long, value_name = "NAME")]
    pub(crate) init_from: Option<String>,
    /// Extend the vocabulary of the model of --init-from by the characters of
    /// the text that it does not know
    #[arg(long)]
    pub(crate) extend_vocabulary: bool,
    /// Cancel the training if the connection is lost
    #[arg(long)]
    pub(crate) cancel_on_disconnect: bool,
    /// Prompt of the sample that is generated after each epoch [default: the
    /// first character of the text]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) sample_prime: Option<String>,
    /// Number of characters in the sample of each epoch; 0 means no sample
    /// [default: 200]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) sample_chars: Option<u32>,
}

impl SpecFlags {
    /// Returns the flags that are given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        let flags = [
            (self.epochs.is_some(), "--epochs"),
            (self.hidden_size.is_some(), "--hidden-size"),
            (self.num_layers.is_some(), "--num-layers"),
            (self.batch_size.is_some(), "--batch-size"),
            (self.sequence_length.is_some(), "--sequence-length"),
            (self.dropout.is_some(), "--dropout"),
            (self.learning_rate.is_some(), "--learning-rate"),
            (self.clip_norm.is_some(), "--clip-norm"),
            (self.validation_fraction.is_some(), "--validation-fraction"),
            (self.seed.is_some(), "--seed"),
            (self.skip_chars.is_some(), "--skip-chars"),
            (self.recipe.is_some(), "--recipe"),
            (self.init_from.is_some(), "--init-from"),
            (self.extend_vocabulary, "--extend-vocabulary"),
            (self.precision.is_some(), "--precision"),
            (self.weight_decay.is_some(), "--weight-decay"),
            (self.locked_dropout, "--locked-dropout"),
            (self.recurrent_dropout.is_some(), "--recurrent-dropout"),
            (self.input_dropout.is_some(), "--input-dropout"),
            (self.average_decay.is_some(), "--average-decay"),
            (self.cancel_on_disconnect, "--cancel-on-disconnect"),
            (self.sample_prime.is_some(), "--sample-prime"),
            (self.sample_chars.is_some(), "--sample-chars"),
        ];
        let given = flags.into_iter().filter(|(is_given, _)| *is_given);
        given.map(|(_, name)| name).collect()
    }

    /// Converts the flags to the message of the contract.
    pub(crate) fn to_spec(&self, model: &str) -> TrainingSpec {
        TrainingSpec {
            model: model.to_owned(),
            hidden_size: self.hidden_size,
            num_layers: self.num_layers,
            batch_size: self.batch_size,
            sequence_length: self.sequence_length,
            epochs: self.epochs,
            dropout: self.dropout,
            learning_rate: self.learning_rate,
            clip_norm: self.clip_norm,
            validation_fraction: self.validation_fraction,
            seed: self.seed,
            skip_chars: self.skip_chars,
            recipe: self.recipe.clone(),
            init_from: self.init_from.clone(),
            cancel_on_disconnect: self.cancel_on_disconnect.then_some(true),
            sample_prime: self.sample_prime.clone(),
            sample_chars: self.sample_chars,
            extend_vocabulary: self.extend_vocabulary.then_some(true),
            precision: self.precision.clone(),
            weight_decay: self.weight_decay,
            locked_dropout: self.locked_dropout.then_some(true),
            recurrent_dropout: self.recurrent_dropout,
            input_dropout: self.input_dropout,
            average_decay: self.average_decay,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use crate::args::{Command, CommandLine, TrainArgs};

    /// Every flag with a value.
    const ALL: &str = "--hidden-size 1 --num-layers 2 --batch-size 3 --sequence-length 4 --epochs 5 \
         --dropout 0.6 --learning-rate 0.7 --clip-norm 0.8 --validation-fraction 0.9 \
         --seed 10 --skip-chars 11 --recipe r --init-from i --extend-vocabulary --cancel-on-disconnect \
         --sample-prime p --sample-chars 12 --precision bf16 --weight-decay 0.13 --locked-dropout \
         --recurrent-dropout 0.14 --input-dropout 0.15 --average-decay 0.16";

    fn parse(flags: &[&str]) -> TrainArgs {
        let line = ["charlstm-client", "train", "--text", "-", "--model", "m"];
        let args = CommandLine::try_parse_from(line.iter().chain(flags)).unwrap();
        match args.command {
            Command::Train(train) => *train,
            other => panic!("{other:?}"),
        }
    }

    fn spec(flags: &[&str]) -> charlstm_proto::v1::TrainingSpec {
        let train = parse(flags);
        train.spec.to_spec(&train.model)
    }

    #[test]
    fn every_flag_that_is_given_is_listed() {
        let flags: Vec<&str> = ALL.split_whitespace().collect();
        let mut given = parse(&flags).spec.given();
        let mut expected: Vec<&str> = flags
            .into_iter()
            .filter(|it| it.starts_with("--"))
            .collect();
        given.sort_unstable();
        expected.sort_unstable();
        assert_eq!(given, expected);
        assert!(parse(&[]).spec.given().is_empty());
    }

    #[test]
    fn a_flag_that_is_not_given_leaves_its_field_unset() {
        let expected = charlstm_proto::v1::TrainingSpec {
            model: "m".into(),
            ..Default::default()
        };
        assert_eq!(spec(&[]), expected);
    }

    #[test]
    fn each_flag_sets_its_own_field() {
        let flags: Vec<&str> = ALL.split_whitespace().collect();
        let expected = charlstm_proto::v1::TrainingSpec {
            model: "m".into(),
            hidden_size: Some(1),
            num_layers: Some(2),
            batch_size: Some(3),
            sequence_length: Some(4),
            epochs: Some(5),
            dropout: Some(0.6),
            learning_rate: Some(0.7),
            clip_norm: Some(0.8),
            validation_fraction: Some(0.9),
            seed: Some(10),
            skip_chars: Some(11),
            recipe: Some("r".into()),
            init_from: Some("i".into()),
            cancel_on_disconnect: Some(true),
            sample_prime: Some("p".into()),
            sample_chars: Some(12),
            extend_vocabulary: Some(true),
            precision: Some("bf16".to_owned()),
            weight_decay: Some(0.13),
            locked_dropout: Some(true),
            recurrent_dropout: Some(0.14),
            input_dropout: Some(0.15),
            average_decay: Some(0.16),
        };
        assert_eq!(spec(&flags), expected);
    }

    #[test]
    fn an_invalid_value_reaches_the_server_which_reports_the_limit() {
        assert_eq!(spec(&["--dropout", "-1"]).dropout, Some(-1.0));
        assert_eq!(spec(&["--epochs", "0"]).epochs, Some(0));
    }
}
