//! docs/OPERATIONS.md holds the tables of the code: keys and metrics. `UPDATE_DOCS=1` writes them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use postrider_broker::{Config, metrics};

/// The text with the part between the markers replaced.
fn generated(text: &str, name: &str, content: &str) -> String {
    let start = format!("<!-- generated: {name} -->\n");
    let (before, rest) = text.split_once(&start).expect("the marker is there");
    let (_, after) = rest.split_once("<!-- end -->").expect("the end marker is there");
    format!("{before}{start}\n{}\n\n<!-- end -->{after}", content.trim())
}

#[test]
fn operations_has_every_key_and_every_metric() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
    let present = std::fs::read_to_string(path).unwrap();
    let wanted = generated(&present, "configuration", &Config::document());
    let wanted = generated(&wanted, "metrics", &metrics::document());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    } else {
        let hint = "docs/OPERATIONS.md is not up to date: run this test with UPDATE_DOCS=1";
        assert!(present == wanted, "{hint}");
    }
}
