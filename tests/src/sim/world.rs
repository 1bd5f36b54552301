//! Owns a run: its clock, its dice, which faults happen when, and the order of events. Never judges a
//! message (the oracle does). Driven by `tests/sim` with a seed.
//!
//! A run: topics are created; clients publish and read while faults happen; the faults stop; everything
//! sent must be answered and read; a fresh client reads everything once more for the last judgement.

mod groups;

use std::collections::BTreeMap;
use std::time::Duration;

use postrider::core::link::LinkFault;
use postrider_core::Now;
use postrider_protocol::message::{Overflow, Start, TopicBounds, TopicConfig};
use postrider_protocol::types::{Durability, TimestampMs, TopicKind};
use postrider_storage::SimDisk;
use postrider_storage::disk_sim::{CrashKind, FaultPlan, SimRandom};

use super::client::{Client, Keys, Load};
use super::group_oracle::GroupFigures;
use super::group_tap::GroupTap;
use super::network::Connection;
use super::oracle::{Oracle, Place};
use super::queue_oracle::{Queue, QueueFigures};
use super::queues::{making, progress, roll_bounds, roll_policy, roll_work};
use super::reader::{Durable, Plan};
use super::server::Server;
use super::tamper::Planted;
use super::tap::Tap;
use super::trace::Trace;

/// The longest that answers may take once the faults have stopped.
const QUIET_MAX: Duration = Duration::from_secs(120);

/// The longest time without a delivery while something is to be read: beyond the silence after which a
/// client asks whether the broker is there.
const STALL_MAX: Duration = Duration::from_secs(40);

/// What a run was made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Messages sent.
    pub messages: u64,
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Messages that readers got.
    pub delivered: u64,
    /// Processes of the broker killed.
    pub kills: u64,
    /// Power losses.
    pub power_losses: u64,
    /// Brokers ended by a failed sync or write.
    pub disk_failures: u64,
    /// Clean restarts.
    pub stops: u64,
    /// Starts of the broker that did not come to an end.
    pub failed_starts: u64,
    /// Connections cut.
    pub cuts: u64,
    /// Times that the disk was full.
    pub full_disks: u64,
    /// Clients that were restarted.
    pub client_restarts: u64,
    /// What the queues went through.
    pub queues: QueueFigures,
    /// What the consumer group went through.
    pub groups: GroupFigures,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.kills += other.kills;
        self.power_losses += other.power_losses;
        self.disk_failures += other.disk_failures;
        self.stops += other.stops;
        self.failed_starts += other.failed_starts;
        self.cuts += other.cuts;
        self.full_disks += other.full_disks;
        self.client_restarts += other.client_restarts;
        self.queues += other.queues;
        self.groups += other.groups;
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the oracle found; empty when all is well.
    pub violations: Vec<String>,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// The trace, if it was asked for.
    pub trace: Vec<String>,
    /// What happened.
    pub figures: Figures,
}

/// Which faults happen in a run, and how often: one in so many milliseconds, 0 = never.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    kill: u64,
    power: u64,
    planned_crash: u64,
    failed_sync: u64,
    stop: u64,
    cut: u64,
    full: u64,
    client_restart: u64,
    wall_jump: u64,
}

impl Faults {
    /// Each seed has a mix of its own: what never happens in it lets other things go further.
    fn roll(dice: &mut SimRandom) -> Self {
        let mut some = |typical: u64| {
            if dice.one_in(2) { typical / 2 + dice.below(typical) } else { 0 }
        };
        Self {
            kill: some(600),
            power: some(800),
            planned_crash: some(900),
            failed_sync: some(1_500),
            stop: some(1_500),
            cut: some(200),
            full: some(1_500),
            client_restart: some(900),
            wall_jump: some(1_000),
        }
    }
}

struct World {
    now: Duration,
    wall_offset_ms: u64,
    dice: SimRandom,
    faults: Faults,
    chaos: bool,
    delay_max_ms: u64,
    server: Server,
    restart_at: Duration,
    network: BTreeMap<u64, Connection>,
    next_link: u64,
    clients: Vec<Client>,
    next_publisher: u64,
    topics: Vec<TopicConfig>,
    durables: BTreeMap<String, Durable>,
    load: Load,
    space_back_at: Option<Duration>,
    oracle: Oracle,
    cast: Cast,
    planted: Option<Planted>,
    /// When queues are purged, if they are.
    purges: Option<SimRandom>,
    /// Everybody acknowledges what he gets: the queues are to become empty.
    draining: bool,
    trace: Trace,
    figures: Figures,
}

