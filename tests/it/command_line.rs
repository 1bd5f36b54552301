//! Each verb of the command line against a real broker: what it prints, how it ends, what its errors say.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use postrider_tests::process::wait_until;

use crate::shell::Shell;
use crate::text_of;

#[test]
fn topics_are_created_listed_changed_and_removed() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("topic create orders --partitions 2 --retention-time 7d")?;
    shell.prints("topic create orders --if-not-exists")?;
    shell.prints("topic alter orders --partitions 3")?;
    let listed: serde_json::Value = serde_json::from_str(&shell.prints("topic ls -o json")?)?;
    ensure!(listed[0]["name"] == "orders" && listed[0]["partitions"] == 3, "{listed}");
    let shown: serde_json::Value =
        serde_json::from_str(&shell.prints("topic describe orders -o json")?)?;
    ensure!(shown["retention_ms"] == 604_800_000, "{shown}");
    ensure!(shown["partitions"].as_array().map(Vec::len) == Some(3), "{shown}");
    shell.prints("topic rm orders")?;
    ensure!(shell.prints("topic ls -o json")?.trim() == "[]", "the topic is gone");
    shell.prints("topic rm orders --if-exists")?;
    Ok(())
}

#[test]
fn every_failure_names_its_cause_and_the_next_step() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("topic create t --partitions 2")?;
    for (code, line, cause, step) in [
        (1, "topic create t", "exists", "--if-not-exists"),
        (1, "topic create bad/name", "not allowed", "next:"),
        (1, "topic alter t --partitions 1", "2 partitions", "next:"),
        (2, "topic alter t", "nothing to change", "next:"),
        (1, "topic alter nope --partitions 2", "no topic", "topic create"),
        (1, "topic show nope", "no topic", "topic create"),
        (1, "topic rm nope", "does not exist", "topic ls"),
        (1, "pub nope", "no topic", "topic create"),
        (1, "pub t --partition 9", "2 partitions", "next:"),
        (1, "pub t --file /does/not/exist", "No such file", "next:"),
        (1, "sub nope -e", "no topic", "topic create"),
        (1, "sub t -e --partition 7", "partition", "next:"),
        (1, "sub t -e --from 100", "offset 100", "next:"),
        (2, "sub t --from someday", "no position", "earliest"),
        (1, "subscription rm t nobody", "no subscription nobody", "subscription ls"),
        (1, "subscription seek t nobody --to 0", "no subscription nobody", "subscription ls"),
        (2, "topic ls --server http://127.0.0.1", "postrider://", "write"),
        (3, "topic ls --server postrider://127.0.0.1:1", "refused", "postrider server"),
        (3, "pub t --server postrider://127.0.0.1:1", "refused", "postrider server"),
        (2, "frobnicate", "unrecognized", "--help"),
    ] {
        let said = shell.fails(code, line)?;
        ensure!(said.contains(cause) && said.contains(step), "{line} says:\n{said}");
    }
    Ok(())
}

#[test]
fn messages_are_printed_as_published_with_key_headers_and_place() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("topic create t")?;
    let said = shell.ended("pub t -H a:b -k cust", b"one\n\ntwo\r\n")?.err;
    ensure!(said.trim() == "stored=3 duplicates=0", "{said}");
    ensure!(shell.prints("sub t --from earliest -e")? == "one\n\ntwo\r\n", "raw");
    shell.prints_for("pub t --whole", b"two\nlines\n")?;
    let last = shell.prints("sub t --from -1 -n 1 -o json")?;
    let last: serde_json::Value = serde_json::from_str(&last)?;
    ensure!(last["value"] == "two\nlines\n" && last["offset"] == 3, "{last}");
    let first = shell.prints("sub t --from 0 -n 1 -f %t/%p/%o[%k]%s(%h)\\n")?;
    ensure!(first.starts_with("t/0/0[cust]one(") && first.contains("a"), "{first}");
    Ok(())
}

