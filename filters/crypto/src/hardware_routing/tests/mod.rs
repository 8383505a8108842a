//! The filter before a real end of the chain, with other sidecars that are real or do what they are told.

mod choosing;
mod faults;
mod settings;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::{Bytes, BytesMut};
use qudag_core::offload::{self as offload, Code, Decoder, Limits, PREAMBLE, Refusal, Reply, Request};
use qudag_filter_api::FlowKey;
use qudag_filter_common::testing::{Names, env, metric, until};
use qudag_filter_common::{Drain, Socket};
use qudag_mldsa::{Edition, PublicKey, Rejected};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::server::tests::Signed;
use crate::terminal::{self, Alone};
use crate::{Content, KeyRef, SignatureCheck};

/// Signatures, every second one damaged, and the verdicts.
fn signatures(number: usize) -> (Operations, Vec<Verdict>) {
    let good = Signed::all();
    let all = good.into_iter().cycle().take(number).enumerate().map(|(place, signed)| match place % 2 {
        0 => (signed, Verdict::Valid),
        _ => (signed.damaged(), Verdict::Invalid(Rejected::Mismatch)),
    });
    let check = |signed: Signed| SignatureCheck {
        key: KeyRef::Public(Box::new(PublicKey(signed.key.try_into().unwrap()))),
        edition: Edition::Draft,
        content: Content::Message { context: Bytes::new(), message: signed.message.into() },
        signature: signed.signature.into(),
    };
    let (checks, verdicts) = all.map(|(signed, verdict)| (check(signed), verdict)).unzip();
    (Operations::Signatures(checks), verdicts)
}

fn call(operations: Operations) -> CryptoCall {
    CryptoCall::new(operations, FlowKey::of(b"program"), None)
}

/// This sidecar: the filter, and behind it the end of the chain, whose batches are counted.
struct Here {
    service: Svc<Crypto>,
    state: Arc<RoutingState>,
    others: Arc<Others>,
    done: Arc<AtomicUsize>,
}

impl Here {
    /// With these settings besides the addresses, as in YAML. It takes itself for so slow that any way is shorter.
    fn start(others: &[&Address], mut settings: Value) -> Self {
        settings["sidecars"] = others.iter().map(|address| json!({ "address": address })).collect();
        let settings: HardwareRouting = serde_json::from_value(settings).unwrap();
        assert_eq!(settings.check(&ConfigPath::root()), []);
        let done = Arc::new(AtomicUsize::new(0));
        let (end, counter) = (terminal::service(Arc::new(Alone::new())), Arc::clone(&done));
        let inner = service_fn::<Crypto, _, _>(move |call: CryptoCall| {
            if !call.independent {
                counter.fetch_add(1, SeqCst);
            }
            end.clone().oneshot(call)
        });
        let state = settings.state(&env(), None).unwrap();
        let service = settings.wrap(Arc::clone(&state), inner);
        let others = state.others();
        let here = Self { service, state, others, done };
        here.is_slow();
        here
    }

    /// Without verification, and with patience for a machine that is busy.
    fn trusting(others: &[&Address]) -> Self {
        Self::start(others, json!({"verify": 0, "timeout": "10s"}))
    }

    fn is_slow(&self) {
        for _ in 0..8 {
            self.others.here().note(Duration::from_secs(3_600), Duration::ZERO, now());
        }
    }

    async fn ready(&self) {
        let all = || self.state.status().sidecars.iter().all(|sidecar| sidecar.state == "ready");
        until("all sidecars are ready", all).await;
    }

    /// The reply to a batch, which has to have these verdicts; whether another sidecar made them.
    async fn is_routed(&self, call: CryptoCall, expected: &[Verdict]) -> bool {
        let (verdicts, routed) = match self.service.clone().oneshot(call).await.unwrap() {
            CryptoReply::Verdicts(verdicts) => (verdicts, false),
            CryptoReply::Routed(verdicts) => (verdicts, true),
            other => panic!("{other:?}"),
        };
        assert_eq!(verdicts, expected);
        routed
    }

    /// The same with some batch.
    async fn routes(&self) -> bool {
        self.is_slow();
        let (operations, expected) = signatures(40);
        self.is_routed(call(operations), &expected).await
    }

