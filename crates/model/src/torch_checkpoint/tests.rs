mod variants;

use std::io::{Cursor, Write};
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use serde::Deserialize;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;
use crate::decode_step::{DecodeBatch, DecodeWeights};

/// Results of PyTorch with these files: tests/golden/checkpoints/expected.json.
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

fn import(name: &str, vocabulary: Option<&Vocabulary>) -> Result<ModelFile, ModelFileError> {
    read(Cursor::new(golden(name)), vocabulary)
}

/// Returns the error for an invalid golden file.
fn error_of(name: &str) -> String {
    let vocabulary = Vocabulary::from_chars(expected().tokens.chars().collect());
    let error = import(name, Some(&vocabulary)).expect_err("it is rejected");
    error.to_string()
}

/// Asserts that the model gives PyTorch's logits after each character of the
/// prompt, and PyTorch's greedy text after it.
fn assert_matches_pytorch(model: &ModelFile, what: &str) {
    let expected = expected();
    let width = model.vocabulary.len();
    let prompt = model.vocabulary.encode(&expected.prime).expect("known");
    let weights = Arc::new(DecodeWeights::on_processor(&model.parameters));
    let mut state = weights.zero_state();
    let mut batch = DecodeBatch::new(weights, 1).expect("a batch");
    let logits = batch
        .prefill_logits(&mut state, &prompt)
        .expect("a prefill");
    for (ours, theirs) in logits.chunks_exact(width).zip(&expected.logits) {
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() < 1e-5, "{what}: {ours} {theirs}");
        }
    }
    let mut row = logits[logits.len() - width..].to_vec();
    let mut text = String::new();
    batch.push(&state);
    for _ in expected.greedy.chars() {
        let best = (0u32..)
            .zip(&row)
            .max_by(|a, b| a.1.total_cmp(b.1))
            .expect("a vocabulary")
            .0;
        text.push(model.vocabulary.character(best));
        row = batch.step(&[best]).expect("a step").to_vec();
    }
    assert_eq!(text, expected.greedy, "{what}");
}

#[test]
fn files_written_by_pytorch_give_its_logits_and_its_greedy_text() {
    let vocabulary = Vocabulary::from_chars(expected().tokens.chars().collect());
    for name in ["tokens.pth", "legacy.pth", "protocol4.pth"] {
        assert_matches_pytorch(&import(name, None).expect(name), name);
    }
    for name in ["plain.pth", "shared.pth", "double.pth", "half.pth"] {
        assert_matches_pytorch(&import(name, Some(&vocabulary)).expect(name), name);
    }
}

#[test]
fn a_safetensors_file_written_by_pytorch_gives_its_logits_and_its_greedy_text() {
    let vocabulary = Vocabulary::from_chars(expected().tokens.chars().collect());
    let bytes = golden("plain.safetensors");
    let (model, contents) =
        ModelFile::read_from(&*bytes, bytes.len() as u64, Some(&vocabulary)).expect("it is read");
    assert!(!contents.has_metadata);
    assert_matches_pytorch(&sorted(model), "plain.safetensors");
}

