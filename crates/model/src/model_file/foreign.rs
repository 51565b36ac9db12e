//! Recognises files that are no model, but what people get instead of one.

/// Returns what a file with these first bytes, eight or more, is, if it is
/// known, and what to do.
pub(crate) fn recognise(first: &[u8]) -> Option<&'static str> {
    let lower = first.to_ascii_lowercase();
    let text = lower.trim_ascii_start();
    if lower.starts_with(b"version ") {
        Some("it is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`")
    } else if text.starts_with(b"<!doctyp")
        || text.starts_with(b"<html")
        || text.starts_with(b"<?xml")
    {
        Some("it is a web page, not the file itself; download the file again")
    } else if lower.starts_with(&[0x1f, 0x8b]) {
        Some("it is compressed with gzip; decompress it with `gunzip`")
    } else if lower.starts_with(&[0xfd, b'7', b'z', b'x', b'z']) {
        Some("it is compressed with xz; decompress it with `unxz`")
    } else if lower.starts_with(b"\x89hdf") {
        Some("it is an HDF5 file, as Keras writes; only checkpoints of PyTorch can be imported")
    } else if lower.starts_with(b"gguf") {
        Some("it is a GGUF file; only checkpoints of PyTorch can be imported")
    } else {
        None
    }
}
