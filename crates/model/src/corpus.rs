//! Ingests a corpus: decodes a text while it arrives, encodes it as token ids
//! in a file, and splits it into a training and a validation set. The text is
//! never in memory as a whole. `tokens` reads the file, and `batches` cuts it
//! into batches.

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

/// Maximum number of distinct characters of a corpus: token ids have two bytes.
pub const MAX_DISTINCT: usize = 1 << 16;

/// Minimum number of characters for a validation loss: one to feed, one to
/// predict.
const MIN_VALIDATION_CHARS: usize = 2;

/// A corpus cannot be used for training.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CorpusError {
    /// The text is empty.
    #[error("the corpus is empty")]
    Empty,
    /// All characters are skipped.
    #[error("skip_chars is {skip}, but the corpus has only {has} characters: none are left")]
    AllSkipped {
        /// Number of characters to skip.
        skip: u64,
        /// Number of characters of the corpus.
        has: u64,
    },
    /// The bytes are not UTF-8.
    #[error("the corpus is not valid UTF-8 at byte {byte}")]
    InvalidUtf8 {
        /// Number of bytes before the first invalid one.
        byte: u64,
    },
    /// The corpus is larger than the server accepts.
    #[error("the corpus is larger than this server's limit of {limit} bytes")]
    TooLarge {
        /// Limit in bytes.
        limit: u64,
    },
    /// There are more distinct characters than token ids.
    #[error("the corpus has more than {MAX_DISTINCT} distinct characters")]
    TooManyDistinct,
    /// The training set does not fill one batch.
    #[error(
        "the corpus has {has} characters, but one batch of {batch_size} x {sequence_length} needs \
         at least {needed}; use a longer text, or reduce batch_size or sequence_length"
    )]
    TooShort {
        /// Number of characters needed, including held-out ones.
        needed: usize,
        /// Sequences in a batch.
        batch_size: usize,
        /// Characters in a sequence.
        sequence_length: usize,
        /// Number of characters after `skip_chars`.
        has: usize,
    },
    /// The validation set is too short for a loss.
    #[error(
        "validation_fraction {fraction} of {has} characters is {held_out}, but at least \
         {MIN_VALIDATION_CHARS} are needed; use 0 or a larger fraction"
    )]
    HeldOutTooShort {
        /// Fraction to hold out.
        fraction: f64,
        /// Number of characters of the corpus.
        has: usize,
        /// Number of characters that would be held out.
        held_out: usize,
    },
}

/// A corpus could not be ingested.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The text is invalid.
    #[error(transparent)]
    Text(#[from] CorpusError),
    /// Writing or reading the file of token ids failed.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// Ingests the bytes of a corpus as they arrive.
///
/// Keeps neither the text nor its token ids in memory. Token ids depend on the
/// whole vocabulary, so each character first gets a provisional id, in the
/// order of first occurrence, which is written to a file with two bytes.
pub struct CorpusReader {
    skip_chars: u64,
    max_bytes: u64,
    decoded_chars: u64,
    decoded_bytes: u64,
    /// The first bytes of a character that continues in the next chunk.
    pending: Vec<u8>,
    numbering: Numbering,
    chars: usize,
    provisional_ids: BufWriter<File>,
    digest: Sha256,
}

/// An ingested corpus, in a file of provisional ids. [`Self::write`] converts
/// them to token ids.
#[derive(Debug)]
pub struct Corpus {
    /// Its characters, or those of the model that it was recoded for.
    pub vocabulary: Vocabulary,
    /// SHA-256 of all its bytes, including skipped ones.
    pub sha256: [u8; 32],
    chars: usize,
    numbering: Numbering,
    provisional_ids: File,
}

/// Ranges of the training and the validation set within a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The training set, at the beginning.
    pub training: Range<usize>,
    /// The validation set, at the end; may be empty.
    pub validation: Range<usize>,
}

impl CorpusReader {
    /// Creates a reader that skips the first `skip_chars` characters and accepts
    /// at most `max_bytes`. `file` must be empty and open for reading and
    /// writing; it grows by two bytes per character.
    pub fn new(file: File, skip_chars: u64, max_bytes: u64) -> Self {
        Self {
            skip_chars,
            max_bytes,
            decoded_chars: 0,
            decoded_bytes: 0,
            pending: Vec::with_capacity(4),
            numbering: Numbering::new(),
            chars: 0,
            provisional_ids: BufWriter::with_capacity(1 << 16, file),
            digest: Sha256::new(),
        }
    }

