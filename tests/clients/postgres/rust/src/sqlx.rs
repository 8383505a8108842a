//! PostgreSQL through sqlx: `sqlx-client URL STREAM_MB`.

mod checks;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use checks::{Checked, ERRORS, SETUP, expect, peak_mb, stream_rows, tell, types, url};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::postgres::{PgAdvisoryLock, PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Either, Error, Executor, QueryBuilder, Row, Statement,
    TypeInfo,
};
use uuid::Uuid;

fn options() -> PgConnectOptions {
    url().parse().expect("a URL")
}

async fn connect() -> Result<PgConnection, Error> {
    options().connect().await
}

/// What the server says is wrong.
fn said(error: &Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// The SQLSTATE of an error, or what it is.
fn state(error: &Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map_or_else(|| error.to_string(), |code| code.into_owned())
}

fn state_of<T>(result: Result<T, Error>) -> String {
    result.err().map_or_else(|| "no error".into(), |error| state(&error))
}

async fn run(c: &mut PgConnection, text: &str) -> Result<u64, Error> {
    Ok(sqlx::raw_sql(AssertSqlSafe(text)).execute(c).await?.rows_affected())
}

async fn show(c: &mut PgConnection, name: &str) -> Result<String, Error> {
    sqlx::query_scalar(AssertSqlSafe(format!("show {name}"))).fetch_one(c).await
}

async fn number(c: &mut PgConnection, text: &'static str) -> Result<i64, Error> {
    sqlx::query_scalar(text).fetch_one(c).await
}

async fn simple(mut c: PgConnection) -> Checked {
    let mut seen = Vec::new();
    let mut stream = sqlx::raw_sql("select 1; select 2 union all select 3; create table q.simple (id int)")
        .fetch_many(&mut c);
    while let Some(item) = stream.try_next().await? {
        seen.push(match item {
            Either::Left(done) => json!({ "done": done.rows_affected() }),
            Either::Right(row) => json!(row.try_get_unchecked::<&str, _>(0)?),
        });
    }
    Ok(json!(seen))
}

async fn extended(mut c: PgConnection) -> Checked {
    let row = sqlx::query("select $1::int4 + 1, $2::text, $3::int8")
        .bind(41)
        .bind("ä")
        .bind(None::<i64>)
        .fetch_one(&mut c)
        .await?;
    Ok(json!([row.get::<i32, _>(0), row.get::<&str, _>(1), row.get::<Option<i64>, _>(2)]))
}

async fn tuples(mut c: PgConnection) -> Checked {
    let rows: Vec<(i32, String)> =
        sqlx::query_as("select n, 'row ' || n from generate_series(1, 3) n").fetch_all(&mut c).await?;
    Ok(json!(rows))
}

async fn prepared_and_reused(mut c: PgConnection) -> Checked {
    for number in 0..500 {
        let got: i32 = sqlx::query_scalar("select $1::int4 * 2").bind(number).fetch_one(&mut c).await?;
        expect(got == number * 2, number)?;
    }
    let kept = c.cached_statements_size();
    let statement = c.prepare(sqlx::SqlStr::from_static("select $1::int4 as one, 'x'::text as two")).await?;
    let columns: Vec<_> =
        statement.columns().iter().map(|column| (column.name(), column.type_info().name())).collect();
    Ok(json!([kept, columns]))
}

async fn many_prepared(_: PgConnection) -> Checked {
    // Above the capacity, statements are closed and prepared again.
    let mut c = options().statement_cache_capacity(40).connect().await?;
    for round in 0..3 {
        for number in 0..100 {
            let text = format!("select $1::int4 + {number}");
            let got: i32 = sqlx::query_scalar(AssertSqlSafe(text)).bind(round).fetch_one(&mut c).await?;
            expect(got == round + number, number)?;
        }
    }
    let kept = c.cached_statements_size();
    c.clear_cached_statements().await?;
    let again: i32 = sqlx::query_scalar("select 7").fetch_one(&mut c).await?;
    Ok(json!([kept, again]))
}

async fn not_persistent(mut c: PgConnection) -> Checked {
    for number in 0..100 {
        let got: i32 =
            sqlx::query_scalar("select $1::int4").bind(number).persistent(false).fetch_one(&mut c).await?;
        expect(got == number, number)?;
    }
    Ok(json!(c.cached_statements_size()))
}

/// Each connection numbers its statements from one, so that all have the same names for different texts.
async fn same_names_in_two_sessions(mut c: PgConnection) -> Checked {
    let mut other = connect().await?;
    for number in 0..50 {
        let mine: String =
            sqlx::query_scalar("select 'mine' || $1::text").bind("x").fetch_one(&mut c).await?;
        let theirs: i32 =
            sqlx::query_scalar("select $1::int4 + 1000").bind(number).fetch_one(&mut other).await?;
        expect(mine == "minex" && theirs == number + 1000, number)?;
    }
    Ok(Value::Null)
}

async fn transactions(mut c: PgConnection) -> Checked {
    let mut transaction = c.begin().await?;
    run(&mut transaction, "insert into q.items values (100, 'kept')").await?;
    transaction.commit().await?;
    let mut transaction = c.begin().await?;
    run(&mut transaction, "insert into q.items values (101, 'gone')").await?;
    transaction.rollback().await?;
    let mut transaction = c.begin().await?;
    run(&mut transaction, "insert into q.items values (102, 'dropped')").await?;
    drop(transaction);
    Ok(json!(number(&mut c, "select sum(id) from q.items where id between 100 and 109").await?))
}

async fn error_in_transaction(mut c: PgConnection) -> Checked {
    let mut transaction = c.begin().await?;
    let mut seen = vec![state_of(sqlx::query("select 1 / 0").fetch_one(&mut *transaction).await)];
    seen.push(state_of(sqlx::query("select 2").fetch_one(&mut *transaction).await));
    transaction.rollback().await?;
    seen.push(number(&mut c, "select 3::int8").await?.to_string());
    Ok(json!(seen))
}

async fn savepoints(mut c: PgConnection) -> Checked {
    let mut outer = c.begin().await?;
    run(&mut outer, "insert into q.items values (110, 'outer')").await?;
    let mut inner = outer.begin().await?;
    run(&mut inner, "insert into q.items values (111, 'inner')").await?;
    let state = state_of(run(&mut inner, "insert into q.items values (110, 'again')").await);
    inner.rollback().await?;
    run(&mut outer, "insert into q.items values (112, 'after')").await?;
    outer.commit().await?;
    let ids: Vec<i32> = sqlx::query_scalar("select id from q.items where id between 110 and 119 order by 1")
        .fetch_all(&mut c)
        .await?;
    Ok(json!([state, ids]))
}

async fn copy_in_and_out(mut c: PgConnection) -> Checked {
    run(&mut c, "create table q.copied (id int, text text)").await?;
    let mut copy = c.copy_in_raw("copy q.copied from stdin").await?;
    for number in 0..20000 {
        copy.send(format!("{number}\trow {number}\n").as_bytes()).await?;
    }
    let count = copy.finish().await?;
    let (mut bytes, mut out) = (0, c.copy_out_raw("copy q.copied to stdout").await?);
    while let Some(chunk) = out.try_next().await? {
        bytes += chunk.len();
    }
    drop(out);
    Ok(json!([count, bytes, number(&mut c, "select sum(id) from q.copied").await?]))
}

async fn copy_errors(mut c: PgConnection) -> Checked {
    let mut copy = c.copy_in_raw("copy q.items from stdin").await?;
    copy.send(&b"no number\tx\n"[..]).await?;
    let mut seen = vec![state_of(copy.finish().await)];
    let mut copy = c.copy_in_raw("copy q.items from stdin").await?;
    copy.send(&b"9000\tx\n"[..]).await?;
    copy.abort("on purpose").await?;
    let out = c.copy_out_raw("copy (select 10 / (5 - n) from generate_series(1, 10) n) to stdout").await?;
    seen.push(state_of(out.try_collect::<Vec<_>>().await));
    seen.push(number(&mut c, "select count(*) from q.items where id = 9000").await?.to_string());
    Ok(json!(seen))
}

async fn listen_and_notify(mut c: PgConnection) -> Checked {
    let mut listener = PgListener::connect(&url()).await?;
    listener.listen_all(["heard", "also"]).await?;
    run(&mut c, "notify heard, 'one'; notify unheard, 'no'").await?;
    sqlx::query("select pg_notify('also', $1)").bind("two").execute(&mut c).await?;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let notification = tokio::time::timeout(Duration::from_secs(20), listener.recv()).await??;
        heard.push([notification.channel().to_owned(), notification.payload().to_owned()]);
    }
    listener.unlisten_all().await?;
    Ok(json!(heard))
}

