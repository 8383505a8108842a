//! What has happened between two looks at the pools.

use std::collections::HashMap;

use serde_json::{Value, json};

/// Statements of a sample.
const STATEMENTS: usize = 100;
/// Clients that wait, of a sample.
const CLIENTS: usize = 100;

/// What makes a statement the same in two looks: server, user, database, fingerprint.
type Key<'a> = [&'a str; 4];

/// What has been done of a statement.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    /// Transactions that began with it.
    asked: u64,
    /// Those that were carried out.
    done: u64,
    /// How long they kept servers busy, in seconds.
    busy: f64,
}

impl Work {
    fn of(statement: &Value) -> Self {
        let count = |key: &str| statement.get(key).and_then(Value::as_u64).unwrap_or_default();
        let busy = statement.get("busy").and_then(Value::as_f64).unwrap_or_default();
        Self { asked: count("calls"), done: count("done"), busy }
    }

    /// Since an earlier look; what was forgotten in between began anew.
    fn since(self, earlier: Option<&Self>) -> Self {
        let earlier = earlier.filter(|then| then.asked <= self.asked && then.done <= self.done);
        let then = earlier.copied().unwrap_or_default();
        let busy = (self.busy - then.busy).max(0.0);
        Self { asked: self.asked - then.asked, done: self.done - then.done, busy }
    }
}

/// The pools as they are, statements by the time for which they kept servers busy since `before`, and the clients that wait for a server, the
/// longest first. `seconds`: between the two.
pub(super) fn sample(before: &Value, now: &Value, at: f64, seconds: f64) -> Value {
    let known: HashMap<Key<'_>, Work> =
        statements(before).map(|(key, statement)| (key, Work::of(statement))).collect();
    let mut worked: Vec<_> = statements(now)
        .map(|(key, statement)| (key, statement, Work::of(statement).since(known.get(&key))))
        .filter(|(_, _, work)| work.asked > 0 || work.done > 0 || work.busy > 0.0)
        .collect();
    worked.sort_by(|(.., a), (.., b)| b.busy.total_cmp(&a.busy).then(b.asked.cmp(&a.asked)));
    let rate = |figure: f64| if seconds > 0.0 { figure / seconds } else { 0.0 };
    let total = worked.iter().fold(0.0, |total, (.., work)| total + work.busy);
    let done: u64 = worked.iter().map(|(.., work)| work.done).sum();
    let asked: u64 = worked.iter().map(|(.., work)| work.asked).sum();
    let shown = worked.iter().take(STATEMENTS).map(|(key, statement, work)| {
        let [server, user, database, fingerprint] = key;
        json!({
            "server": server, "user": user, "database": database, "fingerprint": fingerprint,
            "text": statement.get("text"),
            "asked": rate(work.asked as f64),
            "rate": rate(work.done as f64),
            "mean_ms": if work.done > 0 { Some(1e3 * work.busy / work.done as f64) } else { None },
            "servers": rate(work.busy),
            "share": if total > 0.0 { work.busy / total } else { 0.0 },
        })
    });
    json!({
        "at": at,
        "seconds": seconds,
        "servers": now.get("servers"),
        "max_servers": now.get("max_servers"),
        "busy": rate(total),
        "asked": rate(asked as f64),
        "rate": rate(done as f64),
        "pools": items(now, "pools").map(pool).collect::<Vec<_>>(),
        "statements": shown.collect::<Vec<_>>(),
        "waiting": waiting(now),
        "cluster": now.get("cluster"),
        "load": now.get("load"),
        "redis": redis(before, now, rate),
    })
}

/// The pools of Redis, with what each has done since `before`.
fn redis(before: &Value, now: &Value, rate: impl Fn(f64) -> f64) -> Value {
    let Some(Value::Object(all)) = now.get("redis") else { return Value::Null };
    let of = |pool: &Value| {
        [pool.get("server"), pool.get("user"), pool.get("database"), pool.get("protocol")]
            .map(Option::<&Value>::cloned)
    };
    let figure = |pool: &Value, key: &str| pool.get(key).and_then(Value::as_f64).unwrap_or_default();
    let earlier = before.get("redis").unwrap_or(&Value::Null);
    let pools = now.get("redis").into_iter().flat_map(|redis| items(redis, "pools")).map(|pool| {
        let then = items(earlier, "pools").find(|then| of(then) == of(pool));
        // What was forgotten in between began anew.
        let then = then.filter(|then| figure(then, "batches") <= figure(pool, "batches"));
        let since = |key| (figure(pool, key) - then.map_or(0.0, |then| figure(then, key))).max(0.0);
        let (batches, busy) = (since("batches"), since("busy"));
        let mut shown = pool.clone();
        if let Some(shown) = shown.as_object_mut() {
            shown.insert("rate".to_owned(), json!(rate(since("commands"))));
            shown.insert("batch_rate".to_owned(), json!(rate(batches)));
            let mean = if batches > 0.0 { json!(1e3 * busy / batches) } else { Value::Null };
            shown.insert("mean_ms".to_owned(), mean);
            shown.insert("servers".to_owned(), json!(rate(busy)));
        }
        shown
    });
    let pools: Vec<_> = pools.collect();
    let mut all = all.clone();
    all.insert("pools".to_owned(), pools.into());
    Value::Object(all)
}

