//! A batch as on a device, in host memory.

use super::*;

/// Memory with the alignment that the kernels need.
pub(super) fn aligned(bytes: usize) -> Vec<u128> {
    vec![0xEEEE_EEEE_EEEE_EEEE_EEEE_EEEE_EEEE_EEEE; bytes.div_ceil(16).max(1)]
}

pub(super) fn aligned_copy<T: Copy>(values: &[T]) -> Vec<u128> {
    let mut memory = aligned(size_of_val(values));
    // SAFETY: the memory is large enough, and the types are plain numbers.
    unsafe {
        std::ptr::copy_nonoverlapping(
            values.as_ptr().cast::<u8>(),
            memory.as_mut_ptr().cast::<u8>(),
            size_of_val(values),
        );
    }
    memory
}

/// How known characters are processed: with a launch per wave, or with one.
#[derive(Clone, Copy)]
pub(super) enum Prefill {
    Waves(TileChoice),
    Whole(PrefillDivision),
}

/// A network and a batch in host memory.
pub(super) struct HostBatch<'a> {
    kernels: &'a HostKernels,
    shape: Shape,
    pub(super) addresses: NetworkAddresses,
    layout: StateLayout,
    states: Vec<u128>,
    parity: Vec<u32>,
    _weights: Vec<Vec<u128>>,
}

impl<'a> HostBatch<'a> {
    pub(super) fn new(
        kernels: &'a HostKernels,
        network: &QuantisedNetwork,
        states: &[State],
    ) -> Self {
        let weights = std::cell::RefCell::new(Vec::new());
        let keep = |memory: Vec<u128>| {
            let address = memory.as_ptr() as u64;
            weights.borrow_mut().push(memory);
            Ok(address)
        };
        let addresses = place_network(
            network,
            |values| keep(aligned_copy(&values)),
            |values| keep(aligned_copy(&values)),
        )
        .expect("a network of a supported size");
        let shape = *network.shape();
        let layout = StateLayout::new(&shape);
        let mut batch = Self {
            kernels,
            shape,
            addresses,
            layout,
            states: aligned(2 * states.len() * layout.bytes()),
            parity: vec![0; states.len()],
            _weights: weights.into_inner(),
        };
        for (slot, state) in states.iter().enumerate() {
            // Half of the slots start with the other state row.
            batch.parity[slot] = (slot % 2) as u32;
            let row = batch.row(slot);
            layout.pack(state, row);
        }
        batch
    }

