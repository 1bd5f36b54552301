//! Queues through the command line, with real brokers, workers and commands: what is shown, what work does with
//! messages that succeed and fail, and what killing a worker or the broker leaves.

use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use postrider_tests::process::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::shell::{Ended, Shell};
use crate::text_of;

impl Shell {
    fn shown(&self, queue: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.prints(&format!("queue show {queue} -o json"))?)?)
    }

    /// `work` with these flags and a shell script as its command.
    fn worker(&self, flags: &str, script: &str) -> Result<Child> {
        let mut words: Vec<&str> = flags.split(' ').collect();
        words.insert(0, "work");
        words.extend(["--", "sh", "-c", script]);
        let mut command = self.command.client(&words);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    fn work(&self, flags: &str, script: &str) -> Result<Ended> {
        ended(self.worker(flags, script)?)
    }
}

fn ended(child: Child) -> Result<Ended> {
    let output = child.wait_with_output()?;
    let (out, err) = (text_of(&output.stdout), text_of(&output.stderr));
    Ok(Ended { code: output.status.code(), out, err })
}

fn lines(count: usize) -> String {
    (0..count).map(|line| format!("{line}\n")).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("a pid")?;
    Ok(kill_process(pid, signal)?)
}

#[test]
fn queues_are_created_listed_shown_paused_purged_and_removed() -> Result<()> {
    let shell = Shell::start()?;
    shell
        .prints("queue create jobs --partitions 2 --max-failures 3 --dead-letter bin --lease 5s")?;
    shell.prints("queue create jobs --if-not-exists")?;
    shell.prints_for("pub jobs -p 1 -k a", lines(3).as_bytes())?;
    shell.prints_for("pub jobs -p 0", lines(2).as_bytes())?;

    let shown = shell.shown("jobs")?;
    for (name, value) in
        [("ready", 5), ("leased", 0), ("delayed", 0), ("dead_lettered", 0), ("acked", 0)]
    {
        ensure!(shown[name] == value, "{name}: {shown}");
    }
    ensure!(shown["oldest_ready_ms"].is_u64(), "{shown}");
    ensure!(shown["partitions"][1]["ready"] == 3, "{shown}");
    let policy = &shown["policy"];
    ensure!(policy["max_failures"] == 3 && policy["lease_ms"] == 5_000, "{policy}");
    ensure!(policy["dead_letter"] == "bin", "{policy}");
    let listed: Value = serde_json::from_str(&shell.prints("queue ls -o json")?)?;
    ensure!(listed[0]["name"] == "jobs" && listed[0]["ready"] == 5, "{listed}");
    ensure!(shell.prints("queue show jobs")?.contains("max failures:   3"), "a table");

    ensure!(shell.prints("queue peek jobs -p 1 -n 2")? == "0\n1\n", "peek");
    let why: Value = serde_json::from_str(&shell.prints("queue why jobs:1 2 -o json")?)?;
    ensure!(why["state"] == "ready", "{why}");
    let why: Value = serde_json::from_str(&shell.prints("queue why jobs:1 3 -o json")?)?;
    ensure!(why["state"] == "future", "{why}");

    shell.prints("queue pause jobs")?;
    ensure!(shell.shown("jobs")?["policy"]["paused"] == true, "paused");
    let said = shell.fails(1, "work jobs -e -- true")?;
    ensure!(said.contains("paused") && said.contains("queue resume jobs"), "{said}");
    shell.prints("queue resume jobs")?;
    shell.prints("queue alter jobs --max-failures 4")?;
    ensure!(shell.shown("jobs")?["policy"]["max_failures"] == 4, "altered");

    let said = shell.ended("queue purge jobs", b"")?.err;
    ensure!(said.trim() == "purged=5 (idempotency keys are kept)", "{said}");
    let shown = shell.shown("jobs")?;
    ensure!(shown["ready"] == 0 && shown["evicted"] == 5, "{shown}");
    ensure!(shell.prints("queue peek jobs")?.is_empty(), "nothing is left");
    shell.prints("queue rm jobs")?;
    ensure!(shell.prints("queue ls -o json")?.trim() == "[]", "it is gone");
    shell.prints("queue rm jobs --if-exists")?;
    Ok(())
}

