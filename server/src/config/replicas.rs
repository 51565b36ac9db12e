//! The settings of a server that is one of several replicas.

use std::path::PathBuf;

use clap::Args;

use super::value::{Checked, database, object_store, path, replica_name};
use charlstm_replicas::database::DatabaseUrl;

/// What the replicas of a service share.
// The doc comments of the fields are the help texts.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// PostgreSQL database for sessions and trainings, such as
    /// postgres://USER:PASSWORD@HOST/NAME. All servers with the same database and
    /// --object-store are one service, see docs/replicas.md [default: everything
    /// is in the data folder]
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_DATABASE",
        value_name = "URL",
        value_parser = Checked(database)
    )]
    pub database: Option<DatabaseUrl>,

    /// File that contains the URL of --database
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_DATABASE_FILE",
        value_name = "FILE",
        value_parser = Checked(path)
    )]
    pub database_file: Option<PathBuf>,

    /// Object store for models, corpora and checkpoints, which belongs to
    /// --database: s3://BUCKET/PREFIX, gs://, az:// or file:///FOLDER; credentials
    /// come from the variables AWS_..., GOOGLE_... or AZURE_...
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_OBJECT_STORE",
        value_name = "URL",
        value_parser = Checked(object_store)
    )]
    pub object_store: Option<String>,

    /// Name of this server among those with the same --database [default: the
    /// name of the machine and a random suffix]
    #[arg(
        long,
        env = "CHARLSTM_REPLICA_NAME",
        value_name = "NAME",
        value_parser = Checked(replica_name)
    )]
    pub replica_name: Option<String>,
}

impl ReplicaConfig {
    /// Whether sessions are in a database.
    pub fn has_database(&self) -> bool {
        self.database.is_some() || self.database_file.is_some()
    }
}
