//! Rules of the tree that no compiler checks.
//!
//! Owns: layering, file headers and sizes, where `unsafe` may stand, words that must not stay.
//! Reads the source tree as text; never builds or runs anything.

#![allow(clippy::unwrap_used, reason = "a check that cannot read the tree must fail")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Lines of one source file above which two nouns probably live in it.
const FILE_LINES_MAX: usize = 1_000;

/// The only files that may hold `unsafe`.
const UNSAFE_FILES: [&str; 3] =
    ["broker/storage/src/disk_os.rs", "broker/storage/src/map.rs", "broker/src/sys.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the tree").into()
}

/// Every file with the ending below the tree's own folders, with its path from the root.
fn files(ending: &str) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    let mut waiting = vec![root.clone()];
    while let Some(dir) = waiting.pop() {
        for item in std::fs::read_dir(&dir).unwrap() {
            let path = item.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                let skipped = name.starts_with("target") || name == ".git" || name == "corpus";
                if !skipped && !path.is_symlink() {
                    waiting.push(path);
                }
            } else if name.ends_with(ending) {
                let shown = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                found.push((shown, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {ending} files below {}", root.display());
    found
}

fn sources() -> Vec<(String, String)> {
    files(".rs")
}

/// A line without its comment; good enough for the words looked for here.
fn code(line: &str) -> &str {
    line.find("//").map_or(line, |at| &line[..at])
}

/// Fails with every complaint at once, so that one run shows all there is to do.
fn report(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Dependencies (without those for tests) that a package names, by package name.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for (path, text) in files("Cargo.toml") {
        let manifest: toml::Table = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        let Some(package) = manifest.get("package") else { continue };
        let name = package["name"].as_str().unwrap().to_string();
        let table = manifest.get("dependencies").and_then(|table| table.as_table());
        let names = table.map(|table| table.keys().cloned().collect()).unwrap_or_default();
        all.insert(name, names);
    }
    all
}

#[test]
fn packages_depend_only_downwards() {
    let ours = [
        ("postrider-protocol", &[][..]),
        ("postrider-core", &["postrider-protocol"]),
        ("postrider-storage", &["postrider-protocol"]),
        ("postrider-broker", &["postrider-protocol", "postrider-core", "postrider-storage"]),
        ("postrider", &["postrider-protocol"]),
    ];
    let all = dependencies();
    let mut complaints = Vec::new();
    for (package, allowed) in ours {
        for dependency in &all[package] {
            if dependency.starts_with("postrider") && !allowed.contains(&dependency.as_str()) {
                complaints.push(format!("{package} must not depend on {dependency}"));
            }
        }
    }
    report(&complaints);
}

#[test]
fn decisions_and_storage_know_no_runtime() {
    let all = dependencies();
    let mut complaints = Vec::new();
    for package in ["postrider-protocol", "postrider-core", "postrider-storage"] {
        for banned in ["tokio", "tokio-util", "hyper", "socket2", "getrandom", "futures-util"] {
            if all[package].iter().any(|dependency| dependency == banned) {
                complaints.push(format!("{package} must not depend on {banned}"));
            }
        }
    }
    report(&complaints);
}

#[test]
fn join_and_client_core_take_time_and_io_from_outside() {
    let banned =
        ["tokio", "Instant::now", "SystemTime::now", "std::net::", "std::fs::", "getrandom"];
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        if !path.starts_with("broker/src/join") && !path.starts_with("client/src/core") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for word in banned.iter().filter(|word| code(line).contains(*word)) {
                complaints.push(format!("{path}:{}: {word} belongs to the shell", number + 1));
            }
        }
    }
    report(&complaints);
}

#[test]
fn every_source_file_opens_with_what_it_is_for() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or("");
        if !first.starts_with("//!") {
            complaints.push(format!("{path}: open with `//!`: owns, never does, who drives it"));
        }
    }
    report(&complaints);
}

#[test]
fn source_files_stay_readable() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            complaints.push(format!("{path}: {lines} lines: which two nouns live here?"));
        }
        for (number, line) in text.lines().enumerate() {
            if line.ends_with(' ') || line.contains('\t') {
                complaints.push(format!("{path}:{}: tab or trailing space", number + 1));
            }
        }
    }
    report(&complaints);
}