/// Who takes part in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cast {
    /// Producers and readers, ephemeral and durable.
    Streams,
    /// Producers, consumers of queues, and readers beside them.
    Queues,
    /// Producers, and the members of a consumer group.
    Groups,
}

/// Runs a seed, with a planted bug or without.
#[must_use]
pub fn run(cast: Cast, seed: u64, planted: Option<Planted>, keep_trace: bool) -> Report {
    let mut world = World::new(cast, seed, planted, keep_trace);
    world.play();
    let (messages, acknowledged) = world.oracle.counts();
    let queues =
        world.server.tap.as_ref().map_or_else(QueueFigures::default, |tap| tap.oracle.figures);
    let groups =
        world.server.groups.as_ref().map_or_else(GroupFigures::default, |tap| tap.oracle.figures);
    let figures = Figures { messages, acknowledged, queues, groups, ..world.figures };
    world.trace.say(world.now, format_args!("end {figures:?}"));
    Report {
        violations: world.oracle.violations().to_vec(),
        trace_hash: world.trace.hash(),
        trace: world.trace.into_lines(),
        figures,
    }
}

/// Bounds of the log topic that loses messages anyway; by the seed, not by its dice, whose throws tell all the rest.
fn log_bounds(seed: u64) -> TopicBounds {
    let bounds = TopicBounds::default();
    match seed % 6 {
        3 => TopicBounds {
            max_messages: Some(20 + seed % 50),
            overflow: Overflow::DropOldest,
            ..bounds
        },
        5 => TopicBounds { message_ttl_ms: Some(200 + seed % 700), ..bounds },
        _ => bounds,
    }
}

impl World {
    fn new(cast: Cast, seed: u64, planted: Option<Planted>, keep_trace: bool) -> Self {
        let mut dice = SimRandom::new(seed ^ 0x706f_7374_7269_6465);
        let faults = Faults::roll(&mut dice);
        let topic = |kind, partitions: u32, retention_bytes| TopicConfig {
            partitions,
            kind,
            durability: Durability::Fsync,
            retention_ms: None,
            retention_bytes,
            message_bytes_max: None,
            bounds: TopicBounds::default(),
        };
        let partitions = 1 + u32::try_from(dice.below(3)).expect("few");
        let load = Load {
            pause: 1 + dice.below(40),
            burst: 1 + dice.below(20),
            bytes_max: 1 + (16 << dice.below(7)),
        };
        let mut server = Server::new(SimDisk::new(seed), planted);
        let topics = match cast {
            Cast::Streams => vec![
                topic(TopicKind::Log, partitions, None),
                TopicConfig {
                    bounds: log_bounds(seed),
                    ..topic(TopicKind::Log, 1, Some(48 << 10))
                },
            ],
            Cast::Queues => {
                let mut tap = Tap::default();
                for (topic, subscription) in [(0, Some("work".to_string())), (1, None)] {
                    let policy = roll_policy(&mut dice);
                    let bounds = roll_bounds(&subscription, &policy, &mut dice);
                    let purged = false;
                    tap.oracle.queues.push(Queue { topic, subscription, policy, bounds, purged });
                }
                server.tap = Some(tap);
                vec![
                    topic(TopicKind::Log, partitions, None),
                    topic(TopicKind::Queue, partitions, None),
                ]
            }
            Cast::Groups => {
                let partitions = 1 + u32::try_from(dice.below(7)).expect("few");
                server.groups = Some(GroupTap::new(partitions));
                vec![topic(TopicKind::Log, partitions, None)]
            }
        };
        Self {
            now: Duration::from_secs(1),
            wall_offset_ms: 1_700_000_000_000,
            faults,
            chaos: true,
            delay_max_ms: dice.below(12),
            server,
            restart_at: Duration::ZERO,
            network: BTreeMap::new(),
            next_link: 0,
            clients: Vec::new(),
            next_publisher: 0,
            topics,
            durables: BTreeMap::new(),
            load,
            space_back_at: None,
            oracle: Oracle::default(),
            cast,
            planted,
            purges: (cast == Cast::Queues && seed.is_multiple_of(4))
                .then(|| SimRandom::new(seed ^ 0x7075_7267_6500)),
            draining: false,
            trace: Trace::new(keep_trace),
            figures: Figures::default(),
            dice,
        }
    }

