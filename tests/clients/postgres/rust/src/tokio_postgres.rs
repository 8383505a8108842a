//! PostgreSQL through tokio-postgres: `tokio-postgres-client URL STREAM_MB`.

mod checks;

use std::error::Error as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use checks::{Checked, ERRORS, SETUP, expect, peak_mb, stream_rows, tell, types, url};
use futures_util::{SinkExt, StreamExt, TryStreamExt, future};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_postgres::types::{Json, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls, SimpleQueryMessage};
use uuid::Uuid;

type Messages = mpsc::UnboundedReceiver<AsyncMessage>;

/// A session, and its notices and notifications.
async fn connect_with(config: &Config) -> Result<(Client, Messages), Error> {
    let (client, mut connection) = config.connect(NoTls).await?;
    let (said, messages) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = future::poll_fn(|cx| connection.poll_message(cx)).await {
            let _ = said.send(message);
        }
    });
    Ok((client, messages))
}

fn config() -> Config {
    url().parse().expect("a URL")
}

async fn connect() -> Result<Client, Error> {
    Ok(connect_with(&config()).await?.0)
}

/// The SQLSTATE of an error, or what it is.
fn state(error: &Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

fn state_of<T>(result: Result<T, Error>) -> String {
    result.err().map_or_else(|| "no error".into(), |error| state(&error))
}

/// The texts of the first column of rows of the simple protocol.
fn texts(messages: Vec<SimpleQueryMessage>) -> Vec<String> {
    let text = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    };
    messages.into_iter().filter_map(text).collect()
}

async fn show(client: &Client, name: &str) -> Result<String, Error> {
    Ok(texts(client.simple_query(&format!("show {name}")).await?).concat())
}

async fn simple(c: Client) -> Checked {
    let messages = c
        .simple_query("select 1; select 'two' union all select 'three'; create table q.simple (id int)")
        .await?;
    Ok(json!(texts(messages)))
}

async fn extended(c: Client) -> Checked {
    let row = c.query_one("select $1::int4 + 1, $2::text, $3::int8", &[&41, &"ä", &None::<i64>]).await?;
    Ok(json!([row.get::<_, i32>(0), row.get::<_, &str>(1), row.get::<_, Option<i64>>(2)]))
}

async fn prepared_and_reused(c: Client) -> Checked {
    let statement = c.prepare("select $1::int4 * 2").await?;
    for number in 0..500 {
        let row = c.query_one(&statement, &[&number]).await?;
        expect(row.get::<_, i32>(0) == number * 2, number)?;
    }
    Ok(json!([statement.params()[0].name(), statement.columns()[0].type_().name()]))
}

async fn many_prepared(c: Client) -> Checked {
    let mut statements = Vec::new();
    for number in 0..250 {
        statements.push(c.prepare(&format!("select $1::int4 + {number}")).await?);
    }
    for round in 0..2 {
        for (number, statement) in (0..).zip(&statements) {
            let row = c.query_one(statement, &[&round]).await?;
            expect(row.get::<_, i32>(0) == round + number, number)?;
        }
    }
    Ok(Value::Null)
}

async fn closed_statements(c: Client) -> Checked {
    for number in 0..300 {
        // Dropped at once, which closes it.
        let statement = c.prepare_typed(&format!("select $1 + {}", number % 7), &[Type::INT4]).await?;
        expect(c.query_one(&statement, &[&number]).await?.get::<_, i32>(0) == number + number % 7, number)?;
    }
    Ok(Value::Null)
}

async fn same_names_in_two_sessions(c: Client) -> Checked {
    // The library numbers its statements in each process: other ones are used in turn.
    let other = connect().await?;
    let (mine, theirs) =
        (c.prepare("select 'mine' || $1::text").await?, other.prepare("select $1::int4 + 1000").await?);
    for number in 0..50 {
        let (mine, theirs) =
            (c.query_one(&mine, &[&"x"]).await?, other.query_one(&theirs, &[&number]).await?);
        expect(mine.get::<_, &str>(0) == "minex" && theirs.get::<_, i32>(0) == number + 1000, number)?;
    }
    Ok(Value::Null)
}

