//! The web page in headless Chromium, by `tests/browser`.

use std::process::Command;

use crate::support::process::run;
use crate::support::tools::{chromium, page_modules};

#[test]
fn the_page_trains_writes_forks_scores_and_survives_reloads_and_crashes() {
    let (Some(modules), Some(chromium)) = (page_modules(), chromium()) else {
        return;
    };
    let playwright = modules.join("playwright-core/index.mjs");
    run(Command::new("node")
        .args([
            "--test",
            "--test-reporter=spec",
            "tests/browser/page.test.mjs",
        ])
        .env("CHARLSTM_SERVER", env!("CARGO_BIN_EXE_charlstm-server"))
        .env("PLAYWRIGHT", playwright)
        .env("CHROMIUM", chromium));
}