/// The library has no cancel: `pg_cancel_backend` from another session, until the query has ended, for one that comes
/// between two messages of the query is lost.
async fn cancel(mut c: PgConnection) -> Checked {
    let start = Instant::now();
    let ended = AtomicBool::new(false);
    let (result, cancelled) = tokio::join!(
        async {
            let result = sqlx::query("select 'cancel me', pg_sleep(60)").execute(&mut c).await;
            ended.store(true, Ordering::Relaxed);
            result
        },
        async {
            let mut other = connect().await?;
            let text = "select count(pg_cancel_backend(pid)) from pg_stat_activity where datname = current_database() \
                        and query like 'select ''cancel me''%' and state = 'active'";
            while !ended.load(Ordering::Relaxed) {
                number(&mut other, text).await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, Error>(())
        }
    );
    cancelled?;
    expect(start.elapsed() < Duration::from_secs(30), "it was not cancelled")?;
    Ok(json!([state_of(result), number(&mut c, "select 1::int8").await?]))
}

/// A future that is dropped leaves a reply on its way, which the next query of the connection must not take for its own.
async fn dropped_queries(mut c: PgConnection) -> Checked {
    for number in 0..10 {
        let query = sqlx::query("select pg_sleep(0.05), 'slow'").fetch_one(&mut c);
        let _ = tokio::time::timeout(Duration::from_millis(number), query).await;
        let got: i64 = sqlx::query_scalar("select $1::int8").bind(number as i64).fetch_one(&mut c).await?;
        expect(got == number as i64, number)?;
    }
    let mut rows = sqlx::query("select n from generate_series(1, 50000) n").fetch(&mut c);
    rows.try_next().await?;
    drop(rows);
    Ok(json!(number(&mut c, "select 7::int8").await?))
}

async fn statement_timeout(_: PgConnection) -> Checked {
    let mut c = options().options([("statement_timeout", "100")]).connect().await?;
    let error = sqlx::query("select pg_sleep(60)").execute(&mut c).await.err().ok_or("no error")?;
    Ok(json!([state(&error), said(&error), show(&mut c, "statement_timeout").await?]))
}

async fn sql_cursors(mut c: PgConnection) -> Checked {
    let mut seen: Vec<Vec<i32>> = Vec::new();
    let mut transaction = c.begin().await?;
    run(&mut transaction, "declare here scroll cursor for select n from generate_series(1, 100) n").await?;
    for text in ["fetch 3 from here", "fetch last from here", "fetch first from here"] {
        seen.push(sqlx::query_scalar(text).fetch_all(&mut *transaction).await?);
    }
    run(&mut transaction, "declare held cursor with hold for select n from generate_series(1, 10) n").await?;
    transaction.commit().await?;
    seen.push(sqlx::query_scalar("fetch 4 from held").fetch_all(&mut c).await?);
    run(&mut c, "close held").await?;
    Ok(json!(seen))
}

async fn large_stream(mut c: PgConnection) -> Checked {
    let (wanted, before) = (stream_rows(), peak_mb());
    let mut rows = sqlx::query("select lpad(n::text, 1000, 'x') from generate_series(1, $1::int4) n")
        .bind(wanted)
        .fetch(&mut c);
    let (mut bytes, mut count) = (0, 0);
    while let Some(row) = rows.try_next().await? {
        let text: &str = row.get(0);
        count += 1;
        bytes += text.len();
        if count % 1000 == 0 {
            expect(text.ends_with(&count.to_string()), count)?;
        }
    }
    expect(bytes == wanted as usize * 1000, bytes)?;
    let grown = peak_mb() - before;
    expect(grown < 40, format!("{grown} MB more"))?;
    Ok(Value::Null)
}

async fn large_values(mut c: PgConnection) -> Checked {
    let (text, data) = ("ä".repeat(5_000_000), vec![7_u8; 10_000_000]);
    let row = sqlx::query("select $1::text, $2::bytea").bind(&text).bind(&data).fetch_one(&mut c).await?;
    expect(row.get::<&str, _>(0) == text && row.get::<&[u8], _>(1) == data, "other values")?;
    Ok(Value::Null)
}

async fn thousand_columns(mut c: PgConnection) -> Checked {
    let columns: Vec<String> = (0..1000).map(|number| format!("{number} as c{number}")).collect();
    let row = sqlx::query(AssertSqlSafe(format!("select {}", columns.join(", ")))).fetch_one(&mut c).await?;
    for number in 0..1000 {
        expect(row.get::<i32, _>(&*format!("c{number}")) == number, number)?;
    }
    Ok(json!(row.len()))
}

async fn many_parameters(mut c: PgConnection) -> Checked {
    let mut builder = QueryBuilder::new("insert into q.items (id, name) ");
    builder.push_values(10_000..20_000, |mut row, id| {
        row.push_bind(id).push_bind("built");
    });
    let inserted = builder.build().execute(&mut c).await?.rows_affected();
    Ok(json!([inserted, number(&mut c, "select count(*) from q.items where name = 'built'").await?]))
}

async fn parameters(mut c: PgConnection) -> Checked {
    let mut seen = Vec::new();
    for (name, value) in [
        ("application_name", "a name"),
        ("TimeZone", "Asia/Tokyo"),
        ("work_mem", "77MB"),
        ("DateStyle", "SQL, DMY"),
    ] {
        sqlx::query("select set_config($1, $2, false)").bind(name).bind(value).execute(&mut c).await?;
        for _ in 0..3 {
            show(&mut c, name).await?;
        }
        seen.push(show(&mut c, name).await?);
    }
    let mut other = connect().await?;
    for name in ["TimeZone", "work_mem"] {
        seen.push(show(&mut other, name).await?);
    }
    let mut transaction = c.begin().await?;
    run(&mut transaction, "set local work_mem = '55MB'").await?;
    seen.push(show(&mut transaction, "work_mem").await?);
    transaction.commit().await?;
    run(&mut c, "reset all").await?;
    seen.push(show(&mut c, "work_mem").await?);
    let mut c = options().application_name("started").options([("lock_timeout", "4321")]).connect().await?;
    seen.extend([show(&mut c, "application_name").await?, show(&mut c, "lock_timeout").await?]);
    Ok(json!(seen))
}

async fn session_state(mut c: PgConnection) -> Checked {
    let mut other = connect().await?;
    let lock = PgAdvisoryLock::new("a lock");
    let guard = lock.acquire(&mut c).await?;
    let taken = lock.try_acquire(&mut other).await?.is_right();
    guard.release_now().await?;
    let free = matches!(lock.try_acquire(&mut other).await?, Either::Left(_));
    run(&mut c, "create temp table mine (id int); insert into mine values (1)").await?;
    let unseen = state_of(run(&mut other, "select * from mine").await);
    Ok(json!([taken, free, unseen, number(&mut c, "select count(*) from mine").await?]))
}

async fn a_changed_table(mut c: PgConnection) -> Checked {
    run(&mut c, "create table q.changing (a int); insert into q.changing values (1)").await?;
    let mut seen = Vec::new();
    for round in 0..3 {
        if round == 1 {
            run(&mut connect().await?, "alter table q.changing add b int default 2").await?;
        }
        let asked = sqlx::query("select * from q.changing").fetch_one(&mut c).await;
        seen.push(asked.map_or_else(|error| state(&error), |row| row.len().to_string()));
    }
    Ok(json!(seen))
}

async fn own_types(mut c: PgConnection) -> Checked {
    let (id, document) = (Uuid::from_u128(7), json!({ "a": [1, null, "ä"] }));
    let query = sqlx::query("select $1::uuid, $2::jsonb, $3::int4[], $4::text[]");
    let query =
        query.bind(id).bind(sqlx::types::Json(&document)).bind(vec![1, 2]).bind(vec![Some("x"), None]);
    let row = query.fetch_one(&mut c).await?;
    expect(row.get::<Uuid, _>(0) == id && row.get::<Value, _>(1) == document, "other values")?;
    let row = sqlx::query("select 'glad'::q.mood, null::q.pair, null::int4range").fetch_one(&mut c).await?;
    let names: Vec<_> = row.columns().iter().map(|column| column.type_info().name().to_owned()).collect();
    Ok(json!(names))
}

async fn backend_stays_in_a_transaction(mut c: PgConnection) -> Checked {
    let mut transaction = c.begin().await?;
    let mut pids = std::collections::BTreeSet::new();
    for _ in 0..20 {
        pids.insert(
            sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&mut *transaction).await?,
        );
    }
    Ok(json!(pids.len()))
}

