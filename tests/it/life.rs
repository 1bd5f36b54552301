//! Start, restart, shutdown, and what keeps a broker from starting.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Result, ensure};
use postrider_protocol::message::Outcome;
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