#[test]
fn every_failure_about_queues_names_its_cause_and_the_next_step() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("queue create q --partitions 2")?;
    shell.prints("topic create t")?;
    for (code, line, cause, step) in [
        (1, "queue create q", "exists", "--if-not-exists"),
        (1, "queue create t --if-not-exists", "t", "next:"),
        (1, "queue create bad/name", "not allowed", "next:"),
        (1, "queue create r --lease 1ms", "lease_ms", "next:"),
        (2, "queue create r --backoff-min 2s --backoff-max 1s", "--backoff-min", "next:"),
        (2, "queue alter q", "nothing to change", "next:"),
        (1, "queue show nope", "no topic", "queue create"),
        (1, "queue show t", "t", "next:"),
        (1, "queue rm nope", "does not exist", "queue ls"),
        (1, "queue rm t", "t", "next:"),
        (1, "queue purge nope", "no topic", "queue create"),
        (1, "queue show q --subscription nobody", "nobody", "next:"),
        (2, "queue why q 0", "2 partitions", "q:0"),
        (1, "queue why q:7 0", "no partition 7", "next:"),
        (1, "work nope -- true", "no topic", "queue create"),
        (1, "work t -- true", "t", "next:"),
        (1, "sub q --subscription s", "q", "next:"),
        (2, "subscription create t s --max-failures 3", "queue mode", "--queue"),
        (2, "bench queue q --size 10", "at least 40", "next:"),
        (1, "bench queue q --partitions 3 --messages 1", "2 partitions", "next:"),
        (3, "queue ls --server postrider://127.0.0.1:1", "refused", "postrider server"),
        (3, "work q --server postrider://127.0.0.1:1 -- true", "refused", "postrider server"),
    ] {
        let said = shell.fails(code, line)?;
        ensure!(said.contains(cause) && said.contains(step), "{line} says:\n{said}");
    }
    shell.prints_for("pub q", b"one\n")?;
    let said = shell.fails(1, "work q -e -- /does/not/exist")?;
    ensure!(said.contains("No such file") && said.contains("next:"), "{said}");
    ensure!(shell.shown("q")?["ready"] == 1, "the message is given back");
    Ok(())
}

#[test]
fn commands_get_payload_and_environment_and_acknowledge_by_success() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("queue create q")?;
    shell.prints_for("pub q -k cust", lines(20).as_bytes())?;
    shell.prints_for("pub q --whole", b"two\nlines")?;
    // One write each, so that commands side by side do not mix their lines.
    let script = "printf '%s/%s/%s/%s/%s/%s=%s\\n' $POSTRIDER_TOPIC $POSTRIDER_PARTITION \
                  $POSTRIDER_OFFSET $POSTRIDER_ATTEMPT $POSTRIDER_FAILURES ${POSTRIDER_KEY-none} \
                  \"$(cat)\"";
    let worked = shell.work("q -n 2", script)?;
    ensure!(worked.code == Some(0), "{}", worked.err);
    ensure!(worked.out == "q/0/0/1/0/cust=0\nq/0/1/1/0/cust=1\n", "{}", worked.out);
    ensure!(worked.err.trim() == "acked=2 nacked=0 lost=0", "{}", worked.err);

    let worked = shell.work("q -e --concurrency 4 --prefetch 8", script)?;
    ensure!(worked.err.trim() == "acked=19 nacked=0 lost=0", "{}", worked.err);
    ensure!(worked.out.contains("q/0/20/1/0/none=two\nlines\n"), "{}", worked.out);
    let shown = shell.shown("q")?;
    ensure!(shown["acked"] == 21 && shown["unsettled"] == 0, "{shown}");
    // Acknowledged for good.
    ensure!(shell.work("q -e", "exit 1")?.err.trim() == "acked=0 nacked=0 lost=0", "nothing comes");
    Ok(())
}

