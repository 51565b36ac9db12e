use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::decode_step::{DecodeBatch, DecodeWeights, HiddenState};

/// What PyTorch made of the files: tests/golden/checkpoints/expected.json.
#[derive(Deserialize)]
struct Expected {
    tokens: String,
    prime: String,
    logits: Vec<Vec<f32>>,
    greedy: String,
}

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoints");
    std::fs::read(folder.join(name)).expect("a golden file")
}

fn expected() -> Expected {
    serde_json::from_slice(&golden("expected.json")).expect("valid JSON")
}

fn import(name: &str, vocabulary: Option<&Vocabulary>) -> Result<ModelFile, CheckpointError> {
    read(Cursor::new(golden(name)), vocabulary)
}

fn refusal(name: &str) -> String {
    let vocabulary = Vocabulary::from_chars(expected().tokens.chars().collect());
    let error = import(name, Some(&vocabulary)).expect_err("it is refused");
    error.to_string()
}

fn stepper(model: &ModelFile) -> (HiddenState, DecodeBatch) {
    let weights = Arc::new(DecodeWeights::on_processor(&model.parameters));
    let state = HiddenState::zeros(weights.architecture());
    (state, DecodeBatch::new(weights, 1).expect("a stepper"))
}

/// The logits after each character of the prime, and the greedy text after it.
fn assert_as_pytorch(model: &ModelFile, what: &str) {
    let expected = expected();
    let width = model.vocabulary.len();
    let prime = model.vocabulary.encode(&expected.prime).expect("known");
    let (mut state, mut stepper) = stepper(model);
    let logits = stepper.prefill_logits(&mut state, &prime).expect("a step");
    for (ours, theirs) in logits.chunks_exact(width).zip(&expected.logits) {
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() < 1e-5, "{what}: {ours} {theirs}");
        }
    }
    let mut row = logits[logits.len() - width..].to_vec();
    let mut text = String::new();
    stepper.push(&state);
    for _ in expected.greedy.chars() {
        let best = (0u32..)
            .zip(&row)
            .max_by(|a, b| a.1.total_cmp(b.1))
            .expect("a vocabulary")
            .0;
        text.push(model.vocabulary.character(best));
        row = stepper.step(&[best]).expect("a step").to_vec();
    }
    assert_eq!(text, expected.greedy, "{what}");
}

#[test]
fn files_that_pytorch_wrote_give_its_logits_and_its_greedy_text() {
    let vocabulary = Vocabulary::from_chars(expected().tokens.chars().collect());
    for name in ["tokens.pth", "legacy.pth", "protocol4.pth"] {
        assert_as_pytorch(&import(name, None).expect(name), name);
    }
    for name in ["plain.pth", "shared.pth", "double.pth", "half.pth"] {
        assert_as_pytorch(&import(name, Some(&vocabulary)).expect(name), name);
    }
}

#[test]
fn a_safetensors_file_that_pytorch_wrote_gives_its_logits_and_its_greedy_text() {
    let vocabulary = Vocabulary::from_chars(expected().tokens.chars().collect());
    let bytes = golden("plain.safetensors");
    let (model, contents) =
        ModelFile::read_from(&*bytes, bytes.len() as u64, Some(&vocabulary)).expect("it is read");
    assert!(!contents.has_metadata);
    assert_as_pytorch(&sorted(model), "plain.safetensors");
}

#[test]
fn numbers_of_two_bytes_are_read_as_what_they_stand_for() {
    let exact = import("tokens.pth", None).expect("it is read");
    let rounded = import("bfloat16.pth", Some(&exact.vocabulary));
    // Here the given vocabulary is sorted: compare what its order leaves alone.
    let rounded = rounded.expect("it is read").parameters;
    let exact = exact.parameters;
    for (ours, theirs) in exact
        .get("lstm.weight_hh_l0")
        .into_iter()
        .flatten()
        .zip(rounded.get("lstm.weight_hh_l0").into_iter().flatten())
    {
        assert!(
            (ours - theirs).abs() <= ours.abs() / 256.0,
            "{ours} {theirs}"
        );
    }
}

#[test]
fn the_characters_are_sorted_and_the_order_in_the_file_counts() {
    let own = import("tokens.pth", None).expect("it is read");
    assert_eq!(own.vocabulary, alphabet(&own.vocabulary));
    // As from a corpus: the same characters, sorted.
    let given = import("tokens.pth", Some(&own.vocabulary)).expect("it is read");
    assert_eq!(given, own);
    let others = Vocabulary::of("123456789".chars());
    let error = import("tokens.pth", Some(&others)).expect_err("other characters");
    assert!(error.to_string().contains("other characters"), "{error}");
}

#[test]
fn without_characters_or_with_another_number_of_them_it_is_refused() {
    let error = import("plain.pth", None).expect_err("none");
    assert!(error.to_string().contains("holds no vocabulary"), "{error}");
    let few = Vocabulary::of("abc".chars());
    let error = import("plain.pth", Some(&few)).expect_err("too few");
    assert!(
        error
            .to_string()
            .contains("has 3 distinct characters; the network has 9"),
        "{error}"
    );
    let twice = Vocabulary::from_chars("aabcdefgh".chars().collect());
    let error = import("plain.pth", Some(&twice)).expect_err("one stands twice");
    assert!(error.to_string().contains("has 8 distinct"), "{error}");
}

