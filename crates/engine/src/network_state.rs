//! The state of the network as bytes, in the session record.
//!
//! In precision float32 the layout is that of version 0.1: `[layers, 2,
//! hidden]`, h before c, each number a little-endian binary32. The length
//! follows from the model's architecture, so there is no header.

use bytes::Bytes;
use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::HiddenState;

/// Encodes a float32 state.
pub(crate) fn encode(state: &HiddenState) -> Bytes {
    state
        .0
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// Decodes a float32 state of a network. `None` if the length is not that of
/// its states. Any numbers are accepted, NaN included: the sampler never
/// chooses a character whose logit is NaN unless all are.
pub(crate) fn decode(bytes: &[u8], architecture: &Architecture) -> Option<HiddenState> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    if numbers.len() != architecture.state_len() || !rest.is_empty() {
        return None;
    }
    let numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
    Some(HiddenState(numbers.collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ARCHITECTURE: Architecture = Architecture {
        vocabulary_size: 3,
        hidden_size: 2,
        num_layers: 1,
    };

    #[test]
    fn the_layout_is_that_of_version_0_1() {
        let state = HiddenState([1.0, -2.5, 0.0, 1e-40].into());
        let bytes = encode(&state);
        let expected = [
            0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0, 0, 0, 0, 0, 0xc2, 0x16, 0x01, 0,
        ];
        assert_eq!(bytes, expected.as_slice());
        assert_eq!(decode(&bytes, &ARCHITECTURE), Some(state));
    }

    #[test]
    fn a_state_of_another_length_is_rejected() {
        for length in [0, 12, 15, 17, 20] {
            assert_eq!(decode(&vec![0; length], &ARCHITECTURE), None);
        }
    }
}
