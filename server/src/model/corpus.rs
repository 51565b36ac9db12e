//! A text becomes numbers: decoded while it streams in, numbered, split into
//! a training and a validation part. How the numbers are cut into batches is
//! in `batches`.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::vocabulary::{UnknownCharacter, Vocabulary};

#[cfg(test)]
mod tests;

/// Most distinct characters of a corpus: as many as two bytes can number.
pub const MAX_DISTINCT: usize = 1 << 16;

/// Fewest characters that a validation loss can be taken on: one to feed, one
/// to predict.
const MIN_VALIDATION_CHARS: usize = 2;

/// A text cannot be trained on.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CorpusError {
    /// There is no text.
    #[error("the corpus is empty")]
    Empty,
    /// Nothing is left once the header is skipped.
    #[error("the corpus has {has} characters, and skip_chars leaves out {skip}: nothing is left")]
    AllSkipped {
        /// Characters to leave out.
        skip: u64,
        /// Characters of the corpus.
        has: u64,
    },
    /// The bytes are not UTF-8.
    #[error("the corpus is not valid UTF-8 at byte {byte}")]
    InvalidUtf8 {
        /// How many bytes of the corpus come before the invalid ones.
        byte: u64,
    },
    /// There are more bytes than the server takes.
    #[error("the corpus is larger than the {limit} bytes that this server takes")]
    TooLarge {
        /// Most bytes.
        limit: u64,
    },
    /// There are more distinct characters than can be numbered.
    #[error("the corpus has more than {MAX_DISTINCT} distinct characters")]
    TooManyDistinct,
    /// Not even one batch can be made.
    #[error(
        "the corpus needs at least {needed} characters for one batch of \
         {batch_size} x {sequence_length}, has {has}"
    )]
    TooShort {
        /// Characters that are needed, held-out ones included.
        needed: usize,
        /// Sequences in a batch.
        batch_size: usize,
        /// Characters in a sequence.
        sequence_length: usize,
        /// Characters that there are, after `skip_chars`.
        has: usize,
    },
    /// The held-out part is too short to take a loss on.
    #[error(
        "validation_fraction {fraction} of {has} characters holds out {held_out}; \
         at least {MIN_VALIDATION_CHARS} are needed"
    )]
    HeldOutTooShort {
        /// Share to hold out.
        fraction: f64,
        /// Characters of the corpus.
        has: usize,
        /// Characters that it holds out.
        held_out: usize,
    },
}

/// Takes the bytes of a corpus as they come.
///
/// It holds two bytes a character and never the text itself: each character
/// gets a provisional number by its first appearance, and the numbers are put
/// into the order of the vocabulary in place at the end.
pub struct CorpusReader {
    skip_chars: u64,
    max_bytes: u64,
    decoded_chars: u64,
    decoded_bytes: u64,
    /// The beginning of a character whose end is in the next chunk.
    pending: Vec<u8>,
    numbering: Numbering,
    tokens: Vec<u16>,
    digest: Sha256,
}

/// A corpus as numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Corpus {
    /// Its characters, or those of the model that it was recoded for.
    pub vocabulary: Vocabulary,
    /// Its characters by number, after `skip_chars`; two bytes each.
    pub tokens: Vec<u16>,
    /// SHA-256 of all its bytes, skipped ones included.
    pub sha256: [u8; 32],
    /// Distinct characters in it.
    pub distinct: usize,
}

/// Where the two parts of a corpus lie in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The part to train on, at the beginning.
    pub training: Range<usize>,
    /// The part that is held out, at the end; may be empty.
    pub validation: Range<usize>,
}

impl CorpusReader {
    /// A reader that leaves out the first `skip_chars` characters and takes at
    /// most `max_bytes`.
    pub fn new(skip_chars: u64, max_bytes: u64) -> Self {
        Self {
            skip_chars,
            max_bytes,
            decoded_chars: 0,
            decoded_bytes: 0,
            pending: Vec::with_capacity(4),
            numbering: Numbering::new(),
            tokens: Vec::new(),
            digest: Sha256::new(),
        }
    }

