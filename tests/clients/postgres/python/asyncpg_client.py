"""PostgreSQL through asyncpg: `asyncpg_client.py URL STREAM_MB`."""

import asyncio
import io
import time

import asyncpg

from checks import ERRORS, SETUP, peak_mb, same, stream_rows, tell, tell_failure, types, url

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


async def connect(**options):
    return await asyncpg.connect(url(), **options)


def plain(rows):
    return [list(row) for row in rows]


@check
async def simple(c):
    return await c.execute("select 1; create table q.simple (id int); insert into q.simple values (1), (2)")


@check
async def extended(c):
    return plain(await c.fetch("select $1::int + 1, $2::text", 41, "ä"))


@check
async def prepared_and_reused(c):
    statement = await c.prepare("select $1::int * 2")
    for number in range(300):
        same(await statement.fetchval(number), number * 2)
    return [str(p.name) for p in statement.get_parameters()] + [a.name for a in statement.get_attributes()]


@check
async def many_prepared(c):
    statements = [await c.prepare(f"select $1::int + {number}") for number in range(250)]
    for round_ in range(2):
        for number, statement in enumerate(statements):
            same(await statement.fetchval(round_), round_ + number)


@check
async def the_cache_of_statements(_):
    c = await connect(statement_cache_size=5)
    try:
        for number in range(100):
            same(await c.fetchval(f"select $1::int - {number % 9}", number), number - number % 9)
    finally:
        await c.close()


@check
async def no_cache_of_statements(_):
    c = await connect(statement_cache_size=0)
    try:
        for number in range(50):
            same(await c.fetchval("select $1::int", number), number)
    finally:
        await c.close()


@check
async def same_names_in_two_sessions(c):
    other = await connect()
    try:
        for number in range(20):
            same(await c.fetchval("select 'mine' || $1::text", str(number)), f"mine{number}")
            same(await other.fetchval("select $1::int + 1000", number), number + 1000)
    finally:
        await other.close()


@check
async def a_plan(c):
    statement = await c.prepare("select id from q.items where id = $1")
    plan = await statement.explain(7)
    return plan[0]["Plan"]["Node Type"] != ""


@check
async def transaction_commits(c):
    async with c.transaction():
        await c.execute("insert into q.items (id, name) values (100, 'kept')")
    return await c.fetchval("select name from q.items where id = 100")


@check
async def transaction_rolls_back(c):
    try:
        async with c.transaction():
            await c.execute("insert into q.items (id, name) values (101, 'gone')")
            raise KeyError("on purpose")
    except KeyError:
        pass
    return await c.fetchval("select count(*) from q.items where id = 101")


@check
async def error_in_transaction(c):
    transaction, seen = c.transaction(), []
    await transaction.start()
    for text in ("select 1 / 0", "select 2"):
        try:
            await c.fetchval(text)
        except asyncpg.PostgresError as error:
            seen.append(error.sqlstate)
    await transaction.rollback()
    return [*seen, await c.fetchval("select 3")]


@check
async def savepoints(c):
    async with c.transaction():
        await c.execute("insert into q.items (id, name) values (110, 'outer')")
        try:
            async with c.transaction():
                await c.execute("insert into q.items (id, name) values (111, 'inner')")
                await c.execute("insert into q.items (id, name) values (110, 'again')")
        except asyncpg.UniqueViolationError:
            pass
        await c.execute("insert into q.items (id, name) values (112, 'after')")
    return plain(await c.fetch("select id from q.items where id between 110 and 119 order by 1"))


@check
async def isolation_levels(c):
    async with c.transaction(isolation="serializable", readonly=True, deferrable=True):
        names = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
        return [await c.fetchval(f"show {name}") for name in names]


