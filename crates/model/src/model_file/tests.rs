#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::super::parameters::layout;
use super::*;

fn model() -> ModelFile {
    let vocabulary = Vocabulary::of("\n \"abż😀".chars());
    let architecture = Architecture {
        vocabulary_size: vocabulary.len(),
        hidden_size: 3,
        num_layers: 2,
    };
    let mut parameters = Parameters::zeros(architecture);
    for (index, value) in parameters.values.iter_mut().enumerate() {
        *value = index as f32 * 0.25 - 7.0;
    }
    ModelFile {
        parameters,
        vocabulary,
        metadata: ModelMetadata {
            recipe: "notebook".to_owned(),
            epochs: 4,
            steps: 1200,
            corpus_chars: 5000,
            corpus_sha256: "ab".repeat(32),
            most_frequent: Some('é'),
            training_id: "t-1".to_owned(),
            train_loss: Some(1.75),
            validation_loss: None,
            precision: "bf16".to_owned(),
            created_unix_ms: 1_700_000_000_000,
        },
    }
}

/// Returns a model file with one part of the header replaced by another of the
/// same length.
fn altered(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = model().to_bytes().unwrap();
    let at = bytes
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .unwrap();
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    bytes
}

/// Returns the error for an invalid file.
fn error_of(bytes: &[u8]) -> String {
    ModelFile::from_bytes(bytes).unwrap_err().to_string()
}

#[test]
fn a_model_survives_writing_and_reading() {
    let bytes = model().to_bytes().unwrap();
    assert_eq!(ModelFile::from_bytes(&bytes).unwrap(), model());
}

#[test]
fn the_same_model_always_gives_the_same_bytes() {
    assert_eq!(model().to_bytes().unwrap(), model().to_bytes().unwrap());
}

#[test]
fn contents_hold_the_digest_and_length_of_the_file() {
    let bytes = model().to_bytes().unwrap();
    let contents = Contents::read_from(bytes.as_slice(), bytes.len() as u64, None).unwrap();
    let expected: [u8; 32] = Sha256::digest(&bytes).into();
    assert_eq!(contents.sha256, expected);
    assert_eq!(contents.bytes, bytes.len() as u64);
    assert_eq!(contents.metadata, model().metadata);
}

#[test]
fn tensors_have_the_names_and_shapes_of_the_state_dict() {
    let bytes = model().to_bytes().unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    let mut expected: Vec<String> = (0..2)
        .flat_map(|layer| {
            ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(|n| format!("lstm.{n}_l{layer}"))
        })
        .chain(["fc.weight".to_owned(), "fc.bias".to_owned()])
        .collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(
        tensors.tensor("lstm.weight_ih_l0").unwrap().shape(),
        [12, 7]
    );
    assert_eq!(tensors.tensor("fc.weight").unwrap().shape(), [7, 3]);
    let bias = tensors.tensor("fc.bias").unwrap();
    let last = model().parameters.values.last().unwrap().to_le_bytes();
    assert_eq!(bias.data()[bias.data().len() - 4..], last);
}

/// Returns a file as other programs write it: tensors in another order, no
/// metadata.
fn bare() -> Vec<u8> {
    let model = model();
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = layout(&model.parameters.architecture)
        .into_iter()
        .map(|view| {
            let floats = &model.parameters.values[view.range];
            let bytes = floats.iter().flat_map(|f| f.to_le_bytes()).collect();
            (view.name, view.shape, bytes)
        })
        .collect();
    let tensors = data.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    safetensors::serialize(tensors, None).unwrap()
}

#[test]
fn a_bare_state_dict_is_read_with_a_given_vocabulary() {
    let bytes = bare();
    let model = model();
    let vocabulary = &model.vocabulary;
    let (read, _) =
        ModelFile::read_from(bytes.as_slice(), bytes.len() as u64, Some(vocabulary)).unwrap();
    assert_eq!(read.parameters, model.parameters);
    assert_eq!(read.vocabulary, model.vocabulary);
    assert_eq!(error_of(&bytes), "its metadata has no vocabulary");
}

#[test]
fn a_bare_state_dict_with_a_vocabulary_of_another_size_is_rejected() {
    let bytes = bare();
    let vocabulary = Vocabulary::of("abc".chars());
    let error = ModelFile::read_from(bytes.as_slice(), bytes.len() as u64, Some(&vocabulary))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3 characters, but the network has 7"),
        "{error}"
    );
}