async fn transactions(mut c: Client) -> Checked {
    let transaction = c.transaction().await?;
    transaction.execute("insert into q.items values (100, 'kept')", &[]).await?;
    transaction.commit().await?;
    let transaction = c.transaction().await?;
    transaction.execute("insert into q.items values (101, 'gone')", &[]).await?;
    transaction.rollback().await?;
    let transaction = c.transaction().await?;
    transaction.execute("insert into q.items values (102, 'dropped')", &[]).await?;
    drop(transaction);
    let rows = c.query("select id from q.items where id between 100 and 109", &[]).await?;
    Ok(json!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>()))
}

async fn error_in_transaction(mut c: Client) -> Checked {
    let transaction = c.transaction().await?;
    let mut seen = vec![state_of(transaction.query("select 1 / 0", &[]).await)];
    seen.push(state_of(transaction.query("select 2", &[]).await));
    transaction.rollback().await?;
    seen.extend(texts(c.simple_query("select 3").await?));
    Ok(json!(seen))
}

async fn savepoints(mut c: Client) -> Checked {
    let mut outer = c.transaction().await?;
    outer.execute("insert into q.items values (110, 'outer')", &[]).await?;
    let inner = outer.savepoint("inner_one").await?;
    inner.execute("insert into q.items values (111, 'inner')", &[]).await?;
    let state = state_of(inner.execute("insert into q.items values (110, 'again')", &[]).await);
    inner.rollback().await?;
    outer.execute("insert into q.items values (112, 'after')", &[]).await?;
    outer.commit().await?;
    let rows = c.query("select id from q.items where id between 110 and 119 order by 1", &[]).await?;
    Ok(json!([state, rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>()]))
}

/// Queries that are polled together are sent before the first is answered.
async fn pipeline(c: Client) -> Checked {
    let statement = c.prepare("select $1::int4, repeat('x', 1000)").await?;
    let numbers: Vec<i32> = (0..300).collect();
    let parameters: Vec<[&(dyn tokio_postgres::types::ToSql + Sync); 1]> =
        numbers.iter().map(|number| [number as &(dyn tokio_postgres::types::ToSql + Sync)]).collect();
    let rows = future::try_join_all(parameters.iter().map(|given| c.query_one(&statement, given))).await?;
    let got: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    expect(got == numbers, "another order")?;
    Ok(Value::Null)
}

async fn pipeline_with_errors(c: Client) -> Checked {
    let texts: Vec<String> = (0..10).map(|number| format!("select 10 / ({number} - 5)")).collect();
    let answers = future::join_all(texts.iter().map(|text| c.query_one(text, &[]))).await;
    let seen: Vec<String> = answers
        .into_iter()
        .map(|answer| answer.map_or_else(|error| state(&error), |row| row.get::<_, i32>(0).to_string()))
        .collect();
    Ok(json!(seen))
}

async fn copy_in_and_out(c: Client) -> Checked {
    c.batch_execute("create table q.copied (id int, text text)").await?;
    let mut sink = std::pin::pin!(c.copy_in("copy q.copied from stdin").await?);
    for number in 0..20000 {
        sink.send(Bytes::from(format!("{number}\trow {number}\n"))).await?;
    }
    let count = sink.finish().await?;
    let mut stream = std::pin::pin!(c.copy_out("copy q.copied to stdout").await?);
    let mut bytes = 0;
    while let Some(chunk) = stream.try_next().await? {
        bytes += chunk.len();
    }
    Ok(json!([count, bytes, texts(c.simple_query("select sum(id) from q.copied").await?)]))
}

async fn copy_errors(c: Client) -> Checked {
    let mut seen = Vec::new();
    {
        let mut sink = std::pin::pin!(c.copy_in("copy q.items from stdin").await?);
        sink.send(Bytes::from_static(b"no number\tx\n")).await?;
        seen.push(state_of(sink.finish().await));
    }
    {
        let mut sink = std::pin::pin!(c.copy_in("copy q.items from stdin").await?);
        sink.send(Bytes::from_static(b"9000\tx\n")).await?;
        // Dropped without an end, which is a CopyFail.
    }
    let out = c.copy_out("copy (select 10 / (5 - n) from generate_series(1, 10) n) to stdout").await?;
    seen.push(state_of(out.try_collect::<Vec<Bytes>>().await));
    seen.extend(texts(c.simple_query("select count(*) from q.items where id = 9000").await?));
    Ok(json!(seen))
}

