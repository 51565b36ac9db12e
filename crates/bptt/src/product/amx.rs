//! Products of bfloat16 values on AMX tiles: 32 x 32 outputs in four tiles of
//! 16 x 16, from two tiles of rows and two of columns (Intel Architecture
//! Instruction Set Extensions Programming Reference, chapter 3). The loops are
//! generic over who executes the tile instructions, so that they are tested on
//! CPUs without AMX.

use std::fmt::Debug;

use pulp::Arch;

use super::{Arithmetic, MAX_WIDTH, Product, Tile, from_bf16, to_bf16};

/// Rows of a tile, and columns of float32.
const TILE: usize = 16;
/// Inputs that one instruction multiplies: the bfloat16 values of a tile's row.
const TILE_INPUTS: usize = 32;
/// Columns of a panel.
const WIDTH: usize = 2 * TILE;

/// The tiles and the instructions on them. Tiles 0 to 3 are the sums (row block
/// 0 with columns 0 and 1, then row block 1), 4 and 5 the rows, 6 and 7 the
/// columns.
pub(crate) trait Tiles: Debug {
    /// Sets the number of rows of the two row blocks, each at most 16, and
    /// thereby the shapes of all tiles. Their values are undefined afterwards.
    fn configure(&mut self, rows: [usize; 2]);

    /// Sets the sums of a row block to zero.
    fn zero(&mut self, block: usize);

    /// Loads the sums of a row block and 16 columns from float32 values.
    ///
    /// # Safety
    /// From `values` on there are the rows, 16 values each, `stride` values
    /// apart.
    unsafe fn load_sums(&mut self, block: usize, column: usize, values: *const f32, stride: usize);

    /// Stores what [`Self::load_sums`] loads.
    ///
    /// # Safety
    /// As there, and nobody else accesses the values.
    unsafe fn store_sums(&mut self, block: usize, column: usize, values: *mut f32, stride: usize);

    /// Loads a row block of 32 inputs.
    ///
    /// # Safety
    /// As [`Self::load_sums`], 32 values each.
    unsafe fn load_rows(&mut self, block: usize, values: *const u16, stride: usize);

    /// Loads 16 columns of 32 inputs, as 16 rows of 16 pairs.
    ///
    /// # Safety
    /// As [`Self::load_rows`], with 16 rows.
    unsafe fn load_columns(&mut self, column: usize, values: *const u16, stride: usize);

    /// Adds the product of a row block and 16 columns to its sums.
    fn multiply(&mut self, block: usize, column: usize);
}

/// Products of bfloat16 values on tiles of type `T`.
#[derive(Debug)]
pub(crate) struct Amx<T> {
    arch: Arch,
    tiles: fn() -> T,
}

impl<T> Clone for Amx<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Amx<T> {}

impl<T: Tiles> Amx<T> {
    /// Computes on the tiles that `tiles` returns, once for each product.
    #[cfg(test)]
    pub(crate) fn on(tiles: fn() -> T) -> Self {
        Self {
            arch: Arch::new(),
            tiles,
        }
    }
}

impl<T: Tiles + 'static> Arithmetic for Amx<T> {
    type Element = u16;
    const GROUP: usize = 2;
    const INPUT_ALIGNMENT: usize = TILE_INPUTS;

    fn width(self) -> usize {
        WIDTH
    }

    fn arch(self) -> Arch {
        self.arch
    }

    #[inline(always)]
    fn round(value: f32) -> u16 {
        to_bf16(value)
    }

    fn widen(element: u16) -> f32 {
        from_bf16(element)
    }

    unsafe fn add_product(self, product: Product<'_, u16>) {
        let mut tiles = (self.tiles)();
        let mut configured = [0; 2];
        product.for_each_tile(WIDTH, 2 * TILE, |tile| {
            let rows = [
                tile.row_count.min(TILE),
                tile.row_count.saturating_sub(TILE),
            ];
            if rows != configured {
                tiles.configure(rows);
                configured = rows;
            }
            // SAFETY: the caller vouches for the output.
            unsafe { compute(&mut tiles, &tile, if rows[1] == 0 { 1 } else { 2 }) };
        });
    }
}

