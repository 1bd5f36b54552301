//! Owns the naive model: what a log says of each delayed message, read entry by entry. Knows nothing of how the
//! state is kept. Driven by the world.

use std::collections::BTreeMap;

use postrider_core::delay::CancelHow;
use postrider_core::partition::StateCommand;
use postrider_protocol::batch::{Batch, DecodeLimits};
use postrider_protocol::entry::{Entry, EntryKind};
use postrider_protocol::message::DelayId;
use postrider_protocol::trailer::Trailer;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Pending,
    Released,
    Cancelled,
    Lost,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    pub(crate) due: u64,
    pub(crate) value: Vec<u8>,
    pub(crate) fate: Fate,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Naive {
    pub(crate) messages: BTreeMap<DelayId, Message>,
    /// Entries applied.
    pub(crate) end: usize,
}

pub(crate) fn values(entry: &Entry) -> Vec<Vec<u8>> {
    let records = Batch::of_entry(entry).records(DecodeLimits::default()).unwrap();
    records.map(|record| record.unwrap().record.value.unwrap().to_vec()).collect()
}

impl Naive {
    /// Takes up the next entry.
    pub(crate) fn apply(&mut self, entry: &Entry) {
        self.end += 1;
        let index = entry.header.index;
        let trailer = Trailer::decode(&entry.trailer).unwrap();
        match entry.header.kind {
            EntryKind::Delayed => {
                let due = trailer.deliver_at.unwrap().0;
                for (position, value) in (0..).zip(values(entry)) {
                    let message = Message { due, value, fate: Fate::Pending };
                    self.messages.insert(DelayId { index, position }, message);
                }
            }
            EntryKind::Data => {
                let runs = trailer.released.iter();
                let ids: Vec<DelayId> = runs
                    .flat_map(|run| {
                        let places = run.first..run.first + run.count;
                        places.map(|position| DelayId { index: run.index, position })
                    })
                    .collect();
                if ids.is_empty() {
                    return;
                }
                let values = values(entry);
                assert_eq!(values.len(), ids.len(), "a release holds what it names");
                for (id, value) in ids.iter().zip(values) {
                    let message = self.messages.get_mut(id).expect("it was published");
                    assert_eq!(message.fate, Fate::Pending, "{id:?} is released once, or never");
                    assert_eq!(message.value, value, "{id:?} is what was published");
                    assert!(
                        message.due <= entry.header.append_time.0,
                        "{id:?} is not released before its time"
                    );
                    message.fate = Fate::Released;
                }
            }
            EntryKind::DelayCancel => {
                let command = StateCommand::decode(entry.header.kind, &entry.body).unwrap();
                let Some(StateCommand::DelayCancel { how, ids }) = command else { panic!() };
                for id in ids {
                    if let Some(message) = self.messages.get_mut(&id)
                        && message.fate == Fate::Pending
                    {
                        message.fate = match how {
                            CancelHow::Asked => Fate::Cancelled,
                            CancelHow::Lost => Fate::Lost,
                        };
                    }
                }
            }
            _ => {}
        }
    }

    pub(crate) fn count(&self, fate: Fate) -> u64 {
        self.messages.values().filter(|message| message.fate == fate).count() as u64
    }
}
