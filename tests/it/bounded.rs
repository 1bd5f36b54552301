//! Log topics of bounded length, from the command line, over kill -9.

use anyhow::{Result, ensure};

use crate::shell::Shell;

fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|number| format!("{number}\n")).collect()
}

#[test]
fn readers_of_a_bounded_log_get_its_newest_messages_and_are_told_of_the_others() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("topic create feed --max-messages 5 --overflow drop-oldest")?;
    shell.prints_for("pub feed", lines(0..20).as_bytes())?;
    for from in ["earliest", "0"] {
        let read = shell.ended(&format!("sub feed --from {from} -e -o raw"), b"")?;
        ensure!(read.code == Some(0) && read.out == lines(15..20), "{}{}", read.out, read.err);
        ensure!(read.err.contains("Overflow") == (from == "0"), "{from}: {}", read.err);
        shell.restart_by_kill()?;
    }
    let shown = shell.prints("topic show feed")?;
    ensure!(shown.contains("5, then drop-oldest"), "{shown}");
    shell.prints("topic alter feed --max-messages unlimited")?;
    shell.prints_for("pub feed", lines(20..30).as_bytes())?;
    let read = shell.prints("sub feed --from -10 -e -o raw")?;
    ensure!(read == lines(20..30), "{read}");
    Ok(())
}

#[test]
fn a_log_that_may_not_grow_refuses_and_an_old_message_is_not_delivered() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("topic create full --max-messages 2")?;
    shell.prints_for("pub full", b"one\ntwo\n")?;
    let refused = shell.fails(1, "pub full")?;
    ensure!(refused.contains("TopicFull"), "{refused}");
    shell.restart_by_kill()?;
    shell.fails(1, "pub full")?;
    ensure!(shell.prints("sub full --from earliest -e -o raw")? == "one\ntwo\n", "both are kept");

    shell.prints("topic create news --ttl 1ms")?;
    shell.prints_for("pub news", b"old\n")?;
    let read = shell.ended("sub news --from earliest -e -o raw", b"")?;
    ensure!(read.code == Some(0) && read.out.is_empty(), "{}{}", read.out, read.err);
    ensure!(read.err.contains("Expired"), "{}", read.err);
    Ok(())
}
