//! A text becomes numbers: decoded while it streams in, numbered, split into
//! a training and a validation part. It is never held in memory. How the
//! numbers are read is in `tokens`, how they are cut into batches in
//! `batches`.

mod numbering;

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use sha2::{Digest, Sha256};
use thiserror::Error;

use self::numbering::Numbering;
use super::tokens::Width;
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

/// A corpus could not be taken in.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The text is at fault.
    #[error(transparent)]
    Text(#[from] CorpusError),
    /// The disk is.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// Takes the bytes of a corpus as they come.
///
/// It holds neither the text nor its numbers: each character gets a
/// provisional number by its first appearance, which goes to a file, two bytes
/// each. Only when all are there is it known which number each has in the
/// order of the vocabulary.
pub struct CorpusReader {
    skip_chars: u64,
    max_bytes: u64,
    decoded_chars: u64,
    decoded_bytes: u64,
    /// The beginning of a character whose end is in the next chunk.
    pending: Vec<u8>,
    numbering: Numbering,
    chars: usize,
    spill: BufWriter<File>,
    digest: Sha256,
}

/// A corpus in a file, whose numbers are yet to be put into the order of the
/// vocabulary.
#[derive(Debug)]
pub struct Corpus {
    /// Its characters, or those of the model that it was recoded for.
    pub vocabulary: Vocabulary,
    /// SHA-256 of all its bytes, skipped ones included.
    pub sha256: [u8; 32],
    chars: usize,
    numbering: Numbering,
    spill: File,
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
    /// most `max_bytes`. The file, empty and open for reading too, takes two
    /// bytes a character.
    pub fn new(spill: File, skip_chars: u64, max_bytes: u64) -> Self {
        Self {
            skip_chars,
            max_bytes,
            decoded_chars: 0,
            decoded_bytes: 0,
            pending: Vec::with_capacity(4),
            numbering: Numbering::new(),
            chars: 0,
            spill: BufWriter::with_capacity(1 << 16, spill),
            digest: Sha256::new(),
        }
    }

    /// Takes the next bytes. A character may be split between two calls.
    ///
    /// # Errors
    /// Invalid UTF-8, too many bytes, too many distinct characters, a disk
    /// that does not take them. The reader is of no use afterwards.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), ReadError> {
        let taken = self.decoded_bytes + self.pending.len() as u64;
        if chunk.len() as u64 > self.max_bytes.saturating_sub(taken) {
            return Err(CorpusError::TooLarge {
                limit: self.max_bytes,
            }
            .into());
        }
        self.digest.update(chunk);
        let rest = self.complete_pending(chunk)?;
        self.decode(rest)
    }

    /// Ends the corpus.
    ///
    /// # Errors
    /// An empty corpus, one that is skipped whole, or one that ends within a
    /// character; the disk's.
    pub fn finish(self) -> Result<Corpus, ReadError> {
        if !self.pending.is_empty() {
            return Err(CorpusError::InvalidUtf8 {
                byte: self.decoded_bytes,
            }
            .into());
        }
        if self.decoded_chars == 0 {
            return Err(CorpusError::Empty.into());
        }
        if self.chars == 0 {
            return Err(CorpusError::AllSkipped {
                skip: self.skip_chars,
                has: self.decoded_chars,
            }
            .into());
        }
        Ok(Corpus {
            vocabulary: self.numbering.vocabulary(),
            sha256: self.digest.finalize().into(),
            chars: self.chars,
            numbering: self.numbering,
            spill: self.spill.into_inner().map_err(io::Error::from)?,
        })
    }

    /// Ends the character that the last chunk broke off in; returns what is
    /// left of this chunk.
    fn complete_pending<'a>(&mut self, mut chunk: &'a [u8]) -> Result<&'a [u8], ReadError> {
        while let (false, Some((&byte, rest))) = (self.pending.is_empty(), chunk.split_first()) {
            self.pending.push(byte);
            chunk = rest;
            let pending = std::mem::take(&mut self.pending);
            self.decode(&pending)?;
        }
        Ok(chunk)
    }

    /// Decodes all whole characters, and keeps the beginning of one at the end.
    fn decode(&mut self, bytes: &[u8]) -> Result<(), ReadError> {
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
                }
                .into());
            }
            self.pending.extend_from_slice(invalid);
        }
        Ok(())
    }

    fn take(&mut self, text: &str) -> Result<(), ReadError> {
        for character in text.chars() {
            if self.decoded_chars >= self.skip_chars {
                let number = self.numbering.number(character, self.chars)?;
                self.spill.write_all(&number.to_le_bytes())?;
                self.chars += 1;
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
    /// Characters in it, after `skip_chars`.
    pub fn chars(&self) -> usize {
        self.chars
    }

    /// Distinct characters in it.
    pub fn distinct(&self) -> usize {
        self.numbering.characters().len()
    }

    /// The characters that a vocabulary has not, each once and where it comes
    /// first, in the order of the text.
    pub fn unknown_to(&self, vocabulary: &Vocabulary) -> Vec<UnknownCharacter> {
        let characters = self.numbering.characters().iter();
        let unknown = characters.filter(|(character, _)| vocabulary.number(*character).is_none());
        unknown
            .map(|&(character, position)| UnknownCharacter {
                character,
                position,
            })
            .collect()
    }

    /// Replaces the vocabulary by that of a model, and what the model does not
    /// know is added to it in the order of code points.
    ///
    /// # Errors
    /// More characters than can be numbered.
    pub fn recode(&mut self, vocabulary: &Vocabulary) -> Result<(), CorpusError> {
        let unknown = self.unknown_to(vocabulary);
        if unknown.is_empty() {
            self.vocabulary = vocabulary.clone();
            return Ok(());
        }
        let known = vocabulary.characters().iter().copied();
        let new = unknown.iter().map(|unknown| unknown.character);
        let extended = Vocabulary::of(known.chain(new));
        if extended.len() > MAX_DISTINCT {
            return Err(CorpusError::TooManyDistinct);
        }
        self.vocabulary = extended;
        Ok(())
    }

    /// Writes the numbers that the characters have in the vocabulary, the
    /// lower byte first, as wide as [`Width::of`] says. Holds a small part of
    /// them at a time.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let order = self.numbering.numbers_in(&self.vocabulary);
        let width = Width::of(self.vocabulary.len());
        let mut spill = &self.spill;
        spill.seek(SeekFrom::Start(0))?;
        let mut left = 2 * self.chars;
        let (mut chunk, mut bytes) = (vec![0; 1 << 16], Vec::new());
        while left > 0 {
            let part = left.min(chunk.len());
            spill.read_exact(&mut chunk[..part])?;
            left -= part;
            let (pairs, _) = chunk[..part].as_chunks::<2>();
            let numbers = pairs
                .iter()
                .map(|pair| order[usize::from(u16::from_le_bytes(*pair))].to_le_bytes());
            bytes.clear();
            match width {
                Width::One => bytes.extend(numbers.map(|[low, _]| low)),
                Width::Two => bytes.extend(numbers.flatten()),
            }
            out.write_all(&bytes)?;
        }
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
        split(self.chars, validation_fraction, batch_size, sequence_length)
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
