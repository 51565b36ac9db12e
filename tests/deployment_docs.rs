//! The commands of docs/operations.md for a server with TLS and principals, carried out
//! as they are, but with free ports and a small network.

use std::fmt::Write;
use std::net::TcpListener;
use std::process::Command;

use crate::support::client::client_program;
use crate::support::process::output;
use crate::support::server::server_program;
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

/// Runs the blocks in their order: settings become the file that the docs name, and the
/// server runs in the background.
fn script(blocks: &[(String, String)]) -> String {
    let mut script = "set -eu\n".to_owned();
    for (language, text) in blocks {
        match language.as_str() {
            "toml" => writeln!(script, "cat > server.toml <<'END'\n{text}END").unwrap(),
            _ if text == "charlstm-server --config server.toml\n" => script.push_str(
                "charlstm-server --config server.toml > server.log 2>&1 &\n\
                 trap 'kill $!; wait' EXIT\n\
                 until grep -q 'listening on' server.log; do kill -0 $! || { cat server.log >&2; exit 1; }; sleep 0.05; done\n",
            ),
            _ => script.push_str(text),
        }
    }
    script
}

#[test]
fn the_commands_of_the_docs_deploy_a_server_with_tls_and_principals() {
    let docs = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let small = "--recipe notebook --hidden-size 16 --batch-size 4 --sequence-length 20 --epochs 1";
    let script = script(&code_blocks(&docs))
        .replace("50051", &port)
        .replace("127.0.0.1:9464", "127.0.0.1:0")
        .replace("--text BOOK.txt", &format!("--text BOOK.txt {small}"))
        .replace("It was ", "arma ");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("BOOK.txt"), verse(6000)).unwrap();
    let programs = [server_program(), client_program()].map(|path| path.parent().unwrap());
    let system = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths(
        programs
            .map(Into::into)
            .into_iter()
            .chain(std::env::split_paths(&system)),
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .env("PATH", path.unwrap())
        .current_dir(folder.path());
    let output = output(&mut command);
    let (shown, errors) = (output.stdout, output.stderr);
    assert!(output.status.success(), "{shown}{errors}");
    assert!(
        shown.contains("arma ") && shown.contains("book@1"),
        "{shown}"
    );
    let principals = std::fs::read_to_string(folder.path().join("principals.toml")).unwrap();
    assert!(!principals.contains("\ncharlstm_"), "{principals}");
}
