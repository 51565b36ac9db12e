//! Finds environment variables that look like settings but are not.

use std::env;

use super::error::nearest;

/// What the names of all settings begin with.
const PREFIX: &str = "CHARLSTM_";

/// Variables of the client and of the tests, which may be set for everything
/// that a person starts.
const OTHERS: [&str; 10] = [
    "CHARLSTM_ADDR",
    "CHARLSTM_TOKEN_FILE",
    "CHARLSTM_TLS_CA",
    "CHARLSTM_TIMEOUT",
    "CHARLSTM_SERVER",
    "CHARLSTM_REQUIRE_ALL",
    "CHARLSTM_TEST_WHEELS",
    "CHARLSTM_EXPORTED",
    "CHARLSTM_TORCH_PYTHON",
    "CHARLSTM_POWER_CUTS",
];

/// Similarity from which a setting is suggested; 1 is the same name.
const MIN_SIMILARITY: f64 = 0.85;

/// Describes each variable of this process that has no effect although its name
/// looks like a setting, sorted by name.
pub fn unknown_variables() -> Vec<String> {
    let names = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    messages(names, &settings())
}

/// Returns the variables of all settings.
fn settings() -> Vec<String> {
    let command = super::command();
    let arguments = command.get_arguments();
    let variables = arguments.filter_map(|argument| argument.get_env());
    variables
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

fn messages(names: impl Iterator<Item = String>, settings: &[String]) -> Vec<String> {
    let is_unknown = |name: &String| {
        // Kubernetes sets CHARLSTM_SERVICE_HOST, CHARLSTM_PORT_… for a service.
        let is_of_service = name.contains("_SERVICE_") || name.contains("_PORT");
        name.starts_with(PREFIX)
            && !settings.contains(name)
            && !OTHERS.contains(&name.as_str())
            && !is_of_service
    };
    let mut unknown: Vec<String> = names.filter(is_unknown).collect();
    unknown.sort();
    let message = |name: &String| {
        let known = settings.iter().map(String::as_str);
        let suggestion = nearest(name, known, MIN_SIMILARITY)
            .map_or_else(String::new, |known| format!(" (did you mean {known}?)"));
        format!("the environment variable {name} is not a setting and has no effect{suggestion}")
    };
    unknown.iter().map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_no_setting_is_reported_with_the_nearest_one() {
        let settings = settings();
        assert!(settings.contains(&"CHARLSTM_THREADS".to_owned()));
        let names = [
            "CHARLSTM_TREADS",
            "CHARLSTM_THREADS",
            "CHARLSTM_ADDR",
            "CHARLSTM_SERVICE_HOST",
            "PATH",
        ];
        let messages = messages(names.map(str::to_owned).into_iter(), &settings);
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(
            messages[0].ends_with("has no effect (did you mean CHARLSTM_THREADS?)"),
            "{messages:?}"
        );
    }
}
