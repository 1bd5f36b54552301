//! Owns reading the input of `pub` in large chunks on a thread of its own, because reads of files and
//! pipes block. Never cuts lines.
//!
//! At most [`CHUNKS_MAX`] chunks wait: the reader pauses at the bound until they are published.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_MAX: usize = 2;

/// The chunks of an input, in order.
pub(crate) struct Input {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    /// Length of the input, if it is a file.
    pub(crate) bytes: Option<u64>,
}

impl Input {
    /// Opens a file, or standard input for none and for `-`.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        match path {
            Some(path) if path.as_os_str() != "-" => {
                let file = File::open(path)?;
                let metadata = file.metadata()?;
                if metadata.is_dir() {
                    return Err(io::Error::from(io::ErrorKind::IsADirectory));
                }
                let bytes = metadata.is_file().then_some(metadata.len());
                Self::read(file, bytes)
            }
            _ => Self::read(io::stdin(), None),
        }
    }

    fn read(source: impl Read + Send + 'static, bytes: Option<u64>) -> io::Result<Self> {
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        // Not joined: a read of a terminal or pipe may never end. It ends with the process.
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || read_all(source, &sender))?;
        Ok(Self { chunks, bytes })
    }

    /// The next chunk, as large as was there to read; none at the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.chunks.recv().await.transpose()
    }
}

fn read_all(mut source: impl Read, sender: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = BytesMut::zeroed(CHUNK_BYTES);
        let read = loop {
            match source.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let (item, last) = match read {
            Ok(0) => return,
            Ok(length) => {
                chunk.truncate(length);
                (Ok(chunk.freeze()), false)
            }
            Err(error) => (Err(error), true),
        };
        if sender.blocking_send(item).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_in_chunks() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("file");
        let text: Vec<u8> = (0..=250).cycle().take(5 * CHUNK_BYTES / 2).collect();
        std::fs::write(&path, &text).expect("writes");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let read = runtime.block_on(async {
            let mut input = Input::open(Some(&path)).expect("opens");
            assert_eq!(input.bytes, Some(text.len() as u64));
            let mut read = Vec::new();
            while let Some(chunk) = input.next().await.expect("reads") {
                read.extend_from_slice(&chunk);
            }
            read
        });
        assert!(read == text);
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(Input::open(Some(dir.path())).is_err());
        assert!(Input::open(Some(&dir.path().join("missing"))).is_err());
    }
}
