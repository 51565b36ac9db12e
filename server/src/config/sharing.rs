//! The settings of a replica: where the data is that several replicas share.

use std::path::PathBuf;

use charlstm_replicas::database::DatabaseUrl;
use clap::Args;

use super::ConfigError;
use super::value::{Checked, database, object_store, path, replica_name};

/// Where the data is that replicas share.
// The doc comments of the fields are the help texts.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct SharingConfig {
    /// PostgreSQL database that several replicas share, with sessions and
    /// trainings: postgres://USER:PASSWORD@HOST/DATABASE; requires
    /// --object-store (docs/replicas.md)
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_DATABASE",
        value_name = "URL",
        value_parser = Checked(database)
    )]
    pub database: Option<DatabaseUrl>,

    /// File with the URL of --database, which is then not visible in the list of
    /// processes
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_DATABASE_FILE",
        value_name = "FILE",
        value_parser = Checked(path)
    )]
    pub database_file: Option<PathBuf>,

    /// Object store that several replicas share, with models, corpora and
    /// checkpoints: s3://BUCKET/PREFIX, gs://, az:// or file:///FOLDER; credentials
    /// come from the variables AWS_..., GOOGLE_... or AZURE_...; requires
    /// --database
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_OBJECT_STORE",
        value_name = "URL",
        value_parser = Checked(object_store)
    )]
    pub object_store: Option<String>,

    /// Name of this replica, which other replicas and clients see [default: the
    /// host name and a random suffix]
    #[arg(
        long,
        env = "CHARLSTM_REPLICA_NAME",
        value_name = "NAME",
        value_parser = Checked(replica_name)
    )]
    pub replica_name: Option<String>,
}

impl SharingConfig {
    /// Whether this server is a replica.
    pub fn is_on(&self) -> bool {
        self.object_store.is_some()
    }

    /// The database and the object store belong together: what is in one names
    /// what is in the other.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let message = match (&self.database, &self.database_file, &self.object_store) {
            (Some(_), Some(_), _) => "--database and --database-file exclude each other",
            (None, None, Some(_)) => {
                "--object-store requires --database (or --database-file): replicas share both or \
                 nothing"
            }
            (Some(_), None, None) | (None, Some(_), None) => {
                "--database requires --object-store: replicas share both or nothing"
            }
            _ => return Ok(()),
        };
        Err(ConfigError::Conflict(message.into()))
    }
}
