//! Whether a training fits into the memory of this machine: an estimate of
//! what it needs, and what there is.

use std::fs;

use thiserror::Error;

use super::spec::ResolvedSpec;

/// A training would not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the training needs about {} MiB of memory, and {} MiB are free; \
     a smaller hidden_size, batch_size or sequence_length needs less",
    needed_bytes >> 20,
    available_bytes >> 20
)]
pub struct OutOfMemory {
    /// Bytes that it needs, estimated.
    pub needed_bytes: u64,
    /// Bytes that are free.
    pub available_bytes: u64,
}

/// Bytes that a training needs at its peak, about.
///
/// Eight numbers for each weight (the weights, their gradients, two moments,
/// a checkpoint of three under way, the version to publish); for each
/// character of a batch and layer the four gates, cell, output and their
/// gradients, and three rows of the vocabulary. The corpus is mapped from its
/// file, which the system lets go of where memory is short.
pub fn estimate_bytes(spec: &ResolvedSpec, vocabulary_size: usize) -> u64 {
    let parameters = spec.architecture(vocabulary_size).parameter_count() as u64;
    let batch_chars = u64::from(spec.batch_size) * u64::from(spec.sequence_length);
    let per_char =
        u64::from(spec.num_layers) * 12 * u64::from(spec.hidden_size) + 3 * vocabulary_size as u64;
    4 * (8 * parameters + batch_chars * per_char)
}

/// Refuses a training that cannot fit. Where the machine does not tell what
/// is free, everything fits.
///
/// # Errors
/// The two figures.
pub fn check(needed_bytes: u64, available_bytes: Option<u64>) -> Result<(), OutOfMemory> {
    match available_bytes {
        Some(available_bytes) if needed_bytes > available_bytes => Err(OutOfMemory {
            needed_bytes,
            available_bytes,
        }),
        _ => Ok(()),
    }
}

/// Bytes that can be had without swapping: what the machine has, or what the
/// limit of its control group leaves, whichever is less. Reads files of the
/// kernel.
pub fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| mem_available(&text));
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // A group without a limit says "max", which is no number.
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(limit, used)| limit.saturating_sub(used));
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
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
        spec.resolve(|| 0).unwrap()
    }

    #[test]
    fn the_notebook_fits_into_a_gibibyte() {
        let bytes = estimate_bytes(&spec(512, 128), 78);
        assert!((256 << 20..1 << 30).contains(&bytes), "{bytes}");
    }

    #[test]
    fn what_cannot_fit_is_refused_with_both_figures() {
        let needed = estimate_bytes(&spec(4096, 4096), 78);
        let text = check(needed, Some(8 << 30)).unwrap_err().to_string();
        assert!(text.contains("8192 MiB are free"), "{text}");
        assert!(check(needed, None).is_ok());
    }

    #[test]
    fn the_kernel_is_understood() {
        assert_eq!(
            mem_available("MemTotal: 9 kB\nMemAvailable:   2 kB\n"),
            Some(2048)
        );
    }
}