async fn listen_and_notify(_: Client) -> Checked {
    let (c, mut messages) = connect_with(&config()).await?;
    c.batch_execute("listen heard").await?;
    let other = connect().await?;
    other.batch_execute("notify heard, 'one'; notify unheard, 'no'").await?;
    other.execute("select pg_notify('heard', $1)", &[&"two"]).await?;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let message = tokio::time::timeout(Duration::from_secs(20), messages.recv()).await?;
        if let Some(AsyncMessage::Notification(notification)) = message {
            heard.push([notification.channel().to_owned(), notification.payload().to_owned()]);
        }
    }
    c.batch_execute("unlisten *").await?;
    Ok(json!(heard))
}

async fn cancel(c: Client) -> Checked {
    let token = c.cancel_token();
    let start = Instant::now();
    let (result, cancelled) = tokio::join!(c.batch_execute("select pg_sleep(60)"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel_query(NoTls).await
    });
    cancelled?;
    expect(start.elapsed() < Duration::from_secs(30), "it was not cancelled")?;
    Ok(json!([state_of(result), texts(c.simple_query("select 1").await?)]))
}

async fn statement_timeout(mut c: Client) -> Checked {
    let transaction = c.transaction().await?;
    transaction.batch_execute("set local statement_timeout = '50ms'").await?;
    let error = transaction.batch_execute("select pg_sleep(60)").await.err().ok_or("no error")?;
    let said = error.as_db_error().map(|error| error.message().to_owned());
    transaction.rollback().await?;
    Ok(json!([said, show(&c, "statement_timeout").await?]))
}

async fn portals(mut c: Client) -> Checked {
    let transaction = c.transaction().await?;
    let portal = transaction.bind("select n from generate_series(1, 1050) n", &[]).await?;
    let mut seen = 0;
    loop {
        let rows = transaction.query_portal(&portal, 100).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            seen += 1;
            expect(row.get::<_, i32>(0) == seen, seen)?;
        }
    }
    transaction.commit().await?;
    Ok(json!(seen))
}

async fn sql_cursors(c: Client) -> Checked {
    let mut seen = Vec::new();
    c.batch_execute("begin; declare here scroll cursor for select n from generate_series(1, 100) n").await?;
    for text in ["fetch 3 from here", "fetch last from here", "fetch first from here", "commit"] {
        seen.push(texts(c.simple_query(text).await?));
    }
    c.batch_execute(
        "begin; declare held cursor with hold for select n from generate_series(1, 10) n; commit",
    )
    .await?;
    seen.push(texts(c.simple_query("fetch 4 from held; close held").await?));
    Ok(json!(seen))
}

async fn large_stream(c: Client) -> Checked {
    let (rows, before) = (stream_rows(), peak_mb());
    let stream =
        c.query_raw("select lpad(n::text, 1000, 'x') from generate_series(1, $1::int4) n", [rows]).await?;
    let (mut stream, mut bytes, mut count) = (std::pin::pin!(stream), 0, 0);
    while let Some(row) = stream.next().await {
        let row = row?;
        let text: &str = row.get(0);
        count += 1;
        bytes += text.len();
        if count % 1000 == 0 {
            expect(text.ends_with(&count.to_string()), count)?;
        }
    }
    expect(bytes == rows as usize * 1000, bytes)?;
    let grown = peak_mb() - before;
    // The library reads ahead without a bound while nobody takes rows; here somebody does.
    expect(grown < 200, format!("{grown} MB more"))?;
    Ok(Value::Null)
}

async fn large_values(c: Client) -> Checked {
    let (text, data) = ("ä".repeat(5_000_000), vec![7_u8; 10_000_000]);
    let row = c.query_one("select $1::text, $2::bytea", &[&text, &data]).await?;
    expect(row.get::<_, &str>(0) == text && row.get::<_, &[u8]>(1) == data, "other values")?;
    Ok(Value::Null)
}

async fn thousand_columns(c: Client) -> Checked {
    let columns: Vec<String> = (0..1000).map(|number| format!("{number} as c{number}")).collect();
    let row = c.query_one(&format!("select {}", columns.join(", ")), &[]).await?;
    for number in 0..1000_usize {
        expect(row.get::<_, i32>(&*format!("c{number}")) as usize == number, number)?;
    }
    Ok(json!(row.len()))
}

