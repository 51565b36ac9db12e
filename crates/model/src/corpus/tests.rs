#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn reader(skip: u64, max_bytes: u64) -> CorpusReader {
    CorpusReader::new(tempfile::tempfile().unwrap(), skip, max_bytes)
}

fn text_error(error: ReadError) -> CorpusError {
    match error {
        ReadError::Text(error) => error,
        ReadError::Disk(error) => panic!("{error}"),
    }
}

fn read(chunks: &[&[u8]], skip: u64) -> Result<Corpus, CorpusError> {
    let mut reader = reader(skip, 1 << 20);
    for chunk in chunks {
        reader.push(chunk).map_err(text_error)?;
    }
    reader.finish().map_err(text_error)
}

/// Returns the token ids of a corpus, as bytes.
fn token_ids(corpus: &Corpus) -> Vec<u8> {
    let mut bytes = Vec::new();
    corpus.write(&mut bytes).unwrap();
    bytes
}

/// Returns all properties of a corpus.
fn properties(corpus: &Corpus) -> (Vocabulary, Vec<u8>, [u8; 32], usize) {
    let vocabulary = corpus.vocabulary.clone();
    (vocabulary, token_ids(corpus), corpus.sha256, corpus.chars())
}

#[test]
fn token_ids_are_those_of_the_sorted_vocabulary() {
    let corpus = read(&["bà".as_bytes(), b"a"], 0).unwrap();
    assert_eq!(corpus.vocabulary.characters(), ['a', 'b', 'à']);
    assert_eq!(token_ids(&corpus), [1, 2, 0]);
    assert_eq!((corpus.chars(), corpus.distinct()), (3, 3));
    assert_eq!(corpus.sha256, <[u8; 32]>::from(Sha256::digest("bàa")));
}

#[test]
fn the_most_frequent_character_is_counted_without_skipped_ones() {
    let corpus = read(&["ééé".as_bytes(), b"bab", "aé".as_bytes()], 3).unwrap();
    // As often as `a`, and before it.
    assert_eq!(corpus.most_frequent(), Some('b'));
}

#[test]
fn skipped_characters_are_counted_and_not_in_the_vocabulary() {
    let corpus = read(&["ééab".as_bytes()], 2).unwrap();
    assert_eq!(corpus.vocabulary.characters(), ['a', 'b']);
    assert_eq!(
        read(&[b"ab"], 2).unwrap_err(),
        CorpusError::AllSkipped { skip: 2, has: 2 }
    );
}

#[test]
fn an_empty_corpus_is_rejected() {
    assert_eq!(read(&[], 0).unwrap_err(), CorpusError::Empty);
    assert_eq!(read(&[b"", b""], 3).unwrap_err(), CorpusError::Empty);
}

#[test]
fn an_incomplete_character_at_the_end_is_reported_with_its_byte() {
    assert_eq!(
        read(&[b"abc\xe2\x82"], 0).unwrap_err(),
        CorpusError::InvalidUtf8 { byte: 3 }
    );
}

#[test]
fn too_many_bytes_are_rejected() {
    let mut reader = reader(0, 4);
    reader.push(b"abc").unwrap();
    let error = text_error(reader.push(b"de").unwrap_err());
    assert_eq!(error, CorpusError::TooLarge { limit: 4 });
}

#[test]
fn a_short_corpus_is_rejected_with_the_number_of_characters_needed() {
    let error = split(100, 0.0, 128, 100).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the corpus has 100 characters, but one batch of 128 x 100 needs at least 12800; \
         use a longer text, or reduce batch_size or sequence_length"
    );
}

#[test]
fn the_needed_length_is_the_minimum_that_is_accepted() {
    for fraction in [0.0, 0.1, 0.25, 0.333, 0.5] {
        let Err(CorpusError::TooShort { needed, .. }) = split(1, fraction, 7, 13) else {
            panic!("one character is too short");
        };
        assert!(split(needed, fraction, 7, 13).is_ok());
        assert!(split(needed - 1, fraction, 7, 13).is_err());
    }
}

#[test]
fn the_end_of_the_text_is_held_out() {
    let parts = split(100, 0.1, 2, 5).unwrap();
    assert_eq!((parts.training, parts.validation), (0..90, 90..100));
    assert!(matches!(
        split(100, 0.001, 2, 5),
        Err(CorpusError::HeldOutTooShort { held_out: 0, .. })
    ));
}

#[test]
fn a_corpus_can_use_the_vocabulary_of_a_model() {
    let mut corpus = read(&[b"cab"], 0).unwrap();
    corpus.recode(&Vocabulary::of(" abcd".chars())).unwrap();
    assert_eq!(token_ids(&corpus), [3, 1, 2]);
    assert_eq!((corpus.vocabulary.len(), corpus.distinct()), (5, 3));
}

#[test]
fn characters_unknown_to_a_model_are_reported_in_order_and_added_by_code_point() {
    let mut corpus = read(&["cüaéü".as_bytes()], 0).unwrap();
    let model = Vocabulary::of("acz".chars());
    let unknown: Vec<(char, usize)> = (corpus.unknown_to(&model).iter())
        .map(|unknown| (unknown.character, unknown.position))
        .collect();
    assert_eq!(unknown, [('ü', 1), ('é', 3)]);
    corpus.recode(&model).unwrap();
    assert_eq!(corpus.vocabulary.characters(), ['a', 'c', 'z', 'é', 'ü']);
    assert_eq!(token_ids(&corpus), [1, 4, 0, 3, 4]);
}

#[test]
fn token_ids_of_more_than_256_characters_have_two_bytes() {
    let text: String = ('\u{100}'..='\u{200}').rev().collect();
    let corpus = read(&[text.as_bytes()], 0).unwrap();
    let bytes = token_ids(&corpus);
    assert_eq!(bytes.len(), 2 * 257);
    assert_eq!(
        (&bytes[..4], &bytes[512..]),
        (&[0, 1, 255, 0][..], &[0, 0][..])
    );
}

proptest! {
    #[test]
    fn chunks_of_any_size_give_the_same_corpus(
        text in "\\PC{1,60}",
        cuts in prop::collection::vec(0usize..200, 0..8),
    ) {
        let bytes = text.as_bytes();
        let corpus = |chunks: &[&[u8]]| properties(&read(chunks, 0).unwrap());
        prop_assert_eq!(corpus(&chunks(bytes, &cuts)), corpus(&[bytes]));
    }

    #[test]
    fn invalid_bytes_are_reported_at_the_same_position_for_any_chunks(
        bytes in prop::collection::vec(prop_oneof![
            Just(0x61u8), Just(0xc3), Just(0xa9), Just(0xe2), Just(0x82), Just(0xf0), any::<u8>()
        ], 1..40),
        cuts in prop::collection::vec(0usize..40, 0..8),
    ) {
        let expected = std::str::from_utf8(&bytes).err().map(|error| CorpusError::InvalidUtf8 {
            byte: error.valid_up_to() as u64,
        });
        prop_assert_eq!(read(&chunks(&bytes, &cuts), 0).err(), expected);
    }
}

/// Divides bytes at the given positions.
fn chunks<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|&cut| cut.min(bytes.len())).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    let mut start = 0;
    cuts.into_iter()
        .map(|end| &bytes[std::mem::replace(&mut start, end)..end])
        .collect()
}