    /// Takes the next bytes. A character may be split between two calls.
    ///
    /// # Errors
    /// Invalid UTF-8, too many bytes, too many distinct characters. The reader
    /// is of no use afterwards.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), CorpusError> {
        let taken = self.decoded_bytes + self.pending.len() as u64;
        if chunk.len() as u64 > self.max_bytes.saturating_sub(taken) {
            return Err(CorpusError::TooLarge {
                limit: self.max_bytes,
            });
        }
        self.digest.update(chunk);
        let rest = self.complete_pending(chunk)?;
        self.decode(rest)
    }

    /// Bytes of memory that the numbers take now.
    pub fn bytes(&self) -> usize {
        self.tokens.capacity() * size_of::<u16>()
    }

    /// Ends the corpus.
    ///
    /// # Errors
    /// An empty corpus, one that is skipped whole, or one that ends within a
    /// character.
    pub fn finish(mut self) -> Result<Corpus, CorpusError> {
        if !self.pending.is_empty() {
            return Err(CorpusError::InvalidUtf8 {
                byte: self.decoded_bytes,
            });
        }
        if self.decoded_chars == 0 {
            return Err(CorpusError::Empty);
        }
        if self.tokens.is_empty() {
            return Err(CorpusError::AllSkipped {
                skip: self.skip_chars,
                has: self.decoded_chars,
            });
        }
        let (vocabulary, order) = self.numbering.sorted();
        for token in &mut self.tokens {
            *token = order[usize::from(*token)];
        }
        self.tokens.shrink_to_fit();
        Ok(Corpus {
            distinct: vocabulary.len(),
            vocabulary,
            tokens: self.tokens,
            sha256: self.digest.finalize().into(),
        })
    }

    /// Ends the character that the last chunk broke off in; returns what is
    /// left of this chunk.
    fn complete_pending<'a>(&mut self, mut chunk: &'a [u8]) -> Result<&'a [u8], CorpusError> {
        while let (false, Some((&byte, rest))) = (self.pending.is_empty(), chunk.split_first()) {
            self.pending.push(byte);
            chunk = rest;
            let pending = std::mem::take(&mut self.pending);
            self.decode(&pending)?;
        }
        Ok(chunk)
    }

    /// Decodes all whole characters, and keeps the beginning of one at the end.
    fn decode(&mut self, bytes: &[u8]) -> Result<(), CorpusError> {
        for part in bytes.utf8_chunks() {
            self.take(part.valid())?;
            let invalid = part.invalid();
            if invalid.is_empty() {
                continue;
            }
            let at_end = part_ends(bytes, invalid);
            if !(at_end && is_beginning(invalid)) {
                return Err(CorpusError::InvalidUtf8 {
                    byte: self.decoded_bytes,
                });
            }
            self.pending.extend_from_slice(invalid);
        }
        Ok(())
    }

    fn take(&mut self, text: &str) -> Result<(), CorpusError> {
        self.tokens.reserve(text.len().min(1 << 16));
        for character in text.chars() {
            if self.decoded_chars >= self.skip_chars {
                self.tokens.push(self.numbering.number(character)?);
            }
            self.decoded_chars += 1;
        }
        self.decoded_bytes += text.len() as u64;
        Ok(())
    }
}

/// True where `part`, a piece of `whole`, reaches to its end.
fn part_ends(whole: &[u8], part: &[u8]) -> bool {
    std::ptr::eq(whole.as_ptr_range().end, part.as_ptr_range().end)
}

/// True where the bytes may yet become a character.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

