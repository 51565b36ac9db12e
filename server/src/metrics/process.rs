//! Metrics of the process and of the disk of its data, with the names that
//! other programs have.

use std::path::Path;

#[cfg(target_os = "linux")]
use procfs::ProcResult;
#[cfg(target_os = "linux")]
use procfs::process::{LimitValue, Process};
use prometheus_client::encoding::EncodeLabelSet;
#[cfg(target_os = "linux")]
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// Adds the current values to `registry`. What the system does not report is
/// left out. Reads files of the system, and does not wait for a disk.
pub(crate) fn register(registry: &mut Registry, data_dir: &Path) {
    // Without /proc there are no values.
    #[cfg(target_os = "linux")]
    let _ = register_process(registry);
    let own = registry.sub_registry_with_prefix("charlstm");
    if let Ok(disk) = rustix::fs::statvfs(data_dir) {
        own.register_with_unit(
            "disk_free",
            "Space that is free for the data folder",
            Unit::Bytes,
            ConstGauge::new(disk.f_bavail.saturating_mul(disk.f_frsize)),
        );
        own.register_with_unit(
            "disk_size",
            "Size of the file system of the data folder",
            Unit::Bytes,
            ConstGauge::new(disk.f_blocks.saturating_mul(disk.f_frsize)),
        );
    }
    let build = Family::<BuildLabels, Gauge>::default();
    let labels = BuildLabels {
        version: env!("CARGO_PKG_VERSION"),
    };
    build.get_or_create(&labels).set(1);
    own.register("build_info", "Version of the server; the value is 1", build);
}

#[cfg(target_os = "linux")]
fn register_process(registry: &mut Registry) -> ProcResult<()> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    let started = procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks;
    let max_files = match process.limits()?.max_open_files.soft_limit {
        LimitValue::Value(limit) => limit,
        LimitValue::Unlimited => u64::MAX,
    };
    let registry = registry.sub_registry_with_prefix("process");
    registry.register_with_unit(
        "cpu",
        "Processor time of the process",
        Unit::Seconds,
        ConstCounter::new((stat.utime + stat.stime) as f64 / ticks),
    );
    for (name, help, bytes) in [
        (
            "resident_memory",
            "Memory of the process",
            stat.rss * procfs::page_size(),
        ),
        ("virtual_memory", "Address space of the process", stat.vsize),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes));
    }
    registry.register_with_unit(
        "start_time",
        "Start of the process, since 1970-01-01 UTC",
        Unit::Seconds,
        ConstGauge::new(started),
    );
    let open_files = process.fd_count()? as u64;
    let threads = u64::try_from(stat.num_threads).unwrap_or_default();
    for (name, help, value) in [
        ("open_fds", "Open files and connections", open_files),
        ("max_fds", "Maximum number of open files", max_files),
        ("threads", "Threads of the process", threads),
    ] {
        registry.register(name, help, ConstGauge::new(value));
    }
    Ok(())
}
