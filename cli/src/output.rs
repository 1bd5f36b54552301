//! Owns the two output streams: what a command prints and how tables look. Never formats messages.
//!
//! Results go to standard output, everything else (progress, closing lines, errors) to standard error,
//! so that pipes carry results alone.

use std::io::{self, Write};

use crate::exit::{Failure, Outcome};

/// How administrative commands print their result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum TableFormat {
    /// Aligned columns for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON object per line.
    Ndjson,
}

/// Writes one line to standard error. A closed standard error is no reason to fail.
pub(crate) fn note(line: impl std::fmt::Display) {
    // A note that nobody can read is dropped.
    writeln!(io::stderr().lock(), "{line}").unwrap_or(());
}

/// Writes text to standard output.
///
/// A reader that went away (`| head`) is a clean end and not an error.
pub(crate) fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush())).map(|_| ())
}

/// Whether the reader of standard output is still there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reader {
    Present,
    Gone,
}

/// Judges the result of a write to standard output.
pub(crate) fn written(result: io::Result<()>) -> Outcome<Reader> {
    match result {
        Ok(()) => Ok(Reader::Present),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::failed(format!("cannot write to standard output: {error}"))
            .next("check the disk or program that the output goes to")),
    }
}

/// Lays out rows under a header in aligned columns, two spaces apart. Numbers are aligned right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    let mut numeric = vec![!rows.is_empty(); header.len()];
    for row in rows {
        for ((cell, width), numeric) in row.iter().zip(&mut widths).zip(&mut numeric) {
            *width = (*width).max(cell.chars().count());
            *numeric &= cell.starts_with(|c: char| c.is_ascii_digit()) || cell == "-";
        }
    }
    let mut text = String::new();
    let header = header.iter().map(|cell| cell.to_uppercase()).collect::<Vec<_>>();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for ((cell, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            if *numeric {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Renders JSON objects in the given format; `Table` is the caller's business.
pub(crate) fn json_lines(format: TableFormat, values: &[serde_json::Value]) -> String {
    match format {
        TableFormat::Ndjson => values.iter().map(|value| format!("{value}\n")).collect(),
        TableFormat::Json | TableFormat::Table => {
            format!("{:#}\n", serde_json::Value::Array(values.to_vec()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_words_left_and_numbers_right() {
        let rows = [vec!["orders".into(), "3".into()], vec!["a".into(), "12".into()]];
        assert_eq!(table(&["name", "n"], &rows), "NAME     N\norders   3\na       12\n");
    }

    #[test]
    fn a_gone_reader_is_not_an_error() {
        let gone = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(written(Err(gone)), Ok(Reader::Gone));
        assert!(written(Err(io::Error::from(io::ErrorKind::StorageFull))).is_err());
    }
}
