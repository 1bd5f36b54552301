//! `docs/PROTOCOL.md` says what the code does: its tables are compared with the tables in the code.

use std::path::Path;

use postrider_protocol::{
    api::{APIS, Api},
    entry::EntryKind,
    error::{ErrorClass, ErrorCode},
    headers,
};

pub(crate) fn text() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md");
    std::fs::read_to_string(path).unwrap()
}

/// The lines of the tables whose header line begins with `header`.
fn rows(header: &str) -> Vec<Vec<String>> {
    let text = text();
    let mut lines = text.lines().skip_while(|line| !line.starts_with(header));
    assert!(lines.next().is_some(), "docs/PROTOCOL.md has no table {header}");
    lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

#[test]
fn the_api_table_lists_every_api() {
    let written: Vec<_> = rows("| api | name | direction |")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone(), row[2].clone()))
        .collect();
    let known: Vec<_> = APIS
        .iter()
        .map(|info| {
            let code = (info.api as u16).to_string();
            (code, info.name.to_owned(), info.direction.name().to_owned())
        })
        .collect();
    assert_eq!(written, known);
}

#[test]
fn the_error_table_lists_every_code() {
    let written: Vec<_> = rows("| code | name | class | retry |")
        .into_iter()
        .map(|row| [row[0].clone(), row[1].clone(), row[2].clone(), row[3].clone()])
        .collect();
    let known: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let class = match code.class() {
                ErrorClass::Rejected => "Rejected",
                ErrorClass::Unknown => "Unknown",
                ErrorClass::Duplicate | ErrorClass::Committed => {
                    panic!("{} is no error", code.name())
                }
            };
            let number = (*code as u16).to_string();
            [number, code.name().to_owned(), class.to_owned(), code.retry().name().to_owned()]
        })
        .collect();
    assert_eq!(written, known);
}

#[test]
fn the_kind_table_lists_every_entry_kind() {
    let written: Vec<_> =
        rows("| kind | name |").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let known: Vec<_> = EntryKind::ALL
        .iter()
        .map(|kind| ((*kind as u16).to_string(), format!("{kind:?}")))
        .collect();
    assert_eq!(written, known);
}

#[test]
fn the_header_table_lists_every_standard_header() {
    let written: Vec<_> =
        rows("| header | value |").into_iter().map(|row| row[0].clone()).collect();
    let known: Vec<_> = headers::STANDARD.iter().map(|name| format!("`{name}`")).collect();
    assert_eq!(written, known);
}

#[test]
fn numbers_lead_back_to_their_names() {
    for info in APIS {
        assert_eq!(Api::from_u16(info.api as u16), Some(info.api));
        assert_eq!(info.api.name(), info.name);
        assert_eq!(info.api.direction(), info.direction);
    }
    assert_eq!(Api::from_u16(0), None);
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_u16(*code as u16), Some(*code));
    }
    assert_eq!(ErrorCode::from_u16(0), None);
}

/// The document's word for a field's type.
fn written_type(rust: &str) -> String {
    let inside = |prefix: &str| {
        rust.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>')).map(written_type)
    };
    if let Some(item) = inside("Vec<") {
        return format!("list of {item}");
    }
    if let Some(value) = inside("Option<") {
        return format!("option of {value}");
    }
    if let Some((a, b)) = rust.trim_matches(['(', ')']).split_once(", ") {
        return format!("({}, {})", written_type(a), written_type(b));
    }
    let word = match rust {
        "ClusterId" | "MemberId" | "StorageId" | "TopicId" | "SubscriptionId" | "[u8; 16]" => {
            "16 bytes"
        }
        "LeaderEpoch" | "NodeId" | "PartitionId" | "SubscriptionHandle" => "u32",
        "EntryIndex" | "Incarnation" | "Offset" | "TimestampMs" => "u64",
        "ProducerEpoch" => "u16",
        "ProducerId" => "i64",
        "String" => "string",
        "Bytes" => "bytes",
        "RaftKind" => "raft kind",
        "TopicKind" => "kind",
        "Durability" => "durability",
        "ErrorCode" => "error code",
        "Expired" => "expired",
        "Overflow" => "overflow",
        "GapReason" => "gap reason",
        "SettleProblem" => "settle problem",
        "CancelVerdict" => "cancel verdict",
        "ReturnAction" => "return action",
        other => other,
    };
    word.to_owned()
}

/// The structs with fields in declaration order, as the source has them.
fn structs(source: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<_>)> = Vec::new();
    for line in source.lines().map(str::trim) {
        let Some(item) = line.strip_prefix("pub ") else { continue };
        if let Some(name) = item.strip_prefix("struct ").filter(|name| !name.starts_with('$')) {
            found.push((name.split(' ').next().unwrap().to_owned(), Vec::new()));
        } else if let Some((field, rust)) = item.split_once(": ").filter(|(f, _)| !f.contains(' '))
        {
            let (_, fields) = found.last_mut().unwrap();
            fields.push((field.to_owned(), written_type(rust.trim_end_matches(','))));
        }
    }
    found
}

#[test]
fn the_document_lists_every_field_of_every_message_in_order() {
    let document = text();
    let mut structs_seen = 0;
    for file in [
        "hello",
        "metadata",
        "topic",
        "bounds",
        "delay",
        "subscribe",
        "subscription",
        "queue",
        "run",
        "group",
        "peer",
        "replica",
    ] {
        let path = format!("{}/src/message/{file}.rs", env!("CARGO_MANIFEST_DIR"));
        for (name, fields) in structs(&std::fs::read_to_string(path).unwrap()) {
            structs_seen += 1;
            let heading = format!("\n### {name}\n");
            let (_, section) =
                document.split_once(&heading).unwrap_or_else(|| panic!("no section {name}"));
            let section = section.split("\n#").next().unwrap();
            let written: Vec<_> = section
                .lines()
                .filter(|line| line.starts_with("| ") && !line.starts_with("| field |"))
                .map(|line| {
                    let mut cells = line.trim_matches('|').split('|').map(str::trim);
                    (cells.next().unwrap().to_owned(), cells.next().unwrap().to_owned())
                })
                .collect();
            assert_eq!(written, fields, "{name}");
        }
    }
    assert!(structs_seen >= 70, "the sources are read: {structs_seen}");
}
