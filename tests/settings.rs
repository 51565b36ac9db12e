//! Where the program takes its settings from. What each source can contain is
//! tested with the settings module.

use std::fs;
use std::process::Command;

use charlstm_proto::v1::server_service_client::ServerServiceClient;
use charlstm_proto::v1::{GetServerStatusRequest, GetServerStatusResponse};

use crate::support::server::{Server, command, fail_to_start};

/// Starts the server with these variables and flags, and a file with these
/// lines.
fn configured(
    variables: &[(&str, &str)],
    flags: &[&str],
    file: &str,
) -> (tempfile::TempDir, Command) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("charlstm.toml");
    fs::write(&path, file).unwrap();
    let mut command = command(&folder.path().join("data"), flags);
    command.env("CHARLSTM_CONFIG", path);
    command.envs(variables.iter().copied());
    (folder, command)
}

async fn status(server: &Server) -> GetServerStatusResponse {
    let mut client = ServerServiceClient::new(server.connect().await);
    let status = client.get_server_status(GetServerStatusRequest {}).await;
    status.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_takes_precedence_over_a_variable_which_takes_precedence_over_the_file() {
    let (folder, command) = configured(
        &[
            ("CHARLSTM_MAX_BATCH", "12"),
            ("CHARLSTM_MAX_QUEUE", "12"),
            // Counts as not set.
            ("CHARLSTM_MAX_SESSIONS", ""),
            ("CHARLSTM_THREADS", ""),
        ],
        &["--max-batch", "11"],
        "max-batch = 13\nmax_queue = 13\nmax-sessions = 13\n",
    );
    let server = Server::launch(folder, command);
    let status = status(&server).await;
    assert_eq!(status.max_batch, 11);
    assert_eq!(status.max_queue, 12);
    assert_eq!(status.max_sessions, 13);
    assert!(status.threads >= 1);
}

#[test]
fn an_invalid_value_is_rejected_with_the_variable_that_it_comes_from() {
    let (_folder, mut command) = configured(&[("CHARLSTM_MAX_QUEUE", "many")], &[], "");
    let (code, error) = fail_to_start(&mut command);
    assert_eq!(code, Some(2));
    let expected = "error: invalid value \"many\" for CHARLSTM_MAX_QUEUE: must be a whole number";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn an_invalid_value_of_the_file_is_rejected_with_the_name_of_the_file() {
    let (_folder, mut command) = configured(&[], &[], "max-batch = 0");
    let (code, error) = fail_to_start(&mut command);
    assert_eq!(code, Some(2));
    let expected = "error: invalid value \"0\" for max-batch in ";
    assert!(error.starts_with(expected), "{error}");
    assert!(error.contains("charlstm.toml: must be"), "{error}");
}

#[test]
fn invalid_usage_has_an_exit_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    for flags in [&["--max-batch", "0"][..], &["--no-such-flag"]] {
        let (code, error) = fail_to_start(&mut command(folder.path(), flags));
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains(flags[0]), "{error}");
    }
}
