//! Prepares text for a terminal: escapes control characters and breaks lines
//! between words. Performs no I/O.

use std::borrow::Cow;
use std::fmt::Write;

use console::measure_text_width;
use unicode_width::UnicodeWidthChar;

/// Between two segments of a line.
const SEGMENT_GAP: &str = "  ";

/// Distance of tab stops in columns.
const TAB_COLUMNS: usize = 8;

/// Returns true for a character that a terminal may execute instead of showing
/// it: control characters except line breaks and tabs, and characters that
/// change the direction of the text around them.
fn is_unsafe(c: char) -> bool {
    let changes_direction =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && !matches!(c, '\n' | '\t')) || changes_direction
}

/// Replaces the characters that a terminal may execute by their escapes:
/// `\u{1b}`, `\r`.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            // `escape_debug` does not escape the marks of direction.
            match c {
                '\r' => safe.push_str("\\r"),
                _ => write!(safe, "\\u{{{:x}}}", u32::from(c)).expect("a string can be written"),
            }
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Breaks the lines of a message at `columns`, between words. Each line keeps
/// its indentation; where it is broken, it continues two columns further right.
/// A command in backticks is not broken, so that it can be copied, unless it is
/// longer than a line.
pub(crate) fn wrapped(message: &str, columns: usize) -> String {
    let mut lines = Vec::new();
    for line in message.split('\n') {
        let indent: String = line.chars().take_while(|c| *c == ' ').collect();
        wrap_line(line, columns, "", &format!("{indent}  "), &mut lines);
    }
    lines.join("\n")
}

/// Joins segments to lines of at most `columns` columns. No segment is broken;
/// every line after the first is indented.
pub(crate) fn joined_segments(segments: &[String], columns: Option<usize>) -> String {
    let mut lines: Vec<String> = Vec::new();
    for segment in segments {
        match lines.last_mut() {
            Some(line) if columns.is_none_or(|columns| joined_width(line, segment) <= columns) => {
                line.push_str(SEGMENT_GAP);
                line.push_str(segment);
            }
            Some(_) => lines.push(format!("{SEGMENT_GAP}{segment}")),
            None => lines.push(segment.clone()),
        }
    }
    lines.join("\n")
}

/// Joins the most important segments that fit in one line of `columns` columns,
/// in their order. `importance` lists the indices of the segments.
pub(crate) fn fitting_segments(
    segments: &[String],
    importance: &[usize],
    columns: usize,
) -> String {
    let mut chosen: Vec<usize> = Vec::new();
    let mut used = 0;
    for &index in importance {
        let gap = if chosen.is_empty() {
            0
        } else {
            SEGMENT_GAP.len()
        };
        let width = gap + measure_text_width(&segments[index]);
        if used + width > columns {
            break;
        }
        used += width;
        chosen.push(index);
    }
    chosen.sort_unstable();
    let chosen: Vec<&str> = chosen
        .iter()
        .map(|index| segments[*index].as_str())
        .collect();
    chosen.join(SEGMENT_GAP)
}

fn joined_width(line: &str, segment: &str) -> usize {
    measure_text_width(line) + SEGMENT_GAP.len() + measure_text_width(segment)
}

/// Breaks each line of a text at `columns`, between words, and puts `gutter`
/// before every line.
pub(crate) fn with_gutter(text: &str, gutter: &str, columns: Option<usize>) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        match columns {
            Some(columns) => wrap_line(line, columns, gutter, gutter, &mut lines),
            None => lines.push(format!("{gutter}{line}")),
        }
    }
    lines.join("\n")
}

/// Appends `line`, broken at `columns`, to `lines`: the first one with the
/// prefix `first`, the others with the prefix `next`.
fn wrap_line(line: &str, columns: usize, first: &str, next: &str, lines: &mut Vec<String>) {
    let mut current = first.to_owned();
    let mut used = measure_text_width(first);
    let mut is_empty = true;
    for piece in pieces(line) {
        let width = measure_text_width(piece);
        let word = piece.trim_end_matches(' ');
        let word_width = measure_text_width(word);
        if used + word_width > columns && !is_empty {
            lines.push(current.trim_end_matches(' ').to_owned());
            current = next.to_owned();
            used = measure_text_width(next);
            is_empty = true;
        }
        if used + word_width > columns {
            // The word is longer than a line.
            for c in word.chars() {
                let width = c.width().unwrap_or(0);
                if used + width > columns && !is_empty {
                    lines.push(std::mem::replace(&mut current, next.to_owned()));
                    used = measure_text_width(next);
                }
                current.push(c);
                used += width;
                is_empty = false;
            }
            current.push_str(&piece[word.len()..]);
            used += width - word_width;
            continue;
        }
        current.push_str(piece);
        used += width;
        is_empty &= piece.is_empty();
    }
    lines.push(if current.len() > first.len() {
        current.trim_end_matches(' ').to_owned()
    } else {
        current
    });
}

