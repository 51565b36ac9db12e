//! Tests of the spec.

#![allow(clippy::unwrap_used)]

use super::*;

fn named() -> TrainingSpec {
    TrainingSpec {
        model: "m".to_owned(),
        ..TrainingSpec::default()
    }
}

fn rejection(change: impl FnOnce(&mut TrainingSpec)) -> String {
    let mut spec = named();
    change(&mut spec);
    spec.resolve(TrainingPrecision::Float32, || 0)
        .unwrap_err()
        .to_string()
}

#[test]
fn the_recipe_notebook_is_the_notebook() {
    let spec = TrainingSpec {
        recipe: Some("notebook".to_owned()),
        ..named()
    };
    let spec = spec.resolve(TrainingPrecision::Float32, || 77).unwrap();
    assert_eq!((spec.hidden_size, spec.num_layers), (512, 2));
    assert_eq!((spec.batch_size, spec.sequence_length), (128, 100));
    assert_eq!((spec.epochs, spec.dropout), (20, 0.5));
    assert_eq!((spec.learning_rate, spec.clip_norm), (0.001, 5.0));
    assert_eq!((spec.validation_fraction, spec.seed), (0.0, 77));
    assert_eq!(spec.recipe.name(), "notebook");
}

#[test]
fn an_empty_spec_is_fast_and_a_given_value_overrides_it() {
    let spec = named().resolve(TrainingPrecision::Float32, || 77).unwrap();
    assert_eq!(spec.recipe.name(), "fast");
    assert_eq!((spec.hidden_size, spec.num_layers), (512, 2));
    assert_eq!(spec.validation_fraction, 0.1);
    let given = TrainingSpec {
        validation_fraction: Some(0.0),
        ..named()
    };
    assert_eq!(
        given
            .resolve(TrainingPrecision::Float32, || 77)
            .unwrap()
            .validation_fraction,
        0.0
    );
}

#[test]
fn the_error_for_a_value_outside_its_range_names_the_range() {
    assert_eq!(
        rejection(|spec| spec.batch_size = Some(0)),
        "batch_size: must be 1 to 4096, not 0"
    );
    assert_eq!(
        rejection(|spec| spec.epochs = Some(100_001)),
        "epochs: must be 1 to 100000, not 100001"
    );
    assert_eq!(
        rejection(|spec| spec.learning_rate = Some(f64::NAN)),
        "learning_rate: must be over 0, at most 1, not NaN"
    );
    assert_eq!(
        rejection(|spec| spec.dropout = Some(1.0)),
        "dropout: must be at least 0, under 1, not 1"
    );
    assert_eq!(
        rejection(|spec| spec.clip_norm = Some(f64::INFINITY)),
        "clip_norm: must be over 0, at most 1e6, not inf"
    );
    assert_eq!(
        rejection(|spec| spec.validation_fraction = Some(-0.1)),
        "validation_fraction: must be 0 to 0.5, not -0.1"
    );
    assert_eq!(
        rejection(|spec| spec.sample_chars = Some(10_001)),
        "sample_chars: must be 0 to 10000, not 10001"
    );
}

#[test]
fn the_error_for_an_unknown_recipe_lists_the_known_ones() {
    assert_eq!(
        rejection(|spec| spec.recipe = Some("slow".to_owned())),
        "recipe: must be one of fast, best, notebook, not \"slow\""
    );
}

#[test]
fn a_model_name_that_could_leave_the_folder_is_rejected() {
    for name in ["", "../x", "a/b", ".hidden", "a b", "é", &"a".repeat(65)] {
        assert!(
            rejection(|spec| spec.model = name.to_owned()).starts_with("model: invalid model name"),
            "{name}"
        );
    }
}

#[test]
fn the_sizes_are_those_of_the_model_of_init_from() {
    let architecture = Architecture {
        vocabulary_size: 3,
        hidden_size: 8,
        num_layers: 1,
    };
    let mut requested = named();
    let mut spec = requested.resolve(TrainingPrecision::Float32, || 0).unwrap();
    spec.inherit(&requested, "base@2", &architecture).unwrap();
    assert_eq!((spec.hidden_size, spec.num_layers), (8, 1));
    assert_eq!(spec.init_from.as_deref(), Some("base@2"));
    requested.hidden_size = Some(16);
    let error = spec
        .inherit(&requested, "base@2", &architecture)
        .unwrap_err();
    assert_eq!(error.field, "hidden_size");
}

#[test]
fn a_stored_spec_is_read_back_to_the_last_bit() {
    let mut spec = named()
        .resolve(TrainingPrecision::Float32, || u64::MAX)
        .unwrap();
    spec.learning_rate = 0.1 + 0.2;
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<ResolvedSpec>(&text).unwrap(), spec);
}

#[test]
fn fast_and_best_train_on_a_short_text_for_more_epochs_and_on_a_long_one_for_fewer() {
    let adapted = |spec: TrainingSpec, chars| {
        let mut resolved = spec.resolve(TrainingPrecision::Float32, || 1).unwrap();
        resolved.adapt_to_length(&spec, chars);
        (resolved.epochs, resolved.dropout)
    };
    assert_eq!(adapted(named(), 500), (40, 0.6));
    assert_eq!(adapted(named(), 50_000), (15, 0.5));
    assert_eq!(adapted(named(), 90_000), (9, 0.3));
    assert_eq!(adapted(named(), 336_000), (4, 0.1));
    assert_eq!(adapted(named(), 1_000_000), (4, 0.1));
    assert_eq!(adapted(named(), 1_000_000_000), (1, 0.1));
    let average_decay = |chars| {
        let mut resolved = named().resolve(TrainingPrecision::Float32, || 1).unwrap();
        resolved.adapt_to_length(&named(), chars);
        resolved.average_decay
    };
    assert_eq!(
        (average_decay(90_000), average_decay(336_000)),
        (0.998, 0.0)
    );
    let learning_rate = |spec: TrainingSpec, chars| {
        let mut resolved = spec.resolve(TrainingPrecision::Float32, || 1).unwrap();
        resolved.adapt_to_length(&spec, chars);
        resolved.learning_rate
    };
    assert_eq!(learning_rate(named(), 3_900_000), 0.01);
    assert_eq!(learning_rate(named(), 9_000_000), 0.005);
    let given = TrainingSpec {
        learning_rate: Some(0.003),
        ..named()
    };
    assert_eq!(learning_rate(given, 9_000_000), 0.003);
    let given = TrainingSpec {
        epochs: Some(2),
        dropout: Some(0.2),
        ..named()
    };
    assert_eq!(adapted(given, 500), (2, 0.2));
    let long = TrainingSpec {
        epochs: Some(16),
        ..named()
    };
    assert_eq!(adapted(long, 336_000), (16, 0.5));
    let of_recipe = |recipe: &str| TrainingSpec {
        recipe: Some(recipe.to_owned()),
        ..named()
    };
    assert_eq!(adapted(of_recipe("notebook"), 500), (20, 0.5));
    assert_eq!(adapted(of_recipe("best"), 50_000), (30, 0.6));
    assert_eq!(adapted(of_recipe("best"), 336_000), (10, 0.3));
    assert_eq!(adapted(of_recipe("best"), 10_000_000), (2, 0.3));
}
