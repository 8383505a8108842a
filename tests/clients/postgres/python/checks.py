"""What the programs of this folder share: checks that are printed as JSON lines, and what they need at the server."""

import json
import os
import resource
import sys
import traceback

SETUP = """
drop schema if exists q cascade;
create schema q;
create type q.mood as enum ('sad', 'glad');
create type q.pair as (a int, b text);
create domain q.positive as int check (value > 0);
create table q.items (id int primary key, name text not null, amount numeric(12, 2));
create function q.say(what text) returns void language plpgsql as $$ begin raise notice 'heard: %', what; end $$;
create function q.fail(state text) returns void language plpgsql as $$
    begin raise exception 'failed with %', state using errcode = state, hint = 'a hint', detail = 'a detail'; end $$
"""

# Statements, and the SQLSTATE of what is wrong with them.
ERRORS = [
    ("select 1 / 0", "22012"),
    ("select * from nowhere", "42P01"),
    ("select nothing from q.items", "42703"),
    ("select from where", "42601"),
    ("select 'x'::int", "22P02"),
    ("select no_function(1)", "42883"),
    ("insert into q.items (id, name) values (null, 'x')", "23502"),
    ("insert into q.items (id, name) values (1, 'x'), (1, 'y')", "23505"),
    ("select (-1)::q.positive", "23514"),
    ("create table q.items (id int)", "42P07"),
    ("set role nobody_at_all", "22023"),
    ("select '{}'::json::int", "42846"),
    ("select q.fail('P0042')", "P0042"),
    ("select q.fail('57014')", "57014"),
    ("select q.fail('53300')", "53300"),
    ("rollback to savepoint none", "25P01"),
]


def url():
    return sys.argv[1]


def stream_rows():
    """Rows of 1,000 bytes of the large result."""
    return int(sys.argv[2]) * 1000


def types():
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "types.json")
    with open(place, encoding="utf-8") as file:
        return json.load(file)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tell(name, ok, detail):
    print(json.dumps({"check": name, "ok": ok, "detail": detail}, default=str), flush=True)


def tell_failure(name, error):
    where = traceback.extract_tb(error.__traceback__)[-1]
    state = getattr(error, "sqlstate", None)
    tell(name, False, f"{type(error).__name__} {state}: {error} (line {where.lineno})")


def same(got, wanted):
    assert got == wanted, f"{got!r} instead of {wanted!r}"
