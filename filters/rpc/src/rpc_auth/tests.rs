//! The filter between clients that sign as the node's library does, and a node that answers everything.

use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use fips204_draft::ml_dsa_65::{KG, PrivateKey};
use fips204_draft::traits::{KeyGen, SerDes, Signer as _};
use qudag_filter_common::mldsa::{VerifyingKey, public_key};
use qudag_filter_common::testing::{env, until, wrong_places};
use serde_json::{Value, json};

use super::*;
use crate::RpcReply;

/// Two clients.
static SIGNERS: LazyLock<[Signer; 2]> = LazyLock::new(|| [Signer::new(), Signer::new()]);

struct Signer {
    secret: PrivateKey,
    public: Vec<u8>,
}

impl Signer {
    fn new() -> Self {
        let (public, secret) = KG::try_keygen_vt().unwrap();
        Self { secret, public: public.into_bytes().to_vec() }
    }

    fn key(&self) -> String {
        BASE64.encode(&self.public)
    }

    fn sign(&self, message: &str) -> Vec<u8> {
        self.secret.try_sign_ct(message.as_bytes()).unwrap().to_vec()
    }
}

const ID: &str = "123e4567-e89b-42d3-a456-426614174000";

/// A UUID of version 7 that was made so many seconds ago.
fn made(ago: i64) -> String {
    let time = since_1970().as_millis() as i64 - ago * 1000;
    Uuid::from_u128(((time as u128) << 80) | (7 << 76) | (0b10 << 62)).to_string()
}

fn call(id: &str, method: &str, params: &Value) -> RpcCall {
    let body = json!({"id": id, "method": method, "params": params}).to_string();
    RpcCall { body: Bytes::from(body), id: json!(id).to_string(), method: method.to_owned(), client: None }
}

/// A call of `ann`, signed by the first signer.
fn signed(id: &str, method: &str) -> RpcCall {
    let signature = SIGNERS[0].sign(&format!("{method}:{}", Uuid::try_parse(id).unwrap()));
    call(id, method, &json!({"client_id": "ann", "signature": HEXLOWER.encode(&signature), "address": "x"}))
}

struct Filter {
    settings: RpcAuth,
    state: Arc<RpcAuthState>,
    chain: Svc<Rpc>,
    reached: Arc<AtomicUsize>,
}

impl Filter {
    fn new(settings: Value) -> Self {
        Self::after(settings, None, Arc::default())
    }

    fn after(
        settings: Value,
        previous: Option<(&RpcAuth, Arc<RpcAuthState>)>,
        reached: Arc<AtomicUsize>,
    ) -> Self {
        let settings: RpcAuth = serde_json::from_value(settings).unwrap();
        assert_eq!(settings.check(&ConfigPath::root()), []);
        let state = settings.state(&env(), previous).unwrap();
        let count = Arc::clone(&reached);
        let node = service_fn::<Rpc, _, _>(move |call: RpcCall| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { Ok(RpcReply { body: call.body }) }
        });
        let chain = settings.wrap(Arc::clone(&state), node);
        Self { settings, state, chain, reached }
    }

    /// With `ann` and, where they are given, other settings.
    fn of_ann(mut more: Value) -> Self {
        more["clients"] = json!({"ann": {"inline": SIGNERS[0].key()}});
        Self::new(more)
    }

    /// After a reload.
    fn reloaded(&self, mut more: Value) -> Self {
        more["clients"] = json!({"ann": {"inline": SIGNERS[0].key()}});
        Self::after(more, Some((&self.settings, Arc::clone(&self.state))), Arc::clone(&self.reached))
    }

    /// Whether the call reaches the node, unchanged; otherwise what the client is told.
    async fn passes(&self, call: RpcCall) -> Result<(), String> {
        let before = self.reached.load(Ordering::SeqCst);
        let body = call.body.clone();
        let reply = self.chain.clone().oneshot(call).await;
        let reached = self.reached.load(Ordering::SeqCst) - before;
        assert_eq!(reached, usize::from(reply.is_ok()), "a call that is refused costs the node nothing");
        match reply {
            Ok(reply) => {
                assert_eq!(reply.body, body);
                Ok(())
            }
            Err(FilterError::RateLimited { retry_after }) => Err(format!("in {retry_after:?}")),
            Err(FilterError::Refused(why)) => Err(why.into_owned()),
            Err(other) => panic!("{other}"),
        }
    }
}

fn refused(denied: Denied) -> Result<(), String> {
    Err(denied.to_string())
}

