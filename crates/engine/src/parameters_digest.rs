//! The digest by which a repeat of a call is recognised.

use charlstm_model::sampler::SamplingSettings;
use charlstm_store::session::ParametersDigest;
use sha2::{Digest, Sha256};

/// First bytes of what is hashed: names the layout, so that another one never
/// gives the same digest.
const LABEL: &[u8] = b"charlstm call parameters 1\0";

/// Computes the digest of the parameters on which the text of a call depends,
/// besides the state from which it continues: SHA-256 of [`LABEL`], the length
/// of the prompt in bytes (u64), the prompt (UTF-8), the sampling settings
/// ([`SamplingSettings::to_le_bytes`]) and the seed (u64), integers
/// little-endian.
#[derive(Clone, Debug)]
pub(crate) struct ParametersHash(Sha256);

impl ParametersHash {
    /// Hashes all but the seed, which is known only once the session is open.
    /// Takes some milliseconds for the longest prompt.
    pub(crate) fn new(prompt: &str, settings: &SamplingSettings) -> Self {
        let mut hash = Sha256::new();
        hash.update(LABEL);
        hash.update((prompt.len() as u64).to_le_bytes());
        hash.update(prompt);
        hash.update(settings.to_le_bytes());
        Self(hash)
    }

    /// Returns the digest. `seed` is that of the call's random sequence,
    /// whether the call named it or continued the session's sequence, so that
    /// a repeat with the seed that was reported has the same digest.
    pub(crate) fn digest(mut self, seed: u64) -> ParametersDigest {
        self.0.update(seed.to_le_bytes());
        ParametersDigest(self.0.finalize().into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parameters_digest(prompt: &str, settings: &SamplingSettings, seed: u64) -> ParametersDigest {
        ParametersHash::new(prompt, settings).digest(seed)
    }

    /// Digests are stored in sessions: the layout must not change.
    #[test]
    fn the_digest_of_given_parameters_never_changes() {
        let settings = SamplingSettings::new(0.5, 3, 0.9, 0.1).unwrap();
        let ParametersDigest(digest) = parameters_digest("abc é", &settings, 42);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "3b457216b6bee335bd94941f137ef8d06f47471b496d163e35859a7853cec674"
        );
    }

    #[test]
    fn every_parameter_changes_the_digest() {
        let one = SamplingSettings::default();
        let digests = [
            parameters_digest("ab", &one, 1),
            parameters_digest("ac", &one, 1),
            parameters_digest("ab", &one, 2),
            parameters_digest("ab", &SamplingSettings::greedy(), 1),
            parameters_digest("ab", &SamplingSettings::new(1.0, 1, 1.0, 0.0).unwrap(), 1),
            parameters_digest("ab", &SamplingSettings::new(1.0, 0, 0.5, 0.0).unwrap(), 1),
            parameters_digest("ab", &SamplingSettings::new(1.0, 0, 1.0, 0.5).unwrap(), 1),
        ];
        for (i, digest) in digests.iter().enumerate() {
            assert!(!digests[..i].contains(digest), "{i}");
        }
    }
}