    /// Ingests the next bytes. A character may be split between two calls.
    /// Blocks on the file.
    ///
    /// # Errors
    /// Invalid UTF-8, too many bytes, too many distinct characters, or a failed
    /// write. The reader must be dropped then.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), ReadError> {
        let accepted = self.decoded_bytes + self.pending.len() as u64;
        if chunk.len() as u64 > self.max_bytes.saturating_sub(accepted) {
            return Err(CorpusError::TooLarge {
                limit: self.max_bytes,
            }
            .into());
        }
        self.digest.update(chunk);
        let rest = self.complete_pending(chunk)?;
        self.decode(rest)
    }

    /// Finishes the corpus. Blocks on the file.
    ///
    /// # Errors
    /// The corpus is empty, skipped entirely, or ends within a character, or a
    /// write failed.
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
            provisional_ids: self.provisional_ids.into_inner().map_err(io::Error::from)?,
        })
    }

    /// Completes the character that the previous chunk ended in; returns the
    /// rest of this chunk.
    fn complete_pending<'a>(&mut self, mut chunk: &'a [u8]) -> Result<&'a [u8], ReadError> {
        while let (false, Some((&byte, rest))) = (self.pending.is_empty(), chunk.split_first()) {
            self.pending.push(byte);
            chunk = rest;
            let pending = std::mem::take(&mut self.pending);
            self.decode(&pending)?;
        }
        Ok(chunk)
    }

    /// Decodes all complete characters, and keeps the bytes of an incomplete one
    /// at the end.
    fn decode(&mut self, bytes: &[u8]) -> Result<(), ReadError> {
        for part in bytes.utf8_chunks() {
            self.ingest(part.valid())?;
            let invalid = part.invalid();
            if invalid.is_empty() {
                continue;
            }
            if !(is_suffix(bytes, invalid) && is_incomplete(invalid)) {
                return Err(CorpusError::InvalidUtf8 {
                    byte: self.decoded_bytes,
                }
                .into());
            }
            self.pending.extend_from_slice(invalid);
        }
        Ok(())
    }

    /// Writes the provisional ids of a text.
    fn ingest(&mut self, text: &str) -> Result<(), ReadError> {
        for character in text.chars() {
            if self.decoded_chars >= self.skip_chars {
                let id = self.numbering.provisional_id(character, self.chars)?;
                self.provisional_ids.write_all(&id.to_le_bytes())?;
                self.chars += 1;
            }
            self.decoded_chars += 1;
        }
        self.decoded_bytes += text.len() as u64;
        Ok(())
    }
}

/// Returns whether `part`, a slice of `whole`, extends to its end.
fn is_suffix(whole: &[u8], part: &[u8]) -> bool {
    std::ptr::eq(whole.as_ptr_range().end, part.as_ptr_range().end)
}

/// Returns whether more bytes could complete a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

impl Corpus {
    /// Returns the number of characters, without skipped ones.
    pub fn chars(&self) -> usize {
        self.chars
    }

    /// Returns the number of distinct characters.
    pub fn distinct(&self) -> usize {
        self.numbering.characters().len()
    }

    /// Returns the character that occurs most often; the first one, if there
    /// are several.
    pub fn most_frequent(&self) -> Option<char> {
        self.numbering.most_frequent()
    }

    /// Returns the characters that are not in a vocabulary, each with its first
    /// position, in the order of the text.
    pub fn unknown_to(&self, vocabulary: &Vocabulary) -> Vec<UnknownCharacter> {
        let characters = self.numbering.characters().iter();
        let unknown = characters.filter(|(character, _)| vocabulary.token_id(*character).is_none());
        unknown
            .map(|&(character, position)| UnknownCharacter {
                character,
                position,
            })
            .collect()
    }

    /// Replaces the vocabulary by that of a model. If the model does not know
    /// all characters, the new vocabulary has those of both, sorted by code
    /// point.
    ///
    /// # Errors
    /// There are more distinct characters than token ids.
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

    /// Writes the token ids of all characters in little-endian order, each as
    /// wide as [`Width::of`] the vocabulary says. Blocks on the file; keeps only
    /// a small part of it in memory.
    ///
    /// # Errors
    /// Reading the file of provisional ids or writing failed.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let token_ids = self.numbering.token_ids_in(&self.vocabulary);
        let width = Width::of(self.vocabulary.len());
        let mut provisional_ids = &self.provisional_ids;
        provisional_ids.seek(SeekFrom::Start(0))?;
        let mut left = 2 * self.chars;
        let (mut chunk, mut bytes) = (vec![0; 1 << 16], Vec::new());
        while left > 0 {
            let part = left.min(chunk.len());
            provisional_ids.read_exact(&mut chunk[..part])?;
            left -= part;
            let (pairs, _) = chunk[..part].as_chunks::<2>();
            let ids = pairs
                .iter()
                .map(|pair| token_ids[usize::from(u16::from_le_bytes(*pair))].to_le_bytes());
            bytes.clear();
            match width {
                Width::One => bytes.extend(ids.map(|[low, _]| low)),
                Width::Two => bytes.extend(ids.flatten()),
            }
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Splits the corpus: `validation_fraction` of it, at the end, is held out.
    ///
    /// # Errors
    /// The training set is too short for one batch, or the validation set for a
    /// loss.
    pub fn split(
        &self,
        validation_fraction: f64,
        batch_size: usize,
        sequence_length: usize,
    ) -> Result<Split, CorpusError> {
        split(self.chars, validation_fraction, batch_size, sequence_length)
    }
}

/// Splits a corpus of `has` characters as [`Corpus::split`] does.
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
        // The minimum is within two characters of the quotient.
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

/// Returns the number of held-out characters.
fn held_out(has: usize, fraction: f64) -> usize {
    ((has as f64 * fraction).floor() as usize).min(has)
}
