//! The admin port: `/livez`, `/readyz`, `/metrics` over HTTP/1.1, and nothing else.
//!
//! Owns its connections, which are bounded in number, time and size. Never changes anything. Driven by
//! the server, which tells it what to answer through [`Probe`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest wait for the head of a request; also ends connections that are kept open and idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head; more is answered with 431.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Pause after a failure to accept, so that running out of files does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the admin port asks the server.
pub(crate) trait Probe: Send + Sync + 'static {
    /// Name and result of each condition of readiness; ready when none has a problem.
    fn checks(&self) -> Vec<Check>;
    /// The body of `/metrics`.
    fn metrics(&self) -> String;
    /// One request has come.
    fn requested(&self);
}

/// One condition of readiness.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// Why clients should stay away.
    pub(crate) problem: Option<String>,
}

/// Serves until cancelled; the connections end on their own, or with `tracker`'s owner.
///
/// Cancel-safe: dropping it stops accepting and nothing else.
pub(crate) async fn serve(
    listener: TcpListener,
    connections_max: u32,
    probe: Arc<dyn Probe>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
) {
    let permits = usize::try_from(connections_max).expect("u32 fits: Linux is 32 bit at least");
    let permits = Arc::new(Semaphore::new(permits));
    loop {
        // At the bound nothing is accepted; the kernel's queue holds what comes.
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (listener.accept().await, permit.expect("nobody closes the semaphore"))
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = shutdown.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin port could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (probe, shutdown) = (Arc::clone(&probe), shutdown.clone());
        tracker.spawn(async move {
            if let Err(error) = connection(stream, probe, shutdown).await {
                tracing::debug!(%error, "an admin connection ended early");
            }
            drop(permit);
        });
    }
}

async fn connection(
    stream: TcpStream,
    probe: Arc<dyn Probe>,
    shutdown: CancellationToken,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let probe = Arc::clone(&probe);
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri(), &*probe)) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    let served = http.serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        result = served.as_mut() => result,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    }
}

fn answer(method: &Method, uri: &hyper::Uri, probe: &dyn Probe) -> Response<Full<Bytes>> {
    probe.requested();
    if method != Method::GET && method != Method::HEAD {
        let mut response =
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match uri.path() {
        "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => ready(&probe.checks(), uri.query().is_some_and(|q| q.contains("verbose"))),
        "/metrics" => {
            let mut response = text(StatusCode::OK, probe.metrics());
            let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
    }
}

fn ready(checks: &[Check], verbose: bool) -> Response<Full<Bytes>> {
    let ready = checks.iter().all(|check| check.problem.is_none());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::new();
    for Check { name, problem } in checks {
        match problem {
            Some(problem) => body.push_str(&format!("[-] {name}: {problem}\n")),
            None if verbose => body.push_str(&format!("[+] {name}\n")),
            None => {}
        }
    }
    body.push_str(if ready { "ok\n" } else { "not ready\n" });
    text(status, body)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Fixed {
        problem: Option<String>,
    }

    impl Probe for Fixed {
        fn checks(&self) -> Vec<Check> {
            vec![
                Check { name: "recovered", problem: None },
                Check { name: "storage", problem: self.problem.clone() },
            ]
        }

        fn metrics(&self) -> String {
            "x 1\n".to_owned()
        }

        fn requested(&self) {}
    }

    async fn ask(probe: Fixed, requests: &[&str]) -> Vec<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tracker, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let server = serve(listener, 1, Arc::new(probe), tracker.clone(), shutdown.clone());
        let server = tokio::spawn(server);
        let mut answers = Vec::new();
        for request in requests {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answers.push(answer);
        }
        shutdown.cancel();
        server.await.unwrap();
        tracker.close();
        tracker.wait().await;
        answers
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn probes_and_metrics_are_answered_and_nothing_else() {
        let requests =
            [get("/livez"), get("/readyz"), get("/readyz?verbose"), get("/metrics"), get("/")];
        let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
        let answers = ask(Fixed { problem: None }, &requests).await;
        let expected = [
            ("200", "\r\n\r\nok\n"),
            ("200", "\r\n\r\nok\n"),
            ("200", "\r\n\r\n[+] recovered\n[+] storage\nok\n"),
            ("200", "\r\n\r\nx 1\n"),
            ("404", "\r\n\r\nthere are /livez, /readyz and /metrics\n"),
        ];
        for (answer, (status, body)) in answers.iter().zip(expected) {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.ends_with(body), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_problem_makes_it_unready_and_is_named() {
        let probe = Fixed { problem: Some("failed".to_owned()) };
        let answers = ask(probe, &[&get("/readyz")]).await;
        assert!(answers[0].starts_with("HTTP/1.1 503 "), "{}", answers[0]);
        assert!(answers[0].ends_with("\r\n\r\n[-] storage: failed\nnot ready\n"), "{}", answers[0]);
    }

    #[tokio::test]
    async fn bad_requests_are_refused_and_the_port_goes_on() {
        let long = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
        let requests = [
            "\x16\x03\x01 garbage\r\n\r\n",
            &long,
            "POST /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            &get("/livez"),
        ];
        let answers = ask(Fixed { problem: None }, &requests).await;
        let statuses = ["400", "431", "405", "200"];
        for (answer, status) in answers.iter().zip(statuses) {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
    }
}
