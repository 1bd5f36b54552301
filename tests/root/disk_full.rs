//! A real broker on a real file system that fills up. Needs root, because it mounts one.
//!
//! `disk-full [tmpfs|ext4]`: publishes are rejected as definite failures, reads and acks go on, space
//! makes publishing work again without a restart, and nothing acknowledged is lost through kill -9.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use postrider_protocol::error::{ErrorClass, ErrorCode};
use postrider_protocol::message::{
    AckUpTo, AckUpToReply, DeleteTopic, DeleteTopicReply, Outcome, Start, Subscribe, SubscribeReply,
};
use postrider_protocol::types::{Durability, Offset, PartitionId, SubscriptionHandle};
use postrider_tests::process::{BrokerCommand, wait_until};
use postrider_tests::wire::{WireClient, WireTopic};

/// Size of the file system, and of a file beside the data that takes up some of it.
const DISK_BYTES: u64 = 96 << 20;
const FILLER_BYTES: u64 = 32 << 20;
/// Size of a message: large enough to fill quickly, and no multiple of a block.
const MESSAGE_BYTES: usize = 50_001;

fn main() -> Result<()> {
    let kind = std::env::args().nth(1);
    let kinds = match kind.as_deref() {
        Some(kind) => vec![kind.to_owned()],
        None => vec!["tmpfs".to_owned(), "ext4".to_owned()],
    };
    for kind in kinds {
        let dir = tempfile::tempdir()?;
        let mount = Mount::new(&kind, dir.path())?;
        scenario(dir.path(), &mount.point).with_context(|| format!("on {kind}"))?;
        report(&format!("{kind}: ok"));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of a program for people and scripts")]
fn report(line: &str) {
    println!("{line}");
}

/// A small file system, unmounted when dropped.
struct Mount {
    point: PathBuf,
}

impl Mount {
    fn new(kind: &str, dir: &Path) -> Result<Self> {
        let point = dir.join("disk");
        std::fs::create_dir(&point)?;
        let target = point.display().to_string();
        match kind {
            "tmpfs" => run(
                "mount",
                &["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "tmpfs", &target],
            )?,
            "ext4" => {
                let image = dir.join("image");
                std::fs::File::create(&image)?.set_len(DISK_BYTES)?;
                let image = image.display().to_string();
                run("mkfs.ext4", &["-q", "-m", "0", &image])?;
                run("mount", &["-o", "loop", &image, &target])?;
            }
            other => bail!("{other}: tmpfs or ext4"),
        }
        Ok(Self { point })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The broker is gone by now; a mount that stays is shown by the next run.
        drop(run("umount", &[&self.point.display().to_string()]));
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status().with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} {args:?} ended with {status}; is this root?");
    Ok(())
}

/// What was acknowledged on one topic, in order.
struct Stored {
    topic: WireTopic,
    numbers: Vec<u64>,
}

fn value(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = number.to_le_bytes().to_vec();
    while bytes.len() < MESSAGE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(MESSAGE_BYTES);
    bytes
}

impl Stored {
    /// Publishes one message; whether it was stored. What was not is a definite `DiskFull`.
    fn publish(&mut self, client: &mut WireClient, number: u64) -> Result<bool> {
        let run = client.publish(&self.topic, number, &[&value(number)])?;
        match run.outcome {
            Outcome::Committed { base_offset, .. } => {
                ensure!(
                    base_offset == Offset(self.numbers.len() as u64),
                    "{base_offset}: not the next"
                );
                self.numbers.push(number);
                Ok(true)
            }
            Outcome::Rejected { error } => {
                ensure!(error.code == ErrorCode::DiskFull, "rejected with {error}");
                ensure!(
                    error.code.class() == ErrorClass::Rejected,
                    "a full disk is a definite failure"
                );
                Ok(false)
            }
            other => bail!("neither stored nor rejected: {other:?}"),
        }
    }

    fn fill(&mut self, client: &mut WireClient) -> Result<()> {
        for number in 0..10 * DISK_BYTES / MESSAGE_BYTES as u64 {
            if !self.publish(client, self.numbers.len() as u64 * 1000 + number)? {
                return Ok(());
            }
        }
        bail!("ten times the disk was stored on it")
    }

    fn check(&self, client: &mut WireClient) -> Result<()> {
        let found = client.read_all(&self.topic.name)?;
        let expected = self.numbers.len();
        ensure!(found.len() == expected, "{}: {} of {expected}", self.topic.name, found.len());
        for (at, ((offset, bytes), number)) in found.iter().zip(&self.numbers).enumerate() {
            ensure!(
                *offset == Offset(at as u64) && *bytes == value(*number),
                "{offset} is changed"
            );
        }
        Ok(())
    }
}

fn scenario(dir: &Path, disk: &Path) -> Result<()> {
    let filler = disk.join("filler");
    std::fs::write(&filler, vec![1; usize::try_from(FILLER_BYTES)?])?;
    let binary = std::env::current_exe()?.with_file_name("postrider-under-test");
    let command = BrokerCommand::new(binary, dir)?.data_dir(&disk.join("data"));
    let running = command.start()?;
    let mut client = WireClient::greeted(command.listen())?;
    let mut kept =
        Stored { topic: client.create_topic("kept", Durability::Fsync)?, numbers: Vec::new() };
    let mut victim =
        Stored { topic: client.create_topic("victim", Durability::Fsync)?, numbers: Vec::new() };
    for number in 0..100 {
        ensure!(victim.publish(&mut client, number)?, "there is room at first");
    }

    kept.fill(&mut client)?;
    report(&format!("full after {} messages", kept.numbers.len()));
    ensure!(running.metric("postrider_disk_full")? == 1.0);
    ensure!(running.admin("/readyz")?.0 == 200, "a full disk still serves reads");
    reads_and_acks_go_on(&command, &kept)?;

    std::fs::remove_file(&filler)?;
    publishes_work_again(&mut kept, &mut client)?;
    report(&format!("recovered by itself; {} messages", kept.numbers.len()));

    kept.fill(&mut client)?;
    reads_and_acks_go_on(&command, &kept)?;
    let _deleted: DeleteTopicReply = client.ask(&DeleteTopic { name: "victim".to_owned() })?;
    publishes_work_again(&mut kept, &mut client)?;
    report(&format!("deleting a topic made room; {} messages", kept.numbers.len()));

    kept.fill(&mut client)?;
    running.kill()?;
    let running = command.start()?;
    let mut client = WireClient::greeted(command.listen())?;
    kept.check(&mut client)?;
    reads_and_acks_go_on(&command, &kept)?;
    ensure!(running.terminate()?.success(), "a full disk does not keep it from ending well");
    report("killed while full and started again: nothing lost");
    Ok(())
}

fn publishes_work_again(kept: &mut Stored, client: &mut WireClient) -> Result<()> {
    let mut failure = None;
    let mut number = 1_000_000 + kept.numbers.len() as u64;
    wait_until("publishes are stored again", || {
        number += 1;
        match kept.publish(client, number) {
            Ok(stored) => stored,
            Err(error) => {
                failure = Some(error);
                true
            }
        }
    })?;
    failure.map_or(Ok(()), Err)
}

fn reads_and_acks_go_on(command: &BrokerCommand, kept: &Stored) -> Result<()> {
    let mut reader = WireClient::greeted(command.listen())?;
    kept.check(&mut reader)?;
    let mut worker = WireClient::greeted(command.listen())?;
    let handle = SubscriptionHandle(2);
    let attached: SubscribeReply = worker.ask(&Subscribe {
        handle,
        topic: kept.topic.name.clone(),
        partitions: Vec::new(),
        name: Some("worker".to_owned()),
        start: Start::Earliest,
        credit_messages: 0,
        credit_bytes: 0,
    })?;
    let partition = attached.partitions.first().context("no partition")?;
    let up_to = Offset(kept.numbers.len() as u64);
    let _stored: AckUpToReply = worker.ask(&AckUpTo {
        handle,
        partition: PartitionId(0),
        owner_epoch: partition.owner_epoch,
        up_to,
    })?;
    Ok(())
}