@check
async def execute_many(c):
    await c.executemany("insert into q.items (id, name) values ($1, $2)", [(n, "many") for n in range(2000, 4000)])
    seen = [await c.fetchval("select count(*) from q.items where name = 'many'")]
    try:
        await c.executemany("insert into q.items (id, name) values ($1, $2)", [(n, "none") for n in (5000, 5001, 2000)])
    except asyncpg.UniqueViolationError as error:
        seen.append(error.sqlstate)
    seen.append(await c.fetchval("select count(*) from q.items where name = 'none'"))
    rows = await c.fetchmany("select $1::int * 10", [(n,) for n in range(5)])
    return [*seen, plain(rows)]


@check
async def copy_in_and_out(c):
    await c.execute("create table q.copied (id int, text text)")
    records = [(number, None if number % 7 == 0 else f"row\t{number}\n") for number in range(20000)]
    said = [await c.copy_records_to_table("copied", schema_name="q", records=records)]
    out = io.BytesIO()
    said.append(await c.copy_from_query("select * from q.copied order by id", output=out, format="csv"))
    said.append(len(out.getvalue()))
    out.seek(0)
    said.append(await c.copy_to_table("copied", schema_name="q", source=out, format="csv"))
    said.append(await c.copy_from_table("copied", schema_name="q", output=io.BytesIO()))
    return [*said, await c.fetchval("select count(text) from q.copied")]


@check
async def copy_errors(c):
    seen = []
    try:
        await c.copy_to_table("items", schema_name="q", columns=["id", "name"], source=io.BytesIO(b"no number\tx\n"))
    except asyncpg.PostgresError as error:
        seen.append(error.sqlstate)

    async def breaks():
        yield b"9000\tx\n"
        raise KeyError("on purpose")

    try:
        await c.copy_to_table("items", schema_name="q", columns=["id", "name"], source=breaks())
    except KeyError:
        seen.append("given up")
    try:
        await c.copy_from_query("select 10 / (5 - n) from generate_series(1, 10) n", output=io.BytesIO())
    except asyncpg.PostgresError as error:
        seen.append(error.sqlstate)
    return [*seen, await c.fetchval("select count(*) from q.items where id = 9000")]


@check
async def listen_and_notify(c):
    heard = asyncio.Queue()
    await c.add_listener("heard", lambda _, __, channel, payload: heard.put_nowait([channel, payload]))
    other = await connect()
    try:
        await other.execute("notify heard, 'one'")
        await other.execute("select pg_notify('heard', $1)", "two")
        async with other.transaction():
            await other.execute("notify heard, 'three'")
        got = [await asyncio.wait_for(heard.get(), 20) for _ in range(3)]
    finally:
        await other.close()
    await c.reset()
    return [got, plain(await c.fetch("select pg_listening_channels()"))]


@check
async def cancel_by_timeout(c):
    start = time.monotonic()
    try:
        await c.fetchval("select pg_sleep(60)", timeout=0.3)
        return "not cancelled"
    except asyncio.TimeoutError:
        assert time.monotonic() - start < 30
        return ["timeout", await c.fetchval("select 1")]


@check
async def cancel_of_a_task(c):
    task = asyncio.create_task(c.fetchval("select pg_sleep(60)"))
    await asyncio.sleep(0.3)
    task.cancel()
    try:
        await task
        return "not cancelled"
    except asyncio.CancelledError:
        return await c.fetchval("select 1")


@check
async def statement_timeout(c):
    try:
        async with c.transaction():
            await c.execute("set local statement_timeout = '50ms'")
            await c.execute("select pg_sleep(60)")
    except asyncpg.QueryCanceledError as error:
        return str(error)


@check
async def server_side_cursor(c):
    async with c.transaction():
        same([row[0] async for row in c.cursor("select n from generate_series(1, 1050) n", prefetch=100)], list(range(1, 1051)))
        cursor = await c.cursor("select n from generate_series(1, 100) n")
        await cursor.forward(50)
        return plain([await cursor.fetchrow(), *await cursor.fetch(3)])


@check
async def cursor_outside_of_a_transaction(c):
    try:
        await c.cursor("select 1")
        return "opened"
    except asyncpg.NoActiveSQLTransactionError as error:
        return type(error).__name__