/// # Safety
/// As for [`Arithmetic::add_product`].
#[inline(always)]
unsafe fn compute<T: Tiles>(tiles: &mut T, tile: &Tile<'_, u16>, blocks: usize) {
    assert!(tile.inputs.is_multiple_of(TILE_INPUTS), "inputs");
    assert!(tile.panel.len() >= tile.inputs * WIDTH, "panel");
    assert!(
        tile.rows.len() >= (tile.row_count - 1) * tile.stride + tile.inputs,
        "rows"
    );
    let is_full = tile.columns == WIDTH;
    for block in 0..blocks {
        if is_full {
            for column in 0..2 {
                // SAFETY: the rows of the block and a full panel are inside the
                // output.
                unsafe {
                    let out = tile.out.add(block * TILE * tile.out_stride + column * TILE);
                    tiles.load_sums(block, column, out, tile.out_stride);
                }
            }
        } else {
            tiles.zero(block);
        }
    }
    for first in (0..tile.inputs).step_by(TILE_INPUTS) {
        // SAFETY: panel and rows have these inputs, asserted above.
        unsafe {
            let panel = tile.panel.as_ptr().add(first * WIDTH);
            for column in 0..2 {
                tiles.load_columns(column, panel.add(column * 2 * TILE), 2 * WIDTH);
            }
            for block in 0..blocks {
                let rows = tile.rows.as_ptr().add(block * TILE * tile.stride + first);
                tiles.load_rows(block, rows, tile.stride);
            }
        }
        for block in 0..blocks {
            for column in 0..2 {
                tiles.multiply(block, column);
            }
        }
    }
    let mut sums = [[0.0f32; MAX_WIDTH]; 2 * TILE];
    for block in 0..blocks {
        for column in 0..2 {
            // SAFETY: as where the sums were loaded; or `sums` has the rows.
            unsafe {
                if is_full {
                    let out = tile.out.add(block * TILE * tile.out_stride + column * TILE);
                    tiles.store_sums(block, column, out, tile.out_stride);
                } else {
                    let out = sums[block * TILE..].as_mut_ptr().cast::<f32>();
                    tiles.store_sums(block, column, out.add(column * TILE), MAX_WIDTH);
                }
            }
        }
    }
    if !is_full {
        // SAFETY: the caller vouches for the output.
        unsafe { tile.add_partial(&sums) };
    }
}

#[cfg(target_arch = "x86_64")]
mod hardware {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    use pulp::Arch;

    use super::{Amx, Tiles};

    /// The tiles of the calling thread. A value comes only from
    /// [`Amx::detect`], which has checked the CPU; the tiles are released when it
    /// is dropped.
    #[derive(Debug)]
    pub(crate) struct HardwareTiles {
        /// The registers belong to the thread.
        _thread: std::marker::PhantomData<*const ()>,
    }

    /// The operand of LDTILECFG.
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        /// Bytes of a row of each tile.
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Amx<HardwareTiles> {
        /// Returns the arithmetic if CPU and operating system have AMX tiles for
        /// bfloat16.
        pub(crate) fn detect() -> Option<Self> {
            static AVAILABLE: OnceLock<bool> = OnceLock::new();
            AVAILABLE.get_or_init(is_available).then(|| Self {
                arch: Arch::new(),
                tiles: || HardwareTiles {
                    _thread: std::marker::PhantomData,
                },
            })
        }
    }

    /// Checks the CPU, and asks Linux for permission to use the tiles, which
    /// every thread of the process has then.
    fn is_available() -> bool {
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        if __cpuid(0).eax < 7 {
            return false;
        }
        let features = __cpuid_count(7, 0).edx;
        features & AMX_BF16 != 0 && features & AMX_TILE != 0 && request_permission()
    }

