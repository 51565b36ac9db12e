//! A trained network for a larger vocabulary: what it knows of its characters
//! stays, and new characters get new weights.

use super::parameters::{Parameters, layout};
use super::vocabulary::Vocabulary;

/// Puts the weights of a trained network into a `fresh` one, whose vocabulary
/// has all its characters and others besides, in any order. What is fresh
/// remains for the others: a column of the first layer's input weights and a
/// row of the linear layer each.
///
/// `None` where a character is missing, or the networks differ in more than
/// their vocabularies.
pub fn extend(
    trained: &Parameters,
    known: &Vocabulary,
    mut fresh: Parameters,
    vocabulary: &Vocabulary,
) -> Option<Parameters> {
    let mut places = Vec::with_capacity(known.len());
    for &character in known.characters() {
        places.push(vocabulary.number(character)? as usize);
    }
    let mut expected = trained.architecture;
    expected.vocabulary_size = vocabulary.len();
    if fresh.architecture != expected || trained.architecture.vocabulary_size != known.len() {
        return None;
    }
    let views = layout(&trained.architecture);
    for (from, to) in views.into_iter().zip(layout(&fresh.architecture)) {
        let source = &trained.values[from.range];
        let target = &mut fresh.values[to.range];
        if from.name == "lstm.weight_ih_l0" {
            let rows = source.chunks_exact(known.len());
            for (source, target) in rows.zip(target.chunks_exact_mut(vocabulary.len())) {
                for (&number, &place) in source.iter().zip(&places) {
                    target[place] = number;
                }
            }
        } else if from.name.starts_with("fc.") {
            let width = source.len() / known.len();
            for (row, &place) in source.chunks_exact(width).zip(&places) {
                target[place * width..][..width].copy_from_slice(row);
            }
        } else {
            target.copy_from_slice(source);
        }
    }
    Some(fresh)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::architecture::Architecture;
    use crate::decode_step::{DecodeBatch, DecodeWeights, HiddenState};

    fn network(vocabulary_size: usize, phase: f32) -> Parameters {
        let mut parameters = Parameters::zeros(Architecture {
            vocabulary_size,
            hidden_size: 5,
            num_layers: 2,
        });
        for (place, value) in parameters.values.iter_mut().enumerate() {
            *value = (place as f32 * 0.7 + phase).sin();
        }
        parameters
    }

    fn logits(parameters: &Parameters, vocabulary: &Vocabulary, text: &str) -> Vec<f32> {
        let weights = Arc::new(DecodeWeights::on_processor(parameters));
        let mut state = HiddenState::zeros(weights.architecture());
        let mut stepper = DecodeBatch::new(weights, 1).expect("a stepper");
        let numbers = vocabulary.encode(text).expect("known characters");
        let all = stepper
            .prefill_logits(&mut state, &numbers)
            .expect("a prefill");
        let last = all.len() - vocabulary.len();
        all[last..].to_vec()
    }

    #[test]
    fn an_extended_network_says_of_known_characters_what_it_said_before() {
        // As a model from elsewhere may have it: not in order.
        let known = Vocabulary::from_chars(vec!['c', 'a', 'x']);
        let vocabulary = Vocabulary::of("abcdx".chars());
        let trained = network(3, 0.0);
        let fresh = network(5, 1.0);
        let extended = extend(&trained, &known, fresh.clone(), &vocabulary).expect("it extends");
        let before = logits(&trained, &known, "acxxca");
        let after = logits(&extended, &vocabulary, "acxxca");
        for (number, &character) in known.characters().iter().enumerate() {
            let place = vocabulary.number(character).expect("it is there") as usize;
            assert!((before[number] - after[place]).abs() < 1e-5, "{character}");
        }
        let bias = |parameters: &Parameters| parameters.get("fc.bias").map(|bias| bias[1]);
        assert_eq!(bias(&extended), bias(&fresh), "b is new");
    }

    #[test]
    fn networks_that_differ_otherwise_do_not_extend() {
        let (known, vocabulary) = (Vocabulary::of("ab".chars()), Vocabulary::of("ac".chars()));
        let networks = (network(2, 0.0), network(2, 1.0));
        assert!(extend(&networks.0, &known, networks.1, &vocabulary).is_none());
        let vocabulary = Vocabulary::of("abc".chars());
        assert!(extend(&networks.0, &known, network(2, 1.0), &vocabulary).is_none());
    }
}