#[tokio::test]
async fn every_way_to_be_nobody_is_refused() {
    let filter = Filter::of_ann(json!({}));
    let good = SIGNERS[0].sign(&format!("add_peer:{ID}"));
    let with = |client: &str, signature: &[u8]| json!({"client_id": client, "signature": HEXLOWER.encode(signature)});
    let mut range = good.clone();
    // The first coefficient of z, all bits set, is below −γ₁ + β.
    range[48..51].fill(0xff);
    let mut hints = good.clone();
    hints[3308] = 0xff;
    let mut altered = good.clone();
    altered[0] ^= 1;
    for (params, denied) in [
        (Value::Null, Denied::Missing),
        (json!([]), Denied::Missing),
        (json!({"address": "x"}), Denied::Missing),
        (json!({"client_id": "ann"}), Denied::Missing),
        (json!({"signature": HEXLOWER.encode(&good)}), Denied::Missing),
        (json!({"client_id": "ann", "signature": 7}), Denied::Missing),
        (json!({"auth_token": "guess"}), Denied::Token),
        (with("eve", &good), Denied::Client),
        (with("", &good), Denied::Client),
        (json!({"client_id": "ann", "signature": "no digits"}), Denied::Form),
        (json!({"client_id": "ann", "signature": ""}), Denied::Form),
        (json!({"client_id": "ann", "signature": BASE64.encode(&good)}), Denied::Form),
        (with("ann", &good[1..]), Denied::Form),
        (with("ann", &hints), Denied::Form),
        (with("ann", &range), Denied::Range),
        (with("ann", &altered), Denied::Mismatch),
        (with("ann", &SIGNERS[1].sign(&format!("add_peer:{ID}"))), Denied::Mismatch),
        (with("ann", &SIGNERS[0].sign(&format!("ban_peer:{ID}"))), Denied::Mismatch),
        (with("ann", &SIGNERS[0].sign(&format!("add_peer:{ID} "))), Denied::Mismatch),
    ] {
        assert_eq!(filter.passes(call(ID, "add_peer", &params)).await, refused(denied), "{params:.99}");
    }
    let hex = HEXLOWER.encode(&good);
    let twice = format!(
        r#"{{"id":"{ID}","method":"add_peer","params":{{"client_id":"eve","client_id":"ann","signature":"{hex}"}}}}"#
    );
    let twice = RpcCall { body: twice.into(), ..call(ID, "add_peer", &Value::Null) };
    assert_eq!(filter.passes(twice).await, refused(Denied::Ambiguous));
    // None of these has used up the id.
    assert_eq!(filter.passes(call(ID, "add_peer", &with("ann", &good))).await, Ok(()));
}

#[tokio::test]
async fn an_id_is_the_same_however_it_is_written() {
    let filter = Filter::of_ann(json!({}));
    let signature = HEXUPPER.encode(&SIGNERS[0].sign(&format!("add_peer:{ID}")));
    let params = json!({"client_id": "ann", "signature": signature});
    assert_eq!(filter.passes(call(&ID.to_uppercase(), "add_peer", &params)).await, Ok(()));
    for id in [ID.to_owned(), ID.replace('-', ""), format!("{{{ID}}}"), format!("urn:uuid:{ID}")] {
        assert_eq!(filter.passes(call(&id, "add_peer", &params)).await, refused(Denied::Replayed), "{id}");
    }
    let escaped = RpcCall { id: format!("\"\\u0031{}\"", &ID[1..]), ..call(ID, "add_peer", &params) };
    assert_eq!(filter.passes(escaped).await, refused(Denied::Replayed));
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_is_refused_within_the_window_and_across_reloads() {
    let filter = Filter::of_ann(json!({"replay": {"window": "60s"}}));
    assert_eq!(filter.passes(signed(ID, "stop")).await, Ok(()));
    assert_eq!(filter.passes(signed(ID, "stop")).await, refused(Denied::Replayed));
    // The id counts, whatever is signed with it.
    assert_eq!(filter.passes(signed(ID, "get_status")).await, refused(Denied::Replayed));
    let filter = filter.reloaded(json!({"replay": {"window": "60s"}, "methods": "changing"}));
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(filter.passes(signed(ID, "stop")).await, refused(Denied::Replayed));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(filter.passes(signed(ID, "stop")).await, Ok(()), "the stated limit of ids without a time");
}

#[tokio::test(start_paused = true)]
async fn when_no_more_can_be_remembered_calls_wait_and_nothing_is_forgotten() {
    let mut clients = json!({"replay": {"window": "60s", "per_client": 2, "total": 3}});
    clients["clients"] = json!({"ann": {"inline": SIGNERS[0].key()}, "bob": {"inline": SIGNERS[1].key()}});
    let filter = Filter::new(clients);
    let of_bob = |number: u32| {
        let id = format!("00000000-0000-4000-8000-{number:012x}");
        let signature = HEXLOWER.encode(&SIGNERS[1].sign(&format!("stop:{id}")));
        call(&id, "stop", &json!({"client_id": "bob", "signature": signature}))
    };
    let of_ann = |number: u32| signed(&format!("00000000-0000-4000-8000-{number:012x}"), "stop");
    assert_eq!(filter.passes(of_ann(1)).await, Ok(()));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(filter.passes(of_ann(2)).await, Ok(()));
    assert_eq!(filter.passes(of_ann(3)).await, Err("in 50s".to_owned()));
    assert_eq!(filter.passes(of_ann(1)).await, refused(Denied::Replayed));
    assert_eq!(filter.passes(of_bob(1)).await, Ok(()), "ids are each client's own");
    assert_eq!(filter.passes(of_bob(2)).await, Err("in 50s".to_owned()));
    tokio::time::advance(Duration::from_secs(50)).await;
    assert_eq!(filter.passes(of_bob(2)).await, Ok(()));
}

#[tokio::test]
async fn with_a_time_no_id_comes_twice() {
    let plain = Filter::of_ann(json!({}));
    let before = signed(&made(1), "stop");
    assert_eq!(plain.passes(before.clone()).await, Ok(()));
    let filter = plain.reloaded(json!({"replay": {"require_time": true, "window": "60s"}}));
    assert_eq!(filter.passes(before).await, refused(Denied::Replayed));
    for (id, denied) in [
        (ID.to_owned(), Denied::Timeless),
        (made(61), Denied::Old),
        // Within the window, but nobody knows what was sent before it was asked for.
        (made(5), Denied::Old),
        (made(-90), Denied::Ahead),
    ] {
        assert_eq!(filter.passes(signed(&id, "stop")).await, refused(denied), "{id}");
    }
    let id = made(-1);
    assert_eq!(filter.passes(signed(&id, "stop")).await, Ok(()));
    assert_eq!(filter.passes(signed(&id, "stop")).await, refused(Denied::Replayed));
}

#[tokio::test]
async fn tokens_pass_and_reading_calls_need_nothing_where_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "sesame\n").unwrap();
    let filter = Filter::new(json!({"tokens": [{"file": file}], "methods": "changing"}));
    let token = |token: &str| json!({"auth_token": token});
    for method in ["add_peer", "stop", "unknown"] {
        assert_eq!(filter.passes(call(ID, method, &token("sesame"))).await, Ok(()));
        assert_eq!(filter.passes(call(ID, method, &token("sesame "))).await, refused(Denied::Token));
        assert_eq!(filter.passes(call(ID, method, &Value::Null)).await, refused(Denied::Missing));
    }
    for method in ["get_status", "test_network"] {
        assert_eq!(filter.passes(call(ID, method, &Value::Null)).await, Ok(()));
    }
    fs::write(&file, "other").unwrap();
    let keys = || filter.state.keys();
    until("the token is the new one", || keys().has_token("other") && !keys().has_token("sesame")).await;
    assert_eq!(filter.passes(call(ID, "stop", &token("sesame"))).await, refused(Denied::Token));
}