    #[cfg(target_os = "linux")]
    fn request_permission() -> bool {
        // Linux, Documentation/arch/x86/xstate.rst.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call only changes what this process may use.
        unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            ) == 0
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn request_permission() -> bool {
        false
    }

    /// Executes one instruction between a tile with a constant number and
    /// memory, at `values` and every `stride` bytes.
    macro_rules! on_tile {
        ($number:expr, [$($known:literal),+], $before:literal, $after:literal, $values:expr, $stride:expr) => {{
            let (number, values, stride) = ($number, $values, $stride);
            match number {
                $($known => asm!(
                    concat!($before, "tmm", $known, $after),
                    values = in(reg) values,
                    stride = in(reg) stride,
                    options(nostack)
                ),)+
                other => unreachable!("there is no such tile: {other}"),
            }
        }};
    }

    impl Tiles for HardwareTiles {
        #[inline(always)]
        fn configure(&mut self, rows: [usize; 2]) {
            let mut config = TileConfig {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                row_bytes: [0; 16],
                rows: [0; 16],
            };
            for (tile, rows) in [
                (0, rows[0]),
                (1, rows[0]),
                (2, rows[1]),
                (3, rows[1]),
                (4, rows[0]),
                (5, rows[1]),
                (6, 16),
                (7, 16),
            ] {
                // A tile without rows is not configured, and not used.
                if rows > 0 {
                    config.row_bytes[tile] = 64;
                    config.rows[tile] = rows as u8;
                }
            }
            // SAFETY: the CPU has the instruction, and the operand its form.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack)) };
        }

        #[inline(always)]
        fn zero(&mut self, block: usize) {
            // SAFETY: changes only the tiles, which this value owns.
            unsafe {
                match block {
                    0 => asm!("tilezero tmm0", "tilezero tmm1", options(nostack)),
                    _ => asm!("tilezero tmm2", "tilezero tmm3", options(nostack)),
                }
            }
        }

        #[inline(always)]
        unsafe fn load_sums(
            &mut self,
            block: usize,
            column: usize,
            values: *const f32,
            stride: usize,
        ) {
            // SAFETY: the caller vouches for the values.
            unsafe {
                on_tile!(
                    2 * block + column,
                    [0, 1, 2, 3],
                    "tileloadd ",
                    ", [{values} + {stride}]",
                    values,
                    stride * 4
                );
            }
        }

        #[inline(always)]
        unsafe fn store_sums(
            &mut self,
            block: usize,
            column: usize,
            values: *mut f32,
            stride: usize,
        ) {
            // SAFETY: the caller vouches for the values.
            unsafe {
                on_tile!(
                    2 * block + column,
                    [0, 1, 2, 3],
                    "tilestored [{values} + {stride}], ",
                    "",
                    values,
                    stride * 4
                );
            }
        }

        #[inline(always)]
        unsafe fn load_rows(&mut self, block: usize, values: *const u16, stride: usize) {
            // SAFETY: the caller vouches for the values.
            unsafe {
                on_tile!(
                    4 + block,
                    [4, 5],
                    "tileloadd ",
                    ", [{values} + {stride}]",
                    values,
                    stride * 2
                );
            }
        }

        #[inline(always)]
        unsafe fn load_columns(&mut self, column: usize, values: *const u16, stride: usize) {
            // SAFETY: the caller vouches for the values.
            unsafe {
                on_tile!(
                    6 + column,
                    [6, 7],
                    "tileloadd ",
                    ", [{values} + {stride}]",
                    values,
                    stride * 2
                );
            }
        }

