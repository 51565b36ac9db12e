//! A chunk of characters as it is copied to the device, and the results as
//! they come back.

use super::launch::{CHUNK_HEADER, ScoreSizes};

/// Writes the characters of a chunk and the state before it, `[layers][2]
/// [hidden]`, h before c. `words` are [`CHUNK_HEADER`] words and a padded state,
/// whose padding is and stays zero.
pub(crate) fn pack_chunk(sizes: &ScoreSizes, tokens: &[u32], state: &[f32], words: &mut [u32]) {
    let (header, begin) = words.split_at_mut(CHUNK_HEADER);
    header[0] = tokens.len() as u32;
    header[4..][..tokens.len()].copy_from_slice(tokens);
    let columns = sizes.columns();
    let (h, c) = begin.split_at_mut(sizes.layers * columns);
    for (layer, values) in state.chunks_exact(2 * sizes.hidden).enumerate() {
        let (from_h, from_c) = values.split_at(sizes.hidden);
        for (to, from) in [(&mut *h, from_h), (&mut *c, from_c)] {
            for (to, from) in to[layer * columns..].iter_mut().zip(from) {
                *to = from.to_bits();
            }
        }
    }
}

/// Reads the state after a chunk into `state`, `[layers][2][hidden]`.
pub(crate) fn unpack_state(sizes: &ScoreSizes, results: &[f32], state: &mut [f32]) {
    let columns = sizes.columns();
    let (h, c) = results.split_at(sizes.layers * columns);
    for (layer, values) in state.chunks_exact_mut(2 * sizes.hidden).enumerate() {
        let (to_h, to_c) = values.split_at_mut(sizes.hidden);
        to_h.copy_from_slice(&h[layer * columns..][..sizes.hidden]);
        to_c.copy_from_slice(&c[layer * columns..][..sizes.hidden]);
    }
}