#[test]
fn durable_subscription_continues_where_it_was_acknowledged() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("topic create t")?;
    let lines: Vec<String> = (0..100).map(|line| format!("{line}\n")).collect();
    shell.prints_for("pub t", lines.concat().as_bytes())?;
    let read =
        |shell: &Shell, n| shell.prints(&format!("sub t --subscription s --from earliest -n {n}"));
    ensure!(read(&shell, 10)? == lines[..10].concat(), "the first ten");
    shell.restart_by_kill()?;
    ensure!(read(&shell, 10)? == lines[10..20].concat(), "the next ten");
    shell.prints("subscription seek t s --to 50")?;
    ensure!(read(&shell, 1)? == lines[50], "after the seek");
    let listed: serde_json::Value =
        serde_json::from_str(&shell.prints("subscription ls t -o json")?)?;
    ensure!(listed[0]["name"] == "s" && listed[0]["lag"] == 49, "{listed}");
    shell.prints("subscription rm t s")?;
    ensure!(shell.prints("subscription ls t -o json")?.trim() == "[]", "it is gone");
    Ok(())
}

#[test]
fn killed_subscriber_is_delivered_what_it_did_not_acknowledge() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("topic create t")?;
    let lines: Vec<String> = (0..50_000).map(|line| format!("{line} {:>80}\n", "")).collect();
    shell.prints_for("pub t", lines.concat().as_bytes())?;
    let mut first = shell
        .command
        .client(&["sub", "t", "--subscription", "s", "--from", "earliest"])
        .stdout(Stdio::piped())
        .spawn()?;
    // It cannot finish: nobody empties the pipe behind the first line.
    let mut line = String::new();
    BufReader::new(first.stdout.as_mut().context("stdout is piped")?).read_line(&mut line)?;
    first.kill()?;
    first.wait()?;
    ensure!(line == lines[0], "{line}");
    let rest = shell.prints("sub t --subscription s -e")?;
    // Nothing is skipped; what was not acknowledged comes again.
    ensure!(lines.concat().ends_with(&rest) && rest.len() > 1_000_000, "{} bytes", rest.len());
    Ok(())
}

#[test]
fn reader_of_the_output_that_goes_away_is_a_clean_end() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("topic create t")?;
    let lines: String = (0..50_000).map(|line| format!("{line} {:>80}\n", "")).collect();
    shell.prints_for("pub t", lines.as_bytes())?;
    let mut child = shell
        .command
        .client(&["sub", "t", "--from", "earliest"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{}", text_of(&output.stderr));
    Ok(())
}

#[test]
fn signals_end_a_following_sub_and_an_unfinished_pub() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("topic create t")?;
    let mut publisher =
        shell.command.client(&["pub", "t"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = publisher.stdin.take().context("stdin is piped")?;
    let mut follower =
        shell.command.client(&["sub", "t", "--from", "earliest"]).stdout(Stdio::piped()).spawn()?;
    input.write_all(b"one\n")?;
    let mut line = String::new();
    BufReader::new(follower.stdout.as_mut().context("stdout is piped")?).read_line(&mut line)?;
    ensure!(line == "one\n", "{line}");

    for (child, code) in [(&mut follower, 0), (&mut publisher, 1)] {
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id())?).context("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        wait_until("the command ends", || !matches!(child.try_wait(), Ok(None)))?;
        ensure!(child.wait()?.code() == Some(code), "exit code");
    }
    let said = text_of(&publisher.wait_with_output()?.stderr);
    ensure!(said.contains("stored=1 duplicates=0") && said.contains("interrupted"), "{said}");
    drop(input);
    Ok(())
}

#[test]
fn verify_accepts_what_is_stored_and_refuses_a_topic_that_lost_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let shell = Shell::start()?;
    let state = dir.path().join("state");
    let verify = format!("bench verify t --state {}", state.display());
    shell.prints(&format!("{verify} --messages 2000"))?;
    shell.prints(&format!("{verify} --check"))?;
    shell.prints("topic rm t")?;
    shell.prints("topic create t")?;
    ensure!(shell.ended(&format!("{verify} --check"), b"")?.code == Some(5), "loss is found");
    Ok(())
}