#[test]
fn several_queues_are_worked_off_by_their_weights() -> Result<()> {
    let shell = Shell::start()?;
    for queue in ["urgent", "bulk"] {
        shell.prints(&format!("queue create {queue}"))?;
        shell.prints_for(&format!("pub {queue}"), lines(100).as_bytes())?;
    }
    let script = "echo $POSTRIDER_TOPIC";
    let worked = shell.work("urgent:3 bulk -n 80", script)?;
    ensure!(worked.err.trim() == "acked=80 nacked=0 lost=0", "{}", worked.err);
    let urgent = worked.out.lines().filter(|topic| *topic == "urgent").count();
    // Three of four, but for the first ones: one queue's may come here before the other's.
    ensure!((50..=77).contains(&urgent), "{urgent} of 80 were urgent");
    let worked = shell.work("urgent:3 bulk -e", script)?;
    ensure!(
        worked.err.trim() == "acked=120 nacked=0 lost=0",
        "empty only when both are: {}",
        worked.err
    );
    let said = shell.fails(2, "work urgent bulk -p 0 -- true")?;
    ensure!(said.contains("several"), "{said}");
    Ok(())
}

#[test]
fn failing_commands_dead_letter_their_messages_once_with_reason_and_origin() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("queue create q --max-failures 3 --backoff-min 50ms --backoff-max 100ms")?;
    shell.prints_for("pub q -k cust -H color:blue", b"good\nbad\nworse\n")?;
    // A process that the command leaves behind is not waited for.
    let script = "if [ $(cat) = good ]; then exit 0; fi; sleep 3 & echo first >&2; \
                  echo broken by $POSTRIDER_FAILURES >&2; exit 3";
    let worked = shell.work("q -e", script)?;
    ensure!(worked.code == Some(0), "{}", worked.err);
    ensure!(worked.err.ends_with("acked=1 nacked=6 lost=0\n"), "{}", worked.err);
    ensure!(worked.err.contains("first\nbroken by 2\n"), "standard error is shown: {}", worked.err);
    shell.restart_by_kill()?;
    let shown = shell.shown("q")?;
    ensure!(shown["acked"] == 1 && shown["dead_lettered"] == 2, "{shown}");
    ensure!(shown["unsettled"] == 0, "{shown}");

    let dead = shell.prints("sub q.dead --from earliest -e -o json")?;
    let dead: Vec<Value> = dead.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(dead.len() == 2, "each exactly once: {dead:?}");
    for (letter, value) in dead.iter().zip(["bad", "worse"]) {
        ensure!(letter["value"] == value && letter["key"] == "cust", "{letter}");
        let header = |name: &str| {
            let all = letter["headers"].as_array().into_iter().flatten();
            let found = all.into_iter().find(|header| header["name"] == name);
            found.map_or(Value::Null, |header| header["value"].clone())
        };
        ensure!(header("color") == "blue", "{letter}");
        ensure!(header("dl.reason") == "max_failures", "{letter}");
        ensure!(header("dl.failures") == "3", "{letter}");
        ensure!(header("dl.last_error") == "broken by 2", "{letter}");
        let consumer = header("dl.last_consumer");
        let consumer = consumer.as_str().unwrap_or_default().rsplit('/').next();
        let is_pid = consumer.is_some_and(|pid| pid.parse::<u32>().is_ok());
        ensure!(is_pid, "the host and the process of the worker: {letter}");
        ensure!(header("dl.source").as_str().is_some_and(|at| at.starts_with("q/0/")), "{letter}");
    }
    Ok(())
}

#[test]
fn messages_of_a_killed_worker_go_to_another() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let shell = Shell::start()?;
    shell.prints("queue create q --backoff-min 50ms")?;
    shell.prints_for("pub q", lines(10).as_bytes())?;
    let pid = dir.path().join("pid");
    let hang = format!("echo $$ > {}; exec sleep 600", pid.display());
    let mut hanging = shell.worker("q --prefetch 10", &hang)?;
    wait_until("a command runs", || read(&pid).ends_with('\n'))?;
    let shown = shell.shown("q")?;
    ensure!(shown["leased"] == 10 && shown["consumers"][0]["leased"] == 10, "{shown}");
    let why: Value = serde_json::from_str(&shell.prints("queue why q 0 -o json")?)?;
    ensure!(why["state"] == "leased" && why["holder"].is_string(), "{why}");
    hanging.kill()?;
    hanging.wait()?;
    // Its command has outlived it.
    let command = Pid::from_raw(read(&pid).trim().parse()?).context("a pid")?;
    kill_process(command, Signal::KILL)?;

    let worked = shell.work("q -e", "echo $(cat)/$POSTRIDER_FAILURES")?;
    ensure!(worked.err.trim() == "acked=10 nacked=0 lost=0", "{}", worked.err);
    let mut came: Vec<&str> = worked.out.lines().collect();
    came.sort_unstable();
    // The one that was begun is to blame, the others are not.
    let expected: Vec<String> =
        (0..10).map(|line| format!("{line}/{}", u8::from(line == 0))).collect();
    ensure!(came == expected, "{came:?}");
    Ok(())
}