    fn play(&mut self) {
        self.trace.say(self.now, format_args!("{:?} {:?}", self.faults, self.load));
        self.create_topics();
        let clients = 1 + self.dice.below(3) + u64::from(self.cast == Cast::Groups);
        for number in 0..clients {
            let client = self.new_client(number);
            self.clients.push(client);
        }
        let length = Duration::from_millis(1_000 + self.dice.below(3_000));
        let end = self.now + length;
        while self.now < end && self.oracle.violations().is_empty() {
            self.millisecond();
        }
        self.settle();
        self.judge();
    }

    fn now(&self) -> Now {
        let millis = u64::try_from(self.now.as_millis()).expect("a short run");
        Now { monotonic: self.now, wall: TimestampMs(self.wall_offset_ms + millis) }
    }

    fn create_topics(&mut self) {
        let mut admin = Client::new("admin".to_string(), self.dice.next_u64());
        for (number, config) in self.topics.iter().enumerate() {
            if config.kind == TopicKind::Log {
                admin.create_topic(self.now, number, config.clone());
            }
        }
        self.clients.push(admin);
        let end = self.now + QUIET_MAX;
        self.chaos = false;
        self.await_created(end);
        for queue in self.queues() {
            let partitions = self.topics[queue.topic].partitions;
            self.clients[0].create_queue(self.now, &making(&queue, partitions));
        }
        self.await_created(end);
        self.chaos = true;
        self.drop_client(0);
    }

    fn await_created(&mut self, end: Duration) {
        while !self.clients[0].topics_created(&mut self.oracle) {
            self.millisecond();
            if self.now > end {
                return self.oracle.violate("topics are not created".to_string());
            }
        }
    }

    fn queues(&self) -> Vec<Queue> {
        self.server.tap.as_ref().map_or_else(Vec::new, |tap| tap.oracle.queues.clone())
    }

    fn new_client(&mut self, number: u64) -> Client {
        if self.cast == Cast::Groups {
            return self.new_group_client(number);
        }
        let mut client = Client::new(format!("client-{number}"), self.dice.next_u64());
        for topic in 0..self.topics.len() {
            if self.dice.one_in(3) {
                continue;
            }
            let partitions = self.topics[topic].partitions;
            let keys = if self.cast == Cast::Queues { Keys::Some } else { Keys::None };
            let who = self.next_publisher;
            client.publish(self.now, topic, partitions, who, keys, &mut self.dice);
            self.next_publisher += 1;
        }
        for (at, queue) in self.queues().iter().enumerate() {
            for _ in 0..self.dice.below(3) {
                let plan = roll_work(at, &mut self.dice);
                let who = format!("client-{number} on queue {at}");
                client.consume(who, plan, queue, self.now, &mut self.dice);
            }
        }
        for topic in 0..self.topics.len() {
            if self.topics[topic].kind == TopicKind::Queue {
                continue;
            }
            let plan = self.plan(topic, None);
            client.read(format!("client-{number} ephemeral on {topic}"), plan, self.now);
            let name = format!("durable-{number}");
            let plan = self.plan(topic, Some(format!("{name}-{topic}")));
            client.read(format!("{name} on {topic}"), plan, self.now);
        }
        client
    }

    fn plan(&mut self, topic: usize, name: Option<String>) -> Plan {
        let latest = name.is_none() && self.dice.one_in(3);
        Plan {
            topic,
            name,
            start: if latest { Start::Latest } else { Start::Earliest },
            messages: 1 << self.dice.below(9),
            bytes: 512 << self.dice.below(9),
            slowness: if self.dice.one_in(2) { 1 } else { 1 + self.dice.below(20) },
            may_lose: self.topics[topic].retention_bytes.is_some()
                || self.topics[topic].kind == TopicKind::Queue,
        }
    }

