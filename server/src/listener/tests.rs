//! Tests of the listener with clients that do as little as they can.

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::metrics::{Metrics, ServerStats};

/// Short, so that a test waits for it.
const SHORT: Duration = Duration::from_millis(50);

struct Fixture {
    address: std::net::SocketAddr,
    metrics: Metrics,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Fixture {
    async fn start(config: ListenerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::default();
        let shutdown = CancellationToken::new();
        let routes = Router::new().route("/", get(async || "text"));
        let connections = metrics.connections();
        let serving = tokio::spawn(serve(
            listener,
            config,
            connections,
            routes,
            shutdown.clone(),
        ));
        Self {
            address,
            metrics,
            shutdown,
            serving,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Waits until the page of metrics has this line.
    async fn wait_for(&self, line: &str) {
        loop {
            let page = self
                .metrics
                .encode(&ServerStats::default(), std::path::Path::new("."))
                .unwrap();
            if page.lines().any(|l| l == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn config(max_connections: usize) -> ListenerConfig {
    ListenerConfig {
        handshake_timeout: SHORT,
        ..ListenerConfig::new(max_connections, None)
    }
}

/// Reads until the server closes the connection.
async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    // A reset connection is closed too.
    let _ = stream.read_to_end(&mut received).await;
    received
}

#[tokio::test]
async fn a_client_that_does_not_complete_the_preface_is_disconnected() {
    let fixture = Fixture::start(config(10)).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (count, sent) in [&b""[..], b"PRI * HTTP", preface].into_iter().enumerate() {
        let mut stream = fixture.connect().await;
        stream.write_all(sent).await.unwrap();
        read_to_end(&mut stream).await;
        let line = format!(
            "charlstm_connections_expired_total{{phase=\"http\"}} {}",
            count + 1
        );
        fixture.wait_for(&line).await;
    }
    fixture.wait_for("charlstm_connections 0").await;
}

#[tokio::test]
async fn a_client_that_does_not_complete_the_tls_handshake_is_disconnected() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let pem = TlsPem {
        cert: cert.as_bytes(),
        key: key.as_bytes(),
        client_ca: None,
    };
    let tls = watch::Sender::new(server_config(pem, false).unwrap());
    let config = ListenerConfig {
        tls: Some(tls.subscribe()),
        ..config(10)
    };
    let fixture = Fixture::start(config).await;
    let mut stream = fixture.connect().await;
    stream.write_all(&[0x16, 3, 1]).await.unwrap();
    read_to_end(&mut stream).await;
    let line = "charlstm_connections_expired_total{phase=\"tls\"} 1";
    fixture.wait_for(line).await;
}

#[tokio::test]
async fn connections_beyond_the_maximum_are_closed_until_one_ends() {
    let config = ListenerConfig {
        // Longer than the test.
        handshake_timeout: Duration::from_secs(600),
        ..config(2)
    };
    let fixture = Fixture::start(config).await;
    let first = fixture.connect().await;
    let _second = fixture.connect().await;
    fixture.wait_for("charlstm_connections 2").await;
    let mut third = fixture.connect().await;
    assert_eq!(read_to_end(&mut third).await, b"");
    fixture
        .wait_for("charlstm_connections_rejected_total 1")
        .await;
    drop(first);
    fixture.wait_for("charlstm_connections 1").await;
    let _fourth = fixture.connect().await;
    fixture.wait_for("charlstm_connections 2").await;
}

#[tokio::test]
async fn http_1_is_served_if_it_is_on_and_its_idle_connections_do_not_delay_a_shutdown() {
    let config = ListenerConfig {
        http1: true,
        ..config(10)
    };
    let fixture = Fixture::start(config).await;
    let mut stream = fixture.connect().await;
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let response = read_to_end(&mut stream).await;
    let response = String::from_utf8(response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(response.ends_with("text"), "{response}");
    let _idle = fixture.connect().await;
    fixture.wait_for("charlstm_connections 1").await;
    fixture.shutdown.cancel();
    fixture.serving.await.unwrap();
}

#[test]
fn failures_to_accept_are_retried_with_a_growing_delay() {
    let mut log = FailureLog::default();
    let error = io::Error::from_raw_os_error(24);
    assert!(!concerns_one_client(&error), "EMFILE");
    let delays: Vec<_> = (0..10).map(|_| log.failed(&error)).collect();
    assert_eq!(delays[0], MIN_ACCEPT_DELAY);
    assert_eq!(delays[1], 2 * MIN_ACCEPT_DELAY);
    assert_eq!(delays[9], MAX_ACCEPT_DELAY);
    log.accepted();
    assert_eq!(log.failed(&error), MIN_ACCEPT_DELAY);
    assert!(concerns_one_client(
        &io::ErrorKind::ConnectionAborted.into()
    ));
}