#[tokio::test]
async fn the_key_of_a_client_changes_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ann.pub");
    fs::write(&file, &SIGNERS[1].public).unwrap();
    let filter = Filter::new(json!({"clients": {"ann": {"file": file}}}));
    assert_eq!(filter.passes(signed(ID, "stop")).await, refused(Denied::Mismatch));
    let key = |signer: &Signer| {
        let key = VerifyingKey::new(public_key(&signer.public).unwrap());
        filter.state.keys().client("ann").is_some_and(|(_, known)| *known == key)
    };
    assert!(key(&SIGNERS[1]));
    fs::write(&file, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(key(&SIGNERS[1]), "the last good key stays in use");
    fs::write(&file, SIGNERS[0].key()).unwrap();
    until("the key is the new one", || key(&SIGNERS[0])).await;
    assert_eq!(filter.passes(signed(ID, "stop")).await, Ok(()));
}

#[tokio::test]
async fn the_final_standard_is_another_algorithm() {
    use fips204::traits::{KeyGen as _, SerDes as _, Signer as _};

    let (public, secret) = fips204::ml_dsa_65::KG::try_keygen().unwrap();
    let key = BASE64.encode(&public.into_bytes());
    let signature = secret.try_sign(format!("stop:{ID}").as_bytes(), b"").unwrap();
    let params = json!({"client_id": "ann", "signature": HEXLOWER.encode(&signature)});
    let with = |alg: &str| Filter::new(json!({"alg": alg, "clients": {"ann": {"inline": key}}}));
    assert_eq!(with("ml-dsa-65").passes(call(ID, "stop", &params)).await, Ok(()));
    assert_eq!(with("ml-dsa-65-ipd").passes(call(ID, "stop", &params)).await, refused(Denied::Mismatch));
}

#[test]
fn mistakes_have_their_place() {
    let wrong = |settings: Value| wrong_places(&settings.to_string(), RpcAuth::check);
    assert!(wrong(json!({})).is_empty());
    assert_eq!(
        wrong(json!({
            "clients": {"": {"inline": SIGNERS[0].key()}, "ann": {"file": "/nowhere"}, "bob": {"inline": "AAAA"}},
            "tokens": [{"env": "QUDAG_NO_SUCH_VARIABLE"}],
            "replay": {"window": "0s", "per_client": 0, "total": 10_000_001},
        })),
        [
            "clients.",
            "clients.ann",
            "clients.bob",
            "tokens.0",
            "replay.window",
            "replay.per_client",
            "replay.total",
        ]
    );
    assert_eq!(wrong(json!({"replay": {"window": "25h"}})), ["replay.window"]);
    assert!(RpcAuth::default().state(&env(), None).is_err(), "nobody could call");
    for unknown in [json!({"alg": "ml-dsa"}), json!({"methods": "none"}), json!({"keys": []})] {
        assert!(serde_json::from_value::<RpcAuth>(unknown).is_err());
    }
}
