//! Bytes as lower-case hexadecimal text.

/// Writes bytes as hexadecimal digits.
pub fn encode(bytes: &[u8]) -> String {
    const_hex::encode(bytes)
}

/// Reads exactly `N` bytes from hexadecimal digits of either case; `None` if
/// the text is anything else. A `0x` in front is not accepted.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    const_hex::decode_to_array(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_lead_back_to_the_bytes_and_nothing_else_does() {
        assert_eq!(encode(&[0, 171, 255]), "00abff");
        assert_eq!(decode("00ABff"), Some([0, 171, 255]));
        assert_eq!(decode::<2>("00abff"), None);
        assert_eq!(decode::<2>("0x00"), None);
        assert_eq!(decode::<2>("00g0"), None);
        assert_eq!(decode::<1>("é"), None);
    }
}
