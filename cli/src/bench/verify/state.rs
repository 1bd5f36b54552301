//! Owns the state file of `bench verify`: what was acknowledged. Append-only text, written with plain
//! writes often enough that a killed load tool loses little, and synced at the end. Knows no broker.
//!
//! ```text
//! postrider-verify 1 .
//! run <id> <topic> .                                     what follows belongs to this run
//! ack <producer> <partition> <first> <count> <offset> .  acknowledged at offset, offset+1, ...
//! reject <producer> <partition> <first> <count> .        the broker said: not stored
//! unknown <producer> <partition> <first> <count> .       the outcome is not known
//! end <sent> .                                           the run ended by itself
//! ```
//! A line counts only if it ends with ` .`: a line that a crash tore does not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use super::{Span, Stream};

const TITLE: &str = "postrider-verify 1 .";

/// How much is buffered before a write. A flush writes the rest.
const BUFFER_BYTES: usize = 64 << 10;

/// How one message ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    Acked { offset: u64 },
    Rejected,
    Unknown,
}

/// Writes the file during a run. Holds at most one open span per stream.
pub(crate) struct StateWriter {
    file: File,
    buffer: String,
    open: BTreeMap<Stream, (Ending, Span)>,
}

impl StateWriter {
    /// Starts a run at the end of the file, which is created if it is not there. The run is on disk when
    /// this returns. Fails with `WouldBlock` if another run holds the file.
    pub(crate) fn begin(path: &Path, run: u64, topic: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        file.try_lock().map_err(io::Error::from)?;
        let mut buffer = String::new();
        let length = file.seek(io::SeekFrom::End(0))?;
        if length == 0 {
            buffer.push_str(TITLE);
        }
        // Ends whatever line a crash left unfinished.
        buffer.push('\n');
        buffer.push_str(&format!("run {run:016x} {topic} .\n"));
        file.write_all(buffer.as_bytes())?;
        file.sync_all()?;
        buffer.clear();
        Ok(Self { file, buffer, open: BTreeMap::new() })
    }

    /// Records how a message ended.
    pub(crate) fn record(
        &mut self,
        stream: Stream,
        sequence: u64,
        ending: Ending,
    ) -> io::Result<()> {
        let offset = match ending {
            Ending::Acked { offset } => offset,
            // A span needs an offset; these follow the sequence so that they merge.
            Ending::Rejected | Ending::Unknown => sequence,
        };
        let fresh = Span { first: sequence, count: 1, base_offset: offset };
        if let Some((open_ending, span)) = self.open.get_mut(&stream) {
            let same_kind = std::mem::discriminant(open_ending) == std::mem::discriminant(&ending);
            if same_kind && span.extend(sequence, offset) {
                return Ok(());
            }
            let (ended, span) = (*open_ending, *span);
            Self::put(&mut self.buffer, stream, ended, span);
        }
        self.open.insert(stream, (ending, fresh));
        if self.buffer.len() >= BUFFER_BYTES { self.write() } else { Ok(()) }
    }

    fn put(buffer: &mut String, stream: Stream, ending: Ending, span: Span) {
        let Stream { producer, partition } = stream;
        let Span { first, count, base_offset } = span;
        // Writing to a String cannot fail.
        match ending {
            Ending::Acked { .. } => {
                writeln!(buffer, "ack {producer} {partition} {first} {count} {base_offset} .")
            }
            Ending::Rejected => writeln!(buffer, "reject {producer} {partition} {first} {count} ."),
            Ending::Unknown => writeln!(buffer, "unknown {producer} {partition} {first} {count} ."),
        }
        .unwrap_or(());
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all(self.buffer.as_bytes())?;
        self.buffer.clear();
        Ok(())
    }

    /// Hands everything recorded so far to the kernel, so that it survives the end of this process.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        for (stream, (ending, span)) in std::mem::take(&mut self.open) {
            Self::put(&mut self.buffer, stream, ending, span);
        }
        if self.buffer.is_empty() { Ok(()) } else { self.write() }
    }

    /// Ends the run and syncs the file.
    pub(crate) fn end(mut self, sent: u64) -> io::Result<()> {
        self.flush()?;
        self.file.write_all(format!("end {sent} .\n").as_bytes())?;
        self.file.sync_all()
    }
}

/// What a state file says, by run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) runs: BTreeMap<u64, RunRecord>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RunRecord {
    pub(crate) topic: String,
    /// The run ended by itself: every message that it sent has an ending.
    pub(crate) ended: bool,
    pub(crate) streams: BTreeMap<Stream, StreamRecord>,
}

/// In the order of the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct StreamRecord {
    pub(crate) acked: Vec<Span>,
    pub(crate) rejected: Vec<Span>,
    pub(crate) unknown: Vec<Span>,
}

impl StreamRecord {
    /// One past the highest sequence with an ending.
    pub(crate) fn end(&self) -> u64 {
        let spans = self.acked.iter().chain(&self.rejected).chain(&self.unknown);
        spans.map(Span::end).max().unwrap_or(0)
    }
}

/// Why a state file cannot be used.
#[derive(Debug)]
pub(crate) enum StateError {
    Io(io::Error),
    /// It is not a state file.
    Foreign,
    /// A whole line makes no sense.
    Line {
        line: usize,
        text: String,
    },
}

