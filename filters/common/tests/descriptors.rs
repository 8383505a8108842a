//! Out of file descriptors. Alone in its program, since the limit is the process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use qudag_filter_api::{Address, HostPort};
use qudag_filter_common::{Drain, Socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct NoNames;

impl qudag_filter_api::Resolve for NoNames {
    fn resolve(
        &self,
        _: &str,
    ) -> futures_util::future::BoxFuture<'static, std::io::Result<Vec<std::net::IpAddr>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

#[tokio::test]
async fn lack_of_descriptors_delays_connections_and_ends_nothing() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);

    let socket = Socket::bind(&"127.0.0.1:0".parse().unwrap(), &NoNames).await.unwrap();
    let Address::Tcp(HostPort { port, .. }) = socket.address() else { panic!("not TCP") };
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();

    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let drain = Drain::new();
    let serving = tokio::spawn(socket.serve(drain.clone(), |mut stream| async move {
        stream.write_all(b"here").await.unwrap();
    }));
    let refused = async {
        while !metrics.render().contains("qudag_sidecar_accept_errors_total 2") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(10), refused).await;
    setrlimit(Resource::Nofile, before).unwrap();
    refused.expect("accepting does not fail");

    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut answer));
    read.await.expect("not accepted afterwards").unwrap();
    assert_eq!(answer, b"here");
    assert!(!serving.is_finished());
    assert_eq!(drain.finish(Duration::from_secs(10)).await, 0);
}