    fn drop_client(&mut self, at: usize) {
        let mut client = self.clients.remove(at);
        client.die(&mut self.oracle, &mut self.durables);
        if let Some(connection) = client.link.and_then(|link| self.network.get_mut(&link)) {
            connection.cut(self.now, &mut self.dice, 50);
        }
    }

    /// Everything that happens in one millisecond.
    fn millisecond(&mut self) {
        self.now += Duration::from_millis(1);
        if self.chaos {
            self.fail_something();
        }
        self.run_server();
        for at in 0..self.clients.len() {
            self.run_client(at);
        }
        let now = self.now;
        self.network.retain(|_, connection| {
            let gone = |end: Option<Duration>| end.is_some_and(|at| at <= now);
            !(gone(connection.client_end) && gone(connection.server_end))
        });
    }

    fn happens(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.dice.one_in(one_in)
    }

    fn fail_something(&mut self) {
        let faults = self.faults;
        if self.server.is_up() {
            if self.happens(faults.kill) {
                self.kill(CrashKind::Process);
            } else if self.happens(faults.power) {
                self.kill(CrashKind::Power);
            } else if self.happens(faults.planned_crash) {
                let at = self.server.disk.operations() + 1 + self.dice.below(30);
                self.server.disk.set_plan(FaultPlan { crash_at: Some(at), ..FaultPlan::default() });
            } else if self.happens(faults.failed_sync) {
                let at = Some(self.server.disk.operations() + 1 + self.dice.below(30));
                let plan = if self.dice.one_in(3) {
                    FaultPlan { fail_write_at: at, ..FaultPlan::default() }
                } else {
                    FaultPlan { fail_sync_at: at, ..FaultPlan::default() }
                };
                self.server.disk.set_plan(plan);
            } else if self.happens(faults.stop) {
                self.stop();
            }
        }
        if self.happens(faults.cut) {
            self.cut_one();
        }
        if self.happens(faults.wall_jump) {
            self.wall_offset_ms = self.wall_offset_ms + self.dice.below(20_000) - 10_000;
            self.trace.say(self.now, format_args!("wall clock jumps"));
        }
        if self.happens(faults.client_restart) && !self.clients.is_empty() {
            let at = self.dice.index(self.clients.len());
            let name = self.clients[at].name.clone();
            let number = name.rsplit('-').next().and_then(|number| number.parse().ok());
            self.drop_client(at);
            let client = self.new_client(number.expect("clients are numbered"));
            self.clients.insert(at, client);
            self.figures.client_restarts += 1;
            self.trace.say(self.now, format_args!("{name} restarts"));
        }
        self.fill_disk();
        self.purge();
        if self.cast == Cast::Groups {
            self.pause_somebody();
        }
    }

    /// In every fourth run somebody purges queues. Its dice are its own, so that the other runs stay what they were.
    fn purge(&mut self) {
        let Some(dice) = &mut self.purges else { return };
        if !dice.one_in(700) {
            return;
        }
        let queues = self.server.tap.as_ref().map_or(&[][..], |tap| &tap.oracle.queues);
        let (Some(client), Some(queue)) =
            (self.clients.first_mut(), queues.get(dice.index(queues.len())))
        else {
            return;
        };
        self.trace.say(self.now, format_args!("{} purges queue {}", client.name, queue.topic));
        client.purge_queue(self.now, queue);
    }

    fn fill_disk(&mut self) {
        if let Some(at) = self.space_back_at {
            if at <= self.now {
                self.give_space_back();
            }
        } else if self.happens(self.faults.full) {
            let used: usize = self.server.disk.files().iter().map(|(_, file)| file.len()).sum();
            let left = self.dice.below(256 << 10);
            self.server.disk.set_quota(used as u64 + left);
            let wait = Duration::from_millis(50 + self.dice.below(500));
            self.space_back_at = Some(self.now + wait);
            self.figures.full_disks += 1;
            self.trace.say(self.now, format_args!("{left} bytes are left on the disk"));
        }
    }

    fn give_space_back(&mut self) {
        let full = self.server.is_full();
        self.trace.say(self.now, format_args!("space is back (full: {full})"));
        self.server.disk.set_quota(1 << 40);
        self.space_back_at = None;
    }