async fn error_fields(mut c: PgConnection) -> Checked {
    let mut seen = Vec::new();
    for text in
        ["select q.fail('P0042')", "insert into q.items values (100, 'x')", "select nothing from q.items"]
    {
        let error = sqlx::query(text).execute(&mut c).await.err().ok_or("no error")?;
        let error = error.into_database_error().ok_or("no error of the server's")?;
        let error = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
        seen.push(json!([
            format!("{:?}", error.severity()),
            error.code(),
            error.message(),
            error.detail(),
            error.hint(),
            error.r#where(),
            error.constraint(),
            format!("{:?}", error.position()),
        ]));
    }
    Ok(json!(seen))
}

async fn a_pool(_: PgConnection) -> Checked {
    let pool = PgPoolOptions::new().max_connections(8).connect_with(options()).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..300 {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut transaction = pool.begin().await?;
            let got: i32 =
                sqlx::query_scalar("select $1::int4").bind(number).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            Ok::<_, Error>(got)
        });
    }
    let mut sum = 0;
    while let Some(done) = tasks.join_next().await {
        sum += done??;
    }
    pool.close().await;
    Ok(json!(sum))
}

async fn a_wrong_password(_: PgConnection) -> Checked {
    let error = options().password("not it").connect().await.err().ok_or("let in")?;
    Ok(json!([state(&error), said(&error)]))
}

