//! The tiles of the CPU, by inline assembly: the intrinsics are not stable yet.

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
    unsafe fn load_sums(&mut self, block: usize, column: usize, values: *const f32, stride: usize) {
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
    unsafe fn store_sums(&mut self, block: usize, column: usize, values: *mut f32, stride: usize) {
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
