//! The prompts of a request, each of which is continued by one or more texts.

/// The prompts. Text `i` continues prompt `i / repeats`.
#[derive(Clone, Debug)]
pub(super) struct Prompts {
    texts: Vec<String>,
    /// Number of characters of the prompts of all texts.
    total_chars: u64,
    /// Number of texts of each prompt.
    repeats: usize,
}

impl Prompts {
    /// Returns prompts, each of which is continued by `repeats` texts.
    pub(super) fn new(texts: Vec<String>, repeats: usize) -> Self {
        let chars = texts.iter().map(|text| text.chars().count() as u64);
        Self {
            total_chars: chars.sum::<u64>() * repeats as u64,
            texts,
            repeats,
        }
    }

    /// Returns the prompts; empty texts in place of those that were taken.
    pub(super) fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Returns the number of texts.
    pub(super) fn count(&self) -> usize {
        self.texts.len() * self.repeats
    }

    /// Returns the index of the prompt of a text.
    pub(super) fn of_text(&self, index: usize) -> usize {
        index / self.repeats
    }

    /// Returns the number of characters of the prompts of all texts.
    pub(super) fn total_chars(&self) -> u64 {
        self.total_chars
    }

    /// Returns the prompt of a text. The texts must be in order: the last one
    /// of a prompt takes it, without a copy.
    pub(super) fn take(&mut self, index: usize) -> String {
        let prompt = self.of_text(index);
        let prompt = &mut self.texts[prompt];
        if (index + 1).is_multiple_of(self.repeats) {
            std::mem::take(prompt)
        } else {
            prompt.clone()
        }
    }
}
