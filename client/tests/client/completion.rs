//! The completion scripts, called as a shell calls them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::{run, text};

/// Writes the script of a shell into a folder of its own.
fn script_of(shell: &str) -> (TempDir, PathBuf) {
    let script = run("127.0.0.1:1", &["completions", shell]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("script.{shell}"));
    fs::write(&path, &script.stdout).unwrap();
    (folder, path)
}

/// Returns whether a shell is installed. Fails if it is not and the environment
/// requires that nothing is skipped.
fn has_shell(shell: &str) -> bool {
    let is_installed = Command::new(shell).args(["-c", "true"]).output().is_ok();
    if !is_installed {
        assert!(
            std::env::var_os("CHARLSTM_REQUIRE_ALL").is_none(),
            "{shell} is not installed"
        );
        eprintln!("skipped: {shell} is not installed");
    }
    is_installed
}

/// Returns what a shell prints.
fn output_of(shell: &mut Command) -> String {
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

/// Returns what bash offers to complete the last of `words`.
fn complete(words: &[&str]) -> Vec<String> {
    let (folder, path) = script_of("bash");
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
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", call]).arg(&path).args(words);
    let output = output_of(bash.current_dir(folder.path()));
    output.lines().map(str::to_owned).collect()
}

/// Types each of `lines` and the tab key into an interactive zsh, and returns
/// what it made of them.
fn complete_in_zsh(lines: &[&str]) -> Vec<String> {
    let (folder, path) = script_of("zsh");
    // A key writes the line to a file instead of running it. All is typed into
    // one shell, whose completion system takes a second to start.
    let call = r#"
        zmodload zsh/zpty
        script=$1 work=$2
        shift 2
        zpty shell "HOME=${(q)work} TERM=dumb zsh -f -i"
        zpty -w shell "PS1= PS2= RPS1=; autoload -Uz compinit; compinit -u -d ${(q)work}/dump
            source ${(q)script}
            report() { print -r -- \"\$BUFFER\" >> ${(q)work}/lines; zle kill-whole-line }
            zle -N report; bindkey '^B' report; finish() { exit }
            zle -N finish; bindkey '^Y' finish; : > ${(q)work}/ready"
        for attempt in {1..600}; do [[ -e $work/ready ]] && break; sleep 0.1; done
        for line; do zpty -w -n shell "$line"$'\t\x02'; done
        zpty -w -n shell $'\x19'
        while zpty -r shell output; do :; done
        cat $work/lines
    "#;
    let mut zsh = Command::new("zsh");
    zsh.args(["-f", "-c", call, "zsh"]).arg(&path);
    let output = output_of(zsh.arg(folder.path()).args(lines));
    output.lines().map(str::to_owned).collect()
}

#[test]
fn zsh_completes_commands_flags_and_values_at_every_level() {
    if !has_shell("zsh") {
        return;
    }
    let expected = [
        ("tra", "train"),
        ("generate --mo", "generate --model="),
        ("train --hid", "train --hidden-size="),
        ("trainings sh", "trainings show "),
        ("models import --pt", "models import --pth "),
        ("models ex", "models export "),
        ("train --crlf ke", "train --crlf keep "),
        ("completions ba", "completions bash "),
    ];
    let lines = expected.map(|(typed, _)| format!("charlstm-client {typed}"));
    let completed = complete_in_zsh(&lines.each_ref().map(String::as_str));
    let expected = expected.map(|(_, completed)| format!("charlstm-client {completed}"));
    assert_eq!(completed, expected);
}

#[test]
fn fish_completes_commands_flags_and_values_at_every_level() {
    if !has_shell("fish") {
        return;
    }
    let (folder, path) = script_of("fish");
    for (typed, offered) in [
        ("tra", "trainings"),
        ("generate --mo", "--model"),
        ("trainings sh", "show"),
        ("models import --pt", "--pth"),
        ("train --crlf ke", "keep"),
    ] {
        let call = "source $argv[1]; complete -C $argv[2]";
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", call])
            .arg(&path)
            .arg(format!("charlstm-client {typed}"))
            .env("HOME", folder.path());
        // Each line is a completion, and its description after a tab.
        let output = output_of(&mut fish);
        let mut found = output.lines().map(|line| line.split('\t').next());
        assert!(found.any(|it| it == Some(offered)), "{typed}: {output:?}");
    }
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
