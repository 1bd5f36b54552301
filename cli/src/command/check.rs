//! `postrider check`: verifies a data directory of a stopped broker. Changes nothing, not even the lock.

use std::fs::{File, TryLockError};
use std::path::Path;

use postrider_storage::disk_os::LOCK_FILE;
use postrider_storage::{OsDisk, check};

use crate::args::CheckOptions;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::print;

/// Prints what the directory holds; exit code 5 if something is damaged.
pub(crate) fn run(options: &CheckOptions) -> Outcome {
    let dir = &options.dir;
    let disk = OsDisk::existing(dir).map_err(|error| {
        Failure::failed(format!("cannot open the data directory {}: {error}", dir.display()))
            .next("name the directory that `postrider server --data-dir` has")
    })?;
    let _lock = keep_servers_out(dir)?;
    let report = check(&disk);
    print(&report.to_string())?;
    if report.is_sound() {
        return Ok(());
    }
    let next = if report.refused.is_some() {
        "is this the directory that `postrider server --data-dir` has? if it is, restore it from a copy"
    } else {
        "keep a copy of the directory; a broker that starts on it serves what is readable and reports the rest"
    };
    let failure = format!("{} is not sound", dir.display());
    Err(Failure::new(Exit::VerificationFailed, failure).next(next))
}

/// Holds the lock of the directory, if it has one, so that no server changes files under the check.
fn keep_servers_out(dir: &Path) -> Outcome<Option<File>> {
    let path = dir.join(LOCK_FILE);
    let Ok(file) = File::open(&path) else { return Ok(None) };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::failed(format!("a broker is running on {}", dir.display()))
                .next("stop it first: what it writes meanwhile would look torn"))
        }
        Err(TryLockError::Error(error)) => {
            Err(Failure::failed(format!("cannot lock {}: {error}", path.display())))
        }
    }
}