#[test]
fn bfloat16_elements_are_the_rounded_float32_values() {
    let exact = import("tokens.pth", None).expect("it is read");
    let rounded = import("bfloat16.pth", Some(&exact.vocabulary));
    // The given vocabulary is sorted: compare a tensor that does not depend on
    // its order.
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
fn characters_are_sorted_and_the_order_in_the_file_counts() {
    let own = import("tokens.pth", None).expect("it is read");
    assert_eq!(own.vocabulary, alphabet(&own.vocabulary));
    // The same characters, sorted, as from a corpus.
    let given = import("tokens.pth", Some(&own.vocabulary)).expect("it is read");
    assert_eq!(given, own);
    let others = Vocabulary::of("123456789".chars());
    let error = import("tokens.pth", Some(&others)).expect_err("other characters");
    assert!(error.to_string().contains("other characters"), "{error}");
}

#[test]
fn a_missing_vocabulary_or_one_of_another_size_is_rejected() {
    let error = import("plain.pth", None).expect_err("none");
    assert!(error.to_string().contains("has no vocabulary"), "{error}");
    let few = Vocabulary::of("abc".chars());
    let error = import("plain.pth", Some(&few)).expect_err("too few");
    assert!(
        error
            .to_string()
            .contains("has 3 distinct characters, but the network has 9"),
        "{error}"
    );
    let twice = Vocabulary::from_chars("aabcdefgh".chars().collect());
    let error = import("plain.pth", Some(&twice)).expect_err("one occurs twice");
    assert!(error.to_string().contains("has 8 distinct"), "{error}");
}

#[test]
fn a_file_that_refers_to_code_is_rejected_by_the_name_of_the_code() {
    let error = error_of("code.pth");
    assert!(error.contains("\"__main__.Elsewhere\""), "{error}");
    // An attack: os.system called with a text.
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
    // The magic number, the version and the system remain; the attack follows.
    let begin = bytes[..object]
        .windows(2)
        .rposition(|part| part == b"\x80\x02")
        .expect("PROTO");
    let hostile = [&bytes[..begin], system, &bytes[start..]].concat();
    let error = read(Cursor::new(hostile), None).expect_err("it is rejected");
    assert!(error.to_string().contains("\"posix.system\""), "{error}");
}

#[test]
fn invalid_files_are_rejected_with_the_reason() {
    for (name, reason) in [
        ("strided.pth", "tensor lstm.weight_hh_l0 is not contiguous"),
        (
            "infinite.pth",
            "tensor fc.bias has a value that is not finite",
        ),
        (
            "integers.pth",
            "has elements that are not floating-point numbers",
        ),
        (
            "contradicting.pth",
            "its n_hidden is 9, but its tensors have shapes for 8",
        ),
        ("plain.safetensors", "it is a safetensors file"),
    ] {
        let error = error_of(name);
        assert!(error.contains(reason), "{name}: {error}");
    }
}

/// Returns a pickle of a dict with one tensor, `fc.weight`, of this shape, in a
/// storage of `count` elements.
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
fn tensors_larger_than_their_storage_are_rejected() {
    for shape in [[i32::MAX, i32::MAX], [65_536, 4096], [9, 1 << 20]] {
        let pickle = Pickle::read(&*one_tensor(shape, 16)).expect("a pickle");
        let ranges = StorageRanges::from([("0".into(), 0..64)]);
        let Some(Node::Tensor(tensor)) = pickle.entry(pickle.root(), "fc.weight") else {
            panic!("no tensor");
        };
        assert!(is_contiguous(tensor));
        let error = start_of(&ranges, tensor).expect_err("it is rejected");
        assert!(error.contains("fewer elements"), "{error}");
    }
}

#[test]
fn a_compressed_zip_archive_is_rejected() {
    // The central directory now says that data.pkl is deflated.
    let mut bytes = golden("plain.pth");
    let central = bytes
        .windows(4)
        .position(|part| part == b"PK\x01\x02")
        .expect("a directory");
    bytes[central + 10] = 8;
    let error = read(Cursor::new(bytes), None).expect_err("it is rejected");
    assert!(
        error
            .to_string()
            .contains("zip archive is invalid or compressed"),
        "{error}"
    );
}

/// Maximum length of a pickle in a file.
const PICKLE_BYTES: usize = 2 * 1024 * 1024;

/// Appends copies of `repeated` to `prefix` up to the maximum length of a
/// pickle, and reads it; returns the error.
fn error_of_repetition(prefix: &[u8], repeated: &[u8]) -> String {
    let mut bytes = prefix.to_vec();
    while bytes.len() + repeated.len() < PICKLE_BYTES {
        bytes.extend(repeated);
    }
    bytes.push(b'.');
    Pickle::read(&*bytes)
        .expect_err("it is rejected")
        .to_string()
}

/// A text of `len` bytes, as an instruction.
fn text_instruction(len: usize) -> Vec<u8> {
    let mut bytes = b"X".to_vec();
    bytes.extend(u32::try_from(len).expect("a short text").to_le_bytes());
    bytes.resize(bytes.len() + len, b'a');
    bytes
}

#[test]
fn a_parameter_that_is_a_long_text_is_rejected_and_not_copied() {
    // Memo 0 is _rebuild_parameter, memo 1 a text of 1.4 MiB; then 6 bytes per
    // call of one with the other.
    let mut prefix = b"\x80\x02ctorch._utils\n_rebuild_parameter\nq\x00".to_vec();
    prefix.extend(text_instruction(1_400 * 1024));
    prefix.extend(b"q\x01");
    let error = error_of_repetition(&prefix, b"h\x00h\x01\x85R");
    assert!(error.contains("parameter that is not a tensor"), "{error}");
    // The same with a list of 100,000 values.
    let mut prefix = b"\x80\x02ctorch._utils\n_rebuild_parameter\nq\x00](".to_vec();
    prefix.resize(prefix.len() + 100_000, b'N');
    prefix.extend(b"eq\x01");
    let error = error_of_repetition(&prefix, b"h\x00h\x01\x85R");
    assert!(error.contains("parameter that is not a tensor"), "{error}");
}

#[test]
fn a_storage_with_a_long_key_is_rejected() {
    let mut prefix = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n".to_vec();
    prefix.extend(text_instruction(1_000_000));
    prefix.extend(b"X\x03\x00\x00\x00cpuK\x01tq\x00");
    let error = error_of_repetition(&prefix, b"h\x00Q");
    assert!(error.contains("invalid storage reference"), "{error}");
}

#[test]
fn a_pickle_cannot_take_more_memory_than_its_budget() {
    let tensor = one_tensor([1, 1], 1);
    // Memo 0 is the callable, memo 1 the tensor or its arguments.
    let call = tensor
        .windows(2)
        .position(|pair| pair == b"((")
        .expect("a call");
    let arguments = &tensor[call..tensor.len() - 3];
    let rebuild_tensor = [
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00",
        arguments,
        b"q\x01",
    ]
    .concat();
    let rebuild_parameter = [
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nq\x00ctorch._utils\n_rebuild_tensor_v2\n",
        arguments,
        b"Rq\x01",
    ]
    .concat();
    let storage = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tq\x00";
    let attacks: [(&[u8], &[u8]); 8] = [
        (&rebuild_tensor, b"h\x00h\x01R"),
        (&rebuild_parameter, b"h\x00h\x01\x85R"),
        (storage, b"h\x00Q"),
        (b"\x80\x02", b"}"),
        (b"\x80\x02", b"]"),
        (b"\x80\x02", b"N"),
        (b"\x80\x02N", b"\x94"),
        (b"\x80\x02]Nq\x00a", b"(h\x00h\x00h\x00h\x00t"),
    ];
    for (index, (prefix, repeated)) in attacks.into_iter().enumerate() {
        let error = error_of_repetition(prefix, repeated);
        assert!(
            error.contains(pickle::TOO_MUCH_MEMORY),
            "attack {index}: {error}"
        );
    }
    // Marks alone take less memory than the budget at the maximum length.
    let error = error_of_repetition(b"\x80\x02", b"(");
    assert!(error.contains("more values from the stack"), "{error}");
    // Values that refer to themselves and to each other take no memory.
    let mut bytes = b"\x80\x02]q\x00".to_vec();
    for _ in 0..60 {
        bytes.extend(b"h\x00h\x00\x86q\x00");
    }
    bytes.push(b'.');
    Pickle::read(&*bytes).expect("a small pickle");
}

#[test]
fn the_largest_vocabulary_is_within_the_memory_budget() {
    let characters = (0u32..).filter_map(char::from_u32).take(65_536);
    // As Python writes a list of characters: a text and a memo entry each.
    let mut bytes = b"\x80\x02}X\x06\x00\x00\x00tokens](".to_vec();
    for (index, character) in (0u32..).zip(characters) {
        let mut text = [0; 4];
        let text = character.encode_utf8(&mut text).as_bytes();
        bytes.push(b'X');
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text);
        bytes.push(b'r');
        bytes.extend(index.to_le_bytes());
    }
    bytes.extend(b"es.");
    assert!(bytes.len() < PICKLE_BYTES);
    let pickle = Pickle::read(&*bytes).expect("a pickle");
    let vocabulary = saved_vocabulary(&pickle, &[pickle.root()]).expect("characters");
    assert_eq!(vocabulary.expect("tokens").len(), 65_536);
}