#[test]
fn unsafe_code_stands_only_in_the_files_made_for_it() {
    // Assembled, so that this file does not find itself.
    let word = ["un", "safe"].concat();
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        if UNSAFE_FILES.contains(&path.as_str()) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = code(line);
            let opens = [" {", " fn", " impl", " extern"].iter();
            if opens.clone().any(|rest| code.contains(&format!("{word}{rest}"))) {
                complaints.push(format!("{path}:{}: {word} is not allowed here", number + 1));
            }
        }
    }
    report(&complaints);
}

#[test]
fn nothing_unfinished_or_evasive_stays() {
    let banned = [
        (["to", "do!("].concat(), "unfinished"),
        (["unimpl", "emented!("].concat(), "unfinished"),
        (["FIX", "ME"].concat(), "unfinished"),
        (["XX", "X"].concat(), "unfinished"),
        (["#[ign", "ore"].concat(), "a test that does not run proves nothing"),
        (["cfg!(te", "st)"].concat(), "tests run the production code"),
        (["allow(dead", "_code)"].concat(), "remove what nobody uses"),
        (["allow(clip", "py::all)"].concat(), "name the lint and the reason"),
    ];
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for (word, why) in &banned {
                if line.contains(word.as_str()) {
                    complaints.push(format!("{path}:{}: {word}: {why}", number + 1));
                }
            }
        }
    }
    report(&complaints);
}

#[test]
fn tests_wait_for_conditions_and_not_for_time() {
    let sleeps = [["thread::sl", "eep("].concat(), ["time::sl", "eep("].concat()];
    // Polling a condition of another process needs a pause between two looks; it lives in one place.
    let exempt = ["tests/src/process.rs"];
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let in_tests = path.starts_with("tests/") || path.contains("/tests/");
        if !in_tests || exempt.contains(&path.as_str()) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if sleeps.iter().any(|word| code(line).contains(word.as_str())) {
                complaints.push(format!("{path}:{}: wait for a condition instead", number + 1));
            }
        }
    }
    report(&complaints);
}

#[test]
fn documents_point_to_files_that_exist() {
    let root = root();
    let mut complaints = Vec::new();
    for (path, text) in files(".md") {
        let dir = root.join(&path);
        let dir = dir.parent().expect("a file lies in a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or("");
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !dir.join(target).exists() {
                complaints.push(format!("{path}: {link} does not exist"));
            }
        }
    }
    report(&complaints);
}

#[test]
fn every_property_has_a_test_that_exists() {
    let sources: BTreeMap<String, String> = sources().into_iter().collect();
    let table = std::fs::read_to_string(root().join("docs/PROPERTIES.md")).unwrap();
    let mut complaints = Vec::new();
    let mut letters = Vec::new();
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| |");
    for line in table.lines().filter(is_row) {
        letters.extend(line.split(' ').nth(1));
        let named: Vec<&str> = line.split('`').filter(|part| part.contains("::")).collect();
        if named.is_empty() && line.contains(" | ") && !line.starts_with("| checker") {
            complaints.push(format!("no test is named: {line}"));
        }
        for name in named {
            let (file, test) = name.split_once("::").unwrap();
            let text = sources.get(file).map_or("", String::as_str);
            if !text.contains(&format!("fn {test}(")) {
                complaints.push(format!("{name} does not exist"));
            }
        }
    }
    let wanted = [('B', 1..=12), ('C', 1..=4), ('D', 1..=6)];
    for (letter, numbers) in wanted {
        for number in numbers {
            let property = format!("{letter}{number}");
            if !letters.contains(&property.as_str()) {
                complaints.push(format!("{property} stands in no table"));
            }
        }
    }
    report(&complaints);
}

#[test]
fn decisions_are_numbered_without_a_gap() {
    let mut names: Vec<String> = std::fs::read_dir(root().join("docs/decisions"))
        .unwrap()
        .map(|item| item.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    for (number, name) in names.iter().enumerate() {
        assert!(name.starts_with(&format!("{:04}-", number + 1)), "{name} breaks the numbering");
    }
}
