//! Formats numbers, sizes, durations and tables for people. Performs no I/O.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use console::measure_text_width;
use indicatif::{DecimalBytes, HumanCount};
use tabwriter::TabWriter;

use crate::terminal_text;

/// Width that a value has at least, however narrow the terminal is.
const MIN_VALUE_COLUMNS: usize = 20;

/// Formats a count with thousands separators: `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    HumanCount(value).to_string()
}

/// Formats a count with its noun: `1 epoch`, `2,000 epochs`.
pub(crate) fn plural(value: u64, noun: &str) -> String {
    let ending = if value == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(value))
}

/// Formats how often something happens: `once`, `2,000 times`.
pub(crate) fn times(value: u64) -> String {
    match value {
        1 => "once".into(),
        2 => "twice".into(),
        _ => format!("{} times", count(value)),
    }
}

/// Formats a list, of which at most `max` items are shown: `a, b and 3 more`.
pub(crate) fn list(items: impl IntoIterator<Item = String>, max: usize) -> String {
    let items: Vec<String> = items.into_iter().collect();
    let shown = items[..items.len().min(max)].join(", ");
    match items.len().saturating_sub(max) {
        0 => shown,
        more => format!("{shown} and {} more", count(more as u64)),
    }
}

/// Formats the name of a file for a message, with control characters escaped.
pub(crate) fn path(path: &Path) -> String {
    terminal_text::escaped(&path.display().to_string()).into_owned()
}

/// Formats a rate without insignificant digits: `9,290`, `12.3`. Returns `?`
/// for a rate that is negative or not finite.
pub(crate) fn rate(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        "?".into()
    } else if value >= 100.0 {
        // In range: rates are far below 2^64.
        count(value.round() as u64)
    } else {
        format!("{value:.1}")
    }
}

/// Formats a small number with three significant digits: `0.00299`.
pub(crate) fn significant(value: f64) -> String {
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

/// Formats a duration in seconds with two significant units or digits:
/// `0.3 ms`, `2.5 s`, `1 min 05 s`, `2 h 03 min`. Returns `?` for a value
/// that is negative or not finite.
///
/// `humantime` prints every unit down to nanoseconds and `HumanDuration` only
/// the largest one; latencies and training times need something in between.
pub(crate) fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "?".into();
    }
    if value == 0.0 {
        return "0 s".into();
    }
    if value < 1e-5 {
        return format!("{:.1} µs", value * 1e6);
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
    // Rounding before splitting: 59.7 s is "1 min 00 s", not "60 s".
    let whole = value.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {:02} h", whole / 86400, whole % 86400 / 3600),
    }
}

/// Formats a size in bytes with a decimal unit: `512 B`, `12.90 MB`.
pub(crate) fn bytes(value: u64) -> String {
    DecimalBytes(value).to_string()
}

/// Formats bytes in hexadecimal.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Formats the age of a time given in milliseconds since 1970-01-01 UTC:
/// `3 min 20 s ago`. Returns `just now` if the time is in the future, because
/// the clock of the server may be ahead of ours.
pub(crate) fn ago(unix_ms: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_millis(unix_ms);
    match SystemTime::now().duration_since(then) {
        // Below ten seconds, `seconds` would show tenths.
        Ok(age) if age.as_secs() < 10 => format!("{} s ago", age.as_secs().max(1)),
        Ok(age) => format!("{} ago", seconds(age.as_secs() as f64)),
        Err(_) => "just now".into(),
    }
}

/// Formats a loss in nats per character with three decimals, or `-` if there
/// is none.
pub(crate) fn loss(nats: Option<f64>) -> String {
    nats.map_or_else(|| "-".into(), |nats| format!("{nats:.3}"))
}

/// Converts a loss in nats per character to bits per character.
pub(crate) fn bits(nats: f64) -> f64 {
    nats / std::f64::consts::LN_2
}

/// Quotes a text and escapes its control characters.
pub(crate) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// Aligns rows of cells in columns. The first row is the heading.
///
/// If the table is wider than `columns`, the columns with the headings in
/// `drop_first` are left out, in that order, until it fits.
pub(crate) fn table(rows: &[Vec<String>], columns: Option<usize>, drop_first: &[&str]) -> String {
    let mut rows = rows.to_vec();
    let mut drop_first = drop_first.iter();
    loop {
        let table = aligned(&rows);
        let width = table.lines().map(measure_text_width).max().unwrap_or(0);
        let fits = columns.is_none_or(|columns| width <= columns);
        let Some(heading) = drop_first.next().filter(|_| !fits) else {
            return table;
        };
        let dropped = rows[0].iter().position(|found| found == heading);
        for row in &mut rows {
            if let Some(index) = dropped {
                row.remove(index);
            }
        }
    }
}

