//! What the tests share: the programs under test, and the tools around them.
//! What the tests ask of them is not here.

pub(crate) mod ballast;
pub(crate) mod client;
pub(crate) mod corpus;
pub(crate) mod files;
pub(crate) mod frames;
pub(crate) mod http_call;
pub(crate) mod metrics_page;
pub(crate) mod principals;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod tools;
pub(crate) mod untrained;
pub(crate) mod wire;

use std::path::{Path, PathBuf};

pub(crate) use client::{CommandOutput, ask, ask_ok, client};
pub(crate) use corpus::{SMALL, train_small, verse};
pub(crate) use server::{Server, server_program};

/// Returns the root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in a folder of the workspace")
        .to_owned()
}
