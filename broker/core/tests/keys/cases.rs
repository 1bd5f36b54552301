//! Owns the named cases of idempotency keys, on one partition.

use postrider_core::partition::PartitionLimits;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::{Outcome, PublishHead};
use postrider_protocol::types::{Compression, Sequence};

use super::stage::{KEPT_MS, Said, Stage, WINDOW_MS};

fn stage() -> Stage {
    Stage::new(PartitionLimits::default())
}

/// What became of a message, in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Was {
    Stored(u64),
    Duplicate(u64),
    Reused(u64),
    Refused(ErrorCode),
    Delayed(u64),
    DelayedDuplicate(u64),
}

fn was(outcome: &Outcome) -> Was {
    match outcome {
        Outcome::Committed { base_offset, .. } => Was::Stored(base_offset.0),
        Outcome::Duplicate { base_offset, .. } => Was::Duplicate(base_offset.0),
        Outcome::Delayed { id, .. } => Was::Delayed(id.index.0),
        Outcome::DelayedDuplicate { id, .. } => Was::DelayedDuplicate(id.index.0),
        Outcome::Rejected { error } if error.code == ErrorCode::IdempotencyKeyReused => {
            Was::Reused(error.detail)
        }
        Outcome::Rejected { error } | Outcome::Unknown { error } => Was::Refused(error.code),
    }
}

impl Stage {
    fn was(&mut self, messages: &[Said]) -> Vec<Was> {
        self.publish(messages).iter().map(was).collect()
    }

    fn route_of(&mut self, messages: &[Said]) -> u64 {
        let head = self.head(-1, 0, u32::try_from(messages.len()).unwrap());
        self.publish_as(&head, messages, None, Compression::None)
    }

    fn was_of(&mut self, route: u64, count: u32) -> Vec<Was> {
        let head = self.head(-1, 0, count);
        self.outcomes(route, &head).iter().map(was).collect()
    }
}

/// T1, on one partition.
#[test]
fn of_twins_in_flight_one_is_stored_and_all_get_its_offset() {
    let mut stage = stage();
    let routes: Vec<u64> = (0..1_000).map(|_| stage.route_of(&[(Some("k"), "v")])).collect();
    for route in &routes {
        assert_eq!(stage.take_runs(*route), [], "nothing is told before the first is committed");
    }
    stage.commit();
    let answers: Vec<Was> = routes.iter().flat_map(|route| stage.was_of(*route, 1)).collect();
    assert_eq!(answers[0], Was::Stored(0));
    assert!(answers[1..].iter().all(|answer| *answer == Was::Duplicate(0)));
    assert_eq!(stage.stored().len(), 1);
    assert_eq!(stage.charged, 0, "no byte stays charged");
}

/// T2 and T3, on one broker: what a crash loses is forgotten, what it keeps is not.
#[test]
fn a_key_is_remembered_if_and_only_if_its_message_is_in_the_log() {
    let mut stage = stage();
    for (kept, expected) in [(2, Was::Duplicate(0)), (0, Was::Stored(1))] {
        let key = if kept == 0 { "lost" } else { "kept" };
        let _in_flight = stage.route_of(&[(Some(key), "v")]);
        stage.crash(kept);
        assert_eq!(stage.was(&[(Some(key), "v")]), [expected]);
    }
    assert_eq!(stage.stored().len(), 2);
}

/// T5.
#[test]
fn a_key_counts_for_the_window_and_for_a_third_more_at_most() {
    let mut stage = stage();
    assert_eq!(stage.was(&[(Some("k"), "v")]), [Was::Stored(0)]);
    for _ in 0..2 {
        stage.wait((WINDOW_MS - 1) / 2);
        assert_eq!(
            stage.was(&[(Some("k"), "v")]),
            [Was::Duplicate(0)],
            "the window does not slide"
        );
    }
    stage.wait(KEPT_MS - (WINDOW_MS - 1) / 2 * 2);
    stage.crash(0);
    assert_eq!(stage.was(&[(Some("k"), "v")]), [Was::Stored(1)]);
    assert_eq!(stage.was(&[(Some("k"), "v")]), [Was::Duplicate(1)]);
}