async fn notices(_: Client) -> Checked {
    let (c, mut messages) = connect_with(&config()).await?;
    c.batch_execute("select q.say('a'), q.say('b'); drop table if exists q.nothing").await?;
    c.simple_query("select 1").await?;
    let mut heard = Vec::new();
    while let Ok(message) = messages.try_recv() {
        if let AsyncMessage::Notice(notice) = message {
            heard.push([
                notice.severity().to_owned(),
                notice.code().code().to_owned(),
                notice.message().to_owned(),
            ]);
        }
    }
    Ok(json!(heard))
}

async fn parameters(c: Client) -> Checked {
    let mut seen = Vec::new();
    for (name, value) in [
        ("application_name", "a name"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "SQL, DMY"),
        ("work_mem", "77MB"),
        ("search_path", "q, public"),
    ] {
        c.batch_execute(&format!("set {name} = {value:?}").replace('"', "'")).await?;
        for _ in 0..3 {
            show(&c, name).await?;
        }
        seen.push(show(&c, name).await?);
    }
    let other = connect().await?;
    for name in ["TimeZone", "work_mem", "search_path"] {
        seen.push(show(&other, name).await?);
    }
    c.batch_execute("begin; set local work_mem = '55MB'").await?;
    seen.push(show(&c, "work_mem").await?);
    c.batch_execute("commit; reset all").await?;
    seen.push(show(&c, "work_mem").await?);
    let mut config = config();
    config.application_name("started").options("-c lock_timeout=4321");
    let (c, _messages) = connect_with(&config).await?;
    seen.extend([show(&c, "application_name").await?, show(&c, "lock_timeout").await?]);
    Ok(json!(seen))
}

async fn session_state(c: Client) -> Checked {
    let other = connect().await?;
    c.batch_execute(
        "select pg_advisory_lock(4711); create temp table mine (id int); prepare own as select 7",
    )
    .await?;
    let mut seen = texts(other.simple_query("select pg_try_advisory_lock(4711)").await?);
    seen.push(state_of(other.simple_query("select * from mine").await));
    seen.push(state_of(other.simple_query("execute own").await));
    seen.extend(texts(
        c.simple_query("select count(*) from mine; execute own; select pg_advisory_unlock(4711)").await?,
    ));
    c.batch_execute("discard all").await?;
    seen.push(state_of(c.simple_query("select * from mine").await));
    Ok(json!(seen))
}

async fn a_changed_table(c: Client) -> Checked {
    c.batch_execute("create table q.changing (a int); insert into q.changing values (1)").await?;
    let statement = c.prepare("select * from q.changing").await?;
    let mut seen = vec![c.query_one(&statement, &[]).await?.len().to_string()];
    connect().await?.batch_execute("alter table q.changing add b int default 2").await?;
    seen.push(
        c.query_one(&statement, &[]).await.map_or_else(|error| state(&error), |row| row.len().to_string()),
    );
    seen.push(c.query_one("select * from q.changing", &[]).await?.len().to_string());
    Ok(json!(seen))
}

async fn own_types(c: Client) -> Checked {
    let (id, document) = (Uuid::from_u128(7), json!({ "a": [1, null, "ä"] }));
    let row = c
        .query_one(
            "select $1::uuid, $2::jsonb, $3::int4[], $4::text[]",
            &[&id, &Json(&document), &vec![1, 2], &vec![Some("x"), None]],
        )
        .await?;
    expect(row.get::<_, Uuid>(0) == id && row.get::<_, Value>(1) == document, "other values")?;
    // Looked up in the catalogues by the library.
    let statement = c.prepare("select $1::q.mood, null::q.pair, null::int4range").await?;
    let kinds: Vec<String> = statement
        .columns()
        .iter()
        .map(|column| {
            format!("{:?}", column.type_().kind()).chars().take_while(|c| c.is_alphabetic()).collect()
        })
        .collect();
    Ok(json!([row.get::<_, Vec<i32>>(2), row.get::<_, Vec<Option<String>>>(3), kinds]))
}

