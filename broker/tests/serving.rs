//! A whole server in this process, spoken to over real sockets: handshake, bad input, limits, time
//! limits, drain.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use postrider_broker::metrics::METRICS;
use postrider_broker::{Config, RunError, Server};
use postrider_protocol::error::{ErrorBody, ErrorCode};
use postrider_protocol::frame::{Frame, FrameDecoder, FrameHeader, request};
use postrider_protocol::message::{Hello, HelloReply, Message, Ping, PingReply};
use postrider_protocol::types::{ClusterId, CorrelationId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest wait for anything; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    address: SocketAddr,
    admin: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
    _dir: tempfile::TempDir,
}

impl Running {
    async fn start(settings: &[(&'static str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut flags = vec![
            ("server.data_dir", dir.path().join("data").display().to_string()),
            ("server.listen", "127.0.0.1:0".to_owned()),
            ("admin.listen", "127.0.0.1:0".to_owned()),
        ];
        flags.extend(settings.iter().map(|(key, text)| (*key, (*text).to_owned())));
        let mut config = Config::default();
        config.merge_flags(&flags).unwrap();
        let server = Server::start(config).await.unwrap();
        let (address, admin) = (server.local_addr(), server.admin_addr());
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(server.run_until(async {
            let _stop = stopped.await;
        }));
        Self { address, admin, stop, ended, _dir: dir }
    }

    async fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Client { stream, buffer: BytesMut::new(), decoder: FrameDecoder::new(1 << 20) }
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Value of the series, which is written with its labels.
    async fn metric(&self, series: &str) -> u64 {
        let text = self.get("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    }

    async fn reaches(&self, series: &str, wanted: u64) {
        patiently(async {
            while self.metric(series).await != wanted {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn stop(self) -> Result<(), RunError> {
        drop(self.stop);
        patiently(self.ended).await.unwrap()
    }
}

struct Client {
    stream: TcpStream,
    buffer: BytesMut,
    decoder: FrameDecoder,
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame; `None` when the server has closed the connection.
    async fn frame(&mut self) -> Option<Frame> {
        patiently(async {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                if self.stream.read_buf(&mut self.buffer).await.unwrap() == 0 {
                    assert!(self.buffer.is_empty(), "the server stopped within a frame");
                    return None;
                }
            }
        })
        .await
    }

    async fn reply<M: Message>(&mut self) -> M {
        let frame = self.frame().await.expect("a reply");
        assert!(frame.header.is_reply() && !frame.header.is_error(), "{:?}", frame.header);
        frame.message().unwrap()
    }

    /// The error after which the server closes.
    async fn last_error(&mut self) -> ErrorBody {
        let frame = self.frame().await.expect("an error");
        assert!(frame.header.is_error());
        let error = ErrorBody::decode(&frame.body).unwrap();
        assert!(self.frame().await.is_none(), "the connection ends behind the error");
        error
    }

    async fn greet(&mut self) -> HelloReply {
        self.send(&request(&hello(), CorrelationId(1))).await;
        self.reply().await
    }

    async fn ping(&mut self) {
        self.send(&request(&Ping {}, CorrelationId(2))).await;
        let _pong: PingReply = self.reply().await;
    }
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        frame_bytes_max: 1 << 20,
        client_name: "test".to_owned(),
        client_id: [1; 16],
        cluster_id: ClusterId::default(),
    }
}

async fn patiently<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it took too long")
}

fn closed_by(reason: &str) -> String {
    format!("postrider_connections_closed_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn a_client_is_greeted_and_answered_and_the_server_drains() {
    let server = Running::start(&[]).await;
    assert!(server.get("/readyz").await.starts_with("HTTP/1.1 200"));
    let mut client = server.connect().await;
    client.greet().await;
    client.ping().await;
    assert_eq!(server.metric("postrider_connections").await, 1);
    let (ended, end) = tokio::join!(server.stop(), client.frame());
    ended.unwrap();
    assert!(end.is_none());
}

#[test]
fn two_threads_and_one_serve_alike() {
    for threads in [1, 2] {
        let runtime = match threads {
            1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
            _ => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build(),
        };
        runtime.unwrap().block_on(async {
            let server = Running::start(&[]).await;
            let mut client = server.connect().await;
            client.greet().await;
            for _ in 0..100 {
                client.ping().await;
            }
            drop(client);
            server.reaches(&closed_by("client"), 1).await;
            server.stop().await.unwrap();
        });
    }
}

#[tokio::test]
async fn garbage_is_answered_with_a_typed_error_and_disturbs_nobody() {
    let server = Running::start(&[]).await;
    let mut other = server.connect().await;
    other.greet().await;
    let huge = FrameHeader {
        body_len: u32::MAX,
        api: 1,
        version: 1,
        flags: 0,
        correlation: CorrelationId(1),
    };
    let flags =
        FrameHeader { body_len: 0, api: 1, version: 1, flags: 0x80, correlation: CorrelationId(1) };
    let cases: [(&[u8], ErrorCode); 4] = [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", ErrorCode::FrameTooLarge),
        (&huge.encode(), ErrorCode::FrameTooLarge),
        (&flags.encode(), ErrorCode::MalformedFrame),
        (&request(&Ping {}, CorrelationId(1)), ErrorCode::NotNegotiated),
    ];
    for (bytes, code) in cases {
        let mut client = server.connect().await;
        client.send(bytes).await;
        let error = client.last_error().await;
        assert_eq!(error.code, code, "{}", error.message);
        other.ping().await;
    }
    server.reaches(&closed_by("error"), 4).await;
    server.reaches("postrider_connections", 1).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server = Running::start(&[("net.connections_max", "1")]).await;
    let mut first = server.connect().await;
    first.greet().await;
    let mut second = server.connect().await;
    second.send(&request(&hello(), CorrelationId(1))).await;
    assert_eq!(second.last_error().await.code, ErrorCode::LimitExceeded);
    first.ping().await;
    drop(first);
    server.reaches("postrider_connections", 0).await;
    server.connect().await.greet().await;
    assert_eq!(server.metric("postrider_connections_refused_total").await, 1);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn silence_is_bounded_before_within_and_after_frames() {
    let settings = [
        ("net.handshake_timeout", "50ms"),
        ("net.frame_timeout", "60ms"),
        ("net.idle_timeout", "70ms"),
    ];
    let server = Running::start(&settings).await;
    let mut silent = server.connect().await;
    assert_eq!(silent.last_error().await.code, ErrorCode::TimedOut);
    server.reaches(&closed_by("handshake_timeout"), 1).await;

    let mut half = server.connect().await;
    half.greet().await;
    half.send(&request(&Ping {}, CorrelationId(2))[..7]).await;
    assert_eq!(half.last_error().await.code, ErrorCode::TimedOut);
    server.reaches(&closed_by("frame_timeout"), 1).await;

    let mut idle = server.connect().await;
    idle.greet().await;
    assert_eq!(idle.last_error().await.code, ErrorCode::TimedOut);
    server.reaches(&closed_by("silent"), 1).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_frame_in_many_pieces_is_one_frame() {
    let server = Running::start(&[]).await;
    let mut client = server.connect().await;
    client.stream.set_nodelay(true).unwrap();
    for byte in request(&hello(), CorrelationId(1)) {
        client.send(&[byte]).await;
    }
    let _reply: HelloReply = client.reply().await;
    let mut many = Vec::new();
    for _ in 0..1000 {
        many.extend_from_slice(&request(&Ping {}, CorrelationId(3)));
    }
    client.send(&many).await;
    for _ in 0..1000 {
        let _pong: PingReply = client.reply().await;
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let server = Running::start(&[]).await;
    let mut config = Config::default();
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        ("server.data_dir", dir.path().display().to_string()),
        ("server.listen", server.address.to_string()),
        ("admin.listen", "127.0.0.1:0".to_owned()),
    ];
    config.merge_flags(&flags).unwrap();
    let error = Server::start(config).await.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains(&server.address.to_string()) && error.contains("server.listen"),
        "{error}"
    );
    server.stop().await.unwrap();
}

#[tokio::test]
async fn every_metric_of_the_table_is_exported_and_nothing_else() {
    let server = Running::start(&[]).await;
    let answer = server.get("/metrics").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let table: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    let mut exported = BTreeSet::new();
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let ends = ["_bucket", "_sum", "_count"];
        let base = ends.iter().filter_map(|end| name.strip_suffix(end)).find(|b| table.contains(b));
        exported.insert(base.unwrap_or(name));
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
    assert_eq!(table.len(), METRICS.len(), "a name stands twice in the table");
    assert_eq!(exported, table);
    server.stop().await.unwrap();
}