/// Reads a state file.
pub(crate) fn read(path: &Path) -> Result<Recorded, StateError> {
    let mut text = String::new();
    File::open(path).and_then(|mut file| file.read_to_string(&mut text)).map_err(StateError::Io)?;
    parse(&text)
}

fn parse(text: &str) -> Result<Recorded, StateError> {
    let mut recorded = Recorded::default();
    let mut run = None;
    if text.lines().next() != Some(TITLE) {
        return Err(StateError::Foreign);
    }
    for (at, line) in text.lines().enumerate().skip(1) {
        let Some(whole) = line.strip_suffix(" .") else { continue };
        let wrong = || StateError::Line { line: at + 1, text: line.to_owned() };
        let mut words = whole.split(' ');
        let verb = words.next().unwrap_or_default();
        if verb == "run" {
            let id = words.next().and_then(|id| u64::from_str_radix(id, 16).ok());
            let (Some(id), Some(topic)) = (id, words.next()) else { return Err(wrong()) };
            let record = RunRecord { topic: topic.to_owned(), ..RunRecord::default() };
            recorded.runs.insert(id, record);
            run = Some(id);
            continue;
        }
        let current = run.and_then(|id| recorded.runs.get_mut(&id)).ok_or_else(wrong)?;
        let numbers: Vec<u64> =
            words.map(str::parse).collect::<Result<_, _>>().map_err(|_err| wrong())?;
        line_of_run(current, verb, &numbers).ok_or_else(wrong)?;
    }
    Ok(recorded)
}

fn line_of_run(run: &mut RunRecord, verb: &str, numbers: &[u64]) -> Option<()> {
    if verb == "end" {
        run.ended = true;
        return Some(());
    }
    let (&[producer, partition, first, count], rest) = numbers.split_first_chunk::<4>()?;
    let stream = Stream {
        producer: u32::try_from(producer).ok()?,
        partition: u32::try_from(partition).ok()?,
    };
    let record = run.streams.entry(stream).or_default();
    match (verb, rest) {
        ("ack", &[base_offset]) => record.acked.push(Span { first, count, base_offset }),
        ("reject", []) => record.rejected.push(Span { first, count, base_offset: 0 }),
        ("unknown", []) => record.unknown.push(Span { first, count, base_offset: 0 }),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Stream = Stream { producer: 0, partition: 0 };
    const B: Stream = Stream { producer: 1, partition: 2 };

    #[test]
    fn what_was_recorded_comes_back_merged() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state");
        let mut writer = StateWriter::begin(&path, 7, "t").expect("begins");
        for n in 0..100 {
            writer.record(A, n, Ending::Acked { offset: 2 * 50 + n }).expect("records");
        }
        writer.record(A, 100, Ending::Rejected).expect("records");
        writer.record(A, 101, Ending::Rejected).expect("records");
        writer.record(B, 0, Ending::Unknown).expect("records");
        writer.end(103).expect("ends");
        let mut writer = StateWriter::begin(&path, 8, "t").expect("begins again");
        writer.record(A, 0, Ending::Acked { offset: 200 }).expect("records");
        writer.flush().expect("flushes");

        let recorded = read(&path).expect("reads");
        let first = &recorded.runs[&7];
        assert!(first.ended && first.topic == "t");
        assert_eq!(first.streams[&A].acked, [Span { first: 0, count: 100, base_offset: 100 }]);
        assert_eq!(first.streams[&A].rejected, [Span { first: 100, count: 2, base_offset: 0 }]);
        assert_eq!(first.streams[&B].unknown, [Span { first: 0, count: 1, base_offset: 0 }]);
        assert!(!recorded.runs[&8].ended);
    }

    #[test]
    fn a_torn_line_is_ignored_and_ended_by_the_next_run() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state");
        let mut writer = StateWriter::begin(&path, 1, "t").expect("begins");
        writer.record(A, 0, Ending::Acked { offset: 812_345 }).expect("records");
        writer.flush().expect("flushes");
        drop(writer);
        let text = std::fs::read_to_string(&path).expect("reads");
        let full = parse(&text).expect("parses");
        for length in text.find("ack").expect("there")..text.len() - 1 {
            std::fs::write(&path, &text[..length]).expect("writes");
            drop(StateWriter::begin(&path, 2, "t").expect("begins again"));
            let recorded = read(&path).expect("reads");
            assert_eq!(recorded.runs.len(), 2);
            assert!(recorded.runs[&1].streams.is_empty() || recorded.runs[&1] == full.runs[&1]);
        }
    }

    #[test]
    fn one_run_at_a_time() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state");
        let _writer = StateWriter::begin(&path, 1, "t").expect("begins");
        let second = StateWriter::begin(&path, 2, "t").map(|_| ()).expect_err("held");
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn other_files_and_wrong_lines_are_refused() {
        assert!(matches!(parse("hello\n"), Err(StateError::Foreign)));
        for line in
            ["ack 0 0 0 1 0 .", "run zz t .", "run 1 t .\nack 1 .", "run 1 t .\nfoo 1 2 3 4 ."]
        {
            let text = format!("{TITLE}\n{line}\n");
            assert!(matches!(parse(&text), Err(StateError::Line { .. })), "{line}");
        }
    }
}