    fn kill(&mut self, kind: CrashKind) {
        self.trace.say(self.now, format_args!("broker dies by {kind:?}"));
        match kind {
            CrashKind::Process => self.figures.kills += 1,
            CrashKind::Power => self.figures.power_losses += 1,
        }
        let now = self.now();
        self.server.kill(kind, now, &mut self.network);
        self.restart_at = self.now + Duration::from_millis(self.dice.below(100));
    }

    fn stop(&mut self) {
        self.trace.say(self.now, format_args!("broker stops"));
        self.figures.stops += 1;
        let now = self.now();
        if let Err(why) = self.server.stop(now, &mut self.network) {
            self.trace.say(self.now, format_args!("its close failed: {why}"));
        }
        self.restart_at = self.now + Duration::from_millis(self.dice.below(100));
    }

    fn cut_one(&mut self) {
        let open: Vec<u64> =
            self.network.iter().filter(|(_, one)| !one.cut).map(|(id, _)| *id).collect();
        if open.is_empty() {
            return;
        }
        let id = open[self.dice.index(open.len())];
        // Half-open for a while: one side may go on talking to nobody.
        let notice_max_ms = if self.dice.one_in(3) { 1_500 } else { 5 };
        let connection = self.network.get_mut(&id).expect("it is open");
        connection.cut(self.now, &mut self.dice, notice_max_ms);
        self.figures.cuts += 1;
        self.trace.say(self.now, format_args!("connection {id} is cut"));
    }

    fn run_server(&mut self) {
        if !self.server.is_up() {
            return self.start_server();
        }
        let now = self.now();
        self.server.serve(now, &mut self.network, &mut self.dice, self.delay_max_ms);
        if self.dice.one_in(2) {
            let steps = 1 + self.dice.below(3);
            self.server.step(steps);
        }
        if self.dice.one_in(20) {
            self.server.maintain(now);
        }
        let queues = self.server.tap.iter_mut().flat_map(|tap| tap.oracle.take_violations());
        let groups = self.server.groups.iter_mut().flat_map(|tap| tap.oracle.take_violations());
        for what in queues.chain(groups) {
            self.oracle.violate(what);
        }
        let tick_ms = if self.cast == Cast::Streams { 100 } else { 25 };
        if self.now.as_millis().is_multiple_of(tick_ms) {
            self.server.tick(now);
        }
        if self.server.disk.crashed() {
            let kind = if self.dice.one_in(2) { CrashKind::Process } else { CrashKind::Power };
            self.kill(kind);
        } else if self.server.has_failed() {
            self.figures.disk_failures += 1;
            self.kill(CrashKind::Process);
        }
    }

    fn start_server(&mut self) {
        if self.restart_at > self.now {
            return;
        }
        if self.chaos && self.faults.planned_crash > 0 && self.dice.one_in(3) {
            let at = self.server.disk.operations() + 1 + self.dice.below(40);
            self.server.disk.set_plan(FaultPlan { crash_at: Some(at), ..FaultPlan::default() });
        }
        let now = self.now();
        match self.server.start(now, &mut self.dice) {
            Ok(()) => self.trace.say(self.now, format_args!("broker starts")),
            Err(why) => {
                self.figures.failed_starts += 1;
                self.trace.say(self.now, format_args!("broker does not start: {why}"));
                let excused = self.server.disk.crashed() || self.space_back_at.is_some();
                if !excused {
                    self.oracle.violate(format!("the broker does not start: {why}"));
                }
                let kind = if self.dice.one_in(2) { CrashKind::Process } else { CrashKind::Power };
                self.server.kill(kind, now, &mut self.network);
                self.restart_at = self.now + Duration::from_millis(20);
            }
        }
    }

