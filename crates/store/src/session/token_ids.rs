//! A short sequence of characters as token ids.

/// Characters as the model's vocabulary numbers them. Most vocabularies have
/// fewer than 256 characters, so that a byte holds one id.
#[derive(Clone, Debug)]
pub struct TokenIds(Width);

#[derive(Clone, Debug)]
enum Width {
    /// Every id is below 256.
    Byte(Box<[u8]>),
    /// Some id is not.
    Word(Box<[u32]>),
}

impl Default for TokenIds {
    fn default() -> Self {
        Self(Width::Byte(Box::default()))
    }
}

impl From<&[u32]> for TokenIds {
    fn from(ids: &[u32]) -> Self {
        ids.iter().copied().collect()
    }
}

impl FromIterator<u32> for TokenIds {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut bytes = Vec::new();
        let mut ids = ids.into_iter();
        while let Some(id) = ids.next() {
            let Ok(byte) = u8::try_from(id) else {
                let wide = bytes.into_iter().map(u32::from).chain([id]).chain(ids);
                return Self(Width::Word(wide.collect()));
            };
            bytes.push(byte);
        }
        Self(Width::Byte(bytes.into()))
    }
}

impl PartialEq for TokenIds {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for TokenIds {}

impl TokenIds {
    /// Number of characters.
    pub fn len(&self) -> usize {
        match &self.0 {
            Width::Byte(ids) => ids.len(),
            Width::Word(ids) => ids.len(),
        }
    }

    /// True if there are no characters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (bytes, words): (&[u8], &[u32]) = match &self.0 {
            Width::Byte(ids) => (ids, &[]),
            Width::Word(ids) => (&[], ids),
        };
        let bytes = bytes.iter().map(|&id| u32::from(id));
        bytes.chain(words.iter().copied())
    }

    /// Bytes that one id takes in a record: the fewest of 1, 2 and 4 that hold
    /// the largest id.
    pub(super) fn width(&self) -> usize {
        match &self.0 {
            Width::Byte(_) => 1,
            Width::Word(ids) if ids.iter().all(|&id| id <= u32::from(u16::MAX)) => 2,
            Width::Word(_) => 4,
        }
    }
}
