//! Extends a trained network to a larger vocabulary: the weights of its
//! characters stay, and new characters get new weights.

use super::parameters::{Parameters, layout};
use super::vocabulary::Vocabulary;

/// Copies the weights of a trained network into a newly initialised one, whose
/// vocabulary has all of its characters and possibly others, in any order. The
/// new weights remain for the others: for each, a column of the first layer's
/// `weight_ih`, a row of `fc.weight` and a value of `fc.bias`.
///
/// Returns `None` if a character is missing, or if the networks differ in more
/// than their vocabularies.
pub fn extend(
    trained: &Parameters,
    known: &Vocabulary,
    mut target: Parameters,
    vocabulary: &Vocabulary,
) -> Option<Parameters> {
    // The new token id of each old one.
    let mut token_ids = Vec::with_capacity(known.len());
    for &character in known.characters() {
        token_ids.push(vocabulary.token_id(character)? as usize);
    }
    let mut expected = trained.architecture;
    expected.vocabulary_size = vocabulary.len();
    if target.architecture != expected || trained.architecture.vocabulary_size != known.len() {
        return None;
    }
    let views = layout(&trained.architecture);
    for (from, to) in views.into_iter().zip(layout(&target.architecture)) {
        let source = &trained.values[from.range];
        let values = &mut target.values[to.range];
        if from.name == "lstm.weight_ih_l0" {
            let rows = source.chunks_exact(known.len());
            for (source, row) in rows.zip(values.chunks_exact_mut(vocabulary.len())) {
                for (&value, &token_id) in source.iter().zip(&token_ids) {
                    row[token_id] = value;
                }
            }
        } else if from.name.starts_with("fc.") {
            let width = source.len() / known.len();
            for (row, &token_id) in source.chunks_exact(width).zip(&token_ids) {
                values[token_id * width..][..width].copy_from_slice(row);
            }
        } else {
            values.copy_from_slice(source);
        }
    }
    Some(target)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::architecture::Architecture;
    use crate::decode_step::{DecodeBatch, DecodeWeights};

    fn network(vocabulary_size: usize, phase: f32) -> Parameters {
        let mut parameters = Parameters::zeros(Architecture {
            vocabulary_size,
            hidden_size: 5,
            num_layers: 2,
        });
        for (index, value) in parameters.values.iter_mut().enumerate() {
            *value = (index as f32 * 0.7 + phase).sin();
        }
        parameters
    }

    /// Returns the logits after a text.
    fn logits(parameters: &Parameters, vocabulary: &Vocabulary, text: &str) -> Vec<f32> {
        let weights = Arc::new(DecodeWeights::on_processor(parameters));
        let mut state = weights.zero_state();
        let mut batch = DecodeBatch::new(weights, 1).expect("a batch");
        let tokens = vocabulary.encode(text).expect("known characters");
        let all = batch
            .prefill_logits(&mut state, &tokens)
            .expect("a prefill");
        let last = all.len() - vocabulary.len();
        all[last..].to_vec()
    }

    #[test]
    fn an_extended_network_gives_the_same_logits_for_known_characters() {
        // Not sorted, as an imported model may have them.
        let known = Vocabulary::from_chars(vec!['c', 'a', 'x']);
        let vocabulary = Vocabulary::of("abcdx".chars());
        let trained = network(3, 0.0);
        let target = network(5, 1.0);
        let extended = extend(&trained, &known, target.clone(), &vocabulary).expect("it extends");
        let before = logits(&trained, &known, "acxxca");
        let after = logits(&extended, &vocabulary, "acxxca");
        for (old, &character) in known.characters().iter().enumerate() {
            let new = vocabulary.token_id(character).expect("a character") as usize;
            assert!((before[old] - after[new]).abs() < 1e-5, "{character}");
        }
        let bias = |parameters: &Parameters| parameters.get("fc.bias").map(|bias| bias[1]);
        assert_eq!(bias(&extended), bias(&target), "b is new");
    }

    #[test]
    fn networks_that_differ_otherwise_are_not_extended() {
        let (known, vocabulary) = (Vocabulary::of("ab".chars()), Vocabulary::of("ac".chars()));
        let networks = (network(2, 0.0), network(2, 1.0));
        assert!(extend(&networks.0, &known, networks.1, &vocabulary).is_none());
        let vocabulary = Vocabulary::of("abc".chars());
        assert!(extend(&networks.0, &known, network(2, 1.0), &vocabulary).is_none());
    }
}