    fn done(&self) -> usize {
        self.done.load(SeqCst)
    }
}

/// What a sidecar made for tests does with batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Says that every signature is valid.
    Lies,
    /// Says nothing more.
    Hangs,
    Refuses(Code),
    Closes,
    /// Gives one verdict too few.
    Miscounts,
    ForgetsKeys,
    /// Sends hashes.
    Confuses,
    /// Sends something that is no frame.
    Babbles,
    /// Answers a request that nobody made.
    Misaddresses,
}

/// Another sidecar made for tests: it has the best backend, or says so.
struct Other {
    address: Address,
    /// How many batches came; and how many of them without the mark of one that is passed on.
    batches: Arc<AtomicUsize>,
    unmarked: Arc<AtomicUsize>,
    /// How many connections there are.
    connections: Arc<AtomicUsize>,
    drain: Drain,
    _folder: TempDir,
}

impl Other {
    async fn start(does: Does) -> Self {
        Self::with(does, "avx512", Limits { body: 1 << 20, operations: 100, in_flight: 2 }).await
    }

    async fn with(does: Does, backend: &'static str, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("crypto.sock"));
        let socket = Socket::bind(&address, &Names::default()).await.unwrap();
        let [batches, unmarked, connections] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let drain = Drain::new();
        let counters = [&batches, &unmarked, &connections].map(Arc::clone);
        let front = socket.into_front(move |mut stream, drain| {
            let [batches, unmarked, connections] = counters.each_ref().map(Arc::clone);
            async move {
                connections.fetch_add(1, SeqCst);
                tokio::select! {
                    _ = serve(&mut stream, does, backend, limits, &batches, &unmarked) => {}
                    () = drain.stopping() => {}
                }
                connections.fetch_sub(1, SeqCst);
            }
        });
        tokio::spawn(front.serve(drain.clone()));
        Self { address, batches, unmarked, connections, drain, _folder: folder }
    }

    fn batches(&self) -> usize {
        assert_eq!(self.unmarked.load(SeqCst), 0, "batches without the mark");
        self.batches.load(SeqCst)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

async fn serve(
    stream: &mut qudag_filter_common::Stream,
    does: Does,
    backend: &str,
    limits: Limits,
    batches: &AtomicUsize,
    unmarked: &AtomicUsize,
) -> std::io::Result<()> {
    let mut preamble = [0; 4];
    stream.read_exact(&mut preamble).await?;
    assert_eq!(preamble, PREAMBLE);
    let (mut out, mut received) = (BytesMut::new(), BytesMut::new());
    Reply::Welcome(limits).encode(0, &mut out);
    loop {
        stream.write_all_buf(&mut out).await?;
        let Some(frame) = Decoder::new(1 << 20).decode(&mut received).unwrap() else {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let (id, number, marked) =
            (frame.header.id, usize::from(frame.header.count), frame.header.is_routed());
        if matches!(Request::read(frame), Ok(Request::Status)) {
            let status = json!({ "backend": backend, "crypto_offload": { "threads": 1, "queued": 0 } });
            Reply::Status(status.to_string()).encode(id, &mut out);
            continue;
        }
        batches.fetch_add(1, SeqCst);
        unmarked.fetch_add(usize::from(!marked), SeqCst);
        let verdicts = |verdict, number| Reply::Verdicts(vec![verdict; number]);
        use offload::Verdict::{UnknownKey, Valid};
        match does {
            Does::Lies => verdicts(Valid, number).encode(id, &mut out),
            Does::Hangs => {}
            Does::Refuses(code) => {
                let refusal = Refusal { code, retry_after: None, message: String::new() };
                Reply::Error(refusal).encode(id, &mut out);
            }
            Does::Closes => return Ok(()),
            Does::Miscounts => verdicts(Valid, number - 1).encode(id, &mut out),
            Does::ForgetsKeys => verdicts(UnknownKey, number).encode(id, &mut out),
            Does::Confuses => Reply::Hashes(vec![Box::new([1]); number]).encode(id, &mut out),
            Does::Babbles => out.extend_from_slice(&[0xff; 64]),
            Does::Misaddresses => verdicts(Valid, number).encode(id + 1_000, &mut out),
        }
    }
}
