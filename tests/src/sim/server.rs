//! Owns the broker of a run on its disk, with a session for each connection, and does what the shell does:
//! bytes to frames, back-pressure, transmitting when woken. Never decides when anything fails. Driven by the world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postrider_broker::join::{
    Broker, BrokerOptions, Readiness, Session, Transmit, TransmitState, Wake,
};
use postrider_core::Now;
use postrider_core::group::GroupOptions;
use postrider_protocol::frame::{Frame, FrameDecoder, connection_error};
use postrider_storage::disk_sim::{CrashKind, SimRandom};
use postrider_storage::{Disk, SimDisk, StoreOptions};

use super::group_tamper::GroupTamper;
use super::group_tap::GroupTap;
use super::network::Connection;
use super::queue_tamper::QueueTamper;
use super::tamper::{LyingDisk, Planted, tamper_frames};
use super::tap::{Tap, frames};

#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection as the server sees it.
struct Served {
    /// None when it was refused: only the last bytes are to be sent.
    session: Option<Session>,
    bell: Arc<Bell>,
    decoder: FrameDecoder,
    input: BytesMut,
    output: Bytes,
    pending: bool,
    /// Closed once the output is sent.
    ended: bool,
}

/// The broker of a run, alive or not.
pub(crate) struct Server {
    pub(crate) disk: SimDisk,
    broker: Option<Broker>,
    served: BTreeMap<u64, Served>,
    planted: Option<Planted>,
    /// What passes, in a run with queues.
    pub(crate) tap: Option<Tap>,
    queue_tamper: Option<QueueTamper>,
    /// What passes, in a run with a group.
    pub(crate) groups: Option<GroupTap>,
    group_tamper: Option<GroupTamper>,
}

/// Small sizes, so that rolls, checkpoints and recycling happen within a run.
fn options() -> BrokerOptions {
    let store = StoreOptions {
        segment_bytes_min: 8 << 10,
        segment_bytes_max: 32 << 10,
        journal_bytes_min: 16 << 10,
        journal_bytes_max: 64 << 10,
        group_bytes_max: 32 << 10,
        direct_write_bytes: 4 << 10,
        checkpoint_bytes: 128 << 10,
        checkpoint_journal_bytes: 64 << 10,
        checkpoint_interval_ms: 500,
        reserve_bytes: 64 << 10,
        recycle_bytes_max: 64 << 10,
        ..StoreOptions::default()
    };
    BrokerOptions {
        store,
        snapshot_after_bytes: 64 << 10,
        snapshot_after_entries: 64,
        groups: groups(),
        retention_check_interval: Duration::from_millis(200),
        ..BrokerOptions::default()
    }
}

/// Short times, so that members are taken for dead within a run.
fn groups() -> GroupOptions {
    GroupOptions {
        session_timeout_min: Duration::from_millis(100),
        reconnect_timeout: Duration::from_millis(300),
        drain_timeout: Duration::from_millis(400),
        retry: Duration::from_millis(100),
        ..GroupOptions::default()
    }
}

