"""PostgreSQL through psycopg 3: `psycopg_client.py URL STREAM_MB`."""

import threading
import time

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from checks import ERRORS, SETUP, peak_mb, same, stream_rows, tell, tell_failure, types, url


def connect(**options):
    options.setdefault("autocommit", True)
    return psycopg.connect(url(), **options)


def check(function):
    """Runs it with a connection of its own."""
    name = function.__name__
    try:
        with connect() as connection:
            tell(name, True, function(connection))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the check is about
        tell_failure(name, error)


with connect() as first:
    first.execute(SETUP)


@check
def simple(c):
    cursor = psycopg.ClientCursor(c)
    return [row[0] for row in cursor.execute("select n from generate_series(1, 5) n").fetchall()]


@check
def several_statements(c):
    cursor = psycopg.ClientCursor(c)
    cursor.execute("select 1; select 'two'; values (3), (4)")
    results = [cursor.fetchall()]
    while cursor.nextset():
        results.append(cursor.fetchall())
    return results


@check
def empty_statement(c):
    return c.execute("").statusmessage


@check
def extended(c):
    return c.execute("select %s::int + 1, %s::text", (41, "ä")).fetchone()


@check
def dictionaries(c):
    return c.cursor(row_factory=dict_row).execute("select 1 as one, 'x' as two").fetchone()


@check
def prepared_and_reused(c):
    for number in range(200):
        same(c.execute("select %s::int * 2", (number,), prepare=True).fetchone()[0], number * 2)


@check
def many_prepared(c):
    c.prepared_max = 300
    for round_ in range(2):
        for number in range(250):
            row = c.execute(sql.SQL("select %s::int + {}").format(number), (round_,), prepare=True).fetchone()
            same(row[0], round_ + number)


@check
def prepared_are_evicted(c):
    c.prepared_max = 5
    for number in range(60):
        row = c.execute(sql.SQL("select %s::int - {}").format(number % 9), (number,), prepare=True).fetchone()
        same(row[0], number - number % 9)


@check
def same_names_in_two_sessions(c):
    with connect() as other:
        for number in range(20):
            same(c.execute("select 'mine' || %s::text", (number,), prepare=True).fetchone()[0], f"mine{number}")
            same(other.execute("select %s::int + 1000", (number,), prepare=True).fetchone()[0], number + 1000)


@check
def binary_results(c):
    return c.execute("select %b::int8, 'abc'::bytea, 1.25::numeric", (7,), binary=True).fetchone()


@check
def transaction_commits(c):
    with c.transaction():
        c.execute("insert into q.items (id, name) values (100, 'kept')")
    with connect() as other:
        return other.execute("select name from q.items where id = 100").fetchone()


@check
def transaction_rolls_back(c):
    try:
        with c.transaction():
            c.execute("insert into q.items (id, name) values (101, 'gone')")
            raise KeyError("on purpose")
    except KeyError:
        pass
    return c.execute("select count(*) from q.items where id = 101").fetchone()[0]


@check
def error_in_transaction(c):
    c.autocommit = False
    c.execute("select 1")
    seen = []
    for text in ("select 1 / 0", "select 2"):
        try:
            c.execute(text)
        except psycopg.Error as error:
            seen.append(error.sqlstate)
    seen.append(c.info.transaction_status.name)
    c.rollback()
    seen.append(c.execute("select 3").fetchone()[0])
    c.commit()
    return seen


@check
def commit_of_a_failed_transaction(c):
    c.execute("begin")
    try:
        c.execute("select 1 / 0")
    except psycopg.errors.DivisionByZero:
        pass
    return c.execute("commit").statusmessage


@check
def savepoints(c):
    with c.transaction():
        c.execute("insert into q.items (id, name) values (110, 'outer')")
        try:
            with c.transaction():
                c.execute("insert into q.items (id, name) values (111, 'inner')")
                c.execute("insert into q.items (id, name) values (110, 'again')")
        except psycopg.errors.UniqueViolation:
            pass
        c.execute("insert into q.items (id, name) values (112, 'after')")
    return c.execute("select id from q.items where id between 110 and 119 order by 1").fetchall()


@check
def isolation_levels(c):
    c.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    c.read_only = True
    with c.transaction():
        level = c.execute("show transaction_isolation").fetchone()[0]
        try:
            c.execute("insert into q.items (id, name) values (120, 'x')")
        except psycopg.errors.ReadOnlySqlTransaction as error:
            return [level, error.sqlstate]


@check
def two_phase(c):
    return c.execute("show max_prepared_transactions").fetchone()


@check
def pipeline(c):
    with c.pipeline():
        cursors = [c.execute("select %s::int", (number,)) for number in range(300)]
        same([cursor.fetchone()[0] for cursor in cursors], list(range(300)))


