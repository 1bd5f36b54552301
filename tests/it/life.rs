//! Start, restart, shutdown, and what keeps a broker from starting.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Result, ensure};
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{Confirm, Outcome};
use postrider_protocol::types::{Durability, Offset};
use postrider_tests::wire::WireClient;

use crate::broker;

#[test]
fn restart_keeps_topics_and_acknowledged_messages() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let mut expected = Vec::new();
    for life in 0..4_u64 {
        let running = command.start()?;
        let mut client = WireClient::greeted(command.listen())?;
        let topic = client.create_topic("kept", Durability::Fsync)?;
        ensure!(client.read_all("kept")? == expected, "life {life}");
        for number in 0..20 {
            let value = format!("message {number} of life {life}").into_bytes();
            let run = client.publish(&topic, number, &[&value])?;
            let Outcome::Committed { base_offset, durability, .. } = run.outcome else {
                panic!("not committed: {run:?}");
            };
            assert_eq!(durability, Durability::Fsync);
            assert_eq!(base_offset, Offset(expected.len() as u64));
            expected.push((base_offset, value));
        }
        // Killed and terminated in turn.
        if life % 2 == 0 {
            running.kill()?;
        } else {
            assert!(running.terminate()?.success());
        }
    }
    Ok(())
}

#[test]
fn sigterm_confirms_what_was_received_and_ends_with_success() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let mut client = WireClient::greeted(command.listen())?;
    let topic = client.create_topic("drained", Durability::Fsync)?;
    client.publish(&topic, 1, &[b"one"])?;
    let idle = WireClient::greeted(command.listen())?;
    let started = std::time::Instant::now();
    assert!(running.terminate()?.success());
    // The bound is 25 s; an idle client must not use it up.
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(client.frame()?.is_none(), "the connection ends between two frames");
    drop(idle);
    let running = command.start()?;
    let values = WireClient::greeted(command.listen())?.read_all("drained")?;
    assert_eq!(values, [(Offset(0), b"one".to_vec())]);
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn a_second_server_on_the_directory_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let first = command.start()?;
    let elsewhere = tempfile::tempdir()?;
    let second = broker(elsewhere.path())?.data_dir(&dir.path().join("data"));
    let mut second = second.spawn()?;
    assert_eq!(second.wait_end()?.code(), Some(1));
    let log = second.log();
    assert!(log.contains("in use by another server"), "{log}");
    WireClient::greeted(command.listen())?.ping()?;
    assert!(first.terminate()?.success());
    Ok(())
}

#[test]
fn a_bad_configuration_is_refused_with_its_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("postrider.toml");
    std::fs::write(&file, "[net]\n# a comment\nconnections_mx = 3\n")?;
    let path = file.display().to_string();
    let mut server = broker(dir.path())?.arg("--config").arg(&path).spawn()?;
    assert!(!server.wait_end()?.success());
    let log = server.log();
    let expected =
        format!("{path}:3: unknown key `net.connections_mx`: did you mean `net.connections_max`?");
    assert!(log.contains(&expected), "{log}");
    assert!(!dir.path().join("data").exists(), "nothing was created");
    Ok(())
}

#[test]
fn a_directory_of_something_else_is_left_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    std::fs::write(&data, "a file, not a directory")?;
    let mut server = broker(dir.path())?.spawn()?;
    assert_eq!(server.wait_end()?.code(), Some(1));
    let log = server.log();
    assert!(log.contains("server.data_dir"), "{log}");
    assert_eq!(std::fs::read_to_string(&data)?, "a file, not a directory");
    Ok(())
}