#[test]
fn what_needs_code_is_refused_by_its_name() {
    let said = refusal("code.pth");
    assert!(said.contains("\"__main__.Elsewhere\""), "{said}");
    // As an attacker writes it: os.system called with a text.
    let bytes = golden("legacy.pth");
    let system =
        b"\x80\x02}q\x00X\n\x00\x00\x00state_dictcposix\nsystem\nX\x04\x00\x00\x00true\x85Rs.";
    let start = bytes
        .windows(3)
        .rposition(|part| part == b"\x80\x02]")
        .expect("the keys");
    let object = bytes
        .windows(12)
        .position(|part| part == b"\x08\x00\x00\x00n_hidden")
        .expect("it");
    // The magic number, the version and the system stay; then comes the attack.
    let begin = bytes[..object]
        .windows(2)
        .rposition(|part| part == b"\x80\x02")
        .expect("PROTO");
    let hostile = [&bytes[..begin], system, &bytes[start..]].concat();
    let error = read(Cursor::new(hostile), None).expect_err("it is refused");
    assert!(error.to_string().contains("\"posix.system\""), "{error}");
}

#[test]
fn what_does_not_fit_the_network_is_refused_with_its_reason() {
    for (name, reason) in [
        ("strided.pth", "tensor lstm.weight_hh_l0 is not contiguous"),
        (
            "infinite.pth",
            "tensor fc.bias holds a number that is not finite",
        ),
        ("integers.pth", "\"torch.LongStorage\""),
        (
            "contradicting.pth",
            "its n_hidden is 9, but its tensors are for 8",
        ),
        ("plain.safetensors", "it begins like none of its files"),
    ] {
        let said = refusal(name);
        assert!(said.contains(reason), "{name}: {said}");
    }
}

/// A pickle of a dict with one tensor, `fc.weight`, of this shape.
fn one_tensor(shape: [i32; 2], count: i32) -> Vec<u8> {
    let mut bytes =
        b"\x80\x02}X\x09\x00\x00\x00fc.weightctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    bytes.extend(
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ",
    );
    bytes.extend(count.to_le_bytes());
    bytes.extend(b"tQK\x00J");
    bytes.extend(shape[0].to_le_bytes());
    bytes.extend(b"J");
    bytes.extend(shape[1].to_le_bytes());
    bytes.extend(b"\x86J");
    bytes.extend(shape[1].to_le_bytes());
    bytes.extend(b"K\x01\x86\x89NtRs.");
    bytes
}

#[test]
fn huge_sizes_are_refused_before_anything_is_allocated() {
    for shape in [[i32::MAX, i32::MAX], [65_536, 4096], [9, 1 << 20]] {
        let pickle = one_tensor(shape, i32::MAX);
        let pickle = Pickle::read(&*pickle).expect("a pickle");
        let archive = Archive {
            storages: std::collections::HashMap::from([("0".to_owned(), 0..64)]),
            pickle,
        };
        let Some(Node::Tensor(tensor)) = archive.pickle.entry(archive.pickle.root(), "fc.weight")
        else {
            panic!("no tensor");
        };
        assert!(place(&archive, tensor).is_err());
    }
}

#[test]
fn a_compressed_zip_is_refused_unread() {
    // Its list of contents says that data.pkl is deflated to a terabyte.
    let mut bytes = golden("plain.pth");
    let central = bytes
        .windows(4)
        .position(|part| part == b"PK\x01\x02")
        .expect("a list");
    bytes[central + 10] = 8;
    let error = read(Cursor::new(bytes), None).expect_err("it is refused");
    assert!(
        error.to_string().contains("zip is broken or compressed"),
        "{error}"
    );
}

#[test]
fn a_pickle_that_builds_without_end_is_stopped() {
    let mut bytes = vec![0x80, 2];
    bytes.resize(1_000_000, b'}');
    let error = Pickle::read(&*bytes).expect_err("too many values");
    assert!(error.to_string().contains("too many values"), "{error}");
    // Doubling: a list of two of the list before, and so on.
    let mut bytes = b"\x80\x02]q\x00".to_vec();
    for _ in 0..60 {
        bytes.extend(b"h\x00h\x00\x86q\x00");
    }
    bytes.push(b'.');
    Pickle::read(&*bytes).expect("it takes no room");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_file_that_is_cut_short_is_refused(part in 0.0..1.0f64) {
        for name in ["tokens.pth", "legacy.pth"] {
            let bytes = golden(name);
            let length = (bytes.len() as f64 * part) as usize;
            prop_assert!(read(Cursor::new(&bytes[..length]), None).is_err());
        }
    }

    #[test]
    fn altered_bytes_never_crash_and_never_make_an_unsound_model(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        for name in ["tokens.pth", "legacy.pth"] {
            let mut bytes = golden(name);
            for (place, byte) in &changes {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
            }
            if let Ok(model) = read(Cursor::new(&bytes), None) {
                prop_assert!(model.to_bytes().is_ok());
            }
        }
    }

    #[test]
    fn any_bytes_after_a_true_beginning_are_no_crash(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Pickle::read(&*[&[0x80, 2], &*bytes].concat());
        let _ = read(Cursor::new([b"PK\x03\x04", &*bytes].concat()), None);
    }
}
