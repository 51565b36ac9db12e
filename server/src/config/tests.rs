#![allow(clippy::unwrap_used)]

use std::io::Write;

use super::*;
use charlstm_model::device::Device;

fn load(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let arguments = ["charlstm-server"].iter().chain(arguments).copied();
    Config::load(arguments, |name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| OsString::from(value))
    })
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn load_file(text: &str) -> Result<Config, ConfigError> {
    load(&["--config", file(text).path().to_str().unwrap()], &[])
}

#[test]
fn everything_has_a_default() {
    let config = load(&[], &[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.data_dir, PathBuf::from("./charlstm-data"));
    assert_eq!(config.device, DeviceChoice::Auto);
    assert!(config.threads >= 1);
    assert_eq!(config.max_batch, 256);
    assert_eq!(config.max_sessions, 100_000);
    assert_eq!(config.session_ttl, Duration::from_secs(24 * 3600));
    assert_eq!(config.max_queue, 1024);
    assert_eq!(config.tls, None);
    assert_eq!(config.log_format, LogFormat::Text);
}

#[test]
fn a_flag_wins_over_a_variable_and_that_over_the_file_and_that_over_the_default() {
    let file = file("max-batch = 3\nmax_queue = 3\nmax-sessions = \"3\"\ndevice = 'cpu'\n");
    let path = file.path().to_str().unwrap();
    let variables = [
        ("CHARLSTM_MAX_BATCH", "2"),
        ("CHARLSTM_MAX_QUEUE", "2"),
        ("CHARLSTM_CONFIG", path),
        ("CHARLSTM_LISTEN", ""),
    ];
    let config = load(&["--max-batch", "1"], &variables).unwrap();
    assert_eq!(config.max_batch, 1);
    assert_eq!(config.max_queue, 2);
    assert_eq!(config.max_sessions, 3);
    assert_eq!(config.device, DeviceChoice::Only(Device::Cpu));
    assert_eq!(config.listen.port(), 50051);
}

#[test]
fn a_switch_is_on_by_its_bare_flag_and_can_be_turned_off_where_it_was_turned_on() {
    assert!(!load(&[], &[]).unwrap().resume_interrupted);
    let config = load(&["--resume-interrupted", "--max-batch", "1"], &[]).unwrap();
    assert!(config.resume_interrupted && !config.tensorboard);
    let on = [("CHARLSTM_RESUME_INTERRUPTED", "1")];
    assert!(load(&[], &on).unwrap().resume_interrupted);
    let config = load(&["--resume-interrupted=false"], &on).unwrap();
    assert!(!config.resume_interrupted);
    assert!(load_file("tensorboard = true").unwrap().tensorboard);
    let error = load(&["--tensorboard=perhaps"], &[]).unwrap_err();
    assert!(
        error.to_string().contains("neither true nor false"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_in_the_file_is_answered_with_the_nearest_setting() {
    let error = load_file("max-bach = 3").unwrap_err().to_string();
    assert!(
        error.ends_with("\"max-bach\" is no setting; did you mean \"max-batch\"?"),
        "{error}"
    );
    let error = load_file("zzz = 3").unwrap_err().to_string();
    assert!(error.ends_with("\"zzz\" is no setting"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load(&["--config", "/no/such/file"], &[]).unwrap_err();
    assert!(error.to_string().starts_with("/no/such/file: "), "{error}");
    let error = load_file("max-batch = [3]").unwrap_err().to_string();
    assert!(
        error.contains("max-batch must be a text, a whole number, true or false, not array"),
        "{error}"
    );
    assert!(matches!(load_file("= 3"), Err(ConfigError::File { .. })));
}

#[test]
fn a_wrong_value_is_answered_with_its_place_and_what_would_be_right() {
    let error = |arguments: &[&str]| load(arguments, &[]).unwrap_err().to_string();
    assert_eq!(
        error(&["--max-batch", "0"]),
        "--max-batch: \"0\" is not a whole number from 1 to 4096"
    );
    assert!(error(&["--threads", "-1"]).contains("--threads"));
    assert!(error(&["--listen", "nowhere"]).contains("use HOST:PORT"));
    assert!(error(&["--device", "gpu"]).contains("use auto, cpu"));
    assert!(error(&["--log-format", "xml"]).contains("use text or json"));
    assert!(error(&["--session-ttl", "5"]).contains("30m"));
    let error = load(&[], &[("CHARLSTM_MAX_QUEUE", "many")]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("CHARLSTM_MAX_QUEUE: \"many\"")
    );
    let error = load_file("threads = 0").unwrap_err().to_string();
    assert!(error.contains(": threads: \"0\" is not"), "{error}");
}

#[test]
fn metrics_are_served_only_where_that_is_wanted() {
    assert_eq!(load(&[], &[]).unwrap().metrics_listen, None);
    let config = load(&["--metrics-listen", "127.0.0.1:9000"], &[]).unwrap();
    assert_eq!(config.metrics_listen, "127.0.0.1:9000".parse().ok());
    assert!(load(&["--metrics-listen", "here"], &[]).is_err());
}

#[test]
fn certificate_and_key_need_each_other() {
    let error = |arguments: &[&str]| load(arguments, &[]).unwrap_err().to_string();
    assert!(error(&["--tls-cert", "c"]).contains("need each other"));
    assert!(error(&["--tls-key", "k"]).contains("need each other"));
    assert!(error(&["--tls-client-ca", "a"]).contains("needs --tls-cert"));
    let config = load(&["--tls-cert", "c", "--tls-key", "k"], &[]).unwrap();
    assert_eq!(config.tls.unwrap().cert, PathBuf::from("c"));
}

#[test]
fn times_are_read_with_their_units() {
    let seconds = |text| duration(text).map(|time| time.as_secs());
    assert_eq!(seconds("90s"), Some(90));
    assert_eq!(seconds("1h30m"), Some(5400));
    assert_eq!(seconds("2d 1h"), Some(49 * 3600));
    for text in ["", "5", "m", "1x", "-1s", "1.5h", "99999999999s"] {
        assert_eq!(duration(text), None, "{text:?}");
    }
    assert_eq!(duration("4294967295d").map(|_| ()), Some(()));
}

#[test]
fn the_command_line_is_well_formed() {
    command().debug_assert();
}
