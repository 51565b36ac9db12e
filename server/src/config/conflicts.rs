//! Rejects settings that contradict each other.

use std::borrow::Cow;

use super::{Config, ConfigError};
use crate::access::is_exposed;
use charlstm_store::session::Durability;

/// Checks all rules about more than one setting.
///
/// # Errors
/// `Conflict`.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    check_tls(config)?;
    check_replicas(config)?;
    if config.task.is_none() {
        check_exposure(config)?;
    }
    Ok(())
}

fn check_tls(config: &Config) -> Result<(), ConfigError> {
    if config.tls_cert.is_some() != config.tls_key.is_some() {
        return conflict("--tls-cert and --tls-key must be set together");
    }
    if config.tls_client_ca.is_some() && config.tls_cert.is_none() {
        return conflict("--tls-client-ca requires --tls-cert and --tls-key");
    }
    Ok(())
}

fn check_replicas(config: &Config) -> Result<(), ConfigError> {
    let replicas = &config.replicas;
    let has_database = replicas.has_database();
    if replicas.database.is_some() && replicas.database_file.is_some() {
        return conflict("--database and --database-file cannot both be set");
    }
    if has_database && config.session_durability == Durability::Relaxed {
        return conflict(
            "--session-durability relaxed cannot be combined with --database: another server \
             must see what this one has acknowledged",
        );
    }
    match (has_database, replicas.object_store.is_some()) {
        (true, false) => {
            return conflict(
                "--database requires --object-store: the database refers to objects in the store",
            );
        }
        (false, true) => {
            return conflict(
                "--object-store requires --database or --database-file: the database refers to \
                 objects in the store",
            );
        }
        _ => {}
    }
    if replicas.replica_name.is_some() && !has_database {
        return conflict("--replica-name requires --database or --database-file");
    }
    Ok(())
}

/// Rejects an address that other machines can reach if they could read the
/// traffic or call without credentials.
fn check_exposure(config: &Config) -> Result<(), ConfigError> {
    if config.insecure || !is_exposed(config.listen) {
        return Ok(());
    }
    let missing = if config.tls().is_none() {
        "TLS is missing: set --tls-cert and --tls-key"
    } else if !config.has_access_control() {
        "anybody could call: set --principals, --auth-token-file or --tls-client-ca"
    } else {
        return Ok(());
    };
    conflict(format!(
        "--listen {} can be reached from other machines, and {missing}; or use a loopback \
         address such as 127.0.0.1:50051; --insecure allows it anyway",
        config.listen
    ))
}

fn conflict(message: impl Into<Cow<'static, str>>) -> Result<(), ConfigError> {
    Err(ConfigError::Conflict(message.into()))
}
