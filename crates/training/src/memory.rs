//! Whether a training fits into the memory of this machine: an estimate of
//! what it needs, and what there is.

use std::fs;

use thiserror::Error;

use charlstm_model::learner::TrainingPrecision;

use super::spec::ResolvedSpec;

/// A training would not fit into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the training needs about {} MiB of memory, and {} MiB are {}; \
     a smaller hidden_size, batch_size or sequence_length needs less",
    needed_bytes >> 20,
    limit_bytes >> 20,
    if *installed { "installed" } else { "free" }
)]
pub struct OutOfMemory {
    /// Estimated bytes that it needs.
    pub needed_bytes: u64,
    /// Bytes that there are.
    pub limit_bytes: u64,
    /// True if `limit_bytes` is the memory of the machine, so that it can
    /// never fit; false if it is what is free now.
    pub installed: bool,
}

/// The memory of this machine, or of its control group if that has less.
/// `None` if the system does not report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in total.
    pub total_bytes: Option<u64>,
    /// Bytes that can be allocated without swapping.
    pub available_bytes: Option<u64>,
}

/// Estimates the bytes that a training needs at its peak.
///
/// For each weight: the weight, its gradient, two moments, the average and the
/// best weights so far, a checkpoint of four that is being written and its
/// bytes, and two copies that are laid out for products. For each character of a
/// batch: in each layer the gates, cell, h, output and dropout mask; the
/// gradients of one layer, twice, and of its h; the factors of weight gradients;
/// and four rows of the vocabulary. The corpus stays on disk.
pub fn estimate_bytes(spec: &ResolvedSpec, vocabulary_size: usize) -> u64 {
    let parameters = spec.architecture(vocabulary_size).parameter_count() as u64;
    let batch_chars = u64::from(spec.batch_size) * u64::from(spec.sequence_length);
    // What products read.
    let element = match spec.precision {
        TrainingPrecision::Float32 => 4,
        TrainingPrecision::Bf16 => 2,
    };
    let layers = u64::from(spec.num_layers);
    let hidden = u64::from(spec.hidden_size);
    let of_layer = 4 * 5 + 2 * element + 1;
    let shared = 4 + (4 + 4 + 2) * element;
    let per_char =
        hidden * (layers * of_layer + shared) + vocabulary_size as u64 * (4 + 4 + 2 * element);
    parameters * (4 * 11 + 2 * element) + batch_chars * per_char
}

impl Memory {
    /// Reads the current figures from files of the kernel.
    pub fn now() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        // A group without a limit has "max", which is not a number.
        let group_limit = number("/sys/fs/cgroup/memory.max");
        let group_free = group_limit
            .zip(number("/sys/fs/cgroup/memory.current"))
            .map(|(limit, used)| limit.saturating_sub(used));
        Self {
            total_bytes: lower(meminfo_bytes(&meminfo, "MemTotal:"), group_limit),
            available_bytes: lower(meminfo_bytes(&meminfo, "MemAvailable:"), group_free),
        }
    }

    /// Checks whether so much memory is free now.
    ///
    /// # Errors
    /// It is not, with both figures.
    pub fn check_available(&self, needed_bytes: u64) -> Result<(), OutOfMemory> {
        check(needed_bytes, self.available_bytes, false)
    }

    /// Checks whether so much memory can ever be free.
    ///
    /// # Errors
    /// It cannot, with both figures.
    pub fn check_total(&self, needed_bytes: u64) -> Result<(), OutOfMemory> {
        check(needed_bytes, self.total_bytes, true)
    }
}

fn check(needed_bytes: u64, limit: Option<u64>, installed: bool) -> Result<(), OutOfMemory> {
    match limit {
        Some(limit_bytes) if needed_bytes > limit_bytes => Err(OutOfMemory {
            needed_bytes,
            limit_bytes,
            installed,
        }),
        _ => Ok(()),
    }
}

fn lower(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::spec::TrainingSpec;

    fn spec(hidden_size: u32, batch_size: u32) -> ResolvedSpec {
        let spec = TrainingSpec {
            model: "m".to_owned(),
            hidden_size: Some(hidden_size),
            batch_size: Some(batch_size),
            ..TrainingSpec::default()
        };
        spec.resolve(TrainingPrecision::Float32, || 0).unwrap()
    }

    #[test]
    fn the_notebook_fits_into_a_gibibyte() {
        let bytes = estimate_bytes(&spec(512, 128), 78);
        assert!((256 << 20..1 << 30).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_training_that_cannot_fit_is_rejected_with_both_figures() {
        let needed = estimate_bytes(&spec(4096, 4096), 78);
        let memory = Memory {
            total_bytes: Some(16 << 30),
            available_bytes: Some(8 << 30),
        };
        let text = memory.check_available(needed).unwrap_err().to_string();
        assert!(text.contains("8192 MiB are free"), "{text}");
        let text = memory.check_total(needed).unwrap_err().to_string();
        assert!(text.contains("16384 MiB are installed"), "{text}");
        assert!(memory.check_available(1 << 30).is_ok());
        assert!(Memory::default().check_available(needed).is_ok());
    }

    #[test]
    fn the_figures_of_the_kernel_are_parsed() {
        let meminfo = "MemTotal: 9 kB\nMemAvailable:   2 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable:"), Some(2048));
        assert_eq!(meminfo_bytes(meminfo, "MemTotal:"), Some(9216));
        assert_eq!(meminfo_bytes(meminfo, "SwapTotal:"), None);
    }
}
