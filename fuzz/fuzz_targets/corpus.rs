//! Reads arbitrary bytes as a corpus that arrives in chunks, as Train does. The
//! first byte is the size of the chunks. Whatever the size is, the reader must
//! return the same corpus or the same error; it must not panic.

#![no_main]

use charlstm_model::corpus::{Corpus, CorpusReader, ReadError};
use libfuzzer_sys::fuzz_target;

/// Characters that are skipped at the beginning, which may be in several chunks.
const SKIPPED_CHARS: u64 = 3;

/// Maximum size of a corpus, in bytes: more than an input has, since it is checked
/// for each chunk.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

fn read(bytes: &[u8], chunk_bytes: usize) -> Result<Corpus, ReadError> {
    let file = tempfile::tempfile().expect("the folder of temporary files is writable");
    let mut reader = CorpusReader::new(file, SKIPPED_CHARS, MAX_BYTES);
    for chunk in bytes.chunks(chunk_bytes.max(1)) {
        reader.push(chunk)?;
    }
    reader.finish()
}

fuzz_target!(|input: &[u8]| {
    let Some((&chunk_bytes, bytes)) = input.split_first() else {
        return;
    };
    let describe = |corpus: Result<Corpus, ReadError>| {
        let corpus =
            corpus.map(|corpus| (corpus.chars(), corpus.distinct(), corpus.most_frequent()));
        corpus.map_err(|error| error.to_string())
    };
    let whole = describe(read(bytes, bytes.len()));
    assert_eq!(whole, describe(read(bytes, chunk_bytes.into())));
});