@check
def pipeline_with_syncs(c):
    with c.pipeline() as pipe:
        results = []
        for number in range(30):
            cursor = c.execute("select %s::int, repeat('x', 5000)", (number,), prepare=number % 2 == 0)
            pipe.sync()
            results.append(cursor)
        return [cursor.fetchone()[0] for cursor in results]


@check
def pipeline_with_an_error(c):
    seen = []
    try:
        with c.pipeline():
            for text in ("select 1", "select 1 / 0", "select 3"):
                c.execute(text)
    except psycopg.errors.DivisionByZero as error:
        seen.append(error.sqlstate)
    return [*seen, c.execute("select 4").fetchone()[0]]


@check
def pipeline_in_a_transaction(c):
    with c.pipeline(), c.transaction():
        for number in range(20):
            c.execute("insert into q.items (id, name) values (%s, 'piped')", (1000 + number,))
    return c.execute("select count(*) from q.items where name = 'piped'").fetchone()


@check
def execute_many(c):
    cursor = c.cursor()
    cursor.executemany("insert into q.items (id, name) values (%s, %s)", [(n, "many") for n in range(2000, 2500)])
    cursor.executemany("select %s::int", [(n,) for n in range(3)], returning=True)
    rows = [cursor.fetchone()[0]]
    while cursor.nextset():
        rows.append(cursor.fetchone()[0])
    return [rows, c.execute("select count(*) from q.items where name = 'many'").fetchone()]


@check
def copy_in_and_out(c):
    cursor = c.cursor()
    c.execute("create table q.copied (id int, text text)")
    with cursor.copy("copy q.copied from stdin") as copy:
        for number in range(20000):
            copy.write_row((number, None if number % 7 == 0 else f"row\t{number}\n"))
    same(cursor.rowcount, 20000)
    total = length = 0
    with cursor.copy("copy q.copied to stdout") as copy:
        copy.set_types(["int4", "text"])
        for number, text in copy.rows():
            total += number
            length += len(text or "")
    return [total, length, c.execute("select count(*), count(text) from q.copied").fetchone()]


@check
def copy_binary(c):
    cursor = c.cursor()
    c.execute("create table q.copied_binary (id int8, data bytea)")
    with cursor.copy("copy q.copied_binary from stdin (format binary)") as copy:
        copy.set_types(["int8", "bytea"])
        for number in range(1000):
            copy.write_row((number, bytes([number % 256]) * 100))
    return c.execute("select sum(id), sum(length(data)) from q.copied_binary").fetchone()


@check
def copy_errors(c):
    seen = []
    cursor = c.cursor()
    try:
        with cursor.copy("copy q.items (id, name) from stdin") as copy:
            copy.write("not a number\tx\n")
    except psycopg.Error as error:
        seen.append(error.sqlstate)
    try:
        with cursor.copy("copy q.items (id, name) from stdin") as copy:
            copy.write("9000\tx\n")
            raise KeyError("on purpose")
    except KeyError:
        seen.append("given up")
    try:
        with cursor.copy("copy (select 10 / (5 - n) from generate_series(1, 10) n) to stdout") as copy:
            for _ in copy:
                pass
    except psycopg.Error as error:
        seen.append(error.sqlstate)
    seen.append(c.execute("select count(*) from q.items where id = 9000").fetchone()[0])
    return seen


@check
def listen_and_notify(c):
    c.execute("listen heard")
    with connect() as other:
        other.execute("notify heard, 'one'")
        other.execute("select pg_notify('heard', 'two')")
        other.execute("notify unheard, 'three'")
    got = [(notify.channel, notify.payload) for notify in c.notifies(timeout=20, stop_after=2)]
    c.execute("unlisten heard")
    return [got, c.execute("select pg_listening_channels()").fetchall()]


@check
def notify_in_a_transaction(c):
    c.execute("listen later")
    with connect() as other:
        with other.transaction():
            other.execute("notify later, 'committed'")
        with other.transaction(force_rollback=True):
            other.execute("notify later, 'rolled back'")
        other.execute("notify later, 'last'")
    return [notify.payload for notify in c.notifies(timeout=20, stop_after=2)]


@check
def cancel(c):
    timer = threading.Timer(0.3, c.cancel_safe)
    timer.start()
    start = time.monotonic()
    try:
        c.execute("select pg_sleep(60)")
        return "not cancelled"
    except psycopg.errors.QueryCanceled as error:
        timer.join()
        assert time.monotonic() - start < 30
        return [error.sqlstate, str(error).strip(), c.execute("select 1").fetchone()[0]]


@check
def statement_timeout(c):
    with c.transaction(force_rollback=True):
        c.execute("set local statement_timeout = '50ms'")
        try:
            with c.transaction():
                c.execute("select pg_sleep(60)")
        except psycopg.errors.QueryCanceled as error:
            return str(error).strip()