#[test]
fn a_signal_lets_commands_finish_and_gives_the_rest_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let shell = Shell::start()?;
    shell.prints("queue create q")?;
    shell.prints_for("pub q", lines(5).as_bytes())?;
    let (begun, go) = (dir.path().join("begun"), dir.path().join("go"));
    let script =
        format!("echo > {}; while [ ! -e {} ]; do sleep 0.02; done", begun.display(), go.display());
    let worker = shell.worker("q --prefetch 3", &script)?;
    wait_until("a command runs", || begun.exists())?;
    signal(&worker, Signal::TERM)?;
    std::fs::write(&go, "")?;
    let worked = ended(worker)?;
    ensure!(worked.code == Some(0), "{}", worked.err);
    ensure!(worked.err.trim() == "acked=1 nacked=0 lost=0", "{}", worked.err);
    let shown = shell.shown("q")?;
    ensure!(shown["ready"] == 4 && shown["leased"] == 0 && shown["acked"] == 1, "{shown}");

    std::fs::remove_file(&begun)?;
    let script = format!("echo > {}; sleep 600", begun.display());
    let worker = shell.worker("q --grace 10ms", &script)?;
    wait_until("a command runs", || begun.exists())?;
    signal(&worker, Signal::INT)?;
    let worked = ended(worker)?;
    ensure!(worked.code == Some(0), "{}", worked.err);
    ensure!(worked.err.ends_with("acked=0 nacked=0 lost=0\n"), "{}", worked.err);
    let shown = shell.shown("q")?;
    ensure!(shown["ready"] == 4 && shown["delayed"] == 0, "no failure is counted: {shown}");
    Ok(())
}

#[test]
fn a_queue_mode_subscription_shares_a_log_topic_with_readers() -> Result<()> {
    let shell = Shell::start()?;
    shell.prints("topic create events")?;
    shell.prints_for("pub events", lines(3).as_bytes())?;
    shell.prints("subscription create events billing --queue --max-failures 2 --from earliest")?;
    shell.prints("subscription create events billing --queue --if-not-exists")?;
    shell.prints("subscription create events audit --from 2")?;
    let worked = shell.work("events --subscription billing -e", "cat; echo")?;
    ensure!(worked.out == "0\n1\n2\n", "{}\n{}", worked.out, worked.err);
    let shown: Value =
        serde_json::from_str(&shell.prints("queue show events --subscription billing -o json")?)?;
    ensure!(shown["acked"] == 3 && shown["subscription"] == "billing", "{shown}");
    ensure!(shell.prints("sub events --from earliest -e")? == lines(3), "the log is whole");
    ensure!(shell.prints("sub events --subscription audit -e")? == "2\n", "begins at 2");
    let said = shell.fails(1, "sub events --subscription billing -e")?;
    ensure!(said.contains("next:"), "{said}");
    shell.prints("queue rm events --subscription billing")?;
    shell.prints("topic show events")?;
    Ok(())
}

fn is_above(shell: &Shell, name: &str, bound: u64) -> bool {
    shell.shown("load").is_ok_and(|shown| shown[name].as_u64() > Some(bound))
}

fn bench(shell: &Shell, result: &Path, flags: &str) -> Result<Child> {
    let file = result.display().to_string();
    let mut words = vec!["bench", "queue", "load", "--json", &file];
    words.extend(flags.split(' '));
    let mut command = shell.command.client(&words);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
}

