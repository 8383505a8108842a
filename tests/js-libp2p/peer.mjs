// One js-libp2p peer with TCP, Noise, yamux, identify and ping, on a free port of 127.0.0.1.
//
// Standard output carries JSON lines: first {"event":"ready",…}, then one answer to each command of standard input:
// {"do":"ping","to":MULTIADDR,"times":N,"fresh":BOOL}. With `fresh` each ping is one of a new peer, on a connection of its own. The
// program ends when standard input does, so it never outlives the test that started it.

import './old_node.mjs'
import { createInterface } from 'node:readline'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

// How long a ping may take, in ms.
const PATIENCE = 10_000

const peer = await start(['/ip4/127.0.0.1/tcp/0'])
say({ event: 'ready', peer_id: peer.peerId.toString(), listening: peer.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  try {
    say({ event: 'done', value: await execute(JSON.parse(line)) })
  } catch (error) {
    say({ event: 'failed', why: String(error) })
  }
}
await peer.stop()

function start (listen) {
  return createLibp2p({
    addresses: { listen },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify(), ping: ping() },
    // By default 5 a second from one address, and behind a sidecar all peers have one.
    connectionManager: { inboundConnectionThreshold: Infinity }
  })
}

async function execute ({ do: what, to, times, fresh }) {
  if (what !== 'ping') throw new Error(`unknown: ${what}`)
  const address = multiaddr(to)
  const [failures, milliseconds] = [[], []]
  for (let number = 0; number < times; number++) {
    // A peer that has just closed a connection can take the next one to the same address for a duplicate, and drop it.
    const from = fresh ? await start([]) : peer
    try {
      milliseconds.push(await from.services.ping.ping(address, { signal: AbortSignal.timeout(PATIENCE) }))
    } catch (error) {
      failures.push(`${number}: ${error}`)
    }
    if (fresh) await from.stop()
  }
  return { answered: milliseconds.length, failures, longest_ms: Math.max(0, ...milliseconds) }
}

function say (line) {
  console.log(JSON.stringify(line))
}
