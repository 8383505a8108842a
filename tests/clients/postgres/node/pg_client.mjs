// PostgreSQL through node-postgres: `node pg_client.mjs URL STREAM_MB`.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import { Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { from as copyFrom, to as copyTo } from 'pg-copy-streams'
import Cursor from 'pg-cursor'
import QueryStream from 'pg-query-stream'

const [url, streamMb] = [process.argv[2], Number(process.argv[3])]
const types = JSON.parse(fs.readFileSync(new URL('types.json', import.meta.url), 'utf8'))

const SETUP = `
drop schema if exists q cascade;
create schema q;
create type q.mood as enum ('sad', 'glad');
create type q.pair as (a int, b text);
create domain q.positive as int check (value > 0);
create table q.items (id int primary key, name text not null);
create function q.say(what text) returns void language plpgsql as $$ begin raise notice 'heard: %', what; end $$;
create function q.fail(state text) returns void language plpgsql as $$
    begin raise exception 'failed with %', state using errcode = state, hint = 'a hint', detail = 'a detail'; end $$;
`

const ERRORS = [
  ['select 1 / 0', '22012'],
  ['select * from nowhere', '42P01'],
  ['select nothing from q.items', '42703'],
  ['select from where', '42601'],
  ["select 'x'::int", '22P02'],
  ['insert into q.items values (null, $$x$$)', '23502'],
  ['insert into q.items values (1, $$x$$), (1, $$y$$)', '23505'],
  ['select (-1)::q.positive', '23514'],
  ["select q.fail('P0042')", 'P0042'],
  ["select q.fail('53300')", '53300'],
  ['rollback to savepoint none', '25P01'],
]

function tell (check, ok, detail) {
  const text = JSON.stringify({ check, ok, detail: detail ?? null }, (_, value) => typeof value === 'bigint' ? `${value}n` : value)
  fs.writeSync(1, text + '\n')
}

async function connect (options = {}) {
  const client = new pg.Client({ connectionString: url, ...options })
  client.on('error', () => {})
  await client.connect()
  return client
}

// Gives a function a connection of its own, and ends it.
async function withClient (work, options) {
  const client = await connect(options)
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}

async function check (name, work) {
  try {
    tell(name, true, await withClient(work))
  } catch (error) {
    const where = (error.stack ?? '').split('\n').find(line => line.includes('pg_client'))
    tell(name, false, `${error.code ?? ''} ${error.message} ${where ?? ''}`)
  }
}

const value = async (client, text, values) => (await client.query({ text, values, rowMode: 'array' })).rows[0][0]
const column = async (client, text, values) =>
  (await client.query({ text, values, rowMode: 'array' })).rows.map(row => row[0])
const numbers = (from, to) => Array.from({ length: to - from }, (_, at) => from + at)

async function failure (promise) {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('no error')
}