#[test]
fn bench_queue_judges_every_message_and_counts_confirmed_acks() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let shell = Shell::start()?;
    let file = dir.path().join("result.json");
    let flags = "--producers 2 --workers 3 --messages 20000 --size 64 --partitions 2 --keys 100 \
                 --key-order";
    let ran = ended(bench(&shell, &file, flags)?)?;
    ensure!(ran.code == Some(0), "{}", ran.err);
    let result: Value = serde_json::from_str(&read(&file))?;
    ensure!(result["messages"] == 20_000 && result["command"] == "queue", "{result}");
    ensure!(result["msgs_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{result}");
    for name in ["unconfirmed", "after_ack", "stored_twice", "out_of_order", "unsent"] {
        ensure!(result[name] == 0, "{name}: {result}");
    }
    ensure!(result["settle_latency_us"]["samples"] == 20_000, "{result}");
    let shown = shell.shown("load")?;
    ensure!(shown["acked"] == 20_000 && shown["unsettled"] == 0, "{shown}");

    // What is not of a load test is not taken.
    shell.prints_for("pub load", b"precious\n")?;
    let ran = ended(bench(&shell, &file, "--messages 10")?)?;
    ensure!(ran.code == Some(1) && ran.err.contains("not of a load test"), "{}", ran.err);
    ensure!(shell.prints("queue peek load -n 100")?.contains("precious"), "it is still there");
    Ok(())
}

#[test]
fn bench_queue_passes_through_a_kill_of_the_broker() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut shell = Shell::start()?;
    let file = dir.path().join("result.json");
    shell.prints("queue create load --backoff-min 50ms")?;
    let running =
        bench(&shell, &file, "--producers 2 --workers 2 --duration 4s --rate 5000 --size 100")?;
    for round in 1..=2 {
        wait_until("messages are acknowledged", || is_above(&shell, "acked", round * 2_000))?;
        shell.restart_by_kill()?;
    }
    let ran = ended(running)?;
    ensure!(ran.code == Some(0), "{}", ran.err);
    let result: Value = serde_json::from_str(&read(&file))?;
    ensure!(result["unconfirmed"] == 0 && result["after_ack"] == 0, "{result}");
    ensure!(result["messages"] == result["sent"], "{result}");
    let shown = shell.shown("load")?;
    ensure!(shown["acked"] == result["published"] && shown["unsettled"] == 0, "{shown}");
    Ok(())
}

#[test]
fn bench_queue_finds_messages_that_are_lost() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let shell = Shell::start()?;
    let file = dir.path().join("result.json");
    shell.prints("queue create load")?;
    let running = bench(&shell, &file, "--rate 2000 --duration 3s --timeout 3s --size 100")?;
    wait_until("messages are acknowledged", || is_above(&shell, "acked", 500))?;
    shell.prints("queue pause load")?;
    wait_until("messages wait", || is_above(&shell, "ready", 100))?;
    shell.prints("queue purge load")?;
    shell.prints("queue resume load")?;
    let ran = ended(running)?;
    ensure!(ran.code == Some(5) && ran.err.contains("are lost"), "{:?} {}", ran.code, ran.err);
    Ok(())
}

#[test]
fn bench_queue_finds_messages_that_come_after_their_confirmed_ack() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let shell = Shell::start()?;
    let file = dir.path().join("result.json");
    shell.prints("queue create load")?;
    let running = bench(&shell, &file, "--workers 2 --rate 1000 --duration 3s --size 100")?;
    wait_until("messages are acknowledged", || is_above(&shell, "acked", 500))?;
    shell.prints("subscription seek load default --to earliest")?;
    let ran = ended(running)?;
    ensure!(ran.code == Some(5), "{:?} {}", ran.code, ran.err);
    ensure!(ran.err.contains("after the confirmed acknowledgement"), "{}", ran.err);
    let result: Value = serde_json::from_str(&read(&file))?;
    ensure!(result["after_ack"].as_u64() >= Some(500), "{result}");
    Ok(())
}

