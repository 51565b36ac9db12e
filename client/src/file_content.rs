//! Recognizes what a file contains that is not UTF-8 text, so that the error
//! says how to convert it. Performs no I/O.

use std::fmt;
use std::path::Path;

/// Number of bytes at the beginning of a file that are enough to recognize it.
pub(crate) const SNIFF_BYTES: usize = 8 << 10;

/// Something that is not UTF-8 text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FileContent {
    /// Text in another encoding.
    Encoded(Encoding),
    /// Text or other files in a compressed form.
    Compressed(Compression),
    Zip,
    Pdf,
    /// Bytes that are not valid in any encoding that can be told apart.
    Unknown,
}

/// An encoding of text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Encoding {
    /// UTF-16 with a byte order mark.
    Utf16,
    /// UTF-16, little-endian, without a byte order mark.
    Utf16Le,
    /// UTF-16, big-endian, without a byte order mark.
    Utf16Be,
    /// UTF-32 with a byte order mark.
    Utf32,
    /// Windows-1252, which contains ISO 8859-1 (Latin-1).
    Windows1252,
    /// One of several encodings with a byte per letter, such as those of
    /// Cyrillic or Greek, which cannot be told apart reliably.
    SingleByte,
}

/// A program that compresses files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compression {
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

/// Recognizes a file by its first bytes (at most `SNIFF_BYTES`). Returns `None`
/// if they may be UTF-8 text.
pub(crate) fn recognize(beginning: &[u8]) -> Option<FileContent> {
    use FileContent::{Compressed, Encoded, Pdf, Zip};
    const SIGNATURES: [(&[u8], FileContent); 10] = [
        (b"\xff\xfe\0\0", Encoded(Encoding::Utf32)),
        (b"\0\0\xfe\xff", Encoded(Encoding::Utf32)),
        (b"\xff\xfe", Encoded(Encoding::Utf16)),
        (b"\xfe\xff", Encoded(Encoding::Utf16)),
        (b"\x1f\x8b", Compressed(Compression::Gzip)),
        (b"\xfd7zXZ\0", Compressed(Compression::Xz)),
        (b"\x28\xb5\x2f\xfd", Compressed(Compression::Zstd)),
        (b"PK\x03\x04", Zip),
        (b"PK\x05\x06", Zip),
        (b"%PDF-", Pdf),
    ];
    let signature = SIGNATURES
        .iter()
        .find(|(signature, _)| beginning.starts_with(signature));
    if let Some((_, content)) = signature {
        return Some(*content);
    }
    // "BZh", the size of a block, and the digits of pi.
    if beginning.starts_with(b"BZh") && beginning.get(4..8) == Some(b"1AY&") {
        return Some(Compressed(Compression::Bzip2));
    }
    utf_16_without_mark(beginning).map(Encoded)
}

/// Recognizes UTF-16 without a byte order mark: the high bytes of most
/// alphabets are control characters, at every second position.
fn utf_16_without_mark(beginning: &[u8]) -> Option<Encoding> {
    let is_control = |byte: u8| byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c);
    let count = |parity: usize| {
        let bytes = beginning.iter().skip(parity).step_by(2);
        bytes.filter(|byte| is_control(**byte)).count()
    };
    let (even, odd) = (count(0), count(1));
    let units = beginning.len() / 2;
    // Three quarters leave room for punctuation of other scripts, and are far
    // more than in a text in UTF-8 that contains control characters.
    let is_most = |count: usize| units > 0 && 4 * count >= 3 * units;
    match (is_most(even), is_most(odd)) {
        (false, true) => Some(Encoding::Utf16Le),
        (true, false) => Some(Encoding::Utf16Be),
        _ => None,
    }
}

/// Guesses what bytes contain that are not valid UTF-8. `sample` contains the
/// first invalid byte at `invalid`.
pub(crate) fn guess(sample: &[u8], invalid: usize) -> FileContent {
    let has_multibyte = sample[..invalid].iter().any(|byte| !byte.is_ascii());
    let start = invalid.saturating_sub(SNIFF_BYTES);
    let around = &sample[start..sample.len().min(invalid + SNIFF_BYTES)];
    let high = around.iter().filter(|byte| !byte.is_ascii()).count();
    let letters = around.iter().filter(|byte| byte.is_ascii_alphabetic());
    let controls = around.iter().filter(|byte| **byte == 0).count();
    // Valid characters of several bytes before the invalid one: UTF-8 that is
    // damaged or mixed with something else.
    if has_multibyte || controls > 0 {
        return FileContent::Unknown;
    }
    if high <= letters.count() {
        FileContent::Encoded(Encoding::Windows1252)
    } else {
        FileContent::Encoded(Encoding::SingleByte)
    }
}

