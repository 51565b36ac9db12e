//! Rules about the source that neither crates nor lints can enforce. The files
//! are parsed, so comments and texts do not matter, and what is inside of
//! macros does.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::visit_mut::{self, VisitMut};
use syn::{Attribute, File, Item, UseTree};

use crate::support::root;

/// A source file of a library or program, without its tests.
struct Source {
    /// Its path from the root of the checkout.
    path: String,
    file: File,
    /// The names that `use` gives to other paths: `Reply` for
    /// `tonic::Status`.
    imports: HashMap<String, Vec<String>>,
}

/// Returns the source files of the server and of all crates below it.
fn sources() -> Vec<Source> {
    let root = root();
    let crates = fs::read_dir(root.join("crates")).unwrap();
    let crates = crates.map(|entry| entry.unwrap().path());
    let mut sources = Vec::new();
    for package in crates.chain([root.join("server"), root.join("proto")]) {
        let folder = package.join("src");
        let mut files = Vec::new();
        collect(&folder, &mut files);
        let mut parsed: HashMap<PathBuf, File> = files
            .into_iter()
            .map(|path| {
                let text = fs::read_to_string(&path).unwrap();
                let file = syn::parse_file(&text);
                let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                (path, file)
            })
            .collect();
        let tests: Vec<PathBuf> = parsed
            .iter()
            .flat_map(|(path, file)| test_modules(path, file))
            .collect();
        parsed.retain(|path, _| !tests.iter().any(|test| path.starts_with(test)));
        for (path, mut file) in parsed {
            WithoutTests.visit_file_mut(&mut file);
            let path = path.strip_prefix(&root).unwrap();
            sources.push(Source {
                path: path.to_str().unwrap().to_owned(),
                imports: imports(&file),
                file,
            });
        }
    }
    assert!(sources.len() > 100, "only {} files found", sources.len());
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Whether an item exists only in tests: `#[cfg(test)]`, or also in those of
/// other crates: `#[cfg(any(test, feature = "testing"))]`.
fn is_test(attributes: &[Attribute]) -> bool {
    let conditions = ["test", "any (test , feature = \"testing\")"];
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<TokenStream>()
                .is_ok_and(|condition| conditions.contains(&&*condition.to_string()))
    })
}

/// Returns the files and folders of the modules that a file declares for tests.
fn test_modules(path: &Path, file: &File) -> Vec<PathBuf> {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let parent = path.parent().unwrap();
    let folder = match stem {
        "lib" | "main" | "mod" => parent.to_owned(),
        _ => parent.join(stem),
    };
    let modules = file.items.iter().filter_map(|item| match item {
        Item::Mod(module) if module.content.is_none() && is_test(&module.attrs) => {
            Some(module.ident.to_string())
        }
        _ => None,
    });
    modules
        .flat_map(|name| [folder.join(&name), folder.join(format!("{name}.rs"))])
        .collect()
}

/// Removes the items that exist only in tests.
struct WithoutTests;

impl VisitMut for WithoutTests {
    fn visit_file_mut(&mut self, file: &mut File) {
        file.items.retain(|item| !is_test(attributes(item)));
        visit_mut::visit_file_mut(self, file);
    }

    fn visit_item_mod_mut(&mut self, module: &mut syn::ItemMod) {
        if let Some((_, items)) = &mut module.content {
            items.retain(|item| !is_test(attributes(item)));
        }
        visit_mut::visit_item_mod_mut(self, module);
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Returns the full path of each imported name.
fn imports(file: &File) -> HashMap<String, Vec<String>> {
    struct Imports(HashMap<String, Vec<String>>);
    impl VisitMut for Imports {
        fn visit_item_use_mut(&mut self, item: &mut syn::ItemUse) {
            add_imports(&item.tree, &mut Vec::new(), &mut self.0);
        }
    }
    let mut imports = Imports(HashMap::new());
    imports.visit_file_mut(&mut file.clone());
    imports.0
}

fn add_imports(
    tree: &UseTree,
    prefix: &mut Vec<String>,
    imports: &mut HashMap<String, Vec<String>>,
) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            add_imports(&path.tree, prefix, imports);
            prefix.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                add_imports(tree, prefix, imports);
            }
        }
        UseTree::Name(name) => add_import(&name.ident, &name.ident, prefix, imports),
        UseTree::Rename(rename) => add_import(&rename.ident, &rename.rename, prefix, imports),
        UseTree::Glob(_) => {}
    }
}

/// Adds the import of `item` as `name`; `use a::{self}` imports `a`.
fn add_import(
    item: &syn::Ident,
    name: &syn::Ident,
    prefix: &[String],
    imports: &mut HashMap<String, Vec<String>>,
) {
    let mut path = prefix.to_vec();
    let mut name = name.to_string();
    if item == "self" {
        if name == "self" {
            name = prefix.last().unwrap().clone();
        }
    } else {
        path.push(item.to_string());
    }
    imports.insert(name, path);
}

impl Source {
    /// Returns all paths in the file, inside and outside of macros, with
    /// imported names replaced by what they stand for.
    fn paths(&self) -> HashSet<Vec<String>> {
        let mut paths = HashSet::new();
        add_paths(self.file.to_token_stream(), &mut paths);
        let resolved = paths.into_iter().map(|path| self.resolve(path));
        resolved.chain(self.imports.values().cloned()).collect()
    }

    fn resolve(&self, path: Vec<String>) -> Vec<String> {
        match self.imports.get(&path[0]) {
            Some(full) => full.iter().chain(&path[1..]).cloned().collect(),
            None => path,
        }
    }
}