/// The clock of the broker may go back; log time does not.
#[test]
fn a_clock_that_goes_back_shortens_no_window() {
    let mut stage = stage();
    stage.wait(50_000);
    assert_eq!(stage.was(&[(Some("k"), "v")]), [Was::Stored(0)]);
    stage.now.wall.0 -= 40_000;
    stage.crash(0);
    assert_eq!(stage.was(&[(Some("k"), "v")]), [Was::Duplicate(0)]);
    assert_eq!(stage.was(&[(Some("l"), "v")]), [Was::Stored(1)]);
    assert_eq!(
        stage.was(&[(Some("l"), "v"), (Some("k"), "v")]),
        [Was::Duplicate(1), Was::Duplicate(0)]
    );
}

/// T6.
#[test]
fn a_key_with_another_payload_is_refused_and_nothing_is_stored() {
    let mut stage = stage();
    assert_eq!(stage.was(&[(Some("k"), "v"), (Some("l"), "v")]), [Was::Stored(0), Was::Stored(1)]);
    assert_eq!(stage.was(&[(Some("l"), "w")]), [Was::Reused(1)]);
    let entries = stage.entries.len();
    let first = stage.route_of(&[(Some("m"), "v")]);
    let other = stage.route_of(&[(Some("m"), "w")]);
    stage.commit();
    assert_eq!(stage.was_of(first, 1), [Was::Stored(2)]);
    assert_eq!(stage.was_of(other, 1), [Was::Reused(2)], "of one in flight too");
    assert_eq!(stage.entries.len(), entries + 1);
    let alone = stage.was(&[(Some("n"), "v"), (Some("n"), "w")]);
    assert_eq!(alone, [Was::Stored(3), Was::Reused(3)], "and within one batch");
}

/// T7, and each codec: what is taken out of a batch is stored as it came.
#[test]
fn a_batch_has_a_verdict_for_each_message() {
    for codec in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let mut stage = stage();
        assert_eq!(stage.was(&[(Some("b"), "b")]), [Was::Stored(0)]);
        let batch =
            [(Some("a"), "a"), (Some("b"), "b"), (Some("a"), "a"), (Some("c"), "c"), (None, "d")];
        let head = stage.head(-1, 40, 5);
        let route = stage.publish_as(&head, &batch, None, codec);
        let told = stage.take_runs(route);
        assert_eq!(told.len(), 1, "only what is committed is told at once: {told:?}");
        assert_eq!((told[0].base_sequence.0, told[0].count), (41, 1));
        stage.commit();
        let rest: Vec<_> = stage.take_runs(route).iter().map(|run| was(&run.outcome)).collect();
        assert_eq!(rest, [Was::Stored(1), Was::Duplicate(1), Was::Stored(2)]);
        let values: Vec<_> = stage.stored().into_iter().map(|message| message.value).collect();
        assert_eq!(values, ["b", "a", "c", "d"]);
        stage.crash(0);
        let again = stage.was(&[(Some("c"), "c"), (Some("a"), "a"), (None, "d")]);
        assert_eq!(again, [Was::Duplicate(2), Was::Duplicate(1), Was::Stored(4)]);
    }
}