async fn an_unknown_database(_: PgConnection) -> Checked {
    let error = options().database("no such database").connect().await.err().ok_or("let in")?;
    Ok(json!([state(&error), said(&error)]))
}

/// The value as the server's text, its type, and how many bytes its binary form has.
async fn a_type(mut c: PgConnection, expression: &str) -> Checked {
    let asked = sqlx::query(AssertSqlSafe(format!("select ({expression})::text, {expression}")))
        .fetch_one(&mut c)
        .await;
    let row = match asked {
        // Multiranges, for instance, are not known to the library.
        Err(error @ Error::ColumnDecode { .. }) => return Ok(json!(error.to_string())),
        asked => asked?,
    };
    let text: Option<String> = row.get(0);
    let bytes: Option<&[u8]> = row.try_get_unchecked(1).ok();
    Ok(json!([text, row.column(1).type_info().name(), bytes.map(<[u8]>::len)]))
}

async fn an_error(mut c: PgConnection, text: &'static str, wanted: &str) -> Checked {
    let simple = sqlx::raw_sql(text).execute(&mut c).await.err().ok_or("no error")?;
    let extended = sqlx::query(text).execute(&mut c).await.err().ok_or("no error")?;
    expect(state(&simple) == wanted && state(&extended) == wanted, format!("{simple:?}, {extended:?}"))?;
    Ok(json!([said(&simple), said(&extended)]))
}

