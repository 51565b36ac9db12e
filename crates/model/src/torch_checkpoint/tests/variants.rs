//! Checkpoints with other names, other characters and other networks, and files
//! that are no checkpoints.

use super::*;

#[test]
fn a_state_dict_is_found_under_other_names_and_next_to_other_data() {
    let expected = read_tiny(&tiny_state_dict(0), Some("ab")).expect("a model");
    let renames: [fn(&str) -> String; 6] = [
        |name| format!("module.{name}"),
        |name| format!("_orig_mod.{name}"),
        |name| format!("_orig_mod.module.{name}"),
        |name| format!("model.{name}"),
        |name| name.replace("lstm.", "rnn."),
        |name| name.replace("fc.", "decoder."),
    ];
    for rename in renames {
        let state_dict = tiny_dict(rename);
        // A tensor of integers, a number of numpy and a nested optimizer.
        let mut steps = Vec::new();
        push_tensor(&mut steps, "LongStorage", "9", &[1]);
        let scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR(K\x03tbC\x01atR";
        let optimizer = dict(&[("state", b"}"), ("exp_avg", &steps)]);
        for key in ["state_dict", "model_state_dict", "model", "net"] {
            let entries: [(&str, &[u8]); 4] = [
                ("optimizer", &optimizer),
                ("loss", scalar),
                (key, &state_dict),
                ("step", &steps),
            ];
            let pickle = dict_pickle(&entries);
            assert_eq!(
                read_tiny(&pickle, Some("ab")).as_ref(),
                Ok(&expected),
                "{key}"
            );
            // One level deeper.
            let nested = dict_pickle(&[("checkpoint", &dict(&entries))]);
            assert_eq!(
                read_tiny(&nested, Some("ab")).as_ref(),
                Ok(&expected),
                "{key}"
            );
        }
        let extra = [
            b"\x80\x02".as_slice(),
            &state_dict,
            b"X\x04\x00\x00\x00mask",
            &steps,
            b"s.",
        ];
        assert_eq!(
            read_tiny(&extra.concat(), Some("ab")).as_ref(),
            Ok(&expected)
        );
    }
}

#[test]
fn characters_are_read_from_texts_lists_and_dicts_in_both_directions() {
    let expected = read_tiny(&tiny_state_dict(0), Some("ba")).expect("a model");
    let state_dict = tiny_dict(str::to_owned);
    let forms: [(&str, &[u8]); 5] = [
        ("tokens", b"X\x02\x00\x00\x00ba"),
        ("chars", b"](X\x01\x00\x00\x00bX\x01\x00\x00\x00ae"),
        (
            "int2char",
            b"}(K\x01X\x01\x00\x00\x00aK\x00X\x01\x00\x00\x00bu",
        ),
        (
            "char2int",
            b"}(X\x01\x00\x00\x00bK\x00X\x01\x00\x00\x00aK\x01u",
        ),
        (
            "tokens",
            b"}(K\x00X\x01\x00\x00\x00bK\x01X\x01\x00\x00\x00au",
        ),
    ];
    for (name, value) in forms {
        let pickle = dict_pickle(&[("state_dict", &state_dict), (name, value)]);
        assert_eq!(read_tiny(&pickle, None).as_ref(), Ok(&expected), "{name}");
        // The order in the file counts; a text gives it sorted.
        assert_eq!(read_tiny(&pickle, Some("ab")).as_ref(), Ok(&expected));
    }
    for (value, reason) in [
        (
            b"](X\x05\x00\x00\x00<unk>X\x01\x00\x00\x00ae".as_slice(),
            "\"<unk>\", which is not one character",
        ),
        (
            b"}(K\x01X\x01\x00\x00\x00aK\x02X\x01\x00\x00\x00bu",
            "does not number its characters from 0",
        ),
        (b"K\x01", "neither a text, a list nor a dict"),
    ] {
        let pickle = dict_pickle(&[("state_dict", &state_dict), ("tokens", value)]);
        let error = read_tiny(&pickle, None).expect_err("not understood");
        assert!(error.contains(reason), "{error}");
        // What is given with the file counts then.
        assert_eq!(read_tiny(&pickle, Some("ba")).as_ref(), Ok(&expected));
    }
}

#[test]
fn another_network_is_named() {
    let tensors = |tensors: &[(&str, &[usize])]| {
        let mut entries = Vec::new();
        for (name, shape) in tensors {
            let mut value = Vec::new();
            push_tensor(&mut value, "FloatStorage", "0", shape);
            entries.push((*name, value));
        }
        let entries: Vec<(&str, &[u8])> = entries.iter().map(|(n, v)| (*n, v.as_slice())).collect();
        read_tiny(&dict_pickle(&entries), Some("ab")).expect_err("it is rejected")
    };
    let fc: [(&str, &[usize]); 2] = [("fc.weight", &[2, 3]), ("fc.bias", &[2])];
    let with_fc = |more: &[(&'static str, &'static [usize])]| tensors(&[&fc, more].concat());
    for (error, reason) in [
        (
            with_fc(&[("gru.weight_ih_l0", &[9, 2]), ("gru.weight_hh_l0", &[9, 3])]),
            "its network has a GRU (gru.weight_hh_l0)",
        ),
        (
            with_fc(&[("rnn.weight_ih_l0", &[3, 2]), ("rnn.weight_hh_l0", &[3, 3])]),
            "a simple recurrent layer (rnn.weight_hh_l0)",
        ),
        (
            with_fc(&[
                ("lstm.weight_ih_l0", &[12, 2]),
                ("lstm.weight_ih_l0_reverse", &[12, 2]),
            ]),
            "a bidirectional layer (lstm.weight_ih_l0_reverse)",
        ),
        (
            with_fc(&[
                ("lstm.weight_ih_l0", &[12, 7]),
                ("lstm.weight_hh_l0", &[12, 3]),
            ]),
            "an input of 7 values for 2 characters, as after an embedding",
        ),
        (
            with_fc(&[("a.weight_ih_l0", &[12, 2]), ("b.weight_ih_l0", &[12, 2])]),
            "several recurrent layers (\"a.\", \"b.\")",
        ),
        (
            tensors(&[
                ("lstm.weight_ih_l0", &[12, 2]),
                ("lstm.weight_hh_l0", &[12, 3]),
            ]),
            "it has no output layer (fc.weight); its tensors are \"lstm.weight_hh_l0\"",
        ),
        (
            tensors(&[("conv1.weight", &[9, 2])]),
            "it has no LSTM; its tensors are \"conv1.weight\"",
        ),
        (
            read_tiny(&dict_pickle(&[("epoch", b"K\x01")]), None).expect_err("no tensors"),
            "it has no state_dict; its entries are \"epoch\"",
        ),
        (
            read_tiny(b"\x80\x02K\x01.", None).expect_err("a number"),
            "it has no state_dict; it is not a dict",
        ),
    ] {
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_file_that_is_something_else_is_named() {
    let tiny = tiny_zip(&tiny_state_dict(0), false);
    for (bytes, reason) in [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".as_slice(),
            "`git lfs pull`",
        ),
        (b"<!DOCTYPE html>\n<html>", "it is a web page"),
        (b"\n<html lang=en>", "it is a web page"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0", "gunzip"),
        (b"\x89HDF\r\n\x1a\n\0", "HDF5"),
        (b"", "it is empty"),
        (b"\x80", "not in a format of torch.save"),
        (&tiny[..tiny.len() - 100], "it is truncated"),
        (&tiny[..30], "it is truncated"),
    ] {
        let error = read(Cursor::new(bytes), None).expect_err("it is rejected");
        assert!(error.to_string().contains(reason), "{error}");
    }
    // The same without --pth.
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".as_slice();
    let error = ModelFile::from_bytes(pointer).expect_err("it is rejected");
    assert!(error.to_string().contains("`git lfs pull`"), "{error}");
}
