//! The flags that say how characters are chosen, and what they mean in a
//! request.

use charlstm_proto::v1::Sampling;
use clap::Args;

/// `top_k` where nothing is said: the notebook's.
const DEFAULT_TOP_K: u32 = 3;

/// How characters are chosen.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingFlags {
    /// The logits are divided by it; 0 to 100, 0 means the most probable
    /// character [default: 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
    /// Only the K most probable characters stay; 0 means all [default: 3, the
    /// notebook's; all with --greedy]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<u32>,
    /// Only the most probable characters stay that together reach P; over 0,
    /// at most 1 [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Only characters stay that are at least P times as probable as the most
    /// probable one; 0 to 1 [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f64>,
    /// Seed of the random numbers: the same seed gives the same text
    /// [default: the server draws one; a session goes on with its own]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,
    /// Always the most probable character
    #[arg(long)]
    pub(crate) greedy: bool,
}

impl SamplingFlags {
    /// The flags as the contract has them.
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
    fn the_three_most_probable_stay_where_nothing_is_said() {
        assert_eq!(SamplingFlags::default().to_sampling().top_k, Some(3));
    }

    #[test]
    fn a_given_top_k_or_greedy_replaces_the_default() {
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
