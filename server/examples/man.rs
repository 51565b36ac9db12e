//! Writes the manual page of the server into a folder; `make man` runs it. An
//! example, so that the server itself carries nothing for it.

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let folder: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or_else(|| anyhow::anyhow!("name a folder"))?
        .into();
    std::fs::create_dir_all(&folder)?;
    clap_mangen::generate_to(charlstm_server::config::command(), &folder)?;
    Ok(())
}