/// Adds each sequence `a::b::c` of the tokens, also from within groups. A path
/// that is renamed by `as` ends with `as`: imports inside of macros are not
/// resolved.
fn add_paths(tokens: TokenStream, paths: &mut HashSet<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                if ident == "as" {
                    path.push("as".to_owned());
                }
                if colons != 2 && !path.is_empty() {
                    paths.insert(std::mem::take(&mut path));
                }
                if ident != "as" {
                    path.push(ident.to_string());
                }
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && colons < 2 => colons += 1,
            other => {
                if !path.is_empty() {
                    paths.insert(std::mem::take(&mut path));
                }
                colons = 0;
                if let TokenTree::Group(group) = other {
                    add_paths(group.stream(), paths);
                }
            }
        }
    }
    if !path.is_empty() {
        paths.insert(path);
    }
}

/// Returns a line for each path that `is_forbidden` in a file outside of
/// `allowed`.
fn violations(allowed: &[&str], is_forbidden: impl Fn(&[String]) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let sources = sources();
    let sources = sources.iter().filter(|source| {
        let is_allowed = |allowed: &&str| source.path.starts_with(*allowed);
        !allowed.iter().any(is_allowed)
    });
    for source in sources {
        let paths = source.paths();
        let forbidden = paths.into_iter().filter(|path| is_forbidden(path));
        found.extend(forbidden.map(|path| format!("{}: {}", source.path, path.join("::"))));
    }
    found
}

#[track_caller]
fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// Whether a path creates a `Status`, or what belongs to one: an associated
/// function of `Status` that is not a method. The status of a span of
/// OpenTelemetry is another one.
fn creates_status(path: &[String]) -> bool {
    if path.first().is_some_and(|name| name == "opentelemetry") {
        return false;
    }
    path.windows(2).any(|pair| {
        let [kind, function] = pair else { return false };
        kind == "Status" && function.starts_with(|c: char| c.is_lowercase())
    }) || path.iter().any(|name| name == "ErrorDetails")
}

/// Whether a path reads the command line or the environment.
fn reads_settings(path: &[String]) -> bool {
    let reads_environment = path.windows(2).any(|pair| {
        let [module, function] = pair else {
            return false;
        };
        let functions = ["var", "var_os", "vars", "vars_os", "args", "args_os"];
        module == "env" && functions.contains(&function.as_str())
    });
    reads_environment || path[0] == "clap"
}

#[test]
fn a_status_is_created_only_in_the_status_module() {
    assert_none(&violations(&["server/src/rpc/status/"], creates_status));
}

#[test]
fn only_the_settings_module_reads_flags_and_environment() {
    let allowed = ["server/src/config.rs", "server/src/config/"];
    assert_none(&violations(&allowed, reads_settings));
}

#[test]
fn the_comments_of_the_contract_fit_in_80_columns() {
    let folder = root().join("proto/charlstm/v1");
    let mut long = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.trim_start().starts_with("//") && line.chars().count() > 80);
        long.extend(lines.map(|(index, _)| format!("{}:{}", path.display(), index + 1)));
    }
    assert_none(&long);
}

#[test]
fn each_file_begins_with_what_it_contains() {
    for source in sources() {
        let has_doc = source.file.attrs.iter().any(|a| a.path().is_ident("doc"));
        assert!(has_doc, "{} has no module documentation", source.path);
    }
}

/// The rules see what a text search misses.
mod blind_spots {
    use super::*;

    fn source(text: &str) -> Source {
        let mut file = syn::parse_str::<File>(text).unwrap();
        WithoutTests.visit_file_mut(&mut file);
        Source {
            path: String::new(),
            imports: imports(&file),
            file,
        }
    }

    fn found(text: &str, rule: fn(&[String]) -> bool) -> bool {
        source(text).paths().iter().any(|path| rule(path))
    }

    #[test]
    fn a_status_is_found_in_macros_under_other_names_and_after_a_test_module() {
        for text in [
            "fn f() { g(Status::internal(x)); }",
            "fn f() { tonic::Status::new(a, b); }",
            "fn f() { matches!(x, y if ready!(Status :: not_found(\"\"))); }",
            "use tonic::Status as Reply; fn f() { Reply::aborted(x); }",
            "use tonic::{Code, Status as Reply}; fn f() { vec![Reply::aborted(x)]; }",
            "#[cfg(test)] mod tests; fn f() { Status::unknown(x); }",
            "fn f() { x.map_err(Status::internal); }",
            "fn f() { m!({ use tonic::Status as Reply; Reply::internal(x) }); }",
            "use tonic_types::ErrorDetails;",
        ] {
            assert!(found(text, creates_status), "{text}");
        }
    }

    #[test]
    fn a_status_that_is_only_received_or_tested_is_allowed() {
        for text in [
            "fn f(s: Status) -> Result<(), tonic::Status> { Err(s) }",
            "/// `Status::internal` is a doc comment.\nfn f() { g(\"Status::internal\"); }",
            "#[cfg(test)] mod tests { fn f() { Status::internal(x); } }",
            "mod inner { #[cfg(test)] fn f() { Status::internal(x); } }",
        ] {
            assert!(!found(text, creates_status), "{text}");
        }
    }

    #[test]
    fn the_environment_is_found_under_every_name() {
        for text in [
            "fn f() { std::env::var(\"A\"); }",
            "use std::env; fn f() { env::args_os(); }",
            "use std::{env as e}; fn f() { e::vars(); }",
            "use std::env::var as read; fn f() { read(\"A\"); }",
            "use std::env::{self}; fn f() { println!(\"{:?}\", env::var_os(x)); }",
            "use clap::Parser;",
        ] {
            assert!(found(text, reads_settings), "{text}");
        }
        for text in ["fn f() { env!(\"A\"); }", "use std::env::temp_dir;"] {
            assert!(!found(text, reads_settings), "{text}");
        }
    }
}
