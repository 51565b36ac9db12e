//! The prompts of a request, each of which is continued by one or more texts.

/// The prompts. Text `i` continues prompt `i / repeats`.
#[derive(Clone, Debug)]
pub(super) struct Prompts {
    texts: Vec<String>,
    /// Number of characters of each.
    chars: Vec<u64>,
    /// Number of texts of each prompt.
    repeats: usize,
}

impl Prompts {
    pub(super) fn new(texts: Vec<String>, repeats: usize) -> Self {
        let chars = texts.iter().map(|text| text.chars().count() as u64);
        Self {
            chars: chars.collect(),
            texts,
            repeats,
        }
    }

    /// The prompts, before one is taken.
    pub(super) fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Number of texts.
    pub(super) fn count(&self) -> usize {
        self.texts.len() * self.repeats
    }

    /// Index of the prompt of a text.
    pub(super) fn of_text(&self, index: usize) -> usize {
        index / self.repeats
    }

    /// Number of characters of the prompts of all texts.
    pub(super) fn total_chars(&self) -> u64 {
        self.chars.iter().sum::<u64>() * self.repeats as u64
    }

    /// Returns the prompt of a text. The texts must be in order: the last one
    /// of a prompt takes it, without a copy.
    pub(super) fn take(&mut self, index: usize) -> String {
        let prompt = &mut self.texts[index / self.repeats];
        if (index + 1).is_multiple_of(self.repeats) {
            std::mem::take(prompt)
        } else {
            prompt.clone()
        }
    }
}