/// T10.
#[test]
fn at_the_bound_new_keys_are_refused_and_none_is_forgotten() {
    let mut stage = Stage::new(PartitionLimits { dedup_bytes_max: 1 << 16, ..Default::default() });
    let keys: Vec<&'static str> = (0..10_000).map(|key| &*key.to_string().leak()).collect();
    let mut taken = 0;
    let refused = loop {
        match stage.was(&[(Some(keys[taken]), "v")])[0] {
            Was::Stored(_) => taken += 1,
            refused => break refused,
        }
    };
    assert_eq!(refused, Was::Refused(ErrorCode::DedupCapacity));
    assert!(taken > 100, "{taken}");
    assert_eq!(stage.was(&[(None, "v")]), [Was::Stored(taken as u64)], "others are taken");
    for (at, key) in keys[..taken].iter().enumerate() {
        assert_eq!(stage.was(&[(Some(key), "v")]), [Was::Duplicate(at as u64)]);
    }
    let mixed = stage.was(&[(Some(keys[0]), "v"), (Some("new"), "v")]);
    assert_eq!(mixed, [Was::Refused(ErrorCode::DedupCapacity); 2], "a batch that cannot be stored");
    stage.wait(KEPT_MS);
    assert_eq!(
        stage.was(&[(Some("new"), "v")]),
        [Was::Stored(taken as u64 + 1)],
        "there is room again"
    );
}

/// T12, up to the release.
#[test]
fn a_delayed_message_is_the_duplicate_of_itself_and_of_a_direct_one() {
    let mut stage = stage();
    let head = stage.head(-1, 0, 1);
    let due = stage.now.wall.0 + 500;
    let said = [(Some("k"), "v")];
    let first = stage.publish_as(&head, &said, Some(due), Compression::None);
    let twin = stage.publish_as(&head, &said, Some(due), Compression::None);
    stage.commit();
    assert_eq!(stage.was_of(first, 1), [Was::Delayed(1)]);
    assert_eq!(stage.was_of(twin, 1), [Was::DelayedDuplicate(1)]);
    let again = stage.publish_as(&head, &said, Some(due), Compression::None);
    assert_eq!(stage.was_of(again, 1), [Was::DelayedDuplicate(1)]);
    stage.crash(0);
    assert_eq!(stage.was(&said), [Was::DelayedDuplicate(1)]);
    assert_eq!(stage.stored().len(), 1);
}

/// T13, with keys: a session that has only ever sent duplicates goes on, also after a crash.
#[test]
fn a_session_passes_over_its_duplicates() {
    let mut stage = stage();
    assert_eq!(stage.was(&[(Some("a"), "a"), (Some("b"), "b")]), [Was::Stored(0), Was::Stored(1)]);
    let (first, second) = (stage.head(3, 0, 2), stage.head(3, 2, 1));
    let second = PublishHead { resolved_upto: first.base_sequence, ..second };
    let twice = [(Some("a"), "a"), (Some("b"), "b")];
    let one = stage.publish_as(&first, &twice, None, Compression::None);
    let two = stage.publish_as(&second, &[(Some("c"), "c")], None, Compression::None);
    let answers: Vec<_> = stage.outcomes(one, &first).iter().map(was).collect();
    assert_eq!(answers, [Was::Duplicate(0), Was::Duplicate(1)]);
    stage.commit();
    let answers: Vec<_> = stage.outcomes(two, &second).iter().map(was).collect();
    assert_eq!(answers, [Was::Stored(2)], "pipelined behind them");
    assert_eq!(stage.charged, 0);
    stage.crash(0);
    // The client saw none of these answers.
    let head = stage.head(3, 0, 2);
    let one = stage.publish_as(&head, &twice, None, Compression::None);
    let answers: Vec<_> = stage.outcomes(one, &head).iter().map(was).collect();
    assert_eq!(answers, [Was::Duplicate(0), Was::Duplicate(1)]);
    let again = PublishHead { resolved_upto: head.base_sequence, ..stage.head(3, 2, 1) };
    let two = stage.publish_as(&again, &[(Some("c"), "c")], None, Compression::None);
    let answers: Vec<_> = stage.outcomes(two, &again).iter().map(was).collect();
    assert_eq!(answers, [Was::Duplicate(2)]);
}

