//! Names of files in a data directory. Numbers never change while a file lives; a recycled file keeps
//! its name.

/// Directory of segment files.
pub const SEGMENTS: &str = "segments";
/// Directory of journal files.
pub const JOURNAL: &str = "journal";
/// Directory of snapshot packs.
pub const SNAPSHOTS: &str = "snapshots";
/// How many manifest slots there are.
pub const MANIFEST_SLOTS: usize = 3;

/// Path of a segment file.
#[must_use]
pub fn segment(file: u32) -> String {
    format!("{SEGMENTS}/{file:08x}.seg")
}

/// Path of a journal file.
#[must_use]
pub fn journal(file: u32) -> String {
    format!("{JOURNAL}/{file:08x}.wal")
}

/// Path of a snapshot pack.
#[must_use]
pub fn pack(file: u32) -> String {
    format!("{SNAPSHOTS}/{file:08x}.pack")
}

/// Path of a manifest slot.
#[must_use]
pub fn manifest(slot: usize) -> String {
    format!("manifest.{slot}")
}

/// The number in a file name with the given ending (`seg`, `wal`, `pack`); none if it is not ours.
#[must_use]
pub fn number(name: &str, ending: &str) -> Option<u32> {
    let (stem, found) = name.split_once('.')?;
    let lower = stem.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if found != ending || stem.len() != 8 || !lower {
        return None;
    }
    u32::from_str_radix(stem, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for file in [0, 1, 0xdead_beef, u32::MAX] {
            let path = segment(file);
            let name = path.strip_prefix("segments/").unwrap();
            assert_eq!(number(name, "seg"), Some(file));
            assert_eq!(number(name, "wal"), None);
        }
        assert_eq!(number("0000000G.seg", "seg"), None);
        assert_eq!(number("00000000.seg.tmp", "seg"), None);
        assert_eq!(number("0000000A.seg", "seg"), None);
    }
}