impl Corpus {
    /// Replaces the vocabulary by that of a model, which must cover the text.
    ///
    /// # Errors
    /// The first character that the model does not know; the corpus is then
    /// unchanged.
    pub fn recode(&mut self, vocabulary: &Vocabulary) -> Result<(), UnknownCharacter> {
        let order: Vec<Option<u16>> = self
            .vocabulary
            .characters()
            .iter()
            .map(|&character| {
                let number = vocabulary.number(character)?;
                u16::try_from(number).ok()
            })
            .collect();
        if order.contains(&None) {
            let unknown = |&token: &u16| order[usize::from(token)].is_none();
            if let Some(position) = self.tokens.iter().position(unknown) {
                let number = u32::from(self.tokens[position]);
                return Err(UnknownCharacter {
                    character: self.vocabulary.character(number),
                    position,
                });
            }
        }
        for token in &mut self.tokens {
            *token = order[usize::from(*token)].unwrap_or_default();
        }
        self.vocabulary = vocabulary.clone();
        Ok(())
    }

    /// Parts the corpus: `validation_fraction` of it, at its end, is held out.
    ///
    /// # Errors
    /// A training part that is too short for one batch, or a held-out part
    /// that is too short for a loss.
    pub fn split(
        &self,
        validation_fraction: f64,
        batch_size: usize,
        sequence_length: usize,
    ) -> Result<Split, CorpusError> {
        split(
            self.tokens.len(),
            validation_fraction,
            batch_size,
            sequence_length,
        )
    }
}

/// As [`Corpus::split`], for a corpus of `has` characters.
///
/// # Errors
/// As [`Corpus::split`].
pub fn split(
    has: usize,
    fraction: f64,
    batch_size: usize,
    sequence_length: usize,
) -> Result<Split, CorpusError> {
    let batch = batch_size * sequence_length;
    let held_out = held_out(has, fraction);
    if has - held_out < batch {
        // The least is within a character or two of the quotient.
        let mut needed = ((batch as f64 / (1.0 - fraction)) as usize).saturating_sub(2);
        while needed - self::held_out(needed, fraction) < batch {
            needed += 1;
        }
        return Err(CorpusError::TooShort {
            needed,
            batch_size,
            sequence_length,
            has,
        });
    }
    if fraction > 0.0 && held_out < MIN_VALIDATION_CHARS {
        return Err(CorpusError::HeldOutTooShort {
            fraction,
            has,
            held_out,
        });
    }
    Ok(Split {
        training: 0..has - held_out,
        validation: has - held_out..has,
    })
}

fn held_out(has: usize, fraction: f64) -> usize {
    ((has as f64 * fraction).floor() as usize).min(has)
}

/// Numbers of characters by their first appearance.
struct Numbering {
    /// Most texts are mostly ASCII: a look-up in place of a hash.
    ascii: [Option<u16>; 128],
    others: HashMap<char, u16>,
    characters: Vec<char>,
}

impl Numbering {
    fn new() -> Self {
        Self {
            ascii: [None; 128],
            others: HashMap::new(),
            characters: Vec::new(),
        }
    }

    fn number(&mut self, character: char) -> Result<u16, CorpusError> {
        let known = if character.is_ascii() {
            self.ascii[character as usize]
        } else {
            self.others.get(&character).copied()
        };
        if let Some(number) = known {
            return Ok(number);
        }
        let number =
            u16::try_from(self.characters.len()).map_err(|_| CorpusError::TooManyDistinct)?;
        self.characters.push(character);
        if character.is_ascii() {
            self.ascii[character as usize] = Some(number);
        } else {
            self.others.insert(character, number);
        }
        Ok(number)
    }

    /// The vocabulary, and for each provisional number its number in it.
    fn sorted(&self) -> (Vocabulary, Vec<u16>) {
        let vocabulary = Vocabulary::of(self.characters.iter().copied());
        let order = self
            .characters
            .iter()
            .map(|&character| {
                let number = vocabulary.number(character);
                number
                    .and_then(|number| u16::try_from(number).ok())
                    .expect("the vocabulary is made of these characters, at most 65536")
            })
            .collect();
        (vocabulary, order)
    }
}