const checks = {
  async simple (c) {
    return column(c, 'select n from generate_series(1, 5) n')
  },
  async severalStatements (c) {
    const results = await c.query("select 1 as one; select 'two' as two; values (3), (4)")
    return results.map(result => [result.command, result.rows])
  },
  async emptyStatement (c) {
    const result = await c.query('')
    return [result.command, result.rows]
  },
  async extended (c) {
    return (await c.query('select $1::int + 1 as a, $2::text as b', [41, 'ä'])).rows
  },
  async preparedAndReused (c) {
    for (const number of numbers(0, 200)) {
      const result = await c.query({ name: 'double', text: 'select $1::int * 2 as n', values: [number] })
      assert.equal(result.rows[0].n, number * 2)
    }
  },
  async manyPrepared (c) {
    for (const round of [0, 1]) {
      for (const number of numbers(0, 250)) {
        const result = await c.query({ name: `n${number}`, text: `select $1::int + ${number} as n`, values: [round] })
        assert.equal(result.rows[0].n, round + number)
      }
    }
  },
  async sameNamesInTwoSessions (c) {
    await withClient(async other => {
      for (const number of numbers(0, 20)) {
        const mine = await c.query({ name: 'same', text: "select 'mine' || $1::text as x", values: [number] })
        const theirs = await other.query({ name: 'same', text: 'select $1::int + 1000 as x', values: [number] })
        assert.deepEqual([mine.rows[0].x, theirs.rows[0].x], [`mine${number}`, number + 1000])
      }
    })
  },
  async preparedWithAnError (c) {
    const ask = (name, text, values) => c.query({ name, text, values }).then(r => r.rows[0].n, error => error.code)
    return [
      await ask('broken', 'select from where', []),
      await ask('broken', 'select 10 / $1::int as n', [0]),
      await ask('broken', 'select 10 / $1::int as n', [5]),
    ]
  },
  async binaryResults (c) {
    const result = await c.query({ text: "select 7::int4, 'abc'::text, '\\x00ff'::bytea", values: [], binary: true, rowMode: 'array' })
    return result.rows[0].map(x => Buffer.isBuffer(x) ? x.toString('hex') : x)
  },
  async queuedQueries (c) {
    const results = await Promise.all(numbers(0, 300).map(n => value(c, 'select $1::int', [n])))
    assert.deepEqual(results, numbers(0, 300))
  },
  async queuedQueriesWithErrors (c) {
    return Promise.all(numbers(0, 10).map(n => value(c, 'select 10 / ($1::int - 5)', [n]).catch(error => error.code)))
  },
  async transactionCommits (c) {
    await c.query('begin')
    await c.query("insert into q.items values (100, 'kept')")
    await c.query('commit')
    return withClient(other => value(other, 'select name from q.items where id = 100'))
  },
  async transactionRollsBack (c) {
    await c.query('begin')
    await c.query("insert into q.items values (101, 'gone')")
    await c.query('rollback')
    return value(c, 'select count(*) from q.items where id = 101')
  },
  async errorInTransaction (c) {
    await c.query('begin')
    const seen = [(await failure(c.query('select 1 / 0'))).code, (await failure(c.query('select 2'))).code]
    seen.push((await c.query('commit')).command)
    return [...seen, await value(c, 'select 3')]
  },
  async savepoints (c) {
    await c.query('begin')
    await c.query("insert into q.items values (110, 'outer')")
    await c.query('savepoint inner_one')
    await c.query("insert into q.items values (111, 'inner')")
    const error = await failure(c.query("insert into q.items values (110, 'again')"))
    await c.query('rollback to savepoint inner_one')
    await c.query("insert into q.items values (112, 'after')")
    await c.query('commit')
    return [error.code, await column(c, 'select id from q.items where id between 110 and 119 order by 1')]
  },
  async copyInAndOut (c) {
    await c.query('create table q.copied (id int, text text)')
    const lines = Readable.from((function * () {
      for (const number of numbers(0, 20000)) yield `${number}\trow ${number}\n`
    })())
    const into = c.query(copyFrom('copy q.copied from stdin'))
    await pipeline(lines, into)
    let bytes = 0
    const count = new Writable({ write (chunk, _, done) { bytes += chunk.length; done() } })
    const out = c.query(copyTo('copy q.copied to stdout'))
    await pipeline(out, count)
    return [into.rowCount, out.rowCount, bytes, await value(c, 'select sum(id) from q.copied')]
  },
  async copyErrors (c) {
    const wrong = await failure(pipeline(Readable.from(['no number\tx\n']), c.query(copyFrom('copy q.items from stdin'))))
    const givenUp = c.query(copyFrom('copy q.items from stdin'))
    givenUp.on('error', () => {})
    givenUp.write('9000\tx\n')
    givenUp.destroy(new Error('on purpose'))
    const seen = [wrong.code, await value(c, 'select count(*) from q.items where id = 9000')]
    const out = c.query(copyTo('copy (select 10 / (5 - n) from generate_series(1, 10) n) to stdout'))
    seen.push((await failure(pipeline(out, new Writable({ write (_, __, done) { done() } })))).code)
    return [...seen, await value(c, 'select 1')]
  },
  async listenAndNotify (c) {
    const heard = []
    c.on('notification', message => heard.push([message.channel, message.payload]))
    await c.query('listen heard')
    await withClient(async other => {
      await other.query("notify heard, 'one'")
      await other.query('select pg_notify($1, $2)', ['heard', 'two'])
      await other.query("begin; notify heard, 'three'; commit")
    })
    const deadline = Date.now() + 20000
    while (heard.length < 3 && Date.now() < deadline) await sleep(10)
    await c.query('unlisten *')
    return [heard, await column(c, 'select pg_listening_channels()')]
  },
  async cancel (c) {
    const asked = failure(c.query('select pg_sleep(60)'))
    await sleep(300)
    // node-postgres has no call for it: a CancelRequest on a connection of its own.
    const socket = net.connect(Number(c.port), c.host)
    const packet = Buffer.alloc(16)
    ;[16, 80877102, c.processID, c.secretKey].forEach((number, at) => packet.writeInt32BE(number, at * 4))
    socket.end(packet)
    socket.resume()
    await once(socket, 'close')
    const error = await asked
    return [error.code, error.message, await value(c, 'select 1')]
  },
  async statementTimeout () {
    return withClient(async c => {
      const error = await failure(c.query('select pg_sleep(60)'))
      return [error.code, error.message]
    }, { statement_timeout: 100 })
  },
  async cursor (c) {
    const cursor = c.query(new Cursor('select n from generate_series(1, $1::int) n', [1050], { rowMode: 'array' }))
    let seen = 0
    for (let rows; (rows = await cursor.read(100)).length > 0;) {
      for (const row of rows) assert.equal(row[0], ++seen)
    }
    await cursor.close()
    const early = c.query(new Cursor('select n from generate_series(1, 100000) n'))
    const first = await early.read(10)
    await early.close()
    return [seen, first.length, await value(c, 'select 7')]
  },
  async sqlCursor (c) {
    await c.query('begin')
    await c.query('declare scrolled scroll cursor for select n from generate_series(1, 100) n')
    const seen = [await column(c, 'fetch 3 from scrolled'), await column(c, 'fetch last from scrolled'), await column(c, 'fetch first from scrolled')]
    await c.query('commit')
    await c.query('begin; declare held cursor with hold for select n from generate_series(1, 10) n; commit')
    seen.push(await column(c, 'fetch 4 from held'))
    await c.query('close held')
    return seen
  },
  async largeStream (c) {
    const rows = streamMb * 1000
    const text = "select lpad(n::text, 1000, 'x') as x from generate_series(1, $1::int) n"
    const before = process.memoryUsage().rss
    let [bytes, count, most] = [0, 0, 0]
    for await (const row of c.query(new QueryStream(text, [rows], { batchSize: 500 }))) {
      bytes += row.x.length
      if (++count % 20000 === 0) {
        assert.ok(row.x.endsWith(String(count)))
        most = Math.max(most, process.memoryUsage().rss)
      }
    }
    assert.equal(bytes, rows * 1000)
    // The collector takes its time.
    assert.ok(most - before < 150e6, `${(most - before) / 1e6} MB more`)
  },
  async largeValues (c) {
    const text = 'ä'.repeat(5000000)
    const data = Buffer.alloc(10000000, 'bytes')
    const row = (await c.query({ text: 'select $1::text, $2::bytea', values: [text, data], rowMode: 'array' })).rows[0]
    assert.ok(row[0] === text && data.equals(row[1]))
    return [row[0].length, row[1].length]
  },
  async thousandColumns (c) {
    const named = await c.query({ text: 'select ' + numbers(0, 1000).map(n => `${n} as c${n}`).join(), rowMode: 'array' })
    assert.deepEqual(named.rows[0], numbers(0, 1000))
    const given = numbers(1, 1001)
    const result = await c.query({ text: 'select ' + given.map(n => `$${n}::int`).join(), values: given, rowMode: 'array' })
    assert.deepEqual(result.rows[0], given)
    return [named.fields.length, named.fields[999].name]
  },
  async manyParameters (c) {
    const given = numbers(1, 30001)
    return value(c, `select count(*) from (values ${given.map(n => `($${n}::int)`).join()}) v`, given)
  },
  async notices (c) {
    const heard = []
    c.on('notice', notice => heard.push([notice.severity, notice.code, notice.message]))
    await c.query("select q.say('a'), q.say('b')")
    await c.query('drop table if exists q.nothing')
    await c.query('select 1')
    return heard
  },
  async trackedParameters (c) {
    const seen = []
    for (const [name, wanted] of [['application_name', 'a name'], ['TimeZone', 'Asia/Tokyo'], ['DateStyle', 'SQL, DMY'], ['IntervalStyle', 'iso_8601']]) {
      await c.query(`set ${name} = '${wanted}'`)
      for (const _ of numbers(0, 3)) assert.equal(await value(c, `show ${name}`), wanted)
      seen.push(await value(c, 'select current_setting($1)', [name]))
    }
    return [...seen, await withClient(other => value(other, "select current_setting('TimeZone') = 'Asia/Tokyo'"))]
  },
  async parametersAtTheStart () {
    return withClient(
      async c => [await value(c, 'show application_name'), await value(c, 'show work_mem'), await value(c, 'show lock_timeout')],
      { application_name: 'started', options: '-c work_mem=33MB', lock_timeout: 4321 },
    )
  },
  async otherParameters (c) {
    await c.query("set work_mem = '77MB'; set search_path = q, public")
    const seen = [await value(c, 'show work_mem'), await value(c, 'show search_path')]
    seen.push(await withClient(other => value(other, 'show work_mem')))
    await c.query('reset work_mem')
    return [...seen, await value(c, 'show work_mem')]
  },
  async setLocal (c) {
    await c.query('begin')
    await c.query("set local work_mem = '55MB'")
    const inside = await value(c, 'show work_mem')
    await c.query('commit')
    return [inside, await value(c, 'show work_mem')]
  },
  async advisoryLocks (c) {
    return withClient(async other => {
      await c.query('select pg_advisory_lock(4711)')
      const taken = await value(other, 'select pg_try_advisory_lock(4711)')
      await c.query('select pg_advisory_unlock(4711)')
      return [taken, await value(other, 'select pg_try_advisory_lock(4711)')]
    })
  },
  async temporaryTables (c) {
    await c.query('create temp table mine (id int)')
    await c.query('insert into mine values (1), (2)')
    const error = await withClient(other => failure(other.query('select * from mine')))
    return [error.code, await value(c, 'select count(*) from mine')]
  },
  async sqlPrepare (c) {
    await c.query('prepare mine (int) as select $1 + 1')
    const seen = [await value(c, 'execute mine(1)'), await value(c, 'execute mine(2)')]
    await c.query('deallocate mine')
    return [...seen, (await failure(c.query('execute mine(1)'))).code]
  },
  async aChangedTable (c) {
    await c.query('create table q.changing (a int); insert into q.changing values (1)')
    const seen = []
    for (const number of numbers(0, 6)) {
      if (number === 3) await withClient(other => other.query('alter table q.changing add b int default 2'))
      const query = { name: number < 5 ? 'changing' : 'again', text: 'select * from q.changing' }
      seen.push(await c.query(query).then(result => result.rows, error => error.code))
    }
    return seen
  },
  async discardAll (c) {
    await c.query("set work_mem = '66MB'; create temp table mine (id int)")
    await c.query('discard all')
    return [await value(c, 'show work_mem'), await value(c, "select to_regclass('mine')")]
  },
  async backendStaysInATransaction (c) {
    await c.query('begin')
    const pids = new Set()
    for (const _ of numbers(0, 20)) pids.add(await value(c, 'select pg_backend_pid()'))
    await c.query('commit')
    return pids.size
  },
  async errorFields (c) {
    const keys = ['severity', 'code', 'message', 'detail', 'hint', 'where', 'schema', 'table', 'constraint', 'position']
    const seen = []
    for (const text of ["select q.fail('P0042')", "insert into q.items values (100, 'x')", 'select nothing from q.items']) {
      const error = await failure(c.query(text))
      seen.push(keys.map(key => error[key] ?? null))
    }
    return seen
  },
  async aPool () {
    const pool = new pg.Pool({ connectionString: url, max: 8 })
    const all = await Promise.all(numbers(0, 300).map(async n => (await pool.query('select $1::int as n', [n])).rows[0].n))
    await pool.end()
    return all.reduce((sum, n) => sum + n)
  },
  async manySessions () {
    const clients = await Promise.all(numbers(0, 30).map(() => connect()))
    const all = await Promise.all(clients.map((client, n) => value(client, 'select $1::int', [n])))
    await Promise.all(clients.map(client => client.end()))
    return all.reduce((sum, n) => sum + n)
  },
  async aWrongPassword () {
    const wrong = new URL(url)
    wrong.password = 'not-it'
    const error = await failure(connect({ connectionString: wrong.href }))
    return [error.code, error.message]
  },
  async anUnknownDatabase () {
    const wrong = new URL(url)
    wrong.pathname = '/nowhere'
    const error = await failure(connect({ connectionString: wrong.href }))
    return [error.code, error.message]
  },
}

await withClient(c => c.query(SETUP))
for (const [name, work] of Object.entries(checks)) await check(name, work)
for (const [name, expression] of types) {
  await check(`type_${name}`, async c => {
    const result = await c.query({ text: `select ${expression}, (${expression})::text`, values: [], rowMode: 'array' })
    const given = await value(c, `select $1::text is not distinct from (${expression})::text`, [result.rows[0][1]])
    const type = result.fields[0].dataTypeID
    return [result.rows[0], type < 16384 ? type : 'own', given]
  })
}
for (const [number, [text, state]] of ERRORS.entries()) {
  await check(`error_${number}_${state}`, async c => {
    const error = await failure(c.query(text))
    assert.equal(error.code, state)
    return [error.message, await value(c, 'select 1')]
  })
}
tell('all', true, 'done')
// A connection that was refused keeps its socket for a while.
process.exit(0)
