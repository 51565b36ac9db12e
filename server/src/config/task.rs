//! What the program can do instead of serving.

use std::path::PathBuf;

use clap::Subcommand;

use super::value::{Checked, principal_name, role};
use crate::rpc::principal::Role;

/// What the program does instead of serving.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Task {
    /// Copy all sessions, models and trainings to a new folder, also while a
    /// server uses --data-dir; to restore, start a server on the copy
    Backup {
        /// The folder to create.
        folder: PathBuf,
    },
    /// Copy all models, trainings and sessions of --data-dir into --database and
    /// --object-store; can be repeated, and deletes nothing
    Migrate,
    /// Print a new access token, and the entry of the file of --principals that
    /// it belongs to; the token is not stored and not shown again
    Token {
        /// Name of the principal: printable ASCII characters without spaces
        #[arg(long, value_parser = Checked(principal_name))]
        name: String,
        /// What it may do: generate, train or admin; may be given several times
        #[arg(
            long = "role",
            required = true,
            num_args = 1..,
            value_name = "ROLE",
            value_parser = Checked(role)
        )]
        roles: Vec<Role>,
    },
}