fn items<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn statements(answer: &Value) -> impl Iterator<Item = (Key<'_>, &Value)> {
    items(answer, "pools").flat_map(|pool| {
        items(pool, "statements").map(move |statement| {
            let key = [
                text(pool, "server"),
                text(pool, "user"),
                text(pool, "database"),
                text(statement, "fingerprint"),
            ];
            (key, statement)
        })
    })
}

/// A pool without what it consists of.
fn pool(pool: &Value) -> Value {
    let mut own = pool.clone();
    if let Some(own) = own.as_object_mut() {
        own.retain(|key, _| !matches!(key.as_str(), "clients" | "connections" | "statements"));
    }
    own
}

fn waiting(answer: &Value) -> Vec<Value> {
    let mut all: Vec<_> = items(answer, "pools")
        .flat_map(|pool| {
            let waits = |client: &&Value| text(client, "doing") == "waiting";
            items(pool, "clients").filter(waits).map(move |client| {
                json!({
                    "client": client.get("client"), "application": client.get("application"),
                    "user": pool.get("user"), "database": pool.get("database"), "since": client.get("since"),
                })
            })
        })
        .collect();
    let since = |client: &Value| client.get("since").and_then(Value::as_f64).unwrap_or_default();
    all.sort_by(|a, b| since(b).total_cmp(&since(a)));
    all.truncate(CLIENTS);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(statements: &Value) -> Value {
        json!({ "servers": 2, "max_servers": 9, "pools": [{
            "server": "s", "user": "u", "database": "d", "size": 5, "active": 1, "waiting": 1, "statements": statements,
            "clients": [{ "client": "10.0.0.1:5", "application": "app", "doing": "waiting", "since": 0.5 },
                        { "client": "10.0.0.1:6", "application": "app", "doing": "waiting", "since": 1.5 },
                        { "client": "10.0.0.2:5", "application": "b", "doing": "idle", "since": 9.0 }],
        }] })
    }

    fn statement(name: &str, calls: u64, busy: f64) -> Value {
        json!({ "fingerprint": name, "calls": calls, "done": calls, "busy": busy, "text": format!("select {name}") })
    }

    #[test]
    fn only_what_has_happened_since_counts() {
        let before =
            look(&json!([statement("a", 10, 5.0), statement("b", 7, 1.0), statement("gone", 900, 9.0)]));
        let now = look(&json!([
            statement("a", 14, 6.0),
            statement("b", 7, 1.0),
            statement("c", 2, 3.0),
            statement("gone", 1, 0.0)
        ]));
        let sample = sample(&before, &now, 100.0, 2.0);
        let found: Vec<_> = sample["statements"].as_array().unwrap().iter().collect();
        assert_eq!(found.len(), 3, "{sample:#}");
        assert_eq!(
            (&found[0]["fingerprint"], &found[0]["rate"], &found[0]["mean_ms"], &found[0]["share"]),
            (&json!("c"), &json!(1.0), &json!(1500.0), &json!(0.75))
        );
        assert_eq!(
            (&found[1]["fingerprint"], &found[1]["rate"], &found[1]["mean_ms"]),
            (&json!("a"), &json!(2.0), &json!(250.0))
        );
        assert_eq!((&found[2]["fingerprint"], &found[2]["rate"]), (&json!("gone"), &json!(0.5)));
        assert_eq!((&sample["rate"], &sample["busy"]), (&json!(3.5), &json!(2.0)));
        let clients: Vec<_> =
            sample["waiting"].as_array().unwrap().iter().map(|one| &one["client"]).collect();
        assert_eq!(clients, ["10.0.0.1:6", "10.0.0.1:5"]);
        assert_eq!(sample["pools"][0].get("clients"), None);
        assert_eq!(sample["pools"][0]["size"], 5);
    }

    #[test]
    fn commands_since_the_look_before_count() {
        let look = |batches: u64, commands: u64, busy: f64| {
            json!({ "redis": { "own": 1, "pools": [{ "server": "s", "user": "u", "database": 0, "protocol": 2,
                "batches": batches, "commands": commands, "busy": busy }] } })
        };
        let seen = sample(&look(10, 100, 1.0), &look(14, 180, 2.0), 0.0, 2.0);
        let pool = &seen["redis"]["pools"][0];
        assert_eq!(
            (&pool["rate"], &pool["batch_rate"], &pool["mean_ms"]),
            (&json!(40.0), &json!(2.0), &json!(250.0))
        );
        assert_eq!((&pool["servers"], &seen["redis"]["own"]), (&json!(0.5), &json!(1)));
        let anew = sample(&look(10, 100, 1.0), &look(2, 4, 0.0), 0.0, 2.0);
        assert_eq!(anew["redis"]["pools"][0]["rate"], 2.0);
        assert_eq!(sample(&json!({}), &json!({ "redis": null }), 0.0, 1.0)["redis"], Value::Null);
    }

    #[test]
    fn an_answer_of_another_version_does_not_make_it_panic() {
        for odd in
            [json!(null), json!([]), json!({"pools": 1}), json!({"pools": [1, {"statements": [null, 1]}]})]
        {
            assert_eq!(sample(&odd, &odd, 0.0, 0.0)["rate"], 0.0);
        }
    }
}