impl FileContent {
    /// Describes the content and says how to get text out of it. `path` is the
    /// file, `-` for standard input.
    pub(crate) fn advice(self, path: &Path) -> String {
        match self {
            Self::Encoded(encoding) => {
                let from = match encoding {
                    Encoding::Utf16 => "UTF-16",
                    Encoding::Utf16Le => "UTF-16LE",
                    Encoding::Utf16Be => "UTF-16BE",
                    Encoding::Utf32 => "UTF-32",
                    Encoding::Windows1252 => "WINDOWS-1252",
                    Encoding::SingleByte => "WINDOWS-1251",
                };
                let convert = if path == Path::new("-") {
                    format!("pipe it through `iconv -f {from} -t UTF-8`")
                } else {
                    let name = path.display().to_string();
                    format!(
                        "convert it with `iconv -f {from} -t UTF-8 {} > {}`",
                        shell_word(&name),
                        shell_word(&format!("{name}.utf8.txt"))
                    )
                };
                let other = match encoding {
                    Encoding::SingleByte => {
                        " (or KOI8-R, ISO-8859-7, …: whatever it is encoded in)"
                    }
                    _ => "",
                };
                format!("it looks like {encoding}; {convert}{other}")
            }
            Self::Compressed(compression) => {
                let program = match compression {
                    Compression::Gzip => "zcat",
                    Compression::Bzip2 => "bzcat",
                    Compression::Xz => "xzcat",
                    Compression::Zstd => "zstdcat",
                };
                format!("it is a compressed file; unpack it with `{program}` and use `--text -`")
            }
            Self::Zip => "it is a ZIP archive, as .docx, .odt and .epub files are; \
                          save it as plain text (UTF-8)"
                .into(),
            Self::Pdf => "it is a PDF file; convert it with `pdftotext`".into(),
            Self::Unknown => "it is damaged, or not text".into(),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Utf16 => "UTF-16 text",
            Self::Utf16Le => "UTF-16 text (little-endian)",
            Self::Utf16Be => "UTF-16 text (big-endian)",
            Self::Utf32 => "UTF-32 text",
            Self::Windows1252 => "Latin-1 or Windows-1252 text",
            Self::SingleByte => "text in an encoding with one byte per letter",
        })
    }
}

/// Quotes a word for a POSIX shell if it needs to be.
fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ',' | ':');
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf_16(text: &str, little: bool) -> Vec<u8> {
        text.encode_utf16()
            .flat_map(|unit| {
                if little {
                    unit.to_le_bytes()
                } else {
                    unit.to_be_bytes()
                }
            })
            .collect()
    }

    #[test]
    fn utf_16_is_recognized_with_and_without_a_byte_order_mark() {
        for text in ["It was a dark night.\n", "Была тёмная ночь, и шёл дождь.\n"]
        {
            for (little, expected) in [(true, Encoding::Utf16Le), (false, Encoding::Utf16Be)] {
                let bytes = utf_16(text, little);
                assert_eq!(recognize(&bytes), Some(FileContent::Encoded(expected)));
                let marked = utf_16(&format!("\u{feff}{text}"), little);
                let expected = Some(FileContent::Encoded(Encoding::Utf16));
                assert_eq!(recognize(&marked), expected);
            }
        }
        let utf_32 = b"\xff\xfe\0\0I\0\0\0";
        let expected = Some(FileContent::Encoded(Encoding::Utf32));
        assert_eq!(recognize(utf_32), expected);
    }

    #[test]
    fn utf_8_text_is_not_mistaken_for_something_else() {
        let with_nul = format!("{}\0\0\0", "a line\r\n".repeat(20));
        for text in [
            "\u{1b}[31mred\u{1b}[0m\0\n",
            "",
            "a",
            "Größe",
            "漢字",
            "\u{feff}x",
            &with_nul,
            "PKZIP",
            "BZh",
        ] {
            assert_eq!(recognize(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn compressed_files_and_documents_are_recognized() {
        assert_eq!(
            recognize(b"\x1f\x8b\x08rest"),
            Some(FileContent::Compressed(Compression::Gzip))
        );
        assert_eq!(
            recognize(b"BZh91AY&SY"),
            Some(FileContent::Compressed(Compression::Bzip2))
        );
        assert_eq!(recognize(b"PK\x03\x04rest"), Some(FileContent::Zip));
        assert_eq!(recognize(b"%PDF-1.4"), Some(FileContent::Pdf));
    }

    #[test]
    fn encodings_with_one_byte_per_letter_are_guessed_by_how_many_letters_are_not_ascii() {
        let latin = b"Gr\xf6\xdfe und Stra\xdfe";
        let expected = FileContent::Encoded(Encoding::Windows1252);
        assert_eq!(guess(latin, 2), expected);
        let cyrillic = b"\xc1\xfb\xeb\xe0 \xf2\xb8\xec\xed\xe0\xff \xed\xee\xf7\xfc";
        let expected = FileContent::Encoded(Encoding::SingleByte);
        assert_eq!(guess(cyrillic, 0), expected);
        let damaged = b"\xc3\xa9t\xc3\xa9 \xff";
        assert_eq!(guess(damaged, 6), FileContent::Unknown);
    }

    #[test]
    fn the_advice_is_a_command_that_can_be_pasted() {
        let advice = FileContent::Encoded(Encoding::Utf16).advice(Path::new("my book's.txt"));
        assert_eq!(
            advice,
            r"it looks like UTF-16 text; convert it with `iconv -f UTF-16 -t UTF-8 'my book'\''s.txt' > 'my book'\''s.txt.utf8.txt'`"
        );
        let advice = FileContent::Encoded(Encoding::Windows1252).advice(Path::new("-"));
        assert!(
            advice.ends_with("pipe it through `iconv -f WINDOWS-1252 -t UTF-8`"),
            "{advice}"
        );
        let advice = FileContent::Compressed(Compression::Gzip).advice(Path::new("a.gz"));
        assert!(advice.contains("`zcat`"), "{advice}");
    }
}