#[test]
fn a_truncated_or_lengthened_file_is_rejected_with_both_lengths() {
    let mut bytes = model().to_bytes().unwrap();
    let length = bytes.len();
    let error = error_of(&bytes[..length - 1]);
    assert_eq!(
        error,
        format!(
            "the file has {} bytes, but its header requires {length}",
            length - 1
        )
    );
    bytes.push(0);
    assert!(error_of(&bytes).contains("its header requires"));
    assert!(error_of(&bytes[..4]).contains("shorter than 8 bytes"));
    assert!(error_of(&bytes[..40]).contains("ends within its header"));
    assert!(error_of(b"").contains("not a safetensors file"));
}

#[test]
fn a_header_that_claims_to_be_huge_is_rejected() {
    let bytes = [&u64::MAX.to_le_bytes()[..], &[0; 100]].concat();
    assert!(error_of(&bytes).contains("its header is longer than 2 MiB"));
}

#[test]
fn offsets_near_the_largest_integer_are_rejected() {
    let json = format!(
        r#"{{"fc.bias":{{"dtype":"F32","shape":[{}],"data_offsets":[0,{}]}}}}"#,
        u64::MAX / 32,
        u64::MAX / 32 * 4,
    );
    let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    assert!(ModelFile::from_bytes(&bytes).is_err());
}

#[test]
fn a_weight_that_is_not_finite_is_rejected_with_its_index() {
    let mut bytes = model().to_bytes().unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(
        error_of(&bytes),
        "tensor fc.bias has a value that is not finite, at index 6"
    );
    let mut model = model();
    model.parameters.values[0] = f32::INFINITY;
    let error = model.to_bytes().unwrap_err().to_string();
    assert!(error.contains("lstm.weight_ih_l0"), "{error}");
}

#[test]
fn wrong_names_shapes_and_types_are_rejected_by_tensor_name() {
    assert_eq!(
        error_of(&altered("fc.bias", "fc.bean")),
        "tensor \"fc.bean\" does not belong to this network"
    );
    let error = error_of(&altered("[7,3]", "[3,7]"));
    assert_eq!(
        error,
        "tensor fc.weight has the shape [3, 7]; it must be [7, 3]"
    );
    let error = error_of(&altered("\"F32\"", "\"I32\""));
    assert!(error.contains("type I32; they must be F32"), "{error}");
}

#[test]
fn errors_show_only_the_beginning_of_a_long_name() {
    let name = "x".repeat(100_000);
    let json = format!(
        r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},"__metadata__":{}}}"#,
        r#"{"format_version":"1","architecture":"{\"vocabulary_size\":1,\"hidden_size\":1,\"num_layers\":1}","vocabulary":"a","training":"{}"}"#
    );
    let bytes = [
        &(json.len() as u64).to_le_bytes()[..],
        json.as_bytes(),
        &[0; 4],
    ]
    .concat();
    let error = error_of(&bytes);
    assert!(error.contains("does not belong to this network"), "{error}");
    assert!(error.len() < 200, "{} bytes", error.len());
}

#[test]
fn invalid_metadata_are_rejected_by_key() {
    let error = error_of(&altered(
        "\"format_version\":\"1\"",
        "\"format_version\":\"2\"",
    ));
    assert!(error.contains("format_version"), "{error}");
    let error = error_of(&altered("abż", "aaż"));
    assert!(error.contains("it has 'a' twice"), "{error}");
    let error = error_of(&altered(r#"\"num_layers\":2"#, r#"\"num_layers\":9"#));
    assert_eq!(error, "num_layers is 9; it must be from 1 to 8");
    let error = error_of(&altered(r#"\"hidden_size\":3"#, r#"\"hidden_size\":0"#));
    assert_eq!(error, "hidden_size is 0; it must be from 1 to 4096");
    let error = error_of(&altered("\"training\":", "\"straying\":"));
    assert_eq!(error, "its metadata has no training");
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = ModelFile::from_bytes(&bytes);
    }

    #[test]
    fn arbitrary_headers_like_json_do_not_panic(json in r#"[{}\[\]":,a-z0-9_.]{0,80}"#) {
        let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
        let _ = ModelFile::from_bytes(&bytes);
    }

    #[test]
    fn changed_bytes_do_not_panic_and_truncated_files_are_rejected(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = model().to_bytes().unwrap();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let _ = ModelFile::from_bytes(&bytes);
        let cut = cut.index(bytes.len());
        prop_assert!(ModelFile::from_bytes(&bytes[..cut]).is_err());
    }
}