    fn run_client(&mut self, at: usize) {
        if self.clients[at].paused_until > self.now {
            return;
        }
        let wall = self.now().wall;
        let client = &mut self.clients[at];
        match client.link.and_then(|link| self.network.get_mut(&link)) {
            Some(connection) if connection.client_end.is_none_or(|end| end > self.now) => {
                let moved =
                    client.exchange(self.now, connection, &mut self.dice, self.delay_max_ms);
                if let Err(fault) = moved {
                    self.trace.say(self.now, format_args!("{}: {fault}", client.name));
                    if !matches!(fault, LinkFault::Refused(_) | LinkFault::Silent(_)) {
                        self.oracle.violate(format!("{}: {fault}", client.name));
                    }
                    connection.cut(self.now, &mut self.dice, 0);
                }
            }
            _ => self.connect(at),
        }
        let client = &mut self.clients[at];
        let load = self.chaos.then_some(self.load);
        let (oracle, durables) = (&mut self.oracle, &mut self.durables);
        client.run(self.now, wall, oracle, durables, load, self.planted, &mut self.dice);
        self.run_members(at);
        let (client, oracle) = (&mut self.clients[at], &mut self.oracle);
        let Some(tap) = &mut self.server.tap else { return };
        let queues = &mut tap.oracle;
        for plan in client.work(self.now, oracle, queues, self.draining, &mut self.dice) {
            let queue = &queues.queues[plan.queue];
            let who = format!("{} again on queue {}", client.name, plan.queue);
            client.consume(who, plan, queue, self.now, &mut self.dice);
        }
    }

    /// Without a connection: loses it, waits, tries again.
    fn connect(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if client.link.is_some() {
            client.lose_connection();
            client.reconnect_at = self.now + Duration::from_millis(self.dice.below(30));
        }
        client.wait(self.now);
        if client.reconnect_at > self.now {
            return;
        }
        let link = self.next_link;
        if self.server.accept(link) {
            self.next_link += 1;
            let older = self.network.range(..*client.first_link.get_or_insert(link));
            let of_its_name = older.filter(|(_, one)| one.client == client.name);
            let ghosts = of_its_name.filter(|(_, one)| one.is_ghost(self.now)).count();
            let connection = Connection { client: client.name.clone(), ..Connection::default() };
            self.network.insert(link, connection);
            client.connected(self.now, link, ghosts, &mut self.durables);
            self.trace.say(self.now, format_args!("{} connects as {link}", client.name));
        } else {
            client.reconnect_at = self.now + Duration::from_millis(5);
        }
    }

    /// No more faults: everything must be answered and read.
    fn settle(&mut self) {
        self.trace.say(self.now, format_args!("faults stop"));
        self.chaos = false;
        self.give_space_back();
        if self.server.is_up() {
            self.server.disk.set_plan(FaultPlan::default());
        }
        for connection in self.network.values_mut().filter(|connection| connection.cut) {
            connection.client_end = connection.client_end.map(|at| at.min(self.now));
            connection.server_end = connection.server_end.map(|at| at.min(self.now));
        }
        let end = self.now + QUIET_MAX;
        while self.oracle.violations().is_empty() {
            self.millisecond();
            let oracle = &mut self.oracle;
            if self.clients.iter_mut().all(|client| client.is_answered(oracle)) {
                return;
            }
            if self.now > end {
                for client in &self.clients {
                    self.oracle.violate(format!("no answer: {}", client.describe()));
                }
            }
        }
    }

    /// A fresh client reads everything; the others must come as far.
    fn judge(&mut self) {
        let mut last = Client::new("judge".to_string(), self.dice.next_u64());
        for topic in 0..self.topics.len() {
            let plan = Plan {
                start: Start::Earliest,
                messages: 1_000,
                bytes: 1 << 20,
                slowness: 1,
                ..self.plan(topic, None)
            };
            last.read(format!("the last reader of {topic}"), plan, self.now);
        }
        self.clients.push(last);
        let (mut end, mut delivered) = (self.now + STALL_MAX, 0);
        while self.oracle.violations().is_empty() {
            self.millisecond();
            let judge = self.clients.last().expect("it was pushed");
            let done = judge.readers.iter().all(|reader| reader.has_read(&reader.end))
                && self.clients.iter().all(|client| {
                    let as_far = |reader: &super::reader::Reader| {
                        reader.has_read(&judge.readers[reader.plan.topic].end)
                    };
                    client.readers.iter().all(as_far)
                });
            if done {
                break;
            }
            // Slow readers may take long, but something must go on.
            if self.delivered() > delivered {
                (end, delivered) = (self.now + STALL_MAX, self.delivered());
            }
            if self.now > end {
                for client in &self.clients {
                    self.oracle.violate(format!("not read: {}", client.describe()));
                }
            }
        }
        let mut read: BTreeMap<Place, (u64, u64)> = BTreeMap::new();
        for reader in &self.clients.last().expect("it was pushed").readers {
            for (partition, next) in &reader.next {
                let first = reader.first.get(partition).copied().unwrap_or(0);
                read.insert((reader.plan.topic, *partition), (first, *next));
            }
        }
        self.figures.delivered = self.delivered();
        if self.oracle.violations().is_empty() {
            self.oracle.judge_end(&read);
        }
        match self.cast {
            Cast::Streams => {}
            Cast::Queues => self.drain_queues(),
            Cast::Groups => self.judge_group(),
        }
    }