@check
async def large_stream(c):
    rows, before, size, number = stream_rows(), peak_mb(), 0, 0
    async with c.transaction():
        text = "select lpad(n::text, 1000, 'x') from generate_series(1, $1::int) n"
        async for row in c.cursor(text, rows, prefetch=1000):
            number += 1
            size += len(row[0])
            if number % 100000 == 0:
                assert row[0].endswith(str(number))
    same(size, rows * 1000)
    grown = peak_mb() - before
    assert grown < 40, f"{grown} MB more"


@check
async def large_values(c):
    text, data = "ä" * 5_000_000, bytes(range(256)) * 40000
    row = await c.fetchrow("select $1::text, $2::bytea", text, data)
    assert (row[0], row[1]) == (text, data)
    return [len(row[0]), len(row[1])]


@check
async def large_result_at_once(c):
    rows = await c.fetch("select n, repeat('y', 500) from generate_series(1, 20000) n")
    return [len(rows), sum(row[0] for row in rows)]


@check
async def thousand_columns(c):
    row = await c.fetchrow("select " + ", ".join(f"{n} as c{n}" for n in range(1000)))
    same(list(row), list(range(1000)))
    row = await c.fetchrow("select " + ", ".join(f"${n + 1}::int" for n in range(1000)), *range(1000))
    same(list(row), list(range(1000)))


@check
async def many_parameters(c):
    text = "select count(*) from (values " + ", ".join(f"(${n + 1}::int)" for n in range(30000)) + ") v"
    return await c.fetchval(text, *range(30000))


@check
async def notices(c):
    heard = []
    c.add_log_listener(lambda _, notice: heard.append([notice.severity, notice.sqlstate, notice.message]))
    await c.execute("select q.say('a'), q.say('b')")
    await c.execute("drop table if exists q.nothing")
    await c.fetchval("select 1")
    return heard


@check
async def tracked_parameters(c):
    seen = []
    for name, value in (
        ("application_name", "a name"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "SQL, DMY"),
        ("IntervalStyle", "iso_8601"),
    ):
        await c.execute(f"set {name} = '{value}'")
        for _ in range(3):
            shown = await c.fetchval(f"show {name}")
        seen.append([shown, getattr(c.get_settings(), name, None)])
    other = await connect()
    seen.append(await other.fetchval("select current_setting('TimeZone') = $1", "Asia/Tokyo"))
    await other.close()
    return seen


@check
async def settings_at_the_start(_):
    c = await connect(server_settings={"application_name": "started", "statement_timeout": "12345", "search_path": "q"})
    try:
        return [await c.fetchval(f"show {name}") for name in ("application_name", "statement_timeout", "search_path")]
    finally:
        await c.close()


@check
async def other_parameters(c):
    await c.execute("set work_mem = '77MB'")
    await c.execute("set search_path = q, public")
    seen = [await c.fetchval(f"show {name}") for name in ("work_mem", "search_path")]
    other = await connect()
    seen.append(await other.fetchval("show work_mem"))
    await other.close()
    await c.reset()
    return [*seen, await c.fetchval("show work_mem")]


@check
async def set_local(c):
    async with c.transaction():
        await c.execute("set local work_mem = '55MB'")
        inside = await c.fetchval("show work_mem")
    return [inside, await c.fetchval("show work_mem")]


@check
async def advisory_locks(c):
    other = await connect()
    try:
        await c.fetchval("select pg_advisory_lock(4711)")
        taken = await other.fetchval("select pg_try_advisory_lock(4711)")
        await c.fetchval("select pg_advisory_unlock(4711)")
        return [taken, await other.fetchval("select pg_try_advisory_lock(4711)")]
    finally:
        await other.close()


@check
async def temporary_tables(c):
    await c.execute("create temp table mine (id int)")
    await c.copy_records_to_table("mine", records=[(1,), (2,)])
    other = await connect()
    try:
        await other.fetch("select * from mine")
        seen = "seen"
    except asyncpg.UndefinedTableError as error:
        seen = error.sqlstate
    finally:
        await other.close()
    return [seen, await c.fetchval("select count(*) from mine")]