macro_rules! checks {
    ($($name:ident),+ $(,)?) => {
        $(
            let checked = match connect().await {
                Ok(connection) => $name(connection).await,
                Err(error) => Err(error.into()),
            };
            tell(stringify!($name), checked);
        )+
    };
}

#[tokio::main]
async fn main() {
    run(&mut connect().await.expect("a session"), SETUP).await.expect("the schema");
    checks!(
        simple,
        extended,
        tuples,
        prepared_and_reused,
        many_prepared,
        not_persistent,
        same_names_in_two_sessions,
        transactions,
        error_in_transaction,
        savepoints,
        copy_in_and_out,
        copy_errors,
        listen_and_notify,
        cancel,
        dropped_queries,
        statement_timeout,
        sql_cursors,
        large_stream,
        large_values,
        thousand_columns,
        many_parameters,
        parameters,
        session_state,
        a_changed_table,
        own_types,
        backend_stays_in_a_transaction,
        error_fields,
        a_pool,
        a_wrong_password,
        an_unknown_database,
    );
    for (name, expression) in types() {
        let checked = match connect().await {
            Ok(connection) => a_type(connection, &expression).await,
            Err(error) => Err(error.into()),
        };
        tell(&format!("type_{name}"), checked);
    }
    for (text, wanted) in ERRORS {
        let checked = match connect().await {
            Ok(connection) => an_error(connection, text, wanted).await,
            Err(error) => Err(error.into()),
        };
        tell(&format!("error_{wanted}"), checked);
    }
    tell("all", Ok(json!("done")));
}
