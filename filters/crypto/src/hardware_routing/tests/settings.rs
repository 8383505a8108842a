//! Settings, and what is there while the filter is off.

use qudag_filter_common::testing::wrong_places;

use super::*;

#[test]
fn every_mistake_has_its_place() {
    let wrong = |json: &str| wrong_places(json, HardwareRouting::check);
    assert!(wrong("{}").is_empty());
    let good = r#"{"sidecars": [{"address": "127.0.0.1:1"}, {"address": "[::1]:1"}, {"address": "b.example:1"}, {"address": "unix:/run/b"}],
        "min_operations": 1, "timeout": "10s", "connections": 16, "verify": 0.5}"#;
    assert!(wrong(good).is_empty());
    for (key, value) in [
        ("min_operations", "0"),
        ("min_operations", "65536"),
        ("connections", "0"),
        ("connections", "17"),
        ("timeout", "\"0s\""),
        ("timeout", "\"11s\""),
    ] {
        assert_eq!(wrong(&format!(r#"{{"{key}": {value}}}"#)), [key], "{value}");
    }
    let list = |addresses: &[&str]| {
        let list: Vec<_> = addresses.iter().map(|address| json!({ "address": address })).collect();
        wrong(&json!({ "sidecars": list }).to_string())
    };
    assert_eq!(list(&["127.0.0.1:0"]), ["sidecars.0.address"]);
    assert_eq!(list(&["unix:/a", "[::1]:1", "unix:/a"]), ["sidecars.2.address"]);
    let many: Vec<_> = (1..=17).map(|port| format!("127.0.0.1:{port}")).collect();
    assert_eq!(list(&many.iter().map(String::as_str).collect::<Vec<_>>()), ["sidecars"]);
    for unread in [
        r#"{"sidecars": ["127.0.0.1:1"]}"#,
        r#"{"sidecars": [{"address": "127.0.0.1:1", "name": "b"}]}"#,
        r#"{"verify": 101}"#,
        r#"{"timeout": 5}"#,
        r#"{"sidecar": []}"#,
    ] {
        assert!(serde_json::from_str::<HardwareRouting>(unread).is_err(), "{unread}");
    }
}

#[test]
fn without_another_sidecar_it_cannot_be_switched_on() {
    let error = HardwareRouting::default().state(&env(), None).err().unwrap().to_string();
    assert!(error.contains("filters.crypto.hardware_routing") && error.contains("sidecars"), "{error}");
}

#[tokio::test]
async fn connections_are_there_while_a_chain_has_the_filter() {
    let other = Other::start(Does::Lies).await;
    let there = || other.connections.load(SeqCst);
    let here = Here::start(&[&other.address], json!({"connections": 3}));
    until("all connections are there", || there() == 3).await;

    // Another limit needs none anew; another number does.
    let next = |next: HardwareRouting| {
        next.state(&env(), Some((&settings(&other, 3), Arc::clone(&here.state)))).unwrap()
    };
    assert!(Arc::ptr_eq(&next(settings(&other, 3)), &here.state));
    assert!(!Arc::ptr_eq(&next(settings(&other, 2)), &here.state));

    let Here { service, state, others, .. } = here;
    drop((service, others));
    until("they are closed", || there() == 0).await;
    assert!(state.status().sidecars.is_empty());
}

fn settings(other: &Other, connections: u32) -> HardwareRouting {
    let sidecars = vec![OtherSidecar { address: other.address.clone() }];
    HardwareRouting { sidecars, connections, ..HardwareRouting::default() }
}

#[tokio::test]
async fn the_status_names_the_other_sidecars() {
    let other = Other::start(Does::Lies).await;
    let here = Here::trusting(&[&other.address]);
    here.ready().await;
    let reply = here.service.clone().oneshot(call(Operations::Status)).await.unwrap();
    let CryptoReply::Status(status) = reply else { panic!("{reply:?}") };
    let told = serde_json::to_value(status.hardware_routing).unwrap();
    let sidecar = &told["sidecars"][0];
    assert_eq!(sidecar["address"], other.address.to_string());
    assert_eq!((&sidecar["state"], &sidecar["backend"]), (&json!("ready"), &json!("avx512")));
    assert_eq!(sidecar["queued"], 0);
    assert!(sidecar["round_trip_us"].is_u64() && sidecar.get("why").is_none(), "{sidecar}");
}
