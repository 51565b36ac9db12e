//! Flags, the file and defaults. That variables come between flags and the
//! file is tested with the program: `tests/settings.rs`.

#![allow(clippy::unwrap_used)]

use crate::rpc::principal::Role;
use std::io::Write;

use clap::builder::Resettable;

use super::*;
use charlstm_model::device::Device;

fn load(arguments: &[&str]) -> Result<Config, ConfigError> {
    // Not the variables of the person who runs the tests.
    let command = command().mut_args(|argument| argument.env(Resettable::Reset));
    Config::load(&command, [&["charlstm-server"], arguments].concat())
}

fn message(arguments: &[&str]) -> String {
    load(arguments).unwrap_err().to_string()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn load_file(text: &str) -> Result<Config, ConfigError> {
    load(&["--config", file(text).path().to_str().unwrap()])
}

fn file_message(text: &str) -> String {
    load_file(text).unwrap_err().to_string()
}

#[test]
fn every_setting_has_a_default() {
    let config = load(&[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.data_dir, PathBuf::from("./charlstm-data"));
    assert_eq!(config.device, DeviceChoice::Auto);
    assert!(config.threads >= 1);
    assert_eq!(config.max_batch, 256);
    assert_eq!(config.max_sessions, 1_000_000);
    assert_eq!(config.session_durability, Durability::Committed);
    assert_eq!(config.session_cache_bytes, ByteSize::mb(512));
    assert_eq!(config.session_store_bytes, None);
    assert_eq!(config.task, None);
    assert_eq!(config.session_ttl, Duration::from_secs(30 * 24 * 3600));
    assert_eq!(config.reader_timeout, Duration::from_secs(60));
    assert_eq!(config.max_queue, 1024);
    assert_eq!(config.keep_trainings, 1000);
    assert!(!config.resume_interrupted && !config.tensorboard);
    assert_eq!(config.metrics_listen, None);
    assert_eq!(config.tls(), None);
    assert_eq!(config.auth_token_file, None);
    assert_eq!(config.principals, None);
    assert!(!config.insecure);
    assert_eq!(config.log_format, LogFormat::Text);
}

#[test]
fn a_flag_takes_precedence_over_the_file_and_the_file_over_the_default() {
    let file = file("max-batch = 3\nmax_queue = 3\nmax-sessions = \"3\"\ndevice = 'cpu'\n");
    let path = file.path().to_str().unwrap();
    let config = load(&["--max-batch", "1", "--config", path]).unwrap();
    assert_eq!(config.max_batch, 1);
    assert_eq!(config.max_queue, 3);
    assert_eq!(config.max_sessions, 3);
    assert_eq!(config.device, DeviceChoice::Only(Device::Cpu));
    assert_eq!(config.listen.port(), 50051);
}

#[test]
fn hosts_and_origins_are_lists_in_every_source() {
    let config = load(&[]).unwrap();
    assert!(config.http.is_on && config.http.allowed_hosts.is_empty());
    let config = load(&["--allowed-host", "A.example,b", "--allowed-host", "c"]).unwrap();
    assert_eq!(config.http.allowed_hosts, ["a.example", "b", "c"]);
    let config = load_file("http = 'off'\ncors-origin = 'https://a.example,http://b:81'").unwrap();
    assert!(!config.http.is_on);
    assert_eq!(
        config.http.cors_origins,
        ["https://a.example", "http://b:81"]
    );
    assert!(message(&["--allowed-host", "a:80"]).contains("must be a host name"));
    assert!(message(&["--cors-origin", "*"]).contains("must be SCHEME://HOST"));
    assert!(message(&["--http", "maybe"]).contains("must be on or off"));
}

#[test]
fn the_last_of_two_equal_flags_counts() {
    let config = load(&["--max-batch", "1", "--max-batch=2"]).unwrap();
    assert_eq!(config.max_batch, 2);
}

#[test]
fn a_switch_is_on_with_its_bare_flag_and_can_be_turned_off_if_the_file_turns_it_on() {
    let config = load(&["--resume-interrupted", "--max-batch", "1"]).unwrap();
    assert!(config.resume_interrupted && !config.tensorboard);
    assert!(load_file("tensorboard = true").unwrap().tensorboard);
    let on = file("tensorboard = true");
    let path = on.path().to_str().unwrap();
    let config = load(&["--tensorboard=false", "--config", path]).unwrap();
    assert!(!config.tensorboard);
    assert_eq!(
        message(&["--tensorboard=perhaps"]),
        "invalid value \"perhaps\" for --tensorboard: must be true or false"
    );
}

#[test]
fn an_unknown_key_of_the_file_is_rejected_with_the_nearest_setting() {
    let error = file_message("max-bach = 3");
    let expected = ": unknown setting \"max-bach\"; did you mean \"max-batch\"?";
    assert!(error.ends_with(expected), "{error}");
    let error = file_message("zzz = 3");
    assert!(error.ends_with(": unknown setting \"zzz\""), "{error}");
    let error = file_message("config = 'other.toml'");
    assert!(error.contains("unknown setting \"config\""), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = message(&["--config", "/no/such/file"]);
    assert!(error.starts_with("/no/such/file: "), "{error}");
    let error = file_message("max-batch = [3]");
    let expected = "max-batch must be a string, an integer or a boolean, not array";
    assert!(error.contains(expected), "{error}");
    assert!(matches!(load_file("= 3"), Err(ConfigError::File { .. })));
}

#[test]
fn an_invalid_value_is_rejected_with_its_source_and_what_would_be_right() {
    assert_eq!(
        message(&["--max-batch", "0"]),
        "invalid value \"0\" for --max-batch: must be a whole number from 1 to 4096"
    );
    for (arguments, expected) in [
        (["--threads", "-1"], "for --threads: must be"),
        (["--listen", "nowhere"], "must be HOST:PORT"),
        (["--metrics-listen", "here"], "must be HOST:PORT"),
        (["--device", "gpu"], "must be auto, cpu"),
        (["--log-format", "xml"], "must be text or json"),
        (["--session-ttl", "5"], "such as 90s"),
        (["--data-dir", ""], "must not be empty"),
    ] {
        let error = message(&arguments);
        assert!(error.contains(expected), "{error}");
    }
    let file = file("threads = 0");
    let path = file.path().to_str().unwrap();
    assert_eq!(
        message(&["--config", path]),
        format!(
            "invalid value \"0\" for threads in {path}: must be a whole number from 1 to 1024, \
             or auto"
        )
    );
    // A value that is not used is not looked at.
    assert_eq!(
        load(&["--config", path, "--threads", "2"]).unwrap().threads,
        2
    );
}

#[test]
fn certificate_and_key_must_be_set_together() {
    assert!(message(&["--tls-cert", "c"]).contains("must be set together"));
    assert!(message(&["--tls-key", "k"]).contains("must be set together"));
    assert!(message(&["--tls-client-ca", "a"]).contains("requires --tls-cert"));
    let config = load(&["--tls-cert", "c", "--tls-key", "k"]).unwrap();
    assert_eq!(config.tls().unwrap().cert, Path::new("c"));
}

#[test]
fn the_command_line_is_well_formed() {
    command().debug_assert();
}

#[test]
fn every_flag_has_a_variable_named_after_it() {
    for argument in command().get_arguments() {
        let flag = argument.get_long().unwrap();
        // These are commands rather than settings.
        let is_command = matches!(flag, "help" | "version" | "check-config" | "print-config");
        if !is_command {
            let variable = format!("CHARLSTM_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(argument.get_env().unwrap(), variable.as_str());
        }
    }
}

#[test]
fn an_address_that_other_machines_reach_requires_tls_and_credentials() {
    let open = ["--listen", "0.0.0.0:1"];
    let tls = ["--tls-cert", "c", "--tls-key", "k"];
    let error = message(&open);
    assert!(
        error.starts_with("--listen 0.0.0.0:1 can be reached"),
        "{error}"
    );
    assert!(
        error.contains("--tls-cert") && error.contains("--insecure"),
        "{error}"
    );
    let tokens = ["--auth-token-file", "t"];
    let error = message(&[&open[..], &tokens].concat());
    assert!(error.contains("TLS is missing"), "{error}");
    let error = message(&[&open[..], &tls].concat());
    assert!(error.contains("--principals"), "{error}");
    for sufficient in [
        &["--auth-token-file", "t"][..],
        &["--principals", "p"],
        &["--tls-client-ca", "a"],
        &["--insecure"],
    ] {
        load(&[&open[..], &tls, sufficient].concat()).unwrap();
    }
    load(&[&open[..], &["--insecure"]].concat()).unwrap();
    load(&["--listen", "[::1]:1"]).unwrap();
    // The address of the metrics has neither.
    load(&["--metrics-listen", "0.0.0.0:1"]).unwrap();
}

#[test]
fn a_token_can_be_made_for_several_roles() {
    let roles = |arguments: &[&str]| {
        let token = [&["token", "--name", "a"], arguments].concat();
        load(&token).map(|config| config.task)
    };
    let expected = Some(Task::Token {
        name: "a".to_owned(),
        roles: vec![Role::Generate, Role::Train],
    });
    for arguments in [
        &["--role", "generate", "train"][..],
        &["--role", "generate", "--role", "train"],
    ] {
        assert_eq!(roles(arguments).unwrap(), expected);
    }
    assert!(roles(&[]).is_err());
    let error = roles(&["--role", "read"]).unwrap_err().to_string();
    assert!(
        error.contains("must be generate, train or admin"),
        "{error}"
    );
    let error = message(&["token", "--name", "a b", "--role", "train"]);
    assert!(error.contains("printable ASCII"), "{error}");
}

#[test]
fn the_settings_in_effect_are_a_file_that_sets_the_same() {
    let hosts = ["--allowed-host", "a.example", "--allowed-host", "b.example"];
    let config = load(&[&["--max-batch", "7", "--tensorboard"][..], &hosts].concat()).unwrap();
    assert!(config.effective.contains("max-batch = \"7\"\n"));
    let again = load_file(&config.effective).unwrap();
    assert_eq!(again.max_batch, 7);
    assert!(again.tensorboard);
    assert_eq!(again.http.allowed_hosts, ["a.example", "b.example"]);
    assert_eq!(again.listen, config.listen);
    // A file is read in alphabetical order.
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&again.effective), sorted(&config.effective));
    assert!(!config.effective.contains("print-config"));
}

#[test]
fn levels_and_collectors_that_do_not_exist_are_rejected() {
    let config = load(&["--log-level", "debug", "--log-text"]).unwrap();
    assert_eq!(config.log_level, LevelFilter::DEBUG);
    assert!(config.log_text && !load(&[]).unwrap().log_text);
    assert!(message(&["--log-level", "loud"]).contains("must be error, warn"));
    let endpoint = load(&["--otlp-endpoint", "http://[::1]:4317"]).unwrap();
    assert!(endpoint.otlp_endpoint.is_some());
    assert!(message(&["--otlp-endpoint", "localhost"]).contains("must be a URL"));
}

#[test]
fn the_arithmetic_of_a_gpu_and_what_its_failure_does_are_chosen_by_name() {
    let config = load(&[]).unwrap();
    assert_eq!(config.gpu_math, GpuMath::Float32);
    assert_eq!(config.gpu_failure, GpuFailure::Exit);
    let config = load(&["--gpu-math", "tf32", "--gpu-failure", "cpu"]).unwrap();
    assert_eq!(config.gpu_math, GpuMath::Tf32);
    assert_eq!(config.gpu_failure, GpuFailure::Cpu);
    assert!(message(&["--gpu-math", "bf16"]).contains("must be float32 or tf32"));
    assert!(message(&["--gpu-failure", "no"]).contains("must be exit or cpu"));
}
