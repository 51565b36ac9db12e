//! The commands of docs/operations.md for a server with TLS and principals, carried out
//! as they are, but with free ports and a small network.

use std::fmt::Write;
use std::process::Command;

use crate::support::client::client_program;
use crate::support::process::output;
use crate::support::server::{free_address, server_program};
use crate::support::{root, verse};

/// The beginning and the end of the section.
const SECTION: [&str; 2] = [
    "## Deployment with TLS and principals",
    "### As a systemd service",
];

/// Returns the code blocks of the section: language and text.
fn code_blocks(docs: &str) -> Vec<(String, String)> {
    let (_, section) = docs.split_once(SECTION[0]).unwrap();
    let (section, _) = section.split_once(SECTION[1]).unwrap();
    let mut blocks = Vec::new();
    let mut lines = section.lines().map(str::trim_start);
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((language.to_owned(), text.join("\n") + "\n"));
        }
    }
    blocks
}

/// Returns a script that runs the blocks in their order, without the settings of the person
/// who runs the tests. Settings in TOML become the file that the docs name, and the server
/// runs in the background.
fn script(blocks: &[(String, String)]) -> String {
    let mut script = "set -eu\nunset ${!CHARLSTM_@} RUST_LOG\n".to_owned();
    for (language, text) in blocks {
        match language.as_str() {
            "toml" => writeln!(script, "cat > server.toml <<'END'\n{text}END").unwrap(),
            _ if text == "charlstm-server --config server.toml\n" => script.push_str(
                "charlstm-server --config server.toml > server.log 2>&1 &\n\
                 trap 'kill $!; wait' EXIT\n\
                 until grep -q 'listening on' server.log; do\n\
                 kill -0 $! || { cat server.log >&2; exit 1; }\n\
                 sleep 0.05\n\
                 done\n",
            ),
            _ => script.push_str(text),
        }
    }
    script
}

#[test]
fn the_commands_of_the_docs_deploy_a_server_with_tls_and_principals() {
    let docs = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let address = free_address();
    let (_, port) = address.split_once(':').unwrap();
    let small = "--recipe notebook --hidden-size 16 --batch-size 4 --sequence-length 20 --epochs 1";
    let script = script(&code_blocks(&docs))
        .replace("50051", port)
        .replace("127.0.0.1:9464", "127.0.0.1:0")
        .replace("--text BOOK.txt", &format!("--text BOOK.txt {small}"))
        .replace("It was ", "arma ");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("BOOK.txt"), verse(6000)).unwrap();
    let [server, client] = [server_program(), client_program()]
        .map(|program| program.parent().unwrap().to_str().unwrap());
    let path = format!("{server}:{client}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .env("PATH", path)
        .current_dir(folder.path());
    let output = output(&mut command);
    let (shown, errors) = (output.stdout, output.stderr);
    assert!(output.status.success(), "{shown}{errors}");
    let is_generated = shown.lines().any(|line| line.starts_with("arma "));
    assert!(is_generated && shown.contains("book@1"), "{shown}");
}