impl Server {
    pub(crate) fn new(disk: SimDisk, planted: Option<Planted>) -> Self {
        let queue_tamper = planted.and_then(QueueTamper::new);
        Self {
            disk,
            broker: None,
            served: BTreeMap::new(),
            planted,
            tap: None,
            queue_tamper,
            groups: None,
            group_tamper: planted.and_then(GroupTamper::new),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.broker.is_some()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.broker.as_ref().is_some_and(|broker| broker.store().is_full())
    }

    /// Whether the disk failed, so that the process must end.
    pub(crate) fn has_failed(&self) -> bool {
        let failed = |broker: &Broker| matches!(broker.ready(), Readiness::Failed(_));
        self.broker.as_ref().is_some_and(failed)
    }

    /// Starts on what the disk holds.
    pub(crate) fn start(&mut self, now: Now, dice: &mut SimRandom) -> Result<(), String> {
        let disk: Arc<dyn Disk> = match self.planted {
            Some(Planted::SyncIsALie) => Arc::new(LyingDisk(self.disk.clone())),
            _ => Arc::new(self.disk.clone()),
        };
        let broker = Broker::open(disk, options(), now, &mut || dice.next_u64());
        self.broker = Some(broker.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Ends the process without a word.
    pub(crate) fn kill(
        &mut self,
        kind: CrashKind,
        now: Now,
        network: &mut BTreeMap<u64, Connection>,
    ) {
        self.disk.crash(kind);
        self.leave(now, network);
    }

    /// Ends the process as SIGTERM does.
    pub(crate) fn stop(
        &mut self,
        now: Now,
        network: &mut BTreeMap<u64, Connection>,
    ) -> Result<(), String> {
        let closed = self.broker.as_ref().map_or(Ok(()), |broker| {
            broker.drain();
            broker.close().map_err(|error| error.to_string())
        });
        self.disk.crash(CrashKind::Process);
        self.leave(now, network);
        closed
    }

    fn leave(&mut self, now: Now, network: &mut BTreeMap<u64, Connection>) {
        for id in self.served.keys() {
            if let Some(connection) = network.get_mut(id) {
                connection.cut = true;
                connection.client_end = connection.client_end.or(Some(now.monotonic));
                connection.server_end = Some(now.monotonic);
            }
        }
        self.served.clear();
        if let Some(tap) = &mut self.tap {
            tap.restarted();
        }
        if let Some(tamper) = &mut self.queue_tamper {
            tamper.restarted();
        }
        if let Some(groups) = &mut self.groups {
            groups.restarted(now.monotonic);
        }
        if let Some(tamper) = &mut self.group_tamper {
            tamper.restarted();
        }
        self.broker = None;
        self.disk = self.disk.reopen();
    }

    /// Accepts a connection; false when nobody listens.
    pub(crate) fn accept(&mut self, id: u64) -> bool {
        let Some(broker) = &self.broker else { return false };
        let bell = Arc::new(Bell::default());
        let wake: Arc<dyn Wake> = Arc::<Bell>::clone(&bell);
        let (session, output) = match broker.connect(wake) {
            Ok(session) => (Some(session), Bytes::new()),
            Err(error) => (None, connection_error(&error)),
        };
        let decoder = FrameDecoder::new(64 << 20);
        let ended = session.is_none();
        let input = BytesMut::new();
        self.served
            .insert(id, Served { session, bell, decoder, input, output, pending: true, ended });
        true
    }

    /// The store's threads' work: up to `steps` groups.
    pub(crate) fn step(&self, steps: u64) -> bool {
        let Some(broker) = &self.broker else { return false };
        let mut worked = false;
        for _ in 0..steps {
            worked |= broker.store().step();
        }
        worked
    }

    pub(crate) fn maintain(&self, now: Now) {
        if let Some(broker) = &self.broker {
            broker.store().maintain(now.wall);
        }
    }

    pub(crate) fn tick(&self, now: Now) {
        if let Some(broker) = &self.broker {
            broker.tick(now);
        }
    }

    /// Moves bytes of all connections.
    pub(crate) fn serve(
        &mut self,
        now: Now,
        network: &mut BTreeMap<u64, Connection>,
        dice: &mut SimRandom,
        delay_max_ms: u64,
    ) {
        let planted = self.planted;
        let (tap, tamper) = (&mut self.tap, &mut self.queue_tamper);
        let (groups, group_tamper) = (&mut self.groups, &mut self.group_tamper);
        tap.iter_mut().for_each(|tap| tap.oracle.tell_time(now));
        self.served.retain(|id, served| {
            let connection = network.get_mut(id);
            let connection = connection
                .filter(|connection| connection.server_end.is_none_or(|at| at > now.monotonic));
            let Some(connection) = connection else {
                tap.iter_mut().for_each(|tap| tap.disconnected(now, *id));
                groups.iter_mut().for_each(|tap| tap.disconnected(now, *id));
                return false;
            };
            let mut ears = Ears {
                link: *id,
                tap: tap.as_mut(),
                tamper: tamper.as_mut(),
                groups: groups.as_mut(),
                group_tamper: group_tamper.as_mut(),
            };
            let listens = served.output.is_empty();
            served.receive(now, connection, &mut ears);
            served.transmit(now, planted, dice, &mut ears);
            if listens {
                groups.iter_mut().for_each(|tap| tap.listens(now, *id));
            }
            let room = connection.to_client.room().min(served.output.len());
            if room > 0 {
                let sent = served.output.split_to(room);
                if !connection.cut {
                    connection.to_client.send(now.monotonic, sent, dice, delay_max_ms);
                }
            }
            if served.ended && served.output.is_empty() {
                let arrives = connection.to_client_arrives(now.monotonic);
                connection.client_end = connection.client_end.or(Some(arrives));
                tap.iter_mut().for_each(|tap| tap.disconnected(now, *id));
                groups.iter_mut().for_each(|tap| tap.disconnected(now, *id));
                return false;
            }
            true
        });
    }
}

/// Who listens to a connection, or changes what passes.
struct Ears<'a> {
    link: u64,
    tap: Option<&'a mut Tap>,
    tamper: Option<&'a mut QueueTamper>,
    groups: Option<&'a mut GroupTap>,
    group_tamper: Option<&'a mut GroupTamper>,
}

impl Ears<'_> {
    /// What the session is to get of a frame.
    fn received(&mut self, now: Now, frame: Frame) -> Vec<Frame> {
        if self.groups.is_some() {
            return self.group_received(now, frame);
        }
        let Some(tap) = &mut self.tap else { return vec![frame] };
        tap.received(now, self.link, &frame);
        match &mut self.tamper {
            Some(tamper) => tamper.received(tap, self.link, frame),
            None => vec![frame],
        }
    }

    /// What the client is to get of a session's bytes.
    fn sent(&mut self, now: Now, bytes: Bytes, dice: &mut SimRandom) -> Bytes {
        if self.groups.is_some() {
            return self.group_sent(now, &bytes, dice);
        }
        let Some(tap) = &mut self.tap else { return bytes };
        let mut sent = frames(&mut BytesMut::from(&bytes[..]));
        if let Some(tamper) = &mut self.tamper {
            sent = tamper.sent(tap, self.link, sent, dice);
        }
        let mut changed = BytesMut::with_capacity(bytes.len());
        for frame in &sent {
            tap.sent(now, self.link, frame);
            changed.extend_from_slice(&frame.header.encode());
            changed.extend_from_slice(&frame.body);
        }
        changed.freeze()
    }

    fn group_received(&mut self, now: Now, frame: Frame) -> Vec<Frame> {
        let Some(tap) = &mut self.groups else { return vec![frame] };
        let mut heard = Vec::new();
        for frame in tap.echoes(now, self.link).into_iter().chain([frame]) {
            tap.received(now, self.link, &frame);
            match &mut self.group_tamper {
                Some(tamper) => heard.extend(tamper.received(tap, self.link, frame)),
                None => heard.push(frame),
            }
        }
        heard
    }

    fn group_sent(&mut self, now: Now, bytes: &Bytes, dice: &mut SimRandom) -> Bytes {
        let Some(tap) = &mut self.groups else { return bytes.clone() };
        let mut sent = frames(&mut BytesMut::from(&bytes[..]));
        if let Some(tamper) = &mut self.group_tamper {
            sent = tamper.sent(tap, self.link, sent, dice);
        }
        let mut changed = BytesMut::with_capacity(bytes.len());
        for frame in &sent {
            tap.sent(now, self.link, frame);
            if !GroupTap::is_unasked(frame) {
                changed.extend_from_slice(&frame.header.encode());
                changed.extend_from_slice(&frame.body);
            }
        }
        changed.freeze()
    }
}

impl Served {
    fn receive(&mut self, now: Now, connection: &mut Connection, ears: &mut Ears<'_>) {
        let Some(session) = &self.session else { return };
        if self.ended || !self.output.is_empty() || !session.may_receive() {
            return;
        }
        if !connection.to_server.receive(now.monotonic, &mut self.input) {
            return;
        }
        loop {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(frame)) => {
                    self.pending = true;
                    for frame in ears.received(now, frame) {
                        if let Err(end) = session.receive(now, frame) {
                            self.output = end.into_frame();
                            self.ended = true;
                            return;
                        }
                    }
                }
                Ok(None) => return,
                Err(_bad_frame) => {
                    self.ended = true;
                    return;
                }
            }
        }
    }

    fn transmit(
        &mut self,
        now: Now,
        planted: Option<Planted>,
        dice: &mut SimRandom,
        ears: &mut Ears<'_>,
    ) {
        let Some(session) = &self.session else { return };
        self.pending |= self.bell.0.swap(false, Ordering::Relaxed);
        if self.ended || !self.pending || !self.output.is_empty() {
            return;
        }
        self.pending = false;
        let mut out = Transmit::default();
        match session.transmit(now, &mut out) {
            TransmitState::Idle => {}
            TransmitState::More => self.pending = true,
            TransmitState::Cold(run) => {
                // A read that fails shows when the session reads again.
                let _shows_later = run.load();
                self.pending = true;
            }
        }
        let mut bytes = BytesMut::new();
        out.chunks.iter().for_each(|chunk| bytes.extend_from_slice(chunk));
        self.output = match planted {
            Some(planted) => tamper_frames(bytes, planted, dice),
            None => bytes.freeze(),
        };
        self.output = ears.sent(now, std::mem::take(&mut self.output), dice);
    }
}
