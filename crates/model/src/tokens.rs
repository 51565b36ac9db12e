//! A text as token ids, in memory or in a file, so that training on a text of a
//! gigabyte does not need its size in memory. `corpus` writes such files.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Bytes that are read from a file at a time. The buffer is on the stack.
const BLOCK_BYTES: usize = 4096;

/// Width of a token id in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// One byte, for a vocabulary of at most 256 characters.
    One,
    /// Two bytes, little-endian.
    Two,
}

/// The token ids of a text. Clones and ranges share the memory or the file.
///
/// A file is read in small parts and never mapped into memory: if it is
/// truncated or its disk fails while it is in use, reading returns an error,
/// whereas access to a mapped file would end the process.
#[derive(Clone, Debug)]
pub struct CorpusTokens {
    store: Arc<Store>,
    range: Range<usize>,
}

#[derive(Debug)]
enum Store {
    Memory(Vec<u32>),
    File(TokenFile),
}

#[derive(Debug)]
struct TokenFile {
    file: File,
    width: Width,
    vocabulary_size: usize,
}

impl Width {
    /// Returns the narrowest width for a vocabulary of this size.
    pub fn of(vocabulary_size: usize) -> Self {
        if vocabulary_size <= 1 << 8 {
            Self::One
        } else {
            Self::Two
        }
    }

    /// Returns the width in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

impl CorpusTokens {
    /// Uses the token ids in a file, which must all be less than
    /// `vocabulary_size`; [`Self::read`] checks that.
    ///
    /// # Errors
    /// The length of the file cannot be read.
    pub fn open(file: File, width: Width, vocabulary_size: usize) -> io::Result<Self> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Self {
            range: 0..bytes / width.bytes(),
            store: Arc::new(Store::File(TokenFile {
                file,
                width,
                vocabulary_size,
            })),
        })
    }

    /// Returns the number of token ids.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Returns whether there are no token ids.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Copies the token ids from position `start` on into `tokens`. Blocks on
    /// the file, if there is one.
    ///
    /// # Errors
    /// `UnexpectedEof` if the text is too short or its file was truncated,
    /// `InvalidData` if a token id in the file is not in the vocabulary, or any
    /// I/O error.
    pub fn read(&self, start: usize, tokens: &mut [u32]) -> io::Result<()> {
        let end = start.checked_add(tokens.len());
        if end.is_none_or(|end| end > self.len()) {
            let (count, len) = (tokens.len(), self.len());
            let text =
                format!("{count} tokens from position {start} on exceed the text of {len} tokens");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let start = self.range.start + start;
        match &*self.store {
            Store::Memory(all) => tokens.copy_from_slice(&all[start..start + tokens.len()]),
            Store::File(file) => file.read(start, tokens)?,
        }
        Ok(())
    }

    /// Returns a part of the text, or `None` if it exceeds the text.
    pub fn range(&self, part: Range<usize>) -> Option<Self> {
        if part.start > part.end || part.end > self.len() {
            return None;
        }
        Some(Self {
            store: Arc::clone(&self.store),
            range: self.range.start + part.start..self.range.start + part.end,
        })
    }
}

impl TokenFile {
    fn read(&self, start: usize, tokens: &mut [u32]) -> io::Result<()> {
        let width = self.width.bytes();
        let mut block = [0; BLOCK_BYTES];
        let mut position = start;
        for part in tokens.chunks_mut(BLOCK_BYTES / width) {
            let bytes = &mut block[..part.len() * width];
            self.file
                .read_exact_at(bytes, (position * width) as u64)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        let text = "the file of the text was truncated while it was in use";
                        io::Error::new(io::ErrorKind::UnexpectedEof, text)
                    }
                    _ => error,
                })?;
            match self.width {
                Width::One => {
                    for (token, byte) in part.iter_mut().zip(&*bytes) {
                        *token = u32::from(*byte);
                    }
                }
                Width::Two => {
                    let (pairs, _) = bytes.as_chunks::<2>();
                    for (token, pair) in part.iter_mut().zip(pairs) {
                        *token = u32::from(u16::from_le_bytes(*pair));
                    }
                }
            }
            let unknown = |token: &&u32| **token as usize >= self.vocabulary_size;
            if let Some(token) = part.iter().find(unknown) {
                let size = self.vocabulary_size;
                let text =
                    format!("token id {token} is not in the vocabulary of {size} characters");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            position += part.len();
        }
        Ok(())
    }
}

impl From<Vec<u32>> for CorpusTokens {
    fn from(token_ids: Vec<u32>) -> Self {
        Self {
            range: 0..token_ids.len(),
            store: Arc::new(Store::Memory(token_ids)),
        }
    }
}

impl From<&[u32]> for CorpusTokens {
    fn from(token_ids: &[u32]) -> Self {
        token_ids.to_vec().into()
    }
}

impl FromIterator<u32> for CorpusTokens {
    fn from_iter<I: IntoIterator<Item = u32>>(token_ids: I) -> Self {
        token_ids.into_iter().collect::<Vec<u32>>().into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(tokens: &CorpusTokens) -> Vec<u32> {
        let mut all = vec![0; tokens.len()];
        tokens.read(0, &mut all).unwrap();
        all
    }

    fn in_file(bytes: &[u8], width: Width) -> CorpusTokens {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        CorpusTokens::open(file, width, 1 << 16).unwrap()
    }

    #[test]
    fn tokens_are_the_same_from_memory_and_from_files_of_either_width() {
        let tokens = [0, 7, 255, 3];
        let memory = CorpusTokens::from(&tokens[..]);
        let narrow = in_file(&[0, 7, 255, 3], Width::One);
        let wide = in_file(&[0, 0, 7, 0, 255, 0, 3, 0], Width::Two);
        for text in [memory, narrow, wide] {
            assert_eq!(all(&text), tokens);
            assert!(text.read(4, &mut [0]).is_err());
            let part = text.range(1..3).unwrap();
            assert_eq!(all(&part), [7, 255]);
            assert!(part.read(1, &mut [0; 2]).is_err(), "a part ends at its end");
            assert!(part.read(usize::MAX, &mut [0; 2]).is_err());
            assert_eq!(all(&part.range(1..2).unwrap()), [255]);
            assert!(part.range(1..3).is_none());
        }
        assert_eq!(all(&in_file(&[1, 2], Width::Two)), [0x0201]);
    }

    #[test]
    fn a_text_longer_than_a_block_is_read_from_any_position() {
        let bytes: Vec<u8> = (0..20_000u32)
            .map(|position| (position % 251) as u8)
            .collect();
        let text = in_file(&bytes, Width::One);
        let mut part = vec![0; 9000];
        text.read(4095, &mut part).unwrap();
        let expected: Vec<u32> = (4095..13_095u32).map(|position| position % 251).collect();
        assert_eq!(part, expected);
    }

    #[test]
    fn a_file_that_is_truncated_while_it_is_in_use_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100]).unwrap();
        let text = CorpusTokens::open(file.try_clone().unwrap(), Width::One, 2).unwrap();
        file.set_len(50).unwrap();
        text.read(0, &mut [0; 50]).unwrap();
        let error = text.read(40, &mut [0; 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("truncated"), "{error}");
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0, 2, 3]).unwrap();
        let text = CorpusTokens::open(file, Width::One, 3).unwrap();
        text.read(0, &mut [0; 2]).unwrap();
        let error = text.read(0, &mut [0; 3]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn token_ids_of_more_than_256_characters_have_two_bytes() {
        assert_eq!((Width::of(256), Width::of(257)), (Width::One, Width::Two));
    }
}
