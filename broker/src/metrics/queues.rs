//! Owns how the depth of queues is written. Never counts (the join does). Driven by the table of metrics.

use super::Sample;
use super::text::Series;
use crate::join::QueueDepth;

pub(super) fn messages(sample: &Sample<'_>, out: &mut Series<'_>) {
    each(sample, |labels, depth| {
        let states = [
            ("ready", depth.ready),
            ("leased", depth.leased),
            ("delayed", depth.delayed),
            ("blocked", depth.blocked),
            ("dead_lettering", depth.dead_lettering),
        ];
        for (state, count) in states {
            let labels = [labels, &[("state", state)]].concat();
            out.of(&labels, count as f64);
        }
    });
}

pub(super) fn oldest_ready(sample: &Sample<'_>, out: &mut Series<'_>) {
    each(sample, |labels, depth| out.of(labels, depth.oldest_ready.as_secs_f64()));
}

fn each(sample: &Sample<'_>, mut write: impl FnMut(&[(&str, &str)], QueueDepth)) {
    let Some(broker) = &sample.broker else { return };
    for (topic, subscription, depth) in &broker.queue_depths.queues {
        write(&[("topic", topic), ("subscription", subscription)], *depth);
    }
    write(&[], broker.queue_depths.others);
}
