//! Every file in this folder is a module of the test program: a file that is
//! forgotten in `main.rs` would silently not run.

use std::collections::BTreeSet;
use std::fs;

use crate::support::root;

#[test]
fn every_test_file_is_a_module_of_the_test_program() {
    let folder = root().join("tests");
    let main = fs::read_to_string(folder.join("main.rs")).unwrap();
    let main = syn::parse_file(&main).unwrap();
    let declared: BTreeSet<String> = main
        .items
        .iter()
        .filter_map(|item| match item {
            syn::Item::Mod(module) if module.content.is_none() => Some(module.ident.to_string()),
            _ => None,
        })
        .collect();

    let files: BTreeSet<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .chain(["support".to_owned()])
        .filter(|name| name != "main")
        .collect();
    assert_eq!(declared, files);
}
