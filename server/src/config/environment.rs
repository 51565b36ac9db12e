//! Finds environment variables that look like settings but are not.

use std::env;

use super::error::nearest;

/// What the names of all settings begin with.
const PREFIX: &str = "CHARLSTM_";

/// Variables of the client, the scripts and the tests, which may be set for
/// everything that a person starts. A test looks for others in the repository.
const OTHERS: [&str; 15] = [
    "CHARLSTM_ADDR",
    "CHARLSTM_TOKEN_FILE",
    "CHARLSTM_TLS_CA",
    "CHARLSTM_TIMEOUT",
    "CHARLSTM_SERVER",
    "CHARLSTM_PREVIOUS_SERVER",
    "CHARLSTM_REQUIRE_ALL",
    "CHARLSTM_TEST_WHEELS",
    "CHARLSTM_EXPORTED",
    "CHARLSTM_TORCH_PYTHON",
    "CHARLSTM_POWER_CUTS",
    "CHARLSTM_PICTURES",
    "CHARLSTM_STUB",
    "CHARLSTM_BIN",
    "CHARLSTM_LIBTORCH",
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
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The variables that the text of a file names, but not those that end with
    /// an ellipsis or are completed by a program.
    fn variables(text: &str) -> impl Iterator<Item = &str> {
        text.match_indices(PREFIX).filter_map(|(start, _)| {
            let name = &text[start..];
            let end =
                name.find(|c: char| !(c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()));
            Some(&name[..end?]).filter(|name| !name.ends_with('_'))
        })
    }

    fn collect(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !["node_modules", "build", "__pycache__"].contains(&&*name) {
                collect(&path, found);
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.extend(variables(&text).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_variable_that_the_repository_uses_is_known() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = Vec::new();
        for folder in ["client", "scripts", "tests", "python", "deploy", "examples"] {
            collect(&root.join(folder), &mut found);
        }
        assert!(found.contains(&"CHARLSTM_STUB".to_owned()));
        let messages = messages(found.into_iter(), &settings());
        assert!(messages.is_empty(), "{messages:?}");
    }

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
