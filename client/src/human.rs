//! Numbers, sizes and times as people read them. No input or output.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A count with its thousands set apart: `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate, without digits that mean nothing: `9,290`, `12.3`.
pub(crate) fn rate(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        "?".into()
    } else if value >= 100.0 {
        // The value is not negative and far below 2^64.
        count(value.round() as u64)
    } else {
        format!("{value:.1}")
    }
}

/// A small number with three digits that mean something: `0.00299`.
pub(crate) fn small(value: f64) -> String {
    if !value.is_finite() || value <= 0.0 {
        return "0".into();
    }
    let digits = (2.0 - value.log10().floor()).clamp(0.0, 12.0) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        text
    }
}

/// A time span given in seconds: `0.3 ms`, `2.5 s`, `1 min 05 s`, `2 h 03 min`.
pub(crate) fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "?".into();
    }
    if value == 0.0 {
        return "0 s".into();
    }
    if value < 1e-4 {
        return format!("{:.0} µs", value * 1e6);
    }
    if value < 0.1 {
        return format!("{:.1} ms", value * 1e3);
    }
    if value < 10.0 {
        return format!("{value:.1} s");
    }
    // Rounded once, so that 59.7 s does not become "60 s".
    let whole = value.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {:02} h", whole / 86400, whole % 86400 / 3600),
    }
}

/// A size in bytes with a decimal unit: `512 B`, `12.9 MB`.
pub(crate) fn bytes(value: u64) -> String {
    let mut size = value as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if size < 1000.0 {
            return if unit == "B" {
                format!("{value} B")
            } else {
                format!("{size:.1} {unit}")
            };
        }
        size /= 1000.0;
    }
    format!("{size:.1} TB")
}

/// How long ago a moment was: `3 min 20 s ago`.
pub(crate) fn ago(unix_ms: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_millis(unix_ms);
    match SystemTime::now().duration_since(then) {
        Ok(age) => format!("{} ago", seconds(age.as_secs().max(1) as f64)),
        // The server's clock is a little ahead of ours.
        Err(_) => "just now".into(),
    }
}

/// A loss in nats per character, as bits per character.
pub(crate) fn bits(nats: f64) -> f64 {
    nats / std::f64::consts::LN_2
}

/// The one of `names` that was probably meant by `given`: at most a third of
/// its letters are others.
pub(crate) fn nearest<'n>(
    given: &str,
    names: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    let far = given.chars().count().div_ceil(3);
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, _)| *distance <= far)
        .min()
        .map(|(_, name)| name)
}

/// A text in quotes, with control characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// Lines of columns, each as wide as its widest cell. The first row is the
/// heading; the last column is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// Lines of a name and a value, the values below each other.
pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, value)| vec![(*name).to_owned(), value.clone()])
        .collect();
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_their_thousands_apart() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn time_spans_have_the_unit_that_fits() {
        assert_eq!(seconds(0.0), "0 s");
        assert_eq!(seconds(0.000042), "42 µs");
        assert_eq!(seconds(0.00034), "0.3 ms");
        assert_eq!(seconds(2.54), "2.5 s");
        assert_eq!(seconds(59.7), "1 min 00 s");
        assert_eq!(seconds(65.0), "1 min 05 s");
        assert_eq!(seconds(7380.0), "2 h 03 min");
        assert_eq!(seconds(90000.0), "1 d 01 h");
        assert_eq!(seconds(f64::NAN), "?");
        assert_eq!(seconds(-1.0), "?");
    }

    #[test]
    fn rates_and_sizes_have_no_digits_that_mean_nothing() {
        assert_eq!(rate(9290.4), "9,290");
        assert_eq!(rate(12.34), "12.3");
        assert_eq!(rate(f64::INFINITY), "?");
        assert_eq!(small(0.0029876), "0.00299");
        assert_eq!(small(0.001), "0.001");
        assert_eq!(small(0.0), "0");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(12_900_000), "12.9 MB");
        assert_eq!(bytes(1500), "1.5 kB");
    }

    #[test]
    fn a_table_lines_its_columns_up() {
        let rows = [
            vec!["NAME".to_owned(), "SIZE".to_owned()],
            vec!["nietzsche".to_owned(), "1".to_owned()],
        ];
        assert_eq!(table(&rows), "NAME       SIZE\nnietzsche  1");
    }

    #[test]
    fn a_mistyped_name_has_a_nearest_one_and_a_strange_one_has_none() {
        assert_eq!(nearest("bokk", ["tale", "book"]), Some("book"));
        assert_eq!(nearest("xyz", ["tale", "book"]), None);
    }

    #[test]
    fn one_bit_is_the_natural_logarithm_of_two() {
        assert!((bits(std::f64::consts::LN_2) - 1.0).abs() < 1e-12);
    }
}
