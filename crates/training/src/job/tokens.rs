//! The corpus of a training, as token ids.

use std::fs::File;
use std::io::{self, BufReader};

use charlstm_model::tokens::CorpusTokens;
use charlstm_store::atomic_file::Digesting;
use charlstm_store::hex;

use super::{Job, invalid};

/// Their file in the folder of the training.
pub(super) const TOKENS: &str = "tokens.bin";

/// The token ids of a corpus, open for training.
pub(crate) struct JobTokens {
    pub(crate) training: CorpusTokens,
    pub(crate) validation: CorpusTokens,
    /// The first character of the corpus.
    pub(crate) first: u32,
}

impl Job {
    /// Opens the token ids of the corpus, after checking every byte.
    pub(crate) fn tokens(&self) -> io::Result<JobTokens> {
        let mut reader = Digesting::new(BufReader::with_capacity(
            1 << 16,
            File::open(self.folder.join(TOKENS))?,
        ));
        io::copy(&mut reader, &mut io::sink())?;
        let (reader, digest) = reader.finish();
        if hex::encode(&digest) != self.metadata.tokens_sha256 {
            return Err(invalid("the stored corpus is damaged".to_owned()));
        }
        let width = self.metadata.tokens_width;
        let tokens = CorpusTokens::open(reader.into_inner(), width, self.vocabulary.len())?;
        let mut first = [0];
        tokens.read(0, &mut first)?;
        let middle = self.metadata.training_chars;
        let part = |part| {
            let text = "the stored corpus is shorter than its metadata says";
            tokens.range(part).ok_or_else(|| invalid(text.to_owned()))
        };
        Ok(JobTokens {
            first: first[0],
            training: part(0..middle)?,
            validation: part(middle..self.metadata.corpus_chars)?,
        })
    }
}