/// Splits a line into words, each with the spaces that follow it. Spaces within
/// backticks belong to the word.
fn pieces(line: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut in_backticks, mut after_space) = (0, false, false);
    for (index, c) in line.char_indices() {
        // The indentation belongs to the first word.
        let is_indented = line[start..index].trim_start_matches(' ').is_empty();
        if after_space && c != ' ' && !in_backticks && !is_indented {
            pieces.push(&line[start..index]);
            start = index;
        }
        in_backticks ^= c == '`';
        after_space = c == ' ';
    }
    pieces.push(&line[start..]);
    pieces
}

/// Breaks a text between words while it arrives in parts. A word that turns out
/// not to fit is erased and written again on the next line.
#[derive(Debug, Default)]
pub(crate) struct LineWrapper {
    /// Number of columns that are used in the current line.
    column: usize,
    /// The word at the end of the current line.
    word: String,
    word_columns: usize,
}

impl LineWrapper {
    /// Returns what to write to a terminal of `columns` columns to show the next
    /// part of the text.
    pub(crate) fn push(&mut self, text: &str, columns: usize) -> String {
        // A character in the last column leaves the cursor in a state in which
        // terminals differ, so that column stays empty.
        let columns = columns.saturating_sub(1).max(1);
        let mut shown = String::with_capacity(text.len());
        for c in text.chars() {
            self.push_char(c, columns, &mut shown);
        }
        shown
    }

    /// Returns true if the current line is not empty.
    pub(crate) fn is_within_line(&self) -> bool {
        self.column > 0
    }

    fn push_char(&mut self, c: char, columns: usize, shown: &mut String) {
        match c {
            '\n' => {
                shown.push(c);
                self.start_line();
            }
            '\t' => {
                self.end_word();
                let next = (self.column / TAB_COLUMNS + 1) * TAB_COLUMNS;
                if next > columns {
                    shown.push('\n');
                    self.start_line();
                } else {
                    shown.push(c);
                    self.column = next;
                }
            }
            ' ' => {
                self.end_word();
                if self.column >= columns {
                    // The line break takes the place of the space.
                    shown.push('\n');
                    self.start_line();
                } else {
                    shown.push(c);
                    self.column += 1;
                }
            }
            _ => self.push_visible(c, columns, shown),
        }
    }

    fn push_visible(&mut self, c: char, columns: usize, shown: &mut String) {
        let width = c.width().unwrap_or(0);
        // Lines may be broken before and after a wide character (Chinese).
        if width > 1 {
            self.end_word();
        }
        if self.column + width > columns {
            let is_whole_line = self.word_columns == self.column;
            if is_whole_line || self.word_columns + width > columns {
                shown.push('\n');
                self.start_line();
            } else {
                let word = std::mem::take(&mut self.word);
                let word_columns = self.word_columns;
                if word_columns > 0 {
                    // Cursor left, erase to the end of the line.
                    write!(shown, "\u{1b}[{word_columns}D\u{1b}[K")
                        .expect("a string can be written");
                }
                shown.push('\n');
                shown.push_str(&word);
                self.start_line();
                (self.word, self.word_columns, self.column) = (word, word_columns, word_columns);
            }
        }
        shown.push(c);
        self.column += width;
        if width > 1 {
            self.end_word();
        } else {
            self.word.push(c);
            self.word_columns += width;
        }
    }

    fn start_line(&mut self) {
        self.column = 0;
        self.end_word();
    }

