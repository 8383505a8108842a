//! Every metric that the sidecar exports: its name, its kind, its labels and what it means.
//!
//! Labels come from closed sets or from the configuration, never from traffic, so that the number of series is bounded.

/// What a metric does over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name. The unit is the last part, before `_total`.
    pub name: &'static str,
    /// What it does over time.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it counts or measures.
    pub help: &'static str,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram, labels, help }
}

/// All of them.
pub const CATALOGUE: &[Metric] = &[
    // Filters.
    counter(
        "qudag_sidecar_filter_calls_total",
        &["kind", "filter", "arm"],
        "Requests that reached a filter, with the filter (arm=with) and past it by rollout (arm=without).",
    ),
    counter(
        "qudag_sidecar_filter_errors_total",
        &["kind", "filter", "arm", "error"],
        "Requests that a filter or what is behind it answered with an error or with a reply that reports one.",
    ),
    histogram(
        "qudag_sidecar_filter_duration_seconds",
        &["kind", "filter", "arm"],
        "Time from a filter's call to its answer, with everything behind it.",
    ),
    histogram(
        "qudag_sidecar_filter_self_seconds",
        &["kind", "filter", "arm"],
        "Time that a filter took itself, without what is behind it.",
    ),
    // Flows.
    counter("qudag_sidecar_flows_total", &["kind", "outcome"], "Flows that ended, by how they ended."),
    histogram("qudag_sidecar_flow_duration_seconds", &["kind"], "Length of flows."),
    gauge("qudag_sidecar_flows_active", &["kind"], "Flows under way."),
    counter(
        "qudag_sidecar_bytes_total",
        &["kind", "target", "direction"],
        "Payload bytes that were passed on, up to the configured target and down from it.",
    ),
    counter(
        "qudag_sidecar_accept_errors_total",
        &[],
        "Connections that the operating system refused to hand over.",
    ),
    // Layers that several kinds of traffic share.
    counter(
        "qudag_sidecar_rate_limited_total",
        &["kind", "scope"],
        "Requests refused by rate_limit, over the rate of one client (scope=client) or of all (scope=total); transactions of \
         a database, a user or with a statement (scope=database, user, statement).",
    ),
    gauge(
        "qudag_sidecar_breaker_open",
        &["kind", "target"],
        "Whether the circuit breaker of a target is open: 1 or 0.",
    ),
    counter("qudag_sidecar_breaker_opened_total", &["kind", "target"], "How often a circuit breaker opened."),
    counter("qudag_sidecar_retries_total", &["kind", "result"], "Attempts after the first one, by result."),
    gauge("qudag_sidecar_buffers_kept_bytes", &["kind"], "Bytes of buffers that wait for their next use."),
    counter(
        "qudag_sidecar_buffers_taken_total",
        &["kind", "result"],
        "Buffers that connections took from the pool: used before (result=recycled) or new (result=allocated).",
    ),
    // DNS.
    counter("qudag_sidecar_dns_cache_hits_total", &[], "Queries answered from the cache."),
    counter("qudag_sidecar_dns_cache_misses_total", &[], "Queries that had to wait for a server."),
    counter("qudag_sidecar_dns_cache_inserts_total", &[], "Replies that were stored in the cache."),
    counter("qudag_sidecar_dns_cache_evictions_total", &[], "Replies that left the cache for lack of room."),
    counter("qudag_sidecar_dns_cache_expired_total", &[], "Queries that found a reply whose time was over."),
    counter("qudag_sidecar_dns_cache_flushes_total", &[], "Flushes of the cache."),
    gauge("qudag_sidecar_dns_cache_entries", &[], "Replies in the cache."),
    gauge("qudag_sidecar_dns_cache_bytes", &[], "Memory of the cache, roughly."),
    counter(
        "qudag_sidecar_dns_cache_stale_total",
        &["reason"],
        "Queries answered with a reply whose time was over, because a refresh failed (reason=failed) or took too long (reason=slow).",
    ),
    counter(
        "qudag_sidecar_dns_cache_prefetches_total",
        &["result"],
        "Refreshes of names in use before their time was over, by result (ok, failed).",
    ),
    counter(
        "qudag_sidecar_dns_cache_failures_served_total",
        &[],
        "Queries answered with a failure of the last seconds.",
    ),
    counter(
        "qudag_sidecar_dns_cache_checksum_failures_total",
        &[],
        "Replies in the cache that were not as they had been stored; they were thrown away.",
    ),
    gauge(
        "qudag_sidecar_dns_cache_hit_ratio",
        &["window"],
        "Hits among queries, from 0 to 1, of the last seconds (window=short) and minutes (window=long).",
    ),
    gauge(
        "qudag_sidecar_dns_cache_hit_ratio_anomaly",
        &[],
        "Whether the short hit ratio is far below the long one: 1 or 0.",
    ),
    gauge(
        "qudag_sidecar_dns_cache_rebuild_pending",
        &[],
        "Replies that a rebuild has yet to ask for again; 0 when there is none.",
    ),
    counter(
        "qudag_sidecar_dns_cache_snapshots_total",
        &["result"],
        "Snapshots of the cache on disk: written, failed to be written, refused when they were read.",
    ),
    counter(
        "qudag_sidecar_dns_cache_snapshot_restored_total",
        &[],
        "Replies that the cache started with from its snapshot.",
    ),
    gauge(
        "qudag_sidecar_dns_cache_snapshot_age_seconds",
        &[],
        "Age of the snapshot on disk; 0 where none is kept.",
    ),
    counter(
        "qudag_sidecar_dns_shared_cache_hits_total",
        &[],
        "Queries answered from the cache that the fleet shares.",
    ),
    counter(
        "qudag_sidecar_dns_shared_cache_misses_total",
        &["reason"],
        "Queries that the shared cache did not answer, by reason.",
    ),
    counter(
        "qudag_sidecar_dns_shared_cache_errors_total",
        &["reason"],
        "Failures between the sidecar and the shared cache, by reason.",
    ),
    counter(
        "qudag_sidecar_dns_shared_cache_checksum_failures_total",
        &[],
        "Entries of the shared cache that are damaged or not from this fleet.",
    ),
    counter(
        "qudag_sidecar_dns_shared_cache_writes_total",
        &["result"],
        "Replies for the shared cache, by what became of them.",
    ),
    gauge(
        "qudag_sidecar_dns_shared_cache_queue",
        &[],
        "Replies that wait to be written to the shared cache.",
    ),
    histogram(
        "qudag_sidecar_dns_shared_cache_read_seconds",
        &[],
        "Time that the shared cache took to answer.",
    ),
    gauge(
        "qudag_sidecar_dns_shared_cache_connected",
        &[],
        "Whether there is a connection to the shared cache: 1 or 0.",
    ),
    counter(
        "qudag_sidecar_dns_shared_cache_flushes_total",
        &["direction"],
        "Flushes that the fleet was told of (sent), that others told of (received), or that may have been missed (lost).",
    ),
    gauge("qudag_sidecar_dns_hosts_names", &[], "Names in the hosts file."),
    counter(
        "qudag_sidecar_dns_hosts_reloads_total",
        &["outcome"],
        "Readings of the hosts file after it changed, by outcome.",
    ),
    gauge("qudag_sidecar_dns_local_zone_records", &["zone"], "Records in a local zone."),
    counter(
        "qudag_sidecar_dns_local_zone_reloads_total",
        &["zone", "outcome"],
        "Readings of a local zone's file, by outcome.",
    ),
    counter(
        "qudag_sidecar_dns_upstream_queries_total",
        &["server", "outcome"],
        "Queries to the configured servers, by outcome.",
    ),
    histogram("qudag_sidecar_dns_upstream_seconds", &["server"], "Time that a server took to answer."),
    gauge(
        "qudag_sidecar_dns_upstream_healthy",
        &["server"],
        "Whether a server is asked in its configured place: 1, or 0 when it is asked behind the others.",
    ),
    gauge(
        "qudag_sidecar_dns_upstream_breaker_state",
        &["server"],
        "State of a server's circuit breaker: 0 closed, 1 half-open, 2 open.",
    ),
    gauge("qudag_sidecar_dns_upstream_in_flight", &["server"], "Queries that a server has to answer."),
    counter(
        "qudag_sidecar_dns_upstream_hedges_total",
        &["server"],
        "Queries that a server was asked because those before it were silent.",
    ),
    counter(
        "qudag_sidecar_dns_upstream_repeats_total",
        &["server"],
        "Questions that a server was asked again because it was silent or could not be reached.",
    ),
    counter(
        "qudag_sidecar_dns_upstream_probes_total",
        &["server", "outcome"],
        "Probes of servers, by outcome.",
    ),
    counter(
        "qudag_sidecar_dns_upstream_answers_total",
        &["list", "reason"],
        "Answers by the list of the server, and why that list was asked: preferred, unhealthy or no_answer.",
    ),
    counter(
        "qudag_sidecar_dns_upstream_overflows_total",
        &[],
        "Queries that failed because too many were waiting for the servers.",
    ),
    counter(
        "qudag_sidecar_dns_replies_total",
        &["source", "rcode"],
        "Replies that clients got, by where they come from and by their code.",
    ),
    counter(
        "qudag_sidecar_dns_extended_errors_total",
        &["reason"],
        "Replies with an extended error (RFC 8914), by its code.",
    ),
    counter(
        "qudag_sidecar_dns_ignored_total",
        &["reason"],
        "Messages at the DNS listener that got no reply because they are no queries.",
    ),
    counter("qudag_sidecar_dns_receive_errors_total", &[], "Errors of receiving DNS messages over UDP."),
    counter("qudag_sidecar_dns_send_errors_total", &[], "Replies that could not be sent over UDP."),
    // Peers.
    counter(
        "qudag_sidecar_peer_streams_total",
        &["side", "outcome"],
        "Streams of the tunnel that were asked for (side=out) or came (side=in), by what became of them.",
    ),
    counter(
        "qudag_sidecar_peer_fallbacks_total",
        &["target", "reason"],
        "Connections that went directly although the peer has a sidecar, by the reason.",
    ),
    counter(
        "qudag_sidecar_peer_dials_total",
        &["peer", "outcome"],
        "Attempts to connect to another sidecar, by outcome.",
    ),
    counter(
        "qudag_sidecar_peer_gone_total",
        &[],
        "Connections between sidecars that were given up because nobody has the other side's port any more.",
    ),
    counter(
        "qudag_sidecar_peer_handshakes_total",
        &["outcome"],
        "Handshakes of other sidecars with this one, by outcome.",
    ),
    counter(
        "qudag_sidecar_peer_route_table_swaps_total",
        &[],
        "Tables of routes that were compiled because a configuration, an address or the order of addresses changed.",
    ),
    counter(
        "qudag_sidecar_peer_resolutions_total",
        &["outcome"],
        "Questions for the names of routes and their sidecars, by outcome: the addresses are the same, have changed, or nobody gave any (error, timeout).",
    ),
    gauge(
        "qudag_sidecar_peer_names",
        &["state"],
        "Names of routes and their sidecars that are followed: the last question was answered (state=known), only an earlier one (stale), or none (unknown).",
    ),
    counter(
        "qudag_sidecar_peer_strays_total",
        &["reason"],
        "Datagrams at the tunnel's listener that are dropped: shorter than any packet (reason=short), of another version of QUIC or none (version), of a connection that is not this sidecar's (connection).",
    ),
    counter(
        "qudag_sidecar_peer_captured_total",
        &["outcome"],
        "Captured connections: to destinations of a route (outcome=routed), to others directly (direct) or not at all (refused), and connections made to the listener itself, which are refused (itself).",
    ),
    gauge("qudag_sidecar_peer_captured_active", &[], "Captured connections that are open."),
    gauge(
        "qudag_sidecar_capture_rules",
        &[],
        "Whether the sidecar has rules in the kernel that capture connections: 1 or 0; 0 as well where others manage them.",
    ),
    counter(
        "qudag_sidecar_capture_rule_changes_total",
        &["outcome"],
        "Changes of the rules that capture connections, by outcome (installed, removed, failed).",
    ),
    gauge(
        "qudag_sidecar_peer_pool_connections",
        &["peer", "class", "state"],
        "Connections to another sidecar: those that take streams (state=live) and those that finish theirs (state=draining).",
    ),
    gauge(
        "qudag_sidecar_peer_pool_streams",
        &["peer", "class"],
        "Streams on the connections to another sidecar.",
    ),
    gauge(
        "qudag_sidecar_peer_pool_rtt_seconds",
        &["peer", "class"],
        "The shortest round trip among the connections to another sidecar.",
    ),
    counter(
        "qudag_sidecar_peer_packets_sent_total",
        &["peer", "class"],
        "QUIC packets sent to another sidecar.",
    ),
    counter(
        "qudag_sidecar_peer_packets_lost_total",
        &["peer", "class"],
        "QUIC packets to another sidecar that were lost.",
    ),
    counter(
        "qudag_sidecar_peer_black_holes_total",
        &["peer", "class"],
        "How often a path to another sidecar stopped to carry large packets.",
    ),
    counter(
        "qudag_sidecar_peer_control_streams_total",
        &["side", "outcome"],
        "Control streams with other sidecars that this one opened (side=out) or they did (side=in), by how they ended.",
    ),
    gauge(
        "qudag_sidecar_peer_exchange_rtt_seconds",
        &["peer"],
        "The round trip of the last echo from sidecar to sidecar.",
    ),
    counter(
        "qudag_sidecar_peer_node_lookups_total",
        &["outcome"],
        "How often the local node was asked who it is, by outcome.",
    ),
    gauge("qudag_sidecar_peer_announced", &[], "Nodes that the local node is told of now."),
    counter(
        "qudag_sidecar_peer_announcements_total",
        &["outcome"],
        "Announcements of nodes to the local one: sent, withdrawn, or failed to be sent.",
    ),
    counter(
        "qudag_sidecar_peer_discovery_queries_total",
        &[],
        "Questions of the local node for other nodes that were heard.",
    ),
    counter(
        "qudag_sidecar_peer_invitations_total",
        &["outcome"],
        "Attempts to make the local node dial a peer that it was told of, by outcome.",
    ),
    gauge(
        "qudag_sidecar_identity_expiry_seconds",
        &[],
        "When the own certificate of tunnels between sidecars expires, in seconds since the Unix epoch.",
    ),
    counter(
        "qudag_sidecar_identity_reloads_total",
        &["outcome"],
        "New certificates, keys or authorities of tunnels that were taken (ok), or could not be used (error).",
    ),
    // RPC, HTTP, databases.
    counter("qudag_sidecar_rpc_calls_total", &["method", "outcome"], "RPC calls, by method and outcome."),
    counter(
        "qudag_sidecar_rpc_auth_total",
        &["verdict"],
        "RPC calls that rpc_auth let pass (verdict=signature, token, not_needed) or refused, by reason.",
    ),
    gauge("qudag_sidecar_rpc_auth_ids", &[], "Ids of signed RPC calls that are remembered."),
    counter(
        "qudag_sidecar_rpc_auth_reloads_total",
        &["outcome"],
        "Readings of the files with keys and tokens of RPC clients, by outcome.",
    ),
    counter(
        "qudag_sidecar_mcp_crypto_total",
        &["operation", "outcome"],
        "Calls of the node's MCP tool for cryptography that mcp_crypto answered: signatures that are valid or invalid, other operations \
         that were done, and calls that were blocked or malformed.",
    ),
    gauge("qudag_sidecar_http_pool_idle", &[], "Idle connections in the HTTP pool."),
    counter("qudag_sidecar_http_pool_opened_total", &[], "Connections that the HTTP pool opened."),
    counter(
        "qudag_sidecar_http_pool_reused_total",
        &[],
        "Requests that took a connection from the HTTP pool.",
    ),
    gauge("qudag_sidecar_db_sessions_active", &[], "Database sessions under way."),
    counter(
        "qudag_sidecar_db_startup_packets_total",
        &["packet"],
        "Start-up packets of database clients, by what they ask for.",
    ),
    counter(
        "qudag_sidecar_db_auth_queries_total",
        &["outcome"],
        "Questions to the PostgreSQL server for the secret of a user, by outcome.",
    ),
    counter(
        "qudag_sidecar_db_auth_reloads_total",
        &["file", "outcome"],
        "Readings of the files with PostgreSQL users, certificate or authorities, by outcome.",
    ),
    counter(
        "qudag_sidecar_db_connects_total",
        &["outcome"],
        "Attempts to log in at the database server: ok, refused by the server, or failed.",
    ),
    counter(
        "qudag_sidecar_db_servers_closed_total",
        &["reason"],
        "Pooled connections to the database server that were closed, by why.",
    ),
    counter(
        "qudag_sidecar_db_transactions_total",
        &["outcome"],
        "Transactions of pooled sessions: ok, ended with their session, answered from the cache (cached), or the error that they were refused with.",
    ),
    counter(
        "qudag_sidecar_db_sheds_total",
        &["reason"],
        "Transactions that got no server in time or were refused early, by why.",
    ),
    counter(
        "qudag_sidecar_db_pins_total",
        &["reason"],
        "Sessions that began to keep their server between transactions, by why.",
    ),
    histogram(
        "qudag_sidecar_db_queue_wait_seconds",
        &[],
        "How long transactions waited for a server that did not get one at once.",
    ),
    histogram(
        "qudag_sidecar_db_busy_seconds",
        &[],
        "How long a server was busy with a transaction, without waiting for its client.",
    ),
    gauge(
        "qudag_sidecar_db_pool_servers",
        &["database", "user", "state"],
        "Connections to the server of a user and database: active, idle, connecting.",
    ),
    gauge(
        "qudag_sidecar_db_pool_sessions",
        &["database", "user", "state"],
        "Pooled sessions of a user and database: pooled, or pinned to their server.",
    ),
    gauge(
        "qudag_sidecar_db_pool_size",
        &["database", "user"],
        "The most connections of a user and database.",
    ),
    gauge(
        "qudag_sidecar_db_pool_limit",
        &["database", "user"],
        "How many transactions may be under way by the adaptive limit, enforced or not.",
    ),
    gauge(
        "qudag_sidecar_db_queue_depth",
        &["database", "user"],
        "Transactions that wait for a server of a user and database.",
    ),
    gauge(
        "qudag_sidecar_db_queue_oldest_seconds",
        &["database", "user"],
        "How long the oldest of them has waited.",
    ),
    counter(
        "qudag_sidecar_db_reads_total",
        &["to", "why"],
        "Transactions that only read, by where they were carried out, and why: usable, or what was the matter with the replicas.",
    ),
    gauge(
        "qudag_sidecar_db_replica_usable",
        &["server"],
        "1 for a replica that answers reads, 0 for other servers of the cluster.",
    ),
    gauge(
        "qudag_sidecar_db_replica_lag_seconds",
        &["server"],
        "How far a replica was behind the primary when it was asked last.",
    ),
    counter("qudag_sidecar_db_failovers_total", &[], "How often another server was found to be the primary."),
    gauge(
        "qudag_sidecar_db_load_connections",
        &["server", "what"],
        "Connections of clients to a database server (what=used), the most that it allows (most), and those of them for superusers (reserved).",
    ),
    gauge(
        "qudag_sidecar_db_load_backends",
        &["server", "what"],
        "Connections of a database server that carry something out (what=active), those of them that wait for a lock (lock_waits) or a disk \
         (io_waits); not a number where the user that asks may not see it.",
    ),
    gauge(
        "qudag_sidecar_db_load_oldest_transaction_seconds",
        &["server"],
        "The age of a database server's oldest transaction; not a number where the user that asks may not see it.",
    ),
    gauge(
        "qudag_sidecar_db_load_cpu_ratio",
        &["server"],
        "The share of its processors that a database server on this host uses, from 0 to 1; not a number elsewhere.",
    ),
    counter(
        "qudag_sidecar_db_load_transactions_total",
        &["server", "outcome"],
        "Transactions of all databases of a server that ended, by outcome (commit, rollback).",
    ),
    counter("qudag_sidecar_db_load_deadlocks_total", &["server"], "Deadlocks in all databases of a server."),
    counter(
        "qudag_sidecar_db_load_temporary_bytes_total",
        &["server"],
        "Bytes that a database server wrote to temporary files.",
    ),
    gauge(
        "qudag_sidecar_db_indicator",
        &["server", "what"],
        "1 while a database server has too much to do: connections, a queue that grows (queue), CPU time (cpu).",
    ),
    counter(
        "qudag_sidecar_db_cache_lookups_total",
        &["result"],
        "Queries that a rule names: given a reply that was there (hit) or that another one waited for (joined), asked to fill the cache (miss), or asked since the other's reply was not kept in time (alone).",
    ),
    counter("qudag_sidecar_db_cache_stored_total", &[], "Replies that were kept."),
    counter("qudag_sidecar_db_cache_refused_total", &["reason"], "Replies that were not kept, by why."),
    counter(
        "qudag_sidecar_db_cache_evicted_total",
        &["reason"],
        "Replies that made room for others (size), or whose time was over (time).",
    ),
    counter(
        "qudag_sidecar_db_cache_flushes_total",
        &["by"],
        "Flushes of the query cache: by rule, table, all, or by a transaction that wrote (write).",
    ),
    counter(
        "qudag_sidecar_db_cache_checksum_failures_total",
        &[],
        "Replies in the query cache that were not as they were stored, and were thrown away.",
    ),
    gauge("qudag_sidecar_db_cache_bytes", &[], "Memory that kept replies take with their keys."),
    gauge("qudag_sidecar_db_cache_entries", &[], "Replies that are kept."),
    gauge("qudag_sidecar_redis_sessions_active", &[], "Redis sessions under way."),
    gauge(
        "qudag_sidecar_redis_servers",
        &["of"],
        "Connections to the Redis server: shared ones (pool), and those of one session each (session).",
    ),
    counter(
        "qudag_sidecar_redis_connects_total",
        &["outcome"],
        "Attempts to log in at the Redis server: ok, refused by the server, or failed.",
    ),
    counter(
        "qudag_sidecar_redis_servers_closed_total",
        &["reason"],
        "Shared connections to the Redis server that were closed, by why.",
    ),
    counter(
        "qudag_sidecar_redis_commands_total",
        &[],
        "Commands of pooled Redis sessions that were carried out.",
    ),
    counter(
        "qudag_sidecar_redis_refused_total",
        &["reason"],
        "Commands of pooled Redis sessions that were refused, by the error.",
    ),
    counter(
        "qudag_sidecar_redis_sheds_total",
        &["reason"],
        "Batches of Redis commands that got no connection in time or were refused early, by why.",
    ),
    counter(
        "qudag_sidecar_redis_own_total",
        &["reason"],
        "Redis sessions that got a connection of their own, by why.",
    ),
    histogram(
        "qudag_sidecar_redis_queue_wait_seconds",
        &[],
        "How long batches of Redis commands waited for a connection that did not get one at once.",
    ),
    gauge(
        "qudag_sidecar_redis_pool_servers",
        &["database", "user", "protocol", "state"],
        "Shared connections to the Redis server of a user and database: active, idle, connecting.",
    ),
    gauge(
        "qudag_sidecar_redis_pool_size",
        &["database", "user", "protocol"],
        "The most shared connections to the Redis server of a user and database.",
    ),
    gauge(
        "qudag_sidecar_redis_pool_limit",
        &["database", "user", "protocol"],
        "How many batches of Redis commands may be under way by the adaptive limit, enforced or not.",
    ),
    gauge(
        "qudag_sidecar_redis_queue_depth",
        &["database", "user", "protocol"],
        "Batches of Redis commands that wait for a connection of a user and database.",
    ),
    gauge(
        "qudag_sidecar_redis_queue_oldest_seconds",
        &["database", "user", "protocol"],
        "How long the oldest of them has waited.",
    ),
    // Cryptography.
    gauge("qudag_sidecar_crypto_connections", &["protocol"], "Connections of programs: binary or http."),
    counter(
        "qudag_sidecar_crypto_requests_total",
        &["protocol", "request", "outcome"],
        "Requests of programs by what they ask for (keys, signatures, fingerprints, hashes, status), and ok or the error.",
    ),
    gauge(
        "qudag_sidecar_crypto_request_bytes",
        &[],
        "Memory of the requests that are being read or answered.",
    ),
    counter(
        "qudag_sidecar_crypto_memory_waits_total",
        &[],
        "Requests that waited for memory before they were read.",
    ),
    counter(
        "qudag_sidecar_crypto_operations_total",
        &["sort", "result"],
        "Operations that were done: of signatures and fingerprints by the verdict (valid, mismatch, range, hints, length, context, other_data, \
         unknown_key), of keys and hashes done.",
    ),
    counter(
        "qudag_sidecar_crypto_would_accept_on_avx2_node_total",
        &[],
        "Signatures that were refused because z is out of range, and that QuDAG nodes on AVX2 accept: somebody made them on purpose.",
    ),
    gauge(
        "qudag_sidecar_crypto_backend",
        &["backend"],
        "1 for the implementation that simd_crypto has chosen, 0 for the others.",
    ),
    counter(
        "qudag_sidecar_crypto_demotions_total",
        &["backend", "reason"],
        "Implementations that are not used any more: their self-test failed (signal, wrong_answer, timeout, not_run), or a verdict was not that of the \
         portable one (shadow).",
    ),
    counter(
        "qudag_sidecar_crypto_shadow_checks_total",
        &["result"],
        "Verdicts that were made once more by the portable implementation: same, different, or skipped for want of time or key.",
    ),
    counter(
        "qudag_sidecar_crypto_keys_total",
        &["event"],
        "Keys that were looked for and found ready (hit) or not (miss), kept at their second use (admitted), registered, and forgotten (evicted).",
    ),
    gauge("qudag_sidecar_crypto_keys", &[], "Keys that are ready."),
    gauge("qudag_sidecar_crypto_keys_bytes", &[], "Memory of the keys that are ready."),
    histogram("qudag_sidecar_crypto_batch_operations", &[], "How many signatures were verified together."),
    gauge("qudag_sidecar_crypto_queue_operations", &[], "Operations that wait for a thread."),
    gauge("qudag_sidecar_crypto_queue_bytes", &[], "Memory of the operations that wait for a thread."),
    counter(
        "qudag_sidecar_crypto_refused_total",
        &["reason"],
        "Requests that were refused because too much waits (queue).",
    ),
    counter(
        "qudag_sidecar_crypto_routed_operations_total",
        &["outcome"],
        "Operations that hardware_routing sent to other sidecars: with their verdicts from there (answered), or done here after all (fell_back).",
    ),
    counter(
        "qudag_sidecar_crypto_routing_fallbacks_total",
        &["reason"],
        "Batches that were to be done by another sidecar and are done here: busy, too_large, timeout, refused, disconnected, garbage, or a wrong \
         verdict (mismatch).",
    ),
    counter(
        "qudag_sidecar_crypto_routing_kept_total",
        &["reason"],
        "Batches that hardware_routing left here: small, keys_by_id, unreachable, stopped after a wrong verdict, no_better, slower, breaker_open.",
    ),
    counter(
        "qudag_sidecar_crypto_routing_checks_total",
        &["result"],
        "Verdicts of other sidecars that were made once more here: same, different, or skipped for want of time.",
    ),
    gauge(
        "qudag_sidecar_crypto_routing_ready",
        &["sidecar"],
        "Whether batches may go to another sidecar: 1, or 0 when it is unreachable or stopped.",
    ),
    gauge(
        "qudag_sidecar_crypto_routing_round_trip_seconds",
        &["sidecar"],
        "The way to another sidecar and back, the mean of the last few requests for its status.",
    ),
    // Configuration and control.
    gauge("qudag_sidecar_build_info", &["version"], "Always 1; the version is in the label."),
    gauge("qudag_sidecar_generation", &[], "The number of the configuration generation in force."),
    counter("qudag_sidecar_reloads_total", &["result"], "Attempts to change the configuration, by result."),
    gauge(
        "qudag_sidecar_config_refused",
        &[],
        "Whether the latest change of the configuration was refused, so that an older one goes on: 1 or 0.",
    ),
    counter(
        "qudag_sidecar_generation_drain_overruns_total",
        &[],
        "Superseded generations that still had work under way when the drain's time was over.",
    ),
    gauge("qudag_sidecar_bypass", &[], "Whether every filter is bypassed: 1 or 0."),
    gauge(
        "qudag_sidecar_service_zone_serial",
        &[],
        "The serial number of the zone whose names a bypass moves; 0 without one.",
    ),
    counter(
        "qudag_sidecar_bypass_updates_total",
        &["outcome"],
        "Attempts to make other servers lead a name to the sidecar or to the node: changed, already so, or why not.",
    ),
    gauge(
        "qudag_sidecar_bypass_published",
        &[],
        "Whether every name leads where it should on other servers, as of the last attempt: 1 or 0.",
    ),
    counter(
        "qudag_sidecar_bypass_steps_total",
        &["step", "outcome"],
        "Steps of verifying a bypass or its end, by outcome: ok, failed or skipped.",
    ),
    gauge("qudag_sidecar_bypass_step_seconds", &["step"], "How long a step took in the last verification."),
    gauge("qudag_sidecar_bypass_verified", &[], "Whether no step of the last verification failed: 1 or 0."),
    gauge(
        "qudag_sidecar_filter_rollout_percent",
        &["kind", "filter"],
        "The percentage of flows that passes through a filter; 0 where it is off.",
    ),
    counter(
        "qudag_sidecar_admin_requests_total",
        &["route", "code", "role"],
        "Requests to the admin API, refused ones too; role=none where no token or user gave one.",
    ),
    // The process.
    counter(
        "qudag_sidecar_log_lines_dropped_total",
        &[],
        "Log lines dropped because the log could not be written fast enough.",
    ),
    gauge("process_resident_memory_bytes", &[], "Resident memory."),
    counter("process_cpu_seconds_total", &[], "User and system CPU time."),
    gauge("process_open_fds", &[], "Open file descriptors."),
    gauge("process_max_fds", &[], "Limit of open file descriptors."),
    gauge("process_threads", &[], "Threads."),
    gauge("process_start_time_seconds", &[], "When the process started, in seconds since the Unix epoch."),
];
