//! Turns the bytes of a text file into the text that a model sees: checks that
//! they are UTF-8, removes a byte order mark and converts line endings. Every
//! text that the client reads passes through it. Performs no I/O.

use std::collections::BTreeMap;
use std::path::Path;

use crate::display;
use crate::file_content::{self, FileContent, SNIFF_BYTES};

/// The byte order mark that some editors write before UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// How to treat line endings other than LF.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum LineEndings {
    /// Convert CR LF and CR to LF, so that the model does not have to learn both
    #[default]
    Lf,
    /// Keep them
    Keep,
}

/// Decodes one file that is read in parts.
#[derive(Debug)]
pub(crate) struct TextDecoder {
    line_endings: LineEndings,
    /// Number of bytes before `pending`.
    offset: u64,
    /// The end of what was read, if it is an incomplete character, or a CR
    /// that an LF may follow; before the beginning was checked, all of it.
    pending: Vec<u8>,
    has_begun: bool,
    changes: TextChanges,
}

/// What was changed in texts, and which characters in them are unusual.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct TextChanges {
    /// Byte order marks that were removed.
    pub(crate) byte_order_marks: u64,
    /// CR LF that were converted to LF.
    pub(crate) crlf: u64,
    /// CR that were converted to LF.
    pub(crate) cr: u64,
    /// How often each control character occurs, except tabs and line endings.
    pub(crate) controls: BTreeMap<char, u64>,
}

/// Why bytes are not a text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct InvalidText {
    /// Offset of the first byte that is not UTF-8; `None` if the file as a whole
    /// is something else.
    pub(crate) offset: Option<u64>,
    /// What the bytes seem to be.
    pub(crate) content: FileContent,
}

impl InvalidText {
    /// Describes the error in the file `path`, with what to do about it.
    pub(crate) fn reason(&self, path: &Path) -> String {
        let advice = self.content.advice(path);
        match self.offset {
            Some(offset) => format!("invalid UTF-8 at byte {offset}; {advice}"),
            None => advice,
        }
    }
}

impl TextDecoder {
    /// Creates a decoder for the beginning of a file.
    pub(crate) fn new(line_endings: LineEndings) -> Self {
        Self {
            line_endings,
            offset: 0,
            pending: Vec::new(),
            has_begun: false,
            changes: TextChanges::default(),
        }
    }

    /// Decodes a whole text.
    pub(crate) fn decode_all(
        bytes: &[u8],
        line_endings: LineEndings,
    ) -> Result<(String, TextChanges), InvalidText> {
        let mut decoder = Self::new(line_endings);
        let text = decoder.decode(bytes, true)?;
        Ok((text, decoder.changes))
    }

    /// Decodes the next bytes; `at_end` is true for the last ones. Returns the
    /// text as far as it is certain.
    pub(crate) fn decode(&mut self, bytes: &[u8], at_end: bool) -> Result<String, InvalidText> {
        self.pending.extend_from_slice(bytes);
        if !self.has_begun {
            if self.pending.len() < SNIFF_BYTES && !at_end {
                return Ok(String::new());
            }
            self.begin()?;
        }
        let mut complete = match std::str::from_utf8(&self.pending) {
            Ok(_) => self.pending.len(),
            Err(error) if error.error_len().is_none() && !at_end => error.valid_up_to(),
            Err(error) => {
                let invalid = error.valid_up_to();
                return Err(InvalidText {
                    offset: Some(self.offset + invalid as u64),
                    content: file_content::guess(&self.pending, invalid),
                });
            }
        };
        if !at_end && complete > 0 && self.pending[complete - 1] == b'\r' {
            complete -= 1;
        }
        let rest = self.pending.split_off(complete);
        let bytes = std::mem::replace(&mut self.pending, rest);
        self.offset += complete as u64;
        let text = String::from_utf8(bytes).expect("it was checked");
        self.changes.count_controls(&text);
        Ok(match self.line_endings {
            LineEndings::Keep => text,
            LineEndings::Lf => self.changes.convert_line_endings(text),
        })
    }

    /// Returns what was changed so far.
    pub(crate) fn changes(&self) -> &TextChanges {
        &self.changes
    }

    /// Checks the beginning of the file and removes a byte order mark.
    fn begin(&mut self) -> Result<(), InvalidText> {
        self.has_begun = true;
        let beginning = &self.pending[..self.pending.len().min(SNIFF_BYTES)];
        if let Some(content) = file_content::recognize(beginning) {
            return Err(InvalidText {
                offset: None,
                content,
            });
        }
        let mut mark = [0; 4];
        let mark = BYTE_ORDER_MARK.encode_utf8(&mut mark).as_bytes();
        if self.pending.starts_with(mark) {
            self.pending.drain(..mark.len());
            self.offset += mark.len() as u64;
            self.changes.byte_order_marks += 1;
        }
        Ok(())
    }
}

impl TextChanges {
    /// Adds the changes in another text.
    pub(crate) fn add(&mut self, other: &Self) {
        self.byte_order_marks += other.byte_order_marks;
        self.crlf += other.crlf;
        self.cr += other.cr;
        for (c, count) in &other.controls {
            *self.controls.entry(*c).or_default() += count;
        }
    }

