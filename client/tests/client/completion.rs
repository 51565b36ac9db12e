//! The completion scripts, called as a shell calls them.

use std::process::Command;

use crate::{run, text};

/// Returns what bash offers to complete the last of `words`.
fn complete(words: &[&str]) -> Vec<String> {
    let script = run("127.0.0.1:1", &["completions", "bash"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script.bash");
    std::fs::write(&path, &script.stdout).unwrap();
    // Bash calls the function with the name of the program, the word and the
    // word before it.
    let call = r#"
        source "$0"
        function=$(complete -p charlstm-client | sed 's/.*-F \([^ ]*\) .*/\1/')
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        "$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["--norc", "-c", call])
        .arg(&path)
        .args(words)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values_at_every_level() {
    const PROGRAM: &str = "charlstm-client";
    for (words, offered) in [
        (&["tra"][..], &["train", "trainings"][..]),
        (&["generate", "--mo"], &["--model"]),
        (&["train", "--hid"], &["--hidden-size"]),
        (&["trainings", "sh"], &["show"]),
        (&["trainings", "resume", "--pl"], &["--plot"]),
        (&["models", "import", "--pt"], &["--pth"]),
        (&["models", "ex"], &["export"]),
        (&["sessions", "fork", "--js"], &["--json"]),
        (&["train", "--crlf", ""], &["lf", "keep"]),
        (&["completions", "ba"], &["bash"]),
    ] {
        let found = complete(&[&[PROGRAM], words].concat());
        for name in offered {
            assert!(found.iter().any(|it| it == name), "{words:?}: {found:?}");
        }
    }
    let commands = complete(&[PROGRAM, ""]);
    assert!(commands.iter().any(|it| it == "models"), "{commands:?}");
    assert!(!commands.iter().any(|it| it == "man"), "{commands:?}");
}

#[test]
fn every_shell_has_a_script_that_knows_the_nested_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run("127.0.0.1:1", &["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let script = text(&output.stdout);
        for name in ["trainings", "resume", "extend-vocabulary"] {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
}
