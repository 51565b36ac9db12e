//! A text as numbers, in memory or mapped from a file, so that a text of a
//! gigabyte trains without being held. Who writes such files is `corpus`'s
//! business.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

/// Bytes of a number in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// One byte: a vocabulary of at most 256.
    One,
    /// Two bytes, the lower first.
    Two,
}

/// The numbers of a text. Clones and ranges share them.
#[derive(Clone, Debug)]
pub struct CorpusTokens {
    store: Arc<Store>,
    range: Range<usize>,
}

#[derive(Debug)]
enum Store {
    Owned(Vec<u32>),
    Bytes(Mmap),
    Pairs(Mmap),
}

impl Width {
    /// The narrowest for a vocabulary of that size.
    pub fn of(vocabulary_size: usize) -> Self {
        if vocabulary_size <= 1 << 8 {
            Self::One
        } else {
            Self::Two
        }
    }

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

impl CorpusTokens {
    /// Maps a file of numbers, which must not be changed while it is in use:
    /// one that is cut short ends the process.
    ///
    /// # Errors
    /// The file's.
    pub fn map(file: &File, width: Width) -> io::Result<Self> {
        // SAFETY: the file is in the folder of its training, which only the
        // server that holds the lock of the data folder writes to, and this
        // file is never written again once it is there. All bytes are valid
        // numbers, so one that another program changed gives another text.
        let map = unsafe { Mmap::map(file) }?;
        let end = map.len() / width.bytes();
        let store = match width {
            Width::One => Store::Bytes(map),
            Width::Two => Store::Pairs(map),
        };
        Ok(Self {
            store: Arc::new(store),
            range: 0..end,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The number at a place; `None` beyond the end.
    #[inline]
    pub fn get(&self, place: usize) -> Option<u32> {
        if place >= self.range.len() {
            return None;
        }
        let place = self.range.start + place;
        match &*self.store {
            Store::Owned(numbers) => numbers.get(place).copied(),
            Store::Bytes(map) => map.get(place).map(|&byte| u32::from(byte)),
            Store::Pairs(map) => {
                let pair = map.get(2 * place..)?.first_chunk::<2>()?;
                Some(u32::from(u16::from_le_bytes(*pair)))
            }
        }
    }

    /// A part of them, which shares the numbers; `None` where it reaches
    /// beyond the end.
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

impl From<Vec<u32>> for CorpusTokens {
    fn from(numbers: Vec<u32>) -> Self {
        Self {
            range: 0..numbers.len(),
            store: Arc::new(Store::Owned(numbers)),
        }
    }
}

impl From<&[u32]> for CorpusTokens {
    fn from(numbers: &[u32]) -> Self {
        numbers.to_vec().into()
    }
}

impl FromIterator<u32> for CorpusTokens {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        numbers.into_iter().collect::<Vec<u32>>().into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(tokens: &CorpusTokens) -> Vec<u32> {
        (0..tokens.len())
            .map(|place| tokens.get(place).unwrap())
            .collect()
    }

    fn mapped(bytes: &[u8], width: Width) -> CorpusTokens {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        CorpusTokens::map(&file, width).unwrap()
    }

    #[test]
    fn numbers_are_the_same_from_memory_and_from_files_of_either_width() {
        let numbers = [0, 7, 255, 3];
        let owned = CorpusTokens::from(&numbers[..]);
        let narrow = mapped(&[0, 7, 255, 3], Width::One);
        let wide = mapped(&[0, 0, 7, 0, 255, 0, 3, 0], Width::Two);
        for tokens in [owned, narrow, wide] {
            assert_eq!(all(&tokens), numbers);
            assert_eq!(tokens.get(4), None);
            let part = tokens.range(1..3).unwrap();
            assert_eq!(all(&part), [7, 255]);
            assert_eq!(part.get(2), None, "a part ends where it ends");
            assert_eq!(all(&part.range(1..2).unwrap()), [255]);
            assert!(part.range(1..3).is_none());
        }
        assert_eq!(all(&mapped(&[1, 2], Width::Two)), [0x0201]);
    }

    #[test]
    fn a_vocabulary_of_more_than_a_byte_can_number_takes_two() {
        assert_eq!((Width::of(256), Width::of(257)), (Width::One, Width::Two));
    }
}