    fn end_word(&mut self) {
        self.word.clear();
        self.word_columns = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what a terminal shows after `output` was written to it.
    fn screen(output: &str) -> String {
        let mut lines = vec![String::new()];
        let mut rest = output;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            let line = lines.last_mut().expect("there is a line");
            if c == '\n' {
                lines.push(String::new());
            } else if c == '\u{1b}' {
                let (count, after) = rest[1..].split_once('D').expect("cursor left");
                let keep = line.chars().count() - count.parse::<usize>().expect("a number");
                *line = line.chars().take(keep).collect();
                rest = after.strip_prefix("\u{1b}[K").expect("erase");
            } else {
                line.push(c);
            }
        }
        lines.join("\n")
    }

    #[test]
    fn control_characters_are_escaped_but_not_line_breaks_and_tabs() {
        assert_eq!(escaped("a\tb\n"), "a\tb\n");
        assert_eq!(
            escaped("\u{1b}]0;x\u{7}\r\u{9b}\u{202e}é"),
            "\\u{1b}]0;x\\u{7}\\r\\u{9b}\\u{202e}é"
        );
    }

    #[test]
    fn a_text_that_arrives_in_any_parts_is_broken_between_words() {
        let text = "It was a dark and stormy night; the rain fell in torrents";
        let expected = "It was a \ndark and \nstormy \nnight; the \nrain fell in\ntorrents";
        for size in [1, 2, 7, 100] {
            let mut wrapper = LineWrapper::default();
            let chars: Vec<char> = text.chars().collect();
            let mut shown = String::new();
            for part in chars.chunks(size) {
                let part: String = part.iter().collect();
                shown.push_str(&wrapper.push(&part, 13));
            }
            assert_eq!(screen(&shown), expected, "{size}");
        }
    }

    #[test]
    fn a_word_that_is_longer_than_a_line_is_broken_where_the_line_ends() {
        let mut wrapper = LineWrapper::default();
        assert_eq!(
            screen(&wrapper.push("ab abcdefghij", 6)),
            "ab \nabcde\nfghij"
        );
    }

    #[test]
    fn wide_and_combining_characters_have_the_width_that_a_terminal_gives_them() {
        let mut wrapper = LineWrapper::default();
        assert_eq!(wrapper.push("漢字漢字", 6), "漢字\n漢字");
        let mut wrapper = LineWrapper::default();
        assert_eq!(
            wrapper.push("e\u{301}e\u{301}e\u{301}", 4),
            "e\u{301}e\u{301}e\u{301}"
        );
    }

    #[test]
    fn a_space_at_the_end_of_a_line_becomes_the_line_break() {
        let mut wrapper = LineWrapper::default();
        assert_eq!(wrapper.push("abcde f\ng", 6), "abcde\nf\ng");
        assert!(wrapper.is_within_line());
    }

    #[test]
    fn a_message_is_broken_between_words_and_its_commands_are_not() {
        assert_eq!(
            wrapped(
                "run `charlstm-client status` to see it\n  a: b c d e f g h i",
                30
            ),
            "run `charlstm-client status`\n  to see it\n  a: b c d e f g h i"
        );
        assert_eq!(wrapped("  one two three", 9), "  one two\n    three");
        assert_eq!(wrapped("abcdefgh ij", 4), "abcd\n  ef\n  gh\n  ij");
        assert_eq!(wrapped("", 10), "");
    }

    #[test]
    fn segments_are_not_broken_and_the_most_important_ones_fit_in_a_line() {
        let segments = ["epoch 1", "loss 2", "3 s left", "lr 4"].map(str::to_owned);
        assert_eq!(
            joined_segments(&segments, Some(16)),
            "epoch 1  loss 2\n  3 s left  lr 4"
        );
        assert_eq!(
            joined_segments(&segments, None),
            "epoch 1  loss 2  3 s left  lr 4"
        );
        let fitting = |columns| fitting_segments(&segments, &[1, 2, 0, 3], columns);
        assert_eq!(fitting(100), "epoch 1  loss 2  3 s left  lr 4");
        assert_eq!(fitting(17), "loss 2  3 s left");
        assert_eq!(fitting(3), "");
    }

    #[test]
    fn a_sample_has_its_gutter_on_every_line() {
        assert_eq!(
            with_gutter("aa bb cc\n\ndd", "  | ", Some(9)),
            "  | aa bb\n  | cc\n  | \n  | dd"
        );
        assert_eq!(with_gutter("aa bb cc", "  | ", None), "  | aa bb cc");
    }
}