async fn backend_stays_in_a_transaction(mut c: Client) -> Checked {
    let transaction = c.transaction().await?;
    let mut pids = std::collections::BTreeSet::new();
    for _ in 0..20 {
        pids.insert(transaction.query_one("select pg_backend_pid()", &[]).await?.get::<_, i32>(0));
    }
    Ok(json!(pids.len()))
}

async fn error_fields(c: Client) -> Checked {
    let mut seen = Vec::new();
    for text in
        ["select q.fail('P0042')", "insert into q.items values (100, 'x')", "select nothing from q.items"]
    {
        let error = c.query(text, &[]).await.err().ok_or("no error")?;
        let error = error.as_db_error().ok_or("no error of the server's")?;
        seen.push(json!([
            error.severity(),
            error.code().code(),
            error.message(),
            error.detail(),
            error.hint(),
            error.where_(),
            error.constraint(),
            error.position().map(|position| format!("{position:?}")),
        ]));
    }
    Ok(json!(seen))
}

async fn many_sessions(_: Client) -> Checked {
    let config = config();
    let clients = future::try_join_all((0..30).map(|_| connect_with(&config))).await?;
    let mut sum = 0;
    for (number, (client, _)) in (0..).zip(&clients) {
        sum += client.query_one("select $1::int4", &[&number]).await?.get::<_, i32>(0);
    }
    Ok(json!(sum))
}

async fn a_wrong_password(_: Client) -> Checked {
    let error = connect_with(config().password("not it")).await.err().ok_or("let in")?;
    Ok(json!([state(&error), error.source().map(ToString::to_string)]))
}

async fn an_unknown_database(_: Client) -> Checked {
    let error = connect_with(config().dbname("no such database")).await.err().ok_or("let in")?;
    Ok(json!([state(&error), error.source().map(ToString::to_string)]))
}

/// The value as the server's text, by both protocols, and its type.
async fn a_type(c: Client, expression: &str) -> Checked {
    let simple = texts(c.simple_query(&format!("select {expression}")).await?);
    let row = c.query_one(&format!("select ({expression})::text, {expression}"), &[]).await?;
    let type_ = row.columns()[1].type_();
    Ok(json!([simple, row.get::<_, Option<String>>(0), type_.name()]))
}

async fn an_error(c: Client, text: &str, wanted: &str) -> Checked {
    let (simple, extended) = (c.simple_query(text).await.err(), c.query(text, &[]).await.err());
    let (simple, extended) = (simple.ok_or("no error")?, extended.ok_or("no error")?);
    expect(state(&simple) == wanted && state(&extended) == wanted, format!("{simple:?}, {extended:?}"))?;
    let said = |error: &Error| error.as_db_error().map(|error| error.message().to_owned());
    Ok(json!([said(&simple), said(&extended)]))
}

macro_rules! checks {
    ($($name:ident),+ $(,)?) => {
        $(
            let checked = match connect().await {
                Ok(client) => $name(client).await,
                Err(error) => Err(error.into()),
            };
            tell(stringify!($name), checked);
        )+
    };
}

#[tokio::main]
async fn main() {
    connect().await.expect("a session").batch_execute(SETUP).await.expect("the schema");
    checks!(
        simple,
        extended,
        prepared_and_reused,
        many_prepared,
        closed_statements,
        same_names_in_two_sessions,
        transactions,
        error_in_transaction,
        savepoints,
        pipeline,
        pipeline_with_errors,
        copy_in_and_out,
        copy_errors,
        listen_and_notify,
        cancel,
        statement_timeout,
        portals,
        sql_cursors,
        large_stream,
        large_values,
        thousand_columns,
        notices,
        parameters,
        session_state,
        a_changed_table,
        own_types,
        backend_stays_in_a_transaction,
        error_fields,
        many_sessions,
        a_wrong_password,
        an_unknown_database,
    );
    for (name, expression) in types() {
        let checked = match connect().await {
            Ok(client) => a_type(client, &expression).await,
            Err(error) => Err(error.into()),
        };
        tell(&format!("type_{name}"), checked);
    }
    for (text, wanted) in ERRORS {
        let checked = match connect().await {
            Ok(client) => an_error(client, text, wanted).await,
            Err(error) => Err(error.into()),
        };
        tell(&format!("error_{wanted}"), checked);
    }
    tell("all", Ok(json!("done")));
}
