//! Owns scenarios of the broker's own producer sessions, in which dead letters are published.

use postrider_core::limits::SESSION_IDLE_MS;
use postrider_protocol::error::ErrorCode;
use postrider_protocol::message::Outcome;
use postrider_protocol::types::ProducerId;

use crate::stage::{Stage, policy};

const CLIENT: ProducerId = ProducerId(7);

#[test]
fn a_client_cannot_publish_in_a_session_of_the_brokers_own() {
    let mut stage = Stage::new(policy());
    for hash in [0, 1 << 40, u64::MAX] {
        let head = stage.head(ProducerId::internal(hash), 0);
        let outcome = stage.publish_head(&head, false);
        let Outcome::Rejected { error } = outcome else { panic!("{outcome:?}") };
        assert_eq!(error.code, ErrorCode::UnknownProducer);
    }
    assert!(stage.partition.state().producers().is_empty());
}

#[test]
fn a_letter_that_is_published_twice_is_stored_once_also_when_sequences_have_holes() {
    let mut stage = Stage::new(policy());
    let own = ProducerId::internal(42);
    for sequence in [0, 5, 6] {
        let head = stage.head(own, sequence);
        let first = stage.publish_head(&head, true);
        assert!(matches!(first, Outcome::Committed { .. }), "{first:?}");
        let again = stage.publish_head(&head, true);
        assert!(matches!(again, Outcome::Duplicate { .. }), "{again:?}");
    }
    stage.change_leader();
    let head = stage.head(own, 6);
    let again = stage.publish_head(&head, true);
    assert!(matches!(again, Outcome::Duplicate { .. }), "{again:?}");
}

#[test]
fn a_session_of_the_brokers_own_never_expires() {
    let mut stage = Stage::new(policy());
    let own = ProducerId::internal(42);
    for producer in [own, CLIENT] {
        let head = stage.head(producer, 0);
        stage.publish_head(&head, producer == own);
    }
    stage.wait(100 * SESSION_IDLE_MS);
    let pending = stage.partition.expire_sessions(stage.now).unwrap();
    stage.follow(postrider_core::partition::Decision::Append(pending));
    assert!(stage.partition.expire_sessions(stage.now).is_none());
    let producers = stage.partition.state().producers();
    assert!(producers.session(CLIENT).is_none() && producers.session(own).is_some());
    let head = stage.head(own, 0);
    let again = stage.publish_head(&head, true);
    assert!(matches!(again, Outcome::Duplicate { .. }), "{again:?}");
}

/// An entry stores the low 31 bits of a sequence: a session must not lose the rest where they wrap.
#[test]
fn a_session_goes_on_where_the_31_bits_that_an_entry_stores_wrap() {
    const WRAP: u64 = 1 << 31;
    const SEQUENCES: [u64; 7] =
        [WRAP - 2, WRAP - 1, WRAP, WRAP + 1, 2 * WRAP - 1, 2 * WRAP, 2 * WRAP + 1];
    let mut stage = Stage::new(policy());
    for sequence in SEQUENCES {
        let head = stage.head(CLIENT, sequence);
        let first = stage.publish_head(&head, false);
        assert!(matches!(first, Outcome::Committed { .. }), "{sequence}: {first:?}");
    }
    stage.change_leader();
    for sequence in SEQUENCES {
        let head = stage.head(CLIENT, sequence);
        let again = stage.publish_head(&head, false);
        assert!(matches!(again, Outcome::Duplicate { .. }), "{sequence}: {again:?}");
    }
}

// A2: the code alone means that nothing is stored; the outcome says that nobody knows.
#[test]
fn a_publish_that_is_pending_when_a_leadership_ends_is_in_doubt_and_its_retry_is_stored_once() {
    let mut stage = Stage::new(policy());
    let before = stage.head(CLIENT, 0);
    assert!(matches!(stage.publish_head(&before, false), Outcome::Committed { .. }));
    stage.deposes = true;
    let head = stage.head(CLIENT, 1);
    let outcome = stage.publish_head(&head, false);
    assert!(
        matches!(&outcome, Outcome::Unknown { error } if error.code == ErrorCode::NotLeader),
        "{outcome:?}"
    );
    stage.deposes = false;
    stage.change_leader();
    let head = stage.head(CLIENT, 1);
    let again = stage.publish_head(&head, false);
    assert!(
        matches!(again, Outcome::Committed { .. }),
        "the next leader did not have it: {again:?}"
    );
    let once_more = stage.publish_head(&head, false);
    assert!(matches!(once_more, Outcome::Duplicate { .. }), "{once_more:?}");
}