/// A network of 2 characters, 1 hidden unit and 1 layer.
const TINY: Architecture = Architecture {
    vocabulary_size: 2,
    hidden_size: 1,
    num_layers: 1,
};

/// Writes a text, as an instruction.
fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(b'X');
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Writes a reference to a storage, as instructions.
fn push_storage(bytes: &mut Vec<u8>, kind: &str, key: &str, count: usize) {
    bytes.push(b'(');
    push_text(bytes, "storage");
    bytes.extend(format!("ctorch\n{kind}\n").as_bytes());
    push_text(bytes, key);
    push_text(bytes, "cpu");
    bytes.extend([b'K', count as u8, b't', b'Q']);
}

/// Writes a contiguous tensor, as instructions.
fn push_tensor(bytes: &mut Vec<u8>, kind: &str, key: &str, shape: &[usize]) {
    bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
    push_storage(bytes, kind, key, shape.iter().product());
    bytes.extend(b"K\x00(");
    shape
        .iter()
        .for_each(|&size| bytes.extend([b'K', size as u8]));
    bytes.extend(b"t(");
    let strides: &[u8] = if shape.len() == 2 {
        &[shape[1] as u8, 1]
    } else {
        &[1]
    };
    strides
        .iter()
        .for_each(|&stride| bytes.extend([b'K', stride]));
    bytes.extend(b"t\x89NtR");
}

/// Returns the instructions of a `state_dict` of [`TINY`] with other names;
/// tensor `i` is in the storage `i`.
fn tiny_dict(rename: impl Fn(&str) -> String) -> Vec<u8> {
    let mut bytes = b"}".to_vec();
    for (index, view) in layout(&TINY).into_iter().enumerate() {
        push_text(&mut bytes, &rename(&view.name));
        push_tensor(&mut bytes, "FloatStorage", &index.to_string(), &view.shape);
        bytes.push(b's');
    }
    bytes
}

