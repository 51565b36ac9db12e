//! Defines the sampling flags and converts them to `Sampling`.

use charlstm_proto::v1::Sampling;
use clap::Args;

/// Default of `--top-k`, as in the notebook. The default of the contract is to
/// sample from all characters.
const DEFAULT_TOP_K: u32 = 3;

/// Flags that choose how characters are sampled.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingFlags {
    /// Divide the logits by T; from 0 to 100, 0 takes the most probable
    /// character [default: 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
    /// Sample from the K most probable characters; 0 means all [default: 3, as
    /// in the notebook; all with --greedy]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<u32>,
    /// Sample from the most probable characters whose probabilities add up to
    /// P; above 0, at most 1 [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Sample from the characters that are at least P times as probable as the
    /// most probable one; from 0 to 1 [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f64>,
    /// Seed of the random numbers: the same seed gives the same text
    /// [default: random; an existing session keeps its random state]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,
    /// Always take the most probable character
    #[arg(long)]
    pub(crate) greedy: bool,
}

impl SamplingFlags {
    /// Converts the flags to the message of the contract.
    pub(crate) fn to_sampling(&self) -> Sampling {
        let default_top_k = (!self.greedy).then_some(DEFAULT_TOP_K);
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k.or(default_top_k),
            top_p: self.top_p,
            seed: self.seed,
            greedy: self.greedy.then_some(true),
            min_p: self.min_p,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_flags_the_three_most_probable_characters_are_sampled() {
        assert_eq!(SamplingFlags::default().to_sampling().top_k, Some(3));
    }

    #[test]
    fn top_k_and_greedy_override_the_default_of_top_k() {
        let given = SamplingFlags {
            top_k: Some(0),
            ..Default::default()
        };
        assert_eq!(given.to_sampling().top_k, Some(0));
        let greedy = SamplingFlags {
            greedy: true,
            ..Default::default()
        };
        assert_eq!(greedy.to_sampling().top_k, None);
        assert_eq!(greedy.to_sampling().greedy, Some(true));
    }
}
