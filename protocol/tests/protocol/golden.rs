//! Golden frames: the files in `testdata/` are the layout that other languages build against.
//! `UPDATE_GOLDEN=1` writes them anew.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use postrider_protocol::{
    api::{APIS, Direction},
    batch::{Batch, DecodeLimits},
    entry::EntryIter,
    frame::{Frame, FrameDecoder},
    message::{Deliver, Limits, Message, Publish},
    types::Compression,
};

use crate::samples::{self, Sample};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(16) {
        for (at, byte) in line.iter().enumerate() {
            let space = if at > 0 && at % 4 == 0 { " " } else { "" };
            write!(text, "{space}{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.bytes().filter(|byte| !byte.is_ascii_whitespace()))
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn file_text(sample: &Sample) -> String {
    let mut text = format!("# {}: the frame of this message\n", sample.name);
    for line in sample.shown.lines() {
        writeln!(text, "# {line}").unwrap();
    }
    text + &hex(&sample.frame)
}

fn golden(name: &str) -> Bytes {
    let path = folder().join(format!("{name}.hex"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; UPDATE_GOLDEN=1 writes it", path.display()));
    unhex(&text).into()
}

fn frame_in(bytes: &Bytes) -> Frame {
    let mut buffer = BytesMut::from(bytes.as_ref());
    let frame = FrameDecoder::new(u32::MAX).decode(&mut buffer).unwrap().unwrap();
    assert!(buffer.is_empty(), "a golden file holds one frame");
    frame
}

#[test]
fn messages_encode_to_their_golden_frames_and_back() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for sample in samples::all() {
        if update {
            let path = folder().join(format!("{}.hex", sample.name));
            std::fs::write(path, file_text(&sample)).unwrap();
        }
        let stored = golden(sample.name);
        // Another release of a codec may compress differently: those files bind readers only.
        let written_alike = !matches!(sample.name, "publish-lz4" | "publish-zstd" | "deliver");
        if written_alike {
            assert_eq!(hex(&sample.frame), hex(&stored), "{}", sample.name);
        }
        let (shown, again) = (sample.recode)(frame_in(&stored).body).unwrap();
        if written_alike {
            assert_eq!(shown, sample.shown, "{}", sample.name);
        }
        assert_eq!(hex(&again), hex(&stored[16..]), "{}", sample.name);
    }
}

#[test]
fn every_api_and_every_reply_has_a_golden_frame() {
    let covered: BTreeSet<_> = samples::all()
        .iter()
        .map(|sample| {
            let header = samples::frame_of(sample).header;
            (header.api, header.is_reply())
        })
        .collect();
    for info in APIS {
        assert!(covered.contains(&(info.api as u16, false)), "{}", info.name);
        let replied = covered.contains(&(info.api as u16, true));
        assert_eq!(replied, info.direction == Direction::Request, "reply of {}", info.name);
    }
}

#[test]
fn no_golden_file_is_left_over() {
    let known: BTreeSet<_> =
        samples::all().iter().map(|sample| format!("{}.hex", sample.name)).collect();
    for file in std::fs::read_dir(folder()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "{name} is no message's golden file");
    }
}

fn assert_holds_the_sample(batch: &Batch, compression: Compression) {
    let fields = batch.validate(&Limits::default()).unwrap();
    assert_eq!(fields.compression, compression);
    assert_eq!(fields.base_sequence, 40);
    let read: Vec<_> = batch
        .records(DecodeLimits::default())
        .unwrap()
        .map(|record| record.unwrap().record)
        .take(2)
        .collect();
    assert_eq!(read, samples::records());
}

#[test]
fn golden_batches_of_every_codec_are_read() {
    for (name, compression) in [
        ("publish", Compression::None),
        ("publish-lz4", Compression::Lz4),
        ("publish-zstd", Compression::Zstd),
    ] {
        let publish = Publish::decode(frame_in(&golden(name)).body).unwrap();
        assert_holds_the_sample(&publish.batch, compression);
        let fields = publish.batch.fields().unwrap();
        fields.check_head(&publish.head).unwrap();
    }
    let deliver = Deliver::decode(frame_in(&golden("deliver")).body).unwrap();
    let entries: Vec<_> = EntryIter::new(deliver.entries).map(Result::unwrap).collect();
    assert_eq!(entries.len(), 2);
    for (entry, compression) in entries.iter().zip([Compression::None, Compression::Lz4]) {
        entry.check_body().unwrap();
        assert_holds_the_sample(&Batch::of_entry(entry), compression);
    }
}