@check
def server_side_cursor(c):
    with c.transaction(), c.cursor(name="some") as cursor:
        cursor.itersize = 100
        cursor.execute("select n from generate_series(1, 1050) n")
        same([row[0] for row in cursor], list(range(1, 1051)))
        return cursor.rownumber


@check
def scrollable_cursor(c):
    with c.transaction(), c.cursor(name="some", scrollable=True) as cursor:
        cursor.execute("select n from generate_series(1, 100) n")
        cursor.scroll(50)
        first_ = cursor.fetchone()
        cursor.scroll(0, mode="absolute")
        return [first_, cursor.fetchone()]


@check
def cursor_with_hold(c):
    with c.cursor(name="held", withhold=True) as cursor:
        with c.transaction():
            cursor.execute("select n from generate_series(1, 10) n")
            first_ = cursor.fetchmany(3)
        return [first_, cursor.fetchall()]


@check
def large_stream(c):
    rows, before, size = stream_rows(), peak_mb(), 0
    text = "select lpad(n::text, 1000, 'x') from generate_series(1, %s) n"
    for number, row in enumerate(c.cursor().stream(text, (rows,))):
        size += len(row[0])
        if number % 100000 == 0:
            assert row[0].endswith(str(number + 1))
    same(size, rows * 1000)
    grown = peak_mb() - before
    assert grown < 40, f"{grown} MB more"


@check
def large_values(c):
    text, data = "ä" * 5_000_000, bytes(range(256)) * 40000
    got = c.execute("select %s::text, %b::bytea", (text, data)).fetchone()
    assert got == (text, data)
    return [len(got[0]), len(got[1])]


@check
def thousand_columns(c):
    columns = ", ".join(f"{n} as c{n}" for n in range(1000))
    cursor = c.execute(f"select {columns}")
    same(cursor.fetchone(), tuple(range(1000)))
    values = c.execute("select " + ", ".join(["%s::int"] * 1000), list(range(1000))).fetchone()
    same(values, tuple(range(1000)))
    return [cursor.description[999].name, len(cursor.description)]


@check
def many_parameters(c):
    text = "select count(*) from (values " + ", ".join(["(%s::int)"] * 30000) + ") v"
    return c.execute(text, list(range(30000))).fetchone()


@check
def notices(c):
    heard = []
    c.add_notice_handler(lambda notice: heard.append([notice.severity, notice.sqlstate, notice.message_primary]))
    c.execute("select q.say('a'), q.say('b')")
    c.execute("drop table if exists q.nothing")
    return heard


@check
def tracked_parameters(c):
    seen = []
    for name, value in (
        ("application_name", "a name"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "SQL, DMY"),
        ("IntervalStyle", "iso_8601"),
        ("client_encoding", "LATIN1"),
        ("standard_conforming_strings", "on"),
    ):
        c.execute("select set_config(%s, %s, false)", (name, value))
        for _ in range(3):
            shown = c.execute(sql.SQL("show {}").format(sql.SQL(name))).fetchone()[0]
        seen.append([shown, c.info.parameter_status(name)])
    with connect() as other:
        seen.append(other.execute("select current_setting('TimeZone') = %s", ("Asia/Tokyo",)).fetchone())
    return seen


@check
def other_parameters(c):
    c.execute("set work_mem = '77MB'")
    c.execute("set search_path = q, public")
    c.execute("set q.own = 'mine'")
    seen = [c.execute(f"show {name}").fetchone()[0] for name in ("work_mem", "search_path", "q.own")]
    with connect() as other:
        seen.append(other.execute("show search_path").fetchone()[0])
        seen.append(other.execute("show work_mem").fetchone()[0])
    c.execute("reset all")
    return [*seen, c.execute("show work_mem").fetchone()[0]]


@check
def set_local(c):
    with c.transaction():
        c.execute("set local work_mem = '55MB'")
        inside = c.execute("show work_mem").fetchone()[0]
    return [inside, c.execute("show work_mem").fetchone()[0]]


@check
def options_at_the_start(_):
    with connect(options="-c statement_timeout=12345", application_name="started") as c:
        return [c.execute(f"show {name}").fetchone()[0] for name in ("statement_timeout", "application_name")]


@check
def advisory_locks(c):
    c.execute("select pg_advisory_lock(4711)")
    with connect() as other:
        taken = other.execute("select pg_try_advisory_lock(4711)").fetchone()[0]
        c.execute("select pg_advisory_unlock(4711)")
        free = other.execute("select pg_try_advisory_lock(4711)").fetchone()[0]
        other.execute("select pg_advisory_unlock_all()")
    with c.transaction():
        c.execute("select pg_advisory_xact_lock(4712)")
    return [taken, free]