/// What is pipelined goes on without a round trip, wherever in a batch the duplicates stand.
#[test]
fn pipelined_batches_go_on_behind_duplicates_wherever_these_stand() {
    let mut stage = stage();
    assert_eq!(stage.was(&[(Some("a"), "a"), (Some("b"), "b")]), [Was::Stored(0), Was::Stored(1)]);
    let batches: [(&[Said], &[Was]); 5] = [
        (&[(Some("c"), "c")], &[Was::Stored(2)]),
        (&[(Some("a"), "a"), (Some("b"), "b")], &[Was::Duplicate(0), Was::Duplicate(1)]),
        (&[(Some("a"), "a"), (Some("d"), "d")], &[Was::Duplicate(0), Was::Stored(3)]),
        (&[(Some("e"), "e"), (Some("b"), "b")], &[Was::Stored(4), Was::Duplicate(1)]),
        (&[(None, "f")], &[Was::Stored(5)]),
    ];
    let (mut sequence, mut wanted) = (0, Vec::new());
    for (messages, expected) in batches {
        let head = stage.head(3, sequence, u32::try_from(messages.len()).unwrap());
        // Nothing is resolved yet.
        let head = PublishHead { resolved_upto: Sequence(0), ..head };
        stage.publish_on(9, &head, messages, (None, Compression::None));
        sequence += messages.len() as u64;
        wanted.extend_from_slice(expected);
    }
    stage.commit();
    // Answers to one connection are merged where they follow each other.
    let all = stage.head(3, 0, u32::try_from(sequence).unwrap());
    let answers: Vec<_> = stage.outcomes(9, &all).iter().map(was).collect();
    assert_eq!(answers, wanted);
}

/// A disk that is full in the middle of a batch: the same batch sent again stores the rest.
#[test]
fn a_batch_that_was_stored_in_part_is_stored_as_a_whole_by_its_retry() {
    let mut stage = stage();
    assert_eq!(stage.was(&[(Some("b"), "b")]), [Was::Stored(0)]);
    let batch = [(Some("a"), "a"), (Some("b"), "b"), (Some("c"), "c")];
    let head = stage.head(3, 0, 3);
    stage.takes = 1;
    let route = stage.publish_as(&head, &batch, None, Compression::None);
    stage.commit();
    let answers: Vec<_> = stage.outcomes(route, &head).iter().map(was).collect();
    assert_eq!(answers, [Was::Stored(1), Was::Duplicate(0), Was::Refused(ErrorCode::DiskFull)]);
    stage.takes = u64::MAX;
    let route = stage.publish_as(&head, &batch, None, Compression::None);
    stage.commit();
    let answers: Vec<_> = stage.outcomes(route, &head).iter().map(was).collect();
    assert_eq!(answers, [Was::Duplicate(1), Was::Duplicate(0), Was::Stored(2)]);
    assert_eq!(stage.charged, 0);
}

/// The large part of a snapshot is encoded without the partition's lock.
#[test]
fn a_snapshot_that_is_encoded_later_is_of_the_moment_of_its_draft() {
    let mut stage = stage();
    let publish = |stage: &mut Stage, keys: std::ops::Range<u32>| {
        for key in keys {
            stage.wait(u64::from(key % 2));
            let key: &'static str = format!("key {key}").leak();
            assert!(matches!(stage.was(&[(Some(key), "v")])[0], Was::Stored(_)));
        }
    };
    publish(&mut stage, 0..3_000);
    let (draft, expected) = {
        let state = stage.partition.state();
        (state.draft_snapshot(), state.encode_snapshot())
    };
    publish(&mut stage, 3_000..6_000);
    assert_eq!(draft.encode(), expected);
    assert_ne!(stage.partition.state().encode_snapshot(), expected);
}