/// Aligns cells in columns.
fn aligned<Cell: AsRef<str>>(rows: &[Vec<Cell>]) -> String {
    let mut writer = TabWriter::new(Vec::new()).padding(2);
    for row in rows {
        let cells: Vec<&str> = row.iter().map(AsRef::as_ref).collect();
        writeln!(writer, "{}", cells.join("\t")).expect("writing to memory cannot fail");
    }
    let bytes = writer.into_inner().expect("writing to memory cannot fail");
    let text = String::from_utf8(bytes).expect("cells and padding are UTF-8");
    text.trim_end().to_owned()
}

/// Puts each key and its value on a line, with the values aligned. If a line is
/// wider than `columns`, its value is broken between words.
pub(crate) fn key_values(pairs: &[(&str, String)], columns: Option<usize>) -> String {
    let keys = pairs.iter().map(|(key, _)| measure_text_width(key));
    let indent = keys.max().unwrap_or(0) + 2;
    let room = columns.map(|columns| columns.saturating_sub(indent).max(MIN_VALUE_COLUMNS));
    let lines = pairs.iter().map(|(key, value)| {
        let value = match room {
            Some(room) => terminal_text::with_gutter(value, "", Some(room)),
            None => value.clone(),
        };
        let value = value.replace('\n', &format!("\n{:indent$}", ""));
        format!("{key:indent$}{value}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_thousands_separators_and_nouns_a_plural() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(plural(1, "epoch"), "1 epoch");
        assert_eq!(plural(2000, "epoch"), "2,000 epochs");
        assert_eq!(times(2000), "2,000 times");
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let items = || ["a", "b", "c"].map(str::to_owned);
        assert_eq!(list(items(), 3), "a, b, c");
        assert_eq!(list(items(), 1), "a and 2 more");
    }

    #[test]
    fn the_name_of_a_file_cannot_control_the_terminal() {
        assert_eq!(path(Path::new("a\u{1b}[2Jb")), "a\\u{1b}[2Jb");
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        assert_eq!(seconds(0.0), "0 s");
        assert_eq!(seconds(0.0000004), "0.4 µs");
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
    fn an_age_has_whole_seconds() {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let age = |seconds: u64| ago(now.as_millis() as u64 - 1000 * seconds - 500);
        assert_eq!(age(0), "1 s ago");
        assert_eq!(age(4), "4 s ago");
        assert_eq!(age(180), "3 min 00 s ago");
        assert_eq!(ago(now.as_millis() as u64 + 10_000), "just now");
    }

    #[test]
    fn rates_and_sizes_have_no_insignificant_digits() {
        assert_eq!(rate(9290.4), "9,290");
        assert_eq!(rate(12.34), "12.3");
        assert_eq!(rate(f64::INFINITY), "?");
        assert_eq!(significant(0.0029876), "0.00299");
        assert_eq!(significant(0.001), "0.001");
        assert_eq!(significant(0.0), "0");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(12_900_000), "12.90 MB");
    }

    #[test]
    fn a_table_aligns_its_columns_and_drops_those_that_do_not_fit() {
        let rows = [
            vec!["NAME", "SIZE"],
            vec!["nietzsche", "1"],
            vec!["漢字", "2"],
        ]
        .map(|row| row.into_iter().map(str::to_owned).collect());
        let table = |columns| table(&rows, columns, &["ABSENT", "SIZE"]);
        let whole = "NAME       SIZE\nnietzsche  1\n漢字       2";
        assert_eq!(table(None), whole);
        assert_eq!(table(Some(15)), whole);
        assert_eq!(table(Some(14)), "NAME\nnietzsche\n漢字");
        assert_eq!(table(Some(1)), "NAME\nnietzsche\n漢字");
    }

    #[test]
    fn a_long_value_is_broken_below_its_beginning() {
        let pairs = [
            ("model", "m".into()),
            ("spec", "a few words that do not fit".into()),
        ];
        assert_eq!(
            key_values(&pairs, None),
            "model  m\nspec   a few words that do not fit"
        );
        assert_eq!(
            key_values(&pairs, Some(27)),
            "model  m\nspec   a few words that do\n       not fit"
        );
    }

    #[test]
    fn one_bit_is_the_natural_logarithm_of_two() {
        assert!((bits(std::f64::consts::LN_2) - 1.0).abs() < 1e-12);
    }
}
