//! The deadline of a request, as the `grpc-timeout` header gives it. The layer
//! of deadlines reads it once and adds it to the extensions of the request.

use std::time::{Duration, Instant};

use tonic::codegen::http::HeaderMap;

/// When the client of a request stops waiting, as an extension of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

/// Returns when the client of a request with these headers stops waiting;
/// `None` if the request has no deadline, or one that is not valid according to
/// the gRPC specification.
pub(super) fn deadline(headers: &HeaderMap) -> Option<Instant> {
    let header = headers.get("grpc-timeout")?.to_str().ok()?;
    Instant::now().checked_add(timeout(header)?)
}

/// Reads a timeout of at most eight digits and a unit.
fn timeout(header: &str) -> Option<Duration> {
    let unit = header.chars().last()?;
    let digits = header.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit_of_the_specification() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "5", "S", "123456789S", "-1S", "1x", "1 S", "é"] {
            assert_eq!(timeout(wrong), None, "{wrong:?}");
        }
    }
}