    /// Describes the changes for people, one message each. Nothing was changed
    /// if there is none.
    pub(crate) fn messages(&self) -> Vec<String> {
        let mut messages = Vec::new();
        if self.byte_order_marks > 0 {
            messages.push(format!(
                "removed {}",
                display::plural(self.byte_order_marks, "byte order mark")
            ));
        }
        for (count, from) in [(self.crlf, "CR LF"), (self.cr, "CR")] {
            if count > 0 {
                messages.push(format!(
                    "converted {} from {from} to LF (use --crlf keep to keep them)",
                    display::plural(count, "line ending")
                ));
            }
        }
        if !self.controls.is_empty() {
            let kinds = self
                .controls
                .iter()
                .map(|(c, count)| format!("U+{:04X} ({})", u32::from(*c), display::times(*count)));
            let kinds: Vec<String> = kinds.collect();
            messages.push(format!(
                "the text contains control characters, which a model learns like any other: {}",
                kinds.join(", ")
            ));
        }
        messages
    }

    fn count_controls(&mut self, text: &str) {
        // All bytes of the characters that are counted, and few others.
        let is_candidate = |byte: u8| {
            (byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r'))
                || matches!(byte, 0x7f | 0xc2 | 0xef)
        };
        if !text.bytes().any(is_candidate) {
            return;
        }
        let is_counted = |c: &char| {
            *c == BYTE_ORDER_MARK || (c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
        };
        for c in text.chars().filter(is_counted) {
            *self.controls.entry(c).or_default() += 1;
        }
    }

    fn convert_line_endings(&mut self, text: String) -> String {
        if !text.contains('\r') {
            return text;
        }
        let mut converted = String::with_capacity(text.len());
        let mut parts = text.split('\r');
        converted.push_str(parts.next().unwrap_or_default());
        for part in parts {
            // What follows a CR.
            if part.starts_with('\n') {
                self.crlf += 1;
            } else {
                self.cr += 1;
                converted.push('\n');
            }
            converted.push_str(part);
        }
        converted
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Decodes `bytes` in parts of `size` bytes.
    fn in_parts(
        bytes: &[u8],
        size: usize,
        line_endings: LineEndings,
    ) -> Result<(String, TextChanges), InvalidText> {
        let mut decoder = TextDecoder::new(line_endings);
        let mut text = String::new();
        for part in bytes.chunks(size) {
            text.push_str(&decoder.decode(part, false)?);
        }
        text.push_str(&decoder.decode(&[], true)?);
        Ok((text, decoder.changes().clone()))
    }

    #[test]
    fn line_endings_are_converted_or_kept_however_the_bytes_are_split() {
        let text = "a\r\né\r\r\nb\rc\n\r";
        for size in [1, 2, 3, 5, 100] {
            let (converted, changes) = in_parts(text.as_bytes(), size, LineEndings::Lf).unwrap();
            assert_eq!(converted, "a\né\n\nb\nc\n\n");
            assert_eq!((changes.crlf, changes.cr), (2, 3));
            let (kept, changes) = in_parts(text.as_bytes(), size, LineEndings::Keep).unwrap();
            assert_eq!(kept, text);
            assert_eq!(changes, TextChanges::default());
        }
        // Beyond the beginning, every part is decoded on its own.
        let long = format!("{}\r\né\r\r\nend\r", "a".repeat(SNIFF_BYTES - 1));
        for size in [SNIFF_BYTES, SNIFF_BYTES + 1, SNIFF_BYTES + 3] {
            let (converted, _) = in_parts(long.as_bytes(), size, LineEndings::Lf).unwrap();
            let expected = long.replace("\r\n", "\n").replace('\r', "\n");
            assert!(converted == expected, "{size}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_removed_only_at_the_beginning() {
        let text = "\u{feff}abc\u{feff}";
        let (decoded, changes) = in_parts(text.as_bytes(), 2, LineEndings::Lf).unwrap();
        assert_eq!(decoded, "abc\u{feff}");
        assert_eq!(changes.byte_order_marks, 1);
        assert_eq!(changes.controls, [('\u{feff}', 1)].into());
    }

    #[test]
    fn control_characters_are_kept_and_counted() {
        let (text, changes) =
            TextDecoder::decode_all("\0a\tb\u{1b}\0é\u{85}\n".as_bytes(), LineEndings::Lf).unwrap();
        assert_eq!(text, "\0a\tb\u{1b}\0é\u{85}\n");
        let expected = [('\0', 2), ('\u{1b}', 1), ('\u{85}', 1)];
        assert_eq!(changes.controls, expected.into());
        let messages = changes.messages();
        assert!(
            messages[0].ends_with("U+0000 (twice), U+001B (once), U+0085 (once)"),
            "{messages:?}"
        );
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_reported_with_their_offset() {
        let long = ["é".repeat(SNIFF_BYTES).as_bytes(), b"x\xff"].concat();
        for (bytes, offset) in [
            (&b"abc\xffdef"[..], 3),
            (b"abc\xc3", 3),
            (&long, 2 * SNIFF_BYTES as u64 + 1),
        ] {
            for size in [1, 4, SNIFF_BYTES] {
                let error = in_parts(bytes, size, LineEndings::Lf).unwrap_err();
                assert_eq!(error.offset, Some(offset));
            }
        }
        let marked = in_parts(b"\xef\xbb\xbfabc\xff", 100, LineEndings::Lf).unwrap_err();
        assert_eq!(marked.offset, Some(6));
    }

    #[test]
    fn a_file_that_is_no_utf_8_text_is_recognized_by_its_beginning() {
        let error = in_parts(b"\xff\xfea\0b\0", 1, LineEndings::Lf).unwrap_err();
        assert_eq!(error.offset, None);
        let reason = error.reason(Path::new("a.txt"));
        assert!(
            reason.contains("iconv -f UTF-16 -t UTF-8 a.txt"),
            "{reason}"
        );
    }
}
