//! Writes the manual page of the server to a folder, for `make man`. It is an
//! example so that the server does not depend on `clap_mangen`.

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let folder: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or_else(|| anyhow::anyhow!("usage: man FOLDER"))?
        .into();
    std::fs::create_dir_all(&folder)?;
    clap_mangen::generate_to(charlstm_server::config::command(), &folder)?;
    Ok(())
}