@check
async def a_changed_table(c):
    await c.execute("create table q.changing (a int); insert into q.changing values (1)")
    other, seen = await connect(), []
    for number in range(6):
        if number == 3:
            await other.execute("alter table q.changing add b text default 'new'")
        try:
            seen.append(plain(await c.fetch("select * from q.changing")))
        except asyncpg.PostgresError as error:
            seen.append(error.sqlstate)
    await other.close()
    return seen


@check
async def a_changed_type(c):
    await c.execute("create type q.growing as enum ('a')")
    seen = [await c.fetchval("select $1::q.growing", "a")]
    await c.execute("alter type q.growing add value 'b'")
    seen.append(await c.fetchval("select $1::q.growing", "b"))
    return seen


@check
async def own_codecs(c):
    import json

    await c.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    value = {"a": [1, None, {"b": "ä"}]}
    same(await c.fetchval("select $1::jsonb", value), value)
    return await c.fetchval("select $1::q.pair", (7, "x")) == (7, "x")


@check
async def backend_stays_in_a_transaction(c):
    async with c.transaction():
        return len({await c.fetchval("select pg_backend_pid()") for _ in range(20)})


@check
async def error_fields(c):
    seen = []
    for text in ("select q.fail('P0042')", "insert into q.items (id, name) values (100, 'x')"):
        try:
            await c.execute(text)
        except asyncpg.PostgresError as error:
            keys = ("severity", "sqlstate", "message", "detail", "hint", "context", "table_name", "constraint_name")
            seen.append([getattr(error, key, None) for key in keys])
    return seen


@check
async def a_pool(_):
    async with asyncpg.create_pool(url(), min_size=2, max_size=8) as pool:

        async def one(number):
            async with pool.acquire() as c, c.transaction():
                return await c.fetchval("select $1::int", number)

        return sum(await asyncio.gather(*(one(number) for number in range(300))))


@check
async def many_sessions(_):
    sessions = await asyncio.gather(*(connect() for _ in range(30)))
    try:
        return sum(await asyncio.gather(*(c.fetchval("select $1::int", n) for n, c in enumerate(sessions))))
    finally:
        await asyncio.gather(*(c.close() for c in sessions))


@check
async def a_wrong_password(_):
    try:
        await connect(password="not it")
        return "let in"
    except asyncpg.PostgresError as error:
        return [error.sqlstate, str(error)]


@check
async def an_unknown_database(_):
    try:
        await connect(database="no such database")
        return "let in"
    except asyncpg.PostgresError as error:
        return [error.sqlstate, str(error)]


async def one(name, function, *given):
    c = await connect()
    try:
        tell(name, True, await function(c, *given))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the check is about
        tell_failure(name, error)
    finally:
        await c.close(timeout=20)


async def each_type(c, expression):
    row = await c.fetchrow(f"select {expression}, ({expression})::text")
    statement = await c.prepare(f"select {expression}")
    given = None
    if row[0] is not None:
        try:
            type_ = statement.get_attributes()[0].type
            given = repr(await c.fetchval(f"select $1::{type_.schema}.{type_.name}", row[0]))
        except Exception as error:  # noqa: BLE001
            given = type(error).__name__
    return [repr(row[0]), row[1], given]


async def each_error(c, text, state):
    try:
        await c.fetch(text)
    except asyncpg.PostgresError as error:
        same(error.sqlstate, state)
        return [str(error), await c.fetchval("select 1")]
    raise AssertionError("no error")


async def main():
    first = await connect()
    await first.execute(SETUP)
    await first.close()
    for function in CHECKS:
        await one(function.__name__, function)
    for name, expression in types():
        await one(f"type_{name}", each_type, expression)
    for number, (text, state) in enumerate(ERRORS):
        await one(f"error_{number}_{state}", each_error, text, state)
    tell("all", True, "done")


asyncio.run(main())