/// T8.
#[test]
fn an_atomic_batch_is_a_duplicate_as_a_whole_or_refused_as_a_whole() {
    let mut stage = stage();
    stage.atomic = true;
    let batch = [(Some("a"), "a"), (Some("b"), "b"), (Some("c"), "c")];
    assert_eq!(stage.was(&batch), [Was::Stored(0), Was::Stored(1), Was::Stored(2)]);
    let again = [Was::Duplicate(0), Was::Duplicate(1), Was::Duplicate(2)];
    assert_eq!(stage.was(&batch), again);
    stage.crash(0);
    assert_eq!(stage.was(&batch), again);
    let conflict = [Was::Refused(ErrorCode::AtomicConflict); 2];
    assert_eq!(stage.was(&[(Some("c"), "c"), (Some("d"), "d")]), conflict, "some are stored");
    assert_eq!(stage.was(&[(Some("b"), "b"), (Some("a"), "a")]), conflict, "in another order");
    assert_eq!(stage.was(&[(Some("a"), "a"), (None, "x")]), conflict);
    let twice = [Was::Refused(ErrorCode::AtomicConflict); 3];
    assert_eq!(stage.was(&[(Some("e"), "e"), (Some("f"), "f"), (Some("e"), "e")]), twice);
    assert_eq!(stage.was(&[(Some("e"), "e"), (Some("a"), "z")]), [Was::Reused(0); 2]);
    assert_eq!(stage.stored().len(), 3, "nothing of these is stored");
    assert_eq!(stage.was(&[(Some("e"), "y"), (Some("d"), "y")]), [Was::Stored(3), Was::Stored(4)]);
    let first = stage.route_of(&[(Some("g"), "g"), (Some("h"), "h")]);
    let twin = stage.route_of(&[(Some("g"), "g"), (Some("h"), "h")]);
    stage.commit();
    assert_eq!(stage.was_of(first, 2), [Was::Stored(5), Was::Stored(6)]);
    assert_eq!(stage.was_of(twin, 2), [Was::Duplicate(5), Was::Duplicate(6)]);
    assert_eq!(stage.charged, 0);
}

/// T11, and A8: of those that want one offset one gets it, and its retries are told so.
#[test]
fn of_publishes_that_want_one_offset_one_is_stored_and_its_retry_is_a_duplicate() {
    let mut stage = stage();
    stage.atomic = true;
    let at = |stage: &mut Stage, at: u64| stage.at = Some(postrider_protocol::types::Offset(at));
    at(&mut stage, 0);
    let (one, other) = (stage.route_of(&[(Some("a"), "a")]), stage.route_of(&[(Some("b"), "b")]));
    assert_eq!(
        stage.was_of(other, 1),
        [Was::Refused(ErrorCode::OffsetConflict)],
        "in flight counts"
    );
    stage.commit();
    assert_eq!(stage.was_of(one, 1), [Was::Stored(0)]);
    assert_eq!(stage.was(&[(Some("a"), "a")]), [Was::Duplicate(0)], "keys are asked first");
    at(&mut stage, 2);
    assert_eq!(stage.was(&[(None, "c")]), [Was::Refused(ErrorCode::OffsetConflict)]);
    at(&mut stage, 1);
    let head = stage.head(3, 0, 2);
    let batch = [(None, "c"), (None, "d")];
    for expected in [[Was::Stored(1), Was::Stored(2)], [Was::Duplicate(1), Was::Duplicate(2)]] {
        let route = stage.publish_as(&head, &batch, None, Compression::None);
        stage.commit();
        let told: Vec<_> = stage.outcomes(route, &head).iter().map(was).collect();
        assert_eq!(told, expected, "sequences are asked first");
    }
    let refused = stage.publish(&[(None, "e")]);
    let Outcome::Rejected { error } = &refused[0] else { panic!("{refused:?}") };
    assert_eq!((error.code, error.detail), (ErrorCode::OffsetConflict, 3), "the next one is told");
}

/// A definite refusal remembers no key.
#[test]
fn a_refused_publish_leaves_no_key() {
    let mut stage = stage();
    stage.takes = 0;
    assert_eq!(stage.was(&[(Some("k"), "v")]), [Was::Refused(ErrorCode::DiskFull)]);
    stage.takes = u64::MAX;
    assert_eq!(stage.was(&[(Some("k"), "w")]), [Was::Stored(0)], "with any payload");
}
