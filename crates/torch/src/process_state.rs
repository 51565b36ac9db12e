//! State of libtorch that belongs to the whole process: the number of threads
//! and the random generator. All of this crate's changes to it are made here.
//!
//! Another user of libtorch in the same process sees these changes, and can
//! undo them: this crate expects to be the only one.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Makes every libtorch operation on the CPU run on the thread that calls it.
///
/// The training threads are the parallelism: with libtorch's own threads on
/// top, each operation would wait for cores that other training threads
/// occupy. The number also decides how libtorch splits sums, and with it the
/// last bits of the results. New threads take the number when they first call
/// libtorch, so the call must come before they are started.
///
/// Operations on a GPU are not affected.
pub(crate) fn use_calling_thread_only() {
    tch::set_num_threads(1);
}

/// Held while libtorch draws random numbers.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Exclusive use of libtorch's random generators, of all devices.
#[must_use = "without the guard, other threads draw from the same generators"]
pub(crate) struct SeededGenerator {
    _guard: MutexGuard<'static, ()>,
}

/// Seeds libtorch's random generators and reserves them until the returned
/// guard is dropped. Blocks while another learner holds them.
///
/// The random numbers of an operation are determined when it is started, also
/// on a GPU, where it runs later. Those of a CUDA graph are determined when it
/// runs: keep the guard until then.
pub(crate) fn seed_generator(seed: u64) -> SeededGenerator {
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed as i64);
    SeededGenerator { _guard: guard }
}