    /// The bytes of the current state row of a slot.
    pub(super) fn row(&mut self, slot: usize) -> &mut [u8] {
        let bytes = self.layout.bytes();
        let row = 2 * slot + self.parity[slot] as usize;
        // SAFETY: the rows are within `states`.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.states.as_mut_ptr().cast::<u8>().add(row * bytes),
                bytes,
            )
        }
    }

    /// The states of all slots, as the kernel that collects them returns them.
    pub(super) fn states(&self) -> Vec<State> {
        let bytes = self.layout.bytes();
        let rows: Vec<u32> = (0..self.parity.len())
            .map(|slot| 2 * slot as u32 + self.parity[slot])
            .collect();
        let mut out = aligned(rows.len() * bytes);
        self.kernels.run(&launch::copy_states(
            self.states.as_ptr() as u64,
            rows.as_ptr() as u64,
            out.as_mut_ptr() as u64,
            rows.len(),
            bytes,
        ));
        // SAFETY: the memory has this many bytes.
        let out =
            unsafe { std::slice::from_raw_parts(out.as_ptr().cast::<u8>(), rows.len() * bytes) };
        out.chunks_exact(bytes)
            .map(|row| self.layout.unpack(row).expect("a possible state"))
            .collect()
    }

    /// One decode step of the named slots; the logits of each.
    pub(super) fn step(&mut self, rows: &[(usize, u32)], tiles: TileChoice) -> Vec<Vec<f32>> {
        let bucket = launch::bucket(rows.len());
        let mut table = vec![0xEEEE_EEEE_u32; table_words(bucket, 1)];
        table[0] = rows.len() as u32;
        for (place, &(slot, token)) in rows.iter().enumerate() {
            let row = 2 * slot as u32 + self.parity[slot];
            table[TABLE_HEADER + place] = table_entry(row, 1);
            table[TABLE_HEADER + bucket + place] = token;
        }
        let vocabulary = self.shape.vocabulary_size();
        let mut logits = vec![f32::NAN; bucket * vocabulary];
        let addresses = BatchAddresses {
            states: self.states.as_mut_ptr() as u64,
            table: table.as_ptr() as u64,
            logits: logits.as_mut_ptr() as u64,
            history: 0,
        };
        for launch in launch::step(&self.addresses, &addresses, bucket, tiles) {
            self.kernels.run(&launch);
        }
        for &(slot, _) in rows {
            self.parity[slot] ^= 1;
        }
        assert!(
            logits[rows.len() * vocabulary..].iter().all(|x| x.is_nan()),
            "logits of rows that are not in use were written"
        );
        let rows = logits[..rows.len() * vocabulary].chunks_exact(vocabulary);
        rows.map(<[f32]>::to_vec).collect()
    }

    /// Returns h of the last layer after each character,
    /// `[rows][MAX_WHOLE_CHUNK][hidden]`.
    pub(super) fn prefill(
        &mut self,
        rows: &[(usize, &[u32])],
        characters: usize,
        method: Prefill,
    ) -> Vec<u128> {
        let bucket = launch::bucket(rows.len());
        let mut table = vec![0xEEEE_EEEE_u32; table_words(bucket, characters)];
        table[0] = rows.len() as u32;
        for (place, &(slot, tokens)) in rows.iter().enumerate() {
            let row = 2 * slot as u32 + self.parity[slot];
            table[TABLE_HEADER + place] = table_entry(row, tokens.len());
            for (character, &token) in tokens.iter().enumerate() {
                table[TABLE_HEADER + bucket * (1 + character) + place] = token;
            }
        }
        let mut history = aligned(rows.len() * MAX_WHOLE_CHUNK * self.addresses.hidden);
        let addresses = BatchAddresses {
            states: self.states.as_mut_ptr() as u64,
            table: table.as_ptr() as u64,
            logits: 0,
            history: history.as_mut_ptr() as u64,
        };
        let network = &self.addresses;
        let mut exchange = aligned(launch::exchange_bytes(
            network.hidden,
            network.layers,
            rows.len(),
        ));
        let launches = match method {
            Prefill::Waves(tiles) => {
                launch::prefill(network, &addresses, bucket, characters, tiles)
            }
            Prefill::Whole(division) => {
                let exchange = Exchange {
                    address: exchange.as_mut_ptr() as u64,
                    base: 1000,
                };
                vec![launch::whole_prefill(
                    network,
                    &addresses,
                    &exchange,
                    division,
                    rows.len(),
                    characters,
                )]
            }
        };
        for launch in &launches {
            self.kernels.run(launch);
        }
        for &(slot, tokens) in rows {
            self.parity[slot] ^= tokens.len() as u32 & 1;
        }
        history
    }

    /// Logits after each of the first `count` characters of a row of `history`.
    pub(super) fn history_logits(
        &self,
        history: &[u128],
        row: usize,
        count: usize,
        tiles: TileChoice,
    ) -> Vec<Vec<f32>> {
        let network = &self.addresses;
        let bucket = launch::bucket(count);
        let table: Vec<u32> = [count as u32, 0, 0, 0]
            .into_iter()
            .chain(0..bucket as u32)
            .collect();
        let vocabulary = self.shape.vocabulary_size();
        let mut logits = vec![f32::NAN; bucket * vocabulary];
        let rows = OutputRows {
            address: history.as_ptr() as u64 + (row * MAX_WHOLE_CHUNK * network.hidden) as u64,
            row_bytes: network.hidden as u64,
            table: table.as_ptr() as u64,
            logits: logits.as_mut_ptr() as u64,
        };
        self.kernels
            .run(&launch::output(network, &rows, bucket, tiles.output));
        let rows = logits.chunks_exact(vocabulary).take(count);
        rows.map(<[f32]>::to_vec).collect()
    }
}