    /// Consumes the queues to their ends; then nothing may be missing.
    fn drain_queues(&mut self) {
        self.trace.say(self.now, format_args!("queues are drained"));
        self.draining = true;
        let queues = self.queues();
        let judge = self.clients.last_mut().expect("it was pushed");
        for (number, queue) in queues.iter().enumerate() {
            let mut plan = roll_work(number, &mut self.dice);
            (plan.slowness, plan.prefetch_messages) = (1, 64);
            let who = format!("the last consumer of {number}");
            judge.consume(who, plan, queue, self.now, &mut self.dice);
        }
        let (mut end, mut furthest) = (self.now + STALL_MAX, 0);
        while self.oracle.violations().is_empty() {
            self.millisecond();
            let judge = self.clients.last_mut().expect("it was pushed");
            let (mut sum, mut drained) = (0, judge.described.len() == queues.len());
            for (number, reply) in &judge.described {
                let topic = queues[*number].topic;
                let (so_far, done) = progress(reply, &judge.readers[topic].end);
                sum += so_far;
                drained &= done;
            }
            if drained {
                break;
            }
            if self.now.as_millis().is_multiple_of(50) {
                for (number, queue) in queues.iter().enumerate() {
                    judge.describe_queue(self.now, number, queue);
                }
            }
            if sum > furthest {
                (end, furthest) = (self.now + STALL_MAX, sum);
            }
            if self.now > end {
                self.oracle
                    .violate(format!("L2 the queues do not become empty: {:#?}", judge.described));
                for client in &self.clients {
                    self.oracle.violate(format!("not drained: {}", client.describe()));
                }
            }
        }
        self.judge_queues(&queues);
    }

    fn read_letters(&mut self, queues: &[Queue]) {
        let judge = self.clients.last_mut().expect("it was pushed");
        for queue in queues {
            judge.read_letters(queue.topic, self.now);
        }
        let end = self.now + STALL_MAX;
        while self.oracle.violations().is_empty() {
            self.millisecond();
            let judge = self.clients.last().expect("it was pushed");
            if judge.letters.iter().all(|letters| letters.done) {
                break;
            }
            if self.now > end {
                self.oracle.violate("the dead letters are not read".to_string());
            }
        }
    }

    /// A planted bug.
    fn copy_letter(&mut self, queues: &[Queue]) {
        let judge = self.clients.last_mut().expect("it was pushed");
        if judge.copy_letter(self.now) {
            loop {
                self.millisecond();
                let wall = self.now().wall;
                let judge = self.clients.last_mut().expect("it was pushed");
                if judge.letter_copied(self.now, wall) {
                    break;
                }
            }
            self.read_letters(queues);
        }
    }

    fn judge_queues(&mut self, queues: &[Queue]) {
        self.read_letters(queues);
        if self.planted == Some(Planted::LetterTwice) {
            self.copy_letter(queues);
        }
        let (Some(tap), Some(judge)) = (&mut self.server.tap, self.clients.last()) else { return };
        for (number, queue) in queues.iter().enumerate() {
            if !self.oracle.violations().is_empty() {
                return;
            }
            let (Some(reply), letters) =
                (judge.described.get(&number), &judge.letters[number].letters)
            else {
                return;
            };
            tap.oracle.figures.letters += letters.len() as u64;
            let ends = &judge.readers[queue.topic].end;
            super::queues::judge(number, reply, ends, letters, &mut self.oracle, &tap.oracle);
        }
    }

    fn delivered(&self) -> u64 {
        let readers = self.clients.iter().flat_map(|client| &client.readers);
        readers.map(|reader| reader.messages_read).sum()
    }
}
