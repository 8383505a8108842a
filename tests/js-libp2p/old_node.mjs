// What js-libp2p takes for granted and Node 18, which Debian 12 has, lacks.
import { webcrypto } from 'node:crypto'

globalThis.crypto ??= webcrypto
globalThis.CustomEvent ??= class CustomEvent extends Event {
  constructor (type, options) {
    super(type, options)
    this.detail = options?.detail ?? null
  }
}
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((...functions) => { [resolve, reject] = functions })
  return { promise, resolve, reject }
}
