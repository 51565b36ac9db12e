//! JSON objects that carry a checksum of themselves, so that a flipped bit is
//! found even where the result is still valid JSON.
//!
//! The checksum is the last member of the object, `"crc32c"`: eight
//! hexadecimal digits of the CRC-32C of all bytes before it. Readers that do
//! not know it ignore it as an unknown member. Objects without it, as version
//! 0.1 wrote them, are read unchecked.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

const BEFORE: &[u8] = b",\"crc32c\":\"";
const AFTER: &[u8] = b"\"}";
const DIGITS: usize = 8;

/// An object cannot be read.
#[derive(Debug, Error)]
pub enum ChecksumError {
    /// The bytes are not what was written.
    #[error("its checksum does not match")]
    Mismatch,
    /// It is not the JSON of such an object.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// Writes an object on one line, without a line break.
///
/// # Errors
/// It cannot be written as JSON.
pub fn to_line<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    Ok(with_checksum(serde_json::to_vec(value)?))
}

/// Writes an object on indented lines, with a line break at the end.
///
/// # Errors
/// It cannot be written as JSON.
pub fn to_text<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = with_checksum(serde_json::to_vec_pretty(value)?);
    text.push(b'\n');
    Ok(text)
}

/// Reads an object that [`to_line`] or [`to_text`] wrote, or one without a
/// checksum.
///
/// # Errors
/// The checksum does not match, or the JSON is not that of such an object.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, ChecksumError> {
    let text = text.trim_ascii_end();
    if let Some((object, sum)) = split(text)
        && sum != checksum(object).as_bytes()
    {
        return Err(ChecksumError::Mismatch);
    }
    Ok(serde_json::from_slice(text)?)
}

fn with_checksum(mut json: Vec<u8>) -> Vec<u8> {
    // Only objects are written, and none without members.
    let closing = json.pop();
    debug_assert_eq!(closing, Some(b'}'));
    let sum = checksum(&json);
    json.extend_from_slice(BEFORE);
    json.extend_from_slice(sum.as_bytes());
    json.extend_from_slice(AFTER);
    json
}

/// Returns the object up to its checksum, and the digits of that.
fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = text.strip_suffix(AFTER)?;
    let (rest, digits) = rest.split_at(rest.len().checked_sub(DIGITS)?);
    Some((rest.strip_suffix(BEFORE)?, digits))
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Object {
        number: u32,
        text: String,
    }

    fn object() -> Object {
        Object {
            number: 1234,
            text: "é\n".to_owned(),
        }
    }

    #[test]
    fn an_object_is_read_back_from_a_line_and_from_a_text() {
        let line = to_line(&object()).unwrap();
        assert!(!line.contains(&b'\n'));
        assert_eq!(from_slice::<Object>(&line).unwrap(), object());
        let text = to_text(&object()).unwrap();
        assert_eq!(from_slice::<Object>(&text).unwrap(), object());
    }

    #[test]
    fn an_object_without_a_checksum_is_read() {
        let old = serde_json::to_vec(&object()).unwrap();
        assert_eq!(from_slice::<Object>(&old).unwrap(), object());
    }

    #[test]
    fn no_changed_bit_gives_another_object() {
        for written in [to_line(&object()).unwrap(), to_text(&object()).unwrap()] {
            for bit in 0..8 * written.len() {
                let mut changed = written.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                if let Ok(read) = from_slice::<Object>(&changed) {
                    assert_eq!(read, object(), "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_line_that_is_cut_short_is_an_error() {
        let line = to_line(&object()).unwrap();
        for length in 0..line.len() {
            assert!(from_slice::<Object>(&line[..length]).is_err(), "{length}");
        }
    }
}