        #[inline(always)]
        fn multiply(&mut self, block: usize, column: usize) {
            // SAFETY: changes only the tiles, which this value owns.
            unsafe {
                match (block, column) {
                    (0, 0) => asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nostack)),
                    (0, _) => asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nostack)),
                    (_, 0) => asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack)),
                    _ => asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nostack)),
                }
            }
        }
    }

    impl Drop for HardwareTiles {
        fn drop(&mut self) {
            // SAFETY: changes only the tiles, which this value owns.
            unsafe { asm!("tilerelease", options(nostack)) };
        }
    }
}

/// The tiles in memory: what the instructions do, for tests on CPUs without AMX.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct EmulatedTiles {
    rows: [usize; 2],
    /// `[block][column][row][column of the tile]`.
    sums: [[[[f32; TILE]; TILE]; 2]; 2],
    /// `[block][row][input]`.
    inputs: [[[u16; TILE_INPUTS]; TILE]; 2],
    /// `[column][pair][value]`.
    columns: [[[u16; TILE_INPUTS]; TILE]; 2],
}

#[cfg(test)]
impl EmulatedTiles {
    /// Tiles that are not configured.
    pub(crate) fn new() -> Self {
        Self {
            rows: [0; 2],
            sums: [[[[f32::NAN; TILE]; TILE]; 2]; 2],
            inputs: [[[0; TILE_INPUTS]; TILE]; 2],
            columns: [[[0; TILE_INPUTS]; TILE]; 2],
        }
    }
}

#[cfg(test)]
impl Tiles for EmulatedTiles {
    fn configure(&mut self, rows: [usize; 2]) {
        assert!(
            rows[0] >= 1 && rows.iter().all(|&rows| rows <= TILE),
            "{rows:?}"
        );
        *self = Self {
            rows,
            ..Self::new()
        };
    }

    fn zero(&mut self, block: usize) {
        self.sums[block] = [[[0.0; TILE]; TILE]; 2];
    }

    unsafe fn load_sums(&mut self, block: usize, column: usize, values: *const f32, stride: usize) {
        assert!(self.rows[block] > 0, "the tile is not configured");
        for row in 0..self.rows[block] {
            // SAFETY: the caller vouches for the values.
            let values = unsafe { std::slice::from_raw_parts(values.add(row * stride), TILE) };
            self.sums[block][column][row].copy_from_slice(values);
        }
    }

    unsafe fn store_sums(&mut self, block: usize, column: usize, values: *mut f32, stride: usize) {
        assert!(self.rows[block] > 0, "the tile is not configured");
        for row in 0..self.rows[block] {
            // SAFETY: the caller vouches for the values.
            let values = unsafe { std::slice::from_raw_parts_mut(values.add(row * stride), TILE) };
            values.copy_from_slice(&self.sums[block][column][row]);
        }
    }

    unsafe fn load_rows(&mut self, block: usize, values: *const u16, stride: usize) {
        assert!(self.rows[block] > 0, "the tile is not configured");
        for row in 0..self.rows[block] {
            // SAFETY: the caller vouches for the values.
            let values =
                unsafe { std::slice::from_raw_parts(values.add(row * stride), TILE_INPUTS) };
            self.inputs[block][row].copy_from_slice(values);
        }
    }

    unsafe fn load_columns(&mut self, column: usize, values: *const u16, stride: usize) {
        for pair in 0..TILE {
            // SAFETY: the caller vouches for the values.
            let values =
                unsafe { std::slice::from_raw_parts(values.add(pair * stride), TILE_INPUTS) };
            self.columns[column][pair].copy_from_slice(values);
        }
    }

    fn multiply(&mut self, block: usize, column: usize) {
        for row in 0..self.rows[block] {
            for (at, sum) in self.sums[block][column][row].iter_mut().enumerate() {
                for pair in 0..TILE {
                    for part in 0..2 {
                        let input = from_bf16(self.inputs[block][row][2 * pair + part]);
                        let weight = from_bf16(self.columns[column][pair][2 * at + part]);
                        *sum = input.mul_add(weight, *sum);
                    }
                }
            }
        }
    }
}
