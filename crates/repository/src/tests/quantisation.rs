//! What int8 costs a version.

use super::*;

fn quantisation_file(folder: &TempDir) -> PathBuf {
    models(folder).join("a/1/quantisation.json")
}

/// A model that rounding to int8 changes too much.
fn sensitive_model() -> ModelFile {
    let mut model = model(0.1);
    model.parameters.values[20] = f32::MAX;
    model
}

#[test]
fn the_cost_of_int8_is_measured_once_and_stored_next_to_the_version() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
    let measured = repository.describe(&a).unwrap().quantisation.clone();
    assert_eq!(measured.as_ref().unwrap().objection(), None);
    let stored = fs::read(quantisation_file(&folder)).unwrap();

    // As version 0.1 has left it: it is measured at the first use.
    drop(repository);
    fs::remove_file(quantisation_file(&folder)).unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(repository.describe(&a).unwrap().quantisation, None);
    assert!(repository.get_loaded(&a, None).is_none());
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.precision(), Precision::Int8);
    assert_eq!(repository.describe(&a).unwrap().quantisation, measured);
    assert_eq!(fs::read(quantisation_file(&folder)).unwrap(), stored);

    // What is stored decides: it is not measured again.
    drop(repository);
    let objection = Quantisation::Unsupported("a test says so".to_owned());
    let text = objection.to_text().unwrap();
    fs::write(quantisation_file(&folder), text).unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.precision(), Precision::Float32);

    // A flipped bit is found.
    drop(repository);
    let mut text = stored.clone();
    let at = text.windows(5).position(|w| w == b"int8\"").unwrap();
    text[at + 8] ^= 1;
    fs::write(quantisation_file(&folder), text).unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(repository.describe(&a).unwrap().quantisation, None);
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.precision(), Precision::Int8);
    assert_eq!(fs::read(quantisation_file(&folder)).unwrap(), stored);
}

#[test]
fn a_version_that_int8_cannot_compute_runs_in_float32_and_int8_is_refused() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &sensitive_model())
        .unwrap();
    let description = repository.describe(&a).unwrap();
    assert_eq!(repository.precision(&description), Some(Precision::Float32));
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.precision(), Precision::Float32);
    let error = repository.load(&a, Some(Precision::Int8)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("model a@1 is not computed in int8: int8 cannot compute it: element"),
        "{error}"
    );
    // The check applies on servers of either precision.
    let devices = DecodeDevices {
        precision: Precision::Float32,
        ..DecodeDevices::default()
    };
    drop(repository);
    let repository = Repository::open_for(folder.path(), devices).unwrap();
    repository.load(&a, None).unwrap();
    assert!(repository.load(&a, Some(Precision::Int8)).is_err());
}
