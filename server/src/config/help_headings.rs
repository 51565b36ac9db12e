//! The headings under which `--help` and the manual page list the flags.

/// The fields of [`super::Config`] below each heading.
const HEADINGS: [(&str, &[&str]); 9] = [
    (
        "Address and data",
        &[
            "listen",
            "data_dir",
            "config",
            "check_config",
            "print_config",
        ],
    ),
    (
        "Computation",
        &[
            "device",
            "precision",
            "kernels",
            "gpu_failure",
            "gpu_math",
            "threads",
            "max_batch",
        ],
    ),
    (
        "Sessions",
        &[
            "max_sessions",
            "session_durability",
            "session_cache_bytes",
            "prompt_cache_bytes",
            "session_store_bytes",
            "snapshot_key_file",
            "session_ttl",
        ],
    ),
    (
        "Several replicas",
        &["database", "database_file", "object_store", "replica_name"],
    ),
    (
        "Limits",
        &[
            "reader_timeout",
            "transfer_timeout",
            "max_queue",
            "max_connections",
            "max_queued_chars",
        ],
    ),
    (
        "Trainings",
        &["keep_trainings", "resume_interrupted", "tensorboard"],
    ),
    (
        "Access control",
        &[
            "tls_cert",
            "tls_key",
            "tls_client_ca",
            "principals",
            "auth_token_file",
            "insecure",
        ],
    ),
    ("HTTP", &["is_on", "allowed_hosts", "cors_origins"]),
    (
        "Logs, metrics and traces",
        &[
            "log_level",
            "log_text",
            "log_format",
            "metrics_listen",
            "otlp_endpoint",
        ],
    ),
];

/// Returns the heading of a field; `None` for a flag that every program has.
pub(super) fn heading(field: &str) -> Option<&'static str> {
    let found = HEADINGS.iter().find(|(_, fields)| fields.contains(&field));
    found.map(|(heading, _)| *heading)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_setting_has_a_heading_in_the_help() {
        let command = crate::config::command();
        let settings = command.get_arguments();
        let ungrouped: Vec<_> = settings
            .filter(|setting| setting.get_help_heading().is_none())
            .map(|setting| setting.get_id().as_str())
            .collect();
        assert_eq!(ungrouped, [""; 0]);
    }
}