@check
def a_lock_ends_with_its_session(_):
    with connect() as c:
        c.execute("select pg_advisory_lock(4713)")
    with connect() as c:
        for _ in range(200):
            if c.execute("select pg_try_advisory_lock(4713)").fetchone()[0]:
                return "free"
            time.sleep(0.05)
        return "held"


@check
def temporary_tables(c):
    c.execute("create temp table mine (id int)")
    c.execute("insert into mine values (1), (2)")
    with connect() as other:
        try:
            other.execute("select * from mine")
            seen = "seen"
        except psycopg.errors.UndefinedTable as error:
            seen = error.sqlstate
    with c.transaction():
        c.execute("create temp table brief (id int) on commit drop")
    return [seen, c.execute("select count(*) from mine").fetchone()[0]]


@check
def sql_prepare(c):
    c.execute("prepare mine (int) as select $1 + 1")
    seen = [c.execute("execute mine(1)").fetchone()[0] for _ in range(3)]
    c.execute("deallocate mine")
    try:
        c.execute("execute mine(1)")
    except psycopg.Error as error:
        seen.append(error.sqlstate)
    return seen


@check
def a_changed_table(c):
    c.execute("create table q.changing (a int)")
    c.execute("insert into q.changing values (1)")
    seen = []
    for number in range(8):
        if number == 5:
            with connect() as other:
                other.execute("alter table q.changing add b text default 'new'")
        try:
            seen.append(c.execute("select * from q.changing", prepare=True).fetchone())
        except psycopg.Error as error:
            seen.append(error.sqlstate)
            c.execute("deallocate all")
            c._prepared.clear()
    return seen


@check
def discard_all(c):
    c.execute("set work_mem = '66MB'")
    c.execute("create temp table mine (id int)")
    c.execute("discard all")
    return [c.execute("show work_mem").fetchone()[0], c.execute("select to_regclass('mine')").fetchone()[0]]


@check
def sequences(c):
    c.execute("create sequence q.numbers")
    with c.transaction():
        return c.execute("select nextval('q.numbers'), currval('q.numbers'), lastval()").fetchone()


@check
def backend_stays_in_a_transaction(c):
    with c.transaction():
        pids = {c.execute("select pg_backend_pid()").fetchone()[0] for _ in range(20)}
    return len(pids)


@check
def error_fields(c):
    try:
        c.execute("select q.fail('P0042')")
    except psycopg.Error as error:
        d = error.diag
        return [d.severity, d.sqlstate, d.message_primary, d.message_detail, d.message_hint, d.context]
    try:
        c.execute("insert into q.items (id, name) values (100, 'x')")
    except psycopg.Error as error:
        return [error.diag.table_name, error.diag.constraint_name, error.diag.schema_name]


@check
def a_wrong_password(_):
    try:
        connect(password="not it")
        return "let in"
    except psycopg.OperationalError as error:
        return [error.sqlstate, "password authentication failed" in str(error)]


@check
def an_unknown_database(_):
    try:
        connect(dbname="no such database")
        return "let in"
    except psycopg.OperationalError as error:
        return 'database "no such database" does not exist' in str(error)


@check
def many_sessions(_):
    sessions = [connect() for _ in range(30)]
    try:
        return sum(session.execute("select %s::int", (n,)).fetchone()[0] for n, session in enumerate(sessions))
    finally:
        for session in sessions:
            session.close()


def each_type(name, expression):
    try:
        with connect() as c:
            seen = []
            for binary in (False, True):
                try:
                    cursor = c.execute(f"select {expression}, ({expression})::text", binary=binary)
                    value, text = cursor.fetchone()
                    type_ = cursor.description[0].type_code
                    if type_ >= 16384 and isinstance(value, bytes):
                        # It holds the numbers of types, which are others in each database.
                        value = len(value)
                    seen.append([repr(value), text, "own" if type_ >= 16384 else type_])
                except psycopg.Error as error:
                    seen.append([error.sqlstate, str(error)])
            tell(f"type_{name}", True, seen)
    except Exception as error:  # noqa: BLE001
        tell_failure(f"type_{name}", error)


def each_error(number, text, state):
    try:
        with connect() as c:
            try:
                c.execute(text)
                raise AssertionError("no error")
            except psycopg.Error as error:
                same(error.sqlstate, state)
                tell(f"error_{number}_{state}", True, [str(error), c.execute("select 1").fetchone()[0]])
    except Exception as error:  # noqa: BLE001
        tell_failure(f"error_{number}_{state}", error)


for type_ in types():
    each_type(*type_)
for number_, (text_, state_) in enumerate(ERRORS):
    each_error(number_, text_, state_)
tell("all", True, "done")