#[test]
fn the_service_manager_is_told_of_ready_alive_and_stopping() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(Duration::from_secs(60)))?;
    let command = broker(dir.path())?
        .env("NOTIFY_SOCKET", &path.display().to_string())
        .env("WATCHDOG_USEC", "200000");
    let running = command.start()?;
    let next = || -> Result<String> {
        let mut buffer = [0; 256];
        let count = manager.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).trim().to_string())
    };
    assert_eq!(next()?, "READY=1");
    assert_eq!(next()?, "WATCHDOG=1");
    assert!(running.terminate()?.success());
    let mut last = next()?;
    while last == "WATCHDOG=1" {
        last = next()?;
    }
    assert_eq!(last, "STOPPING=1");
    Ok(())
}

#[test]
fn settings_come_from_the_environment_and_flags_win() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?
        .env("POSTRIDER__SERVER__LISTEN", "127.0.0.1:1")
        .env("POSTRIDER__NET__CONNECTIONS_MAX", "1");
    let running = command.start()?;
    let first = WireClient::greeted(command.listen())?;
    assert!(WireClient::connect(command.listen())?.last_error().is_ok(), "one is the limit");
    drop(first);
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn sigterm_while_publishing_answers_everything_that_is_stored() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = broker(dir.path())?;
    let running = command.start()?;
    let mut client = WireClient::greeted(command.listen())?;
    let topic = client.create_topic("drained", Durability::Fsync)?;
    client.publish(&topic, 0, &[b"0"])?;
    let mut committed = vec![(Offset(0), b"0".to_vec())];

    // A window of publishes is always under way; the signal comes in the middle of it.
    let mut sent = 1_u64;
    let mut answered = 1_u64;
    let mut signalled = false;
    loop {
        while sent < answered + 200 {
            let value = sent.to_string();
            if client.send(&topic.publish_frame(sent, &[value.as_bytes()])?).is_err() {
                break;
            }
            sent += 1;
        }
        let Ok(Some(frame)) = client.frame() else { break };
        let Ok(Confirm { runs }) = frame.message() else { continue };
        for run in runs {
            answered += u64::from(run.count);
            match run.outcome {
                Outcome::Committed { base_offset, .. } => {
                    for n in 0..u64::from(run.count) {
                        let tag = run.base_sequence.0 + n;
                        let offset = Offset(base_offset.0 + n);
                        committed.push((offset, tag.to_string().into_bytes()));
                    }
                }
                Outcome::Rejected { error } => ensure!(error.code == ErrorCode::ShuttingDown),
                other => ensure!(false, "{other:?}"),
            }
        }
        if answered > 2_000 && !signalled {
            running.signal_terminate()?;
            signalled = true;
        }
    }
    ensure!(signalled, "the broker ended before it was asked to");
    let mut running = running;
    assert!(running.wait_end()?.success());

    let running = command.start()?;
    let stored = WireClient::greeted(command.listen())?.read_all("drained")?;
    ensure!(stored == committed, "{} stored, {} confirmed", stored.len(), committed.len());
    assert!(running.terminate()?.success());
    Ok(())
}

#[test]
fn what_keeps_a_server_from_starting_is_named_with_the_next_step() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let cases = [
        (vec!["--listen", "nonsense"], 2, "server.listen"),
        (vec!["--listen", "0.0.0.0:0"], 2, "insecure"),
        (vec!["--listen", &address], 1, "is another server running there?"),
        // Nobody, root included, can create a directory there.
        (vec!["--data-dir", "/proc/postrider-data"], 1, "server.data_dir"),
        (vec!["--config", "/nonexistent/postrider.toml"], 2, "/nonexistent/postrider.toml"),
        (vec!["--no-such-flag"], 2, "--no-such-flag"),
    ];
    for (number, (args, code, text)) in cases.iter().enumerate() {
        let data = dir.path().join(number.to_string()).display().to_string();
        let mut all = vec!["server", "--admin-listen", "127.0.0.1:0"];
        if !args.contains(&"--data-dir") {
            all.extend(["--data-dir", &data]);
        }
        if !args.contains(&"--listen") {
            all.extend(["--listen", "127.0.0.1:0"]);
        }
        all.extend(args);
        let output = broker(dir.path())?.client(&all).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    }
    Ok(())
}