#[test]
fn dead_letters_go_back_once_though_the_broker_is_killed_between() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("queue create jobs --max-failures 1")?;
    shell.prints_for("pub jobs", lines(500).as_bytes())?;
    shell.prints("work jobs --concurrency 4 -e -- false")?;
    let shows = |what: &str, count: u64| shell.shown("jobs").is_ok_and(|jobs| jobs[what] == count);
    wait_until("all are dead", || shows("dead_lettered", 500))?;
    let sent = |text: &str| -> Result<(u64, u64)> {
        let told: Value = serde_json::from_str(text)?;
        let number = |what: &str| told[what].as_u64().context("a number");
        Ok((number("sent")?, number("sent_before")?))
    };
    let dry = shell.prints("queue redrive jobs --dry-run -o json")?;
    ensure!(sent(&dry)? == (500, 0), "{dry}");
    let none = shell.prints("queue redrive jobs --reason expired -o json")?;
    ensure!(sent(&none)? == (0, 0), "{none}");
    // Killed while it sends: what it had decided arrives, the rest is sent by the next one.
    let mut redrive = shell.command.client(&["queue", "redrive", "jobs", "--rate", "300"]);
    let redrive = redrive.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    wait_until("some are back", || {
        shell.shown("jobs").is_ok_and(|jobs| jobs["ready"].as_u64() > Some(50))
    })?;
    shell.restart_by_kill()?;
    // It goes on where it was, or gives up; nothing is sent twice either way.
    ended(redrive)?;
    let rest = shell.prints("queue redrive jobs -o json")?;
    let (sent_now, sent_before) = sent(&rest)?;
    ensure!(sent_now + sent_before == 500 && sent_before >= 50, "{rest}");
    ensure!(shell.shown("jobs")?["ready"] == 500, "each once: {rest}");
    let file = tempfile::NamedTempFile::new()?;
    let script = format!("echo \"$(cat)\" >> {}", file.path().display());
    let worked = shell.work("jobs -e --concurrency 4", &script)?;
    ensure!(worked.code == Some(0), "{}", worked.err);
    let text = read(file.path());
    let mut back: Vec<&str> = text.split_whitespace().collect();
    back.sort_unstable();
    back.dedup();
    ensure!(back.len() == 500, "{} different ones: {text}", back.len());
    Ok(())
}

#[test]
fn what_is_too_old_goes_to_the_dead_letter_topic_and_says_why() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("queue create jobs --ttl 1s --expired dead-letter")?;
    shell.prints_for("pub jobs", lines(3).as_bytes())?;
    shell.restart_by_kill()?;
    // Nobody has used the queue since: the question itself wakes it.
    let shows = |what: &str, count: u64| shell.shown("jobs").is_ok_and(|jobs| jobs[what] == count);
    wait_until("all have expired", || shows("dead_lettered", 3))?;
    let letters = shell.prints("sub jobs.dead --from earliest -e -o json")?;
    ensure!(letters.matches("\"expired\"").count() == 3, "{letters}");
    shell.prints("topic alter jobs --ttl 1h --max-messages 2 --overflow drop-oldest")?;
    shell.prints_for("pub jobs", lines(5).as_bytes())?;
    wait_until("three made room", || shows("evicted", 3))?;
    ensure!(shell.shown("jobs")?["ready"] == 2);
    let broker = shell.broker.as_ref().context("a broker runs")?;
    let evicted = broker.metric("postrider_queue_evicted_total")?;
    ensure!((evicted - 3.0).abs() < 0.5, "{evicted} are counted");
    Ok(())
}

#[test]
fn a_full_queue_rejects_publishes_until_the_bound_is_lifted_also_after_a_kill() -> Result<()> {
    let mut shell = Shell::start()?;
    shell.prints("queue create jobs --max-messages 3")?;
    shell.prints_for("pub jobs", lines(3).as_bytes())?;
    let full = shell.ended("pub jobs", b"x\n")?;
    ensure!(full.code != Some(0) && full.err.contains("--max-messages"), "{}", full.err);
    shell.restart_by_kill()?;
    let full = shell.ended("pub jobs", b"x\n")?;
    ensure!(full.code != Some(0) && full.err.contains("unsettled"), "{}", full.err);
    let topic: Value = serde_json::from_str(&shell.prints("topic show jobs -o json")?)?;
    ensure!(topic["bounds"]["max_messages"] == 3, "{topic}");
    ensure!(shell.shown("jobs")?["ready"] == 3, "nothing was removed, nothing was added");
    shell.prints("topic alter jobs --max-messages unlimited")?;
    shell.prints_for("pub jobs", b"x\n")?;
    ensure!(shell.shown("jobs")?["ready"] == 4);
    Ok(())
}