/// Returns a pickle of the dict with these entries, each of which is a name and
/// the instructions of its value.
fn dict_pickle(entries: &[(&str, &[u8])]) -> Vec<u8> {
    [b"\x80\x02", &*dict(entries), b"."].concat()
}

fn dict(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = b"}".to_vec();
    for (name, value) in entries {
        push_text(&mut bytes, name);
        bytes.extend(*value);
        bytes.push(b's');
    }
    bytes
}

/// Returns the pickle of a `state_dict` of [`TINY`]. Before it come `unused`
/// references to storages.
fn tiny_state_dict(unused: usize) -> Vec<u8> {
    let mut bytes = b"\x80\x02".to_vec();
    for key in 0..unused {
        push_storage(&mut bytes, "FloatStorage", &format!("unused{key}"), 1);
    }
    bytes.extend(tiny_dict(str::to_owned));
    bytes.push(b'.');
    bytes
}

/// Reads a zip archive with this pickle and the storages of [`TINY`].
fn read_tiny(pickle: &[u8], vocabulary: Option<&str>) -> Result<ModelFile, String> {
    let vocabulary = vocabulary.map(|text| Vocabulary::from_chars(text.chars().collect()));
    let file = Cursor::new(tiny_zip(pickle, false));
    read(file, vocabulary.as_ref()).map_err(|error| error.to_string())
}

/// Writes a zip archive with a pickle and the storages of [`TINY`], all of
/// which have the value 0.5. With `shared_data`, the entries of all storages
/// are the same bytes of the file.
fn tiny_zip(pickle: &[u8], shared_data: bool) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", options)
        .expect("an entry");
    zip.write_all(pickle).expect("memory");
    for (index, view) in layout(&TINY).into_iter().enumerate() {
        let name = format!("archive/data/{index}");
        if shared_data && index > 0 {
            zip.shallow_copy_file("archive/data/0", &name)
                .expect("an entry");
            continue;
        }
        zip.start_file(name, options).expect("an entry");
        let values = vec![0.5f32; view.range.len()];
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        zip.write_all(&bytes).expect("memory");
    }
    zip.finish().expect("an archive").into_inner()
}

#[test]
fn storages_that_no_tensor_needs_are_not_read() {
    let vocabulary = Vocabulary::of("ab".chars());
    // No entry of the archive belongs to the unused storages.
    let file = tiny_zip(&tiny_state_dict(100), false);
    let model = read(Cursor::new(file), Some(&vocabulary)).expect("a model");
    assert!(model.parameters.values.iter().all(|&value| value == 0.5));
}

#[test]
fn storages_that_share_bytes_of_the_file_are_rejected() {
    let vocabulary = Vocabulary::of("ab".chars());
    let file = tiny_zip(&tiny_state_dict(0), true);
    let error = read(Cursor::new(file), Some(&vocabulary)).expect_err("it is rejected");
    assert!(
        error.to_string().contains("storages that overlap"),
        "{error}"
    );
}

#[test]
fn a_storage_with_a_wrong_checksum_is_rejected() {
    let vocabulary = Vocabulary::of("ab".chars());
    let mut file = tiny_zip(&tiny_state_dict(0), false);
    let value = 0.5f32.to_le_bytes();
    let start = file
        .windows(value.len())
        .rposition(|window| window == value)
        .expect("a value");
    file[start] ^= 1;
    let error = read(Cursor::new(file), Some(&vocabulary)).expect_err("it is rejected");
    assert!(
        error.to_string().to_lowercase().contains("checksum"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_truncated_file_is_rejected(part in 0.0..1.0f64) {
        for name in ["tokens.pth", "legacy.pth"] {
            let bytes = golden(name);
            let length = (bytes.len() as f64 * part) as usize;
            prop_assert!(read(Cursor::new(&bytes[..length]), None).is_err());
        }
    }

    #[test]
    fn changed_bytes_never_panic_and_never_give_an_invalid_model(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        for name in ["tokens.pth", "legacy.pth"] {
            let mut bytes = golden(name);
            for (index, byte) in &changes {
                let index = index.index(bytes.len());
                bytes[index] = *byte;
            }
            if let Ok(model) = read(Cursor::new(&bytes), None) {
                prop_assert!(model.to_bytes().is_ok());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_after_a_valid_beginning_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Pickle::read(&*[&[0x80, 2], &*bytes].concat());
        let _ = read(Cursor::new([b"PK\x03\x04", &*bytes].concat()), None);
    }
}
