//! How recipes choose epochs, regularization and learning rate for the length of a text.

use super::{Recipe, ResolvedSpec, TrainingSpec};

/// Maximum number of epochs that a recipe chooses.
const MAX_CHOSEN_EPOCHS: u32 = 40;

/// Decay rate of the average of the weights of a text that is trained for many
/// epochs.
const AVERAGE_DECAY: f64 = 0.998;

/// How a recipe chooses hyperparameters for the length of a text.
struct LengthRule {
    /// Number of characters that are trained at least, in as many epochs as that
    /// takes.
    min_trained_chars: usize,
    /// Number of characters beyond which no other epoch begins.
    max_trained_chars: usize,
    /// Learning rate for a text of which one epoch is enough; `None`: the usual one.
    single_epoch_rate: Option<f64>,
    /// Stronger regularization for more epochs, ascending.
    stronger: &'static [Regularization],
}

/// What keeps a network from memorizing a text that it is trained on for many
/// epochs.
struct Regularization {
    /// For more epochs than this.
    above_epochs: u32,
    dropout: f64,
    recurrent_dropout: f64,
}

/// For a text of at most 37,500 characters, with `fast`.
const VERY_SHORT: Regularization = Regularization {
    above_epochs: 20,
    dropout: 0.6,
    recurrent_dropout: 0.4,
};

impl Recipe {
    /// Returns the rule for the length of a text; `None`: it does not matter.
    fn length_rule(self) -> Option<LengthRule> {
        match self {
            Recipe::Notebook => None,
            Recipe::Fast => Some(LengthRule {
                min_trained_chars: 750_000,
                max_trained_chars: 4_000_000,
                single_epoch_rate: Some(0.005),
                stronger: &[
                    Regularization {
                        above_epochs: 4,
                        dropout: 0.3,
                        recurrent_dropout: 0.1,
                    },
                    Regularization {
                        above_epochs: 10,
                        dropout: 0.5,
                        recurrent_dropout: 0.3,
                    },
                    VERY_SHORT,
                ],
            }),
            Recipe::Best => Some(LengthRule {
                min_trained_chars: 1_500_000,
                max_trained_chars: 20_000_000,
                single_epoch_rate: None,
                stronger: &[
                    Regularization {
                        above_epochs: 10,
                        dropout: 0.5,
                        recurrent_dropout: 0.3,
                    },
                    VERY_SHORT,
                ],
            }),
        }
    }
}

impl ResolvedSpec {
    /// Sets the values that depend on the length of the training text, unless
    /// the client has set them: `fast` and `best` train on a short text for more
    /// epochs, with stronger regularization, and on a very long one for fewer, `fast` with a
    /// lower learning rate for a single one.
    pub fn adapt_to_length(&mut self, requested: &TrainingSpec, training_chars: usize) {
        let Some(rule) = self.recipe.length_rule() else {
            return;
        };
        let usual = self.recipe.defaults().epochs;
        if requested.epochs.is_none() {
            let epochs_for = |chars: usize| chars.div_ceil(training_chars.max(1));
            let most = epochs_for(rule.max_trained_chars).min(usual as usize);
            let epochs = epochs_for(rule.min_trained_chars).max(most);
            self.epochs = u32::try_from(epochs)
                .map_or(MAX_CHOSEN_EPOCHS, |epochs| epochs.min(MAX_CHOSEN_EPOCHS));
            if let (1, None, Some(rate)) = (epochs, requested.learning_rate, rule.single_epoch_rate)
            {
                self.learning_rate = rate;
            }
        }
        let applies = |stronger: &&Regularization| self.epochs > stronger.above_epochs;
        if let Some(stronger) = rule.stronger.iter().rev().find(applies) {
            if requested.dropout.is_none() {
                self.dropout = stronger.dropout;
            }
            if requested.recurrent_dropout.is_none() {
                self.recurrent_dropout = stronger.recurrent_dropout;
            }
            if requested.average_decay.is_none() {
                self.average_decay = AVERAGE_DECAY;
            }
        }
    }
}
