//! What each crate must not depend on, directly or through another crate. The
//! rest of the layering is enforced by the compiler.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Node, PackageId, TargetKind};

use crate::support::root;

/// The crates of the workspace, and what each of them must not depend on; `!`
/// excepts a crate. A new crate must be added here.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("charlstm-proto", &["tch", "charlstm-*"]),
    (
        "charlstm-model",
        &[
            "tch",
            "tokio",
            "tonic",
            "prost",
            "charlstm-*",
            "!charlstm-int8",
        ],
    ),
    (
        "charlstm-int8",
        &["tch", "tokio", "tonic", "prost", "charlstm-*"],
    ),
    (
        "charlstm-bptt",
        &[
            "tch",
            "tokio",
            "tonic",
            "prost",
            "charlstm-*",
            "!charlstm-model",
            "!charlstm-int8",
        ],
    ),
    ("charlstm-cuda", &["tch", "tokio", "tonic", "prost"]),
    ("charlstm-torch", &["tokio", "tonic", "prost"]),
    ("charlstm-store", &["tch", "tonic", "prost"]),
    ("charlstm-repository", &["tch", "tonic", "prost"]),
    (
        "charlstm-engine",
        &["tch", "tonic", "prost", "charlstm-training"],
    ),
    (
        "charlstm-training",
        &["tch", "tonic", "prost", "charlstm-engine"],
    ),
    (
        "charlstm-replicas",
        &["tch", "tonic", "prost", "charlstm-engine"],
    ),
    ("charlstm-client", &["tch", "charlstm-server"]),
    ("charlstm-server", &["charlstm-client"]),
];

fn metadata() -> Metadata {
    let host = String::from_utf8(
        std::process::Command::new("rustc")
            .args(["--print", "host-tuple"])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    MetadataCommand::new()
        .current_dir(root())
        .other_options([
            "--offline".to_owned(),
            "--all-features".to_owned(),
            // Without it, packages of other systems would have to be there.
            format!("--filter-platform={}", host.trim()),
        ])
        .exec()
        .unwrap()
}

/// Returns the names of everything that a package depends on when it is built
/// as a library or a program: not for tests, and not at build time.
fn dependencies(metadata: &Metadata, package: &PackageId) -> BTreeSet<String> {
    let nodes = &metadata.resolve.as_ref().unwrap().nodes;
    let nodes: HashMap<&PackageId, &Node> = nodes.iter().map(|node| (&node.id, node)).collect();
    let mut found = BTreeMap::new();
    let mut unvisited = vec![package];
    while let Some(id) = unvisited.pop() {
        for dependency in &nodes[id].deps {
            let kinds = &dependency.dep_kinds;
            let is_normal = kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
            let name = metadata[&dependency.pkg].name.to_string();
            if is_normal && found.insert(&dependency.pkg, name).is_none() {
                unvisited.push(&dependency.pkg);
            }
        }
    }
    found.into_values().collect()
}

fn matches(name: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

#[test]
fn no_crate_depends_on_what_it_must_not() {
    let metadata = metadata();
    let mut violations = Vec::new();
    for package in metadata.workspace_packages() {
        let rule = FORBIDDEN.iter().find(|(name, _)| package.name == name);
        let (name, forbidden) =
            rule.unwrap_or_else(|| panic!("no rule for the crate {}", package.name));
        for dependency in dependencies(&metadata, &package.id) {
            let is_excepted = forbidden
                .iter()
                .any(|pattern| pattern.strip_prefix('!') == Some(&*dependency));
            if !is_excepted
                && forbidden
                    .iter()
                    .any(|pattern| matches(&dependency, pattern))
            {
                violations.push(format!("{name} depends on {dependency}"));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn only_the_torch_crate_uses_libtorch() {
    let metadata = metadata();
    let users: BTreeSet<&str> = metadata
        .workspace_packages()
        .into_iter()
        .filter(|package| package.dependencies.iter().any(|d| d.name == "tch"))
        .map(|package| package.name.as_str())
        .collect();
    assert_eq!(users, BTreeSet::from(["charlstm-torch"]));
}

#[test]
fn the_server_depends_on_libtorch_only_with_its_feature_torch() {
    let metadata = metadata();
    let packages = metadata.workspace_packages();
    let server = packages.iter().find(|p| p.name == "charlstm-server");
    for dependency in &server.unwrap().dependencies {
        if matches!(dependency.name.as_str(), "charlstm-torch" | "torch-sys") {
            assert!(dependency.optional, "{}", dependency.name);
        }
    }
}

#[test]
fn every_benchmark_is_registered_in_a_manifest() {
    let metadata = metadata();
    let registered: BTreeSet<_> = metadata
        .workspace_packages()
        .iter()
        .flat_map(|package| &package.targets)
        .filter(|target| target.kind.contains(&TargetKind::Bench))
        .map(|target| target.src_path.file_name().unwrap().to_owned())
        .collect();
    for entry in std::fs::read_dir(root().join("benches")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(registered.contains(&name), "benches/{name} never runs");
    }
}
