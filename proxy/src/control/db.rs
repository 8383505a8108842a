//! What an operator sees of pooled database sessions, and how they are held back.

use std::sync::Arc;

use qudag_filter_api::FilterSpec;
use qudag_filter_db::pool::{DbStatus, Pools};
use qudag_filter_db::redis::{Pools as RedisPools, RedisStatus};
use qudag_filter_db::{CacheStats, LoadStatus, QueryCacheState, ReadReplicas, ReplicaStatus};
use serde::{Deserialize, Serialize};

use super::{Control, ControlError};

/// All pools of databases, and the servers.
#[derive(Clone, Debug, Serialize)]
pub struct AllPools {
    /// Those of PostgreSQL; none where `db_pool` has not been on.
    #[serde(flatten)]
    pub postgres: DbStatus,
    /// Those of Redis; `null` where `redis_pool` has not been on.
    pub redis: Option<RedisStatus>,
    /// The servers of PostgreSQL's cluster, while `read_replicas` is on.
    pub cluster: Vec<ReplicaStatus>,
    /// How loaded its servers are.
    pub load: Vec<LoadStatus>,
}

/// Pools of a kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// PostgreSQL's.
    Db,
    /// Redis's.
    Redis,
}

/// What a pause, or its end, has reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Paused {
    /// Whether transactions and commands are held back now.
    pub paused: bool,
    /// Of which kind; `null` for both.
    pub kind: Option<PoolKind>,
    /// Of which database; `null` for all.
    pub database: Option<String>,
    /// How many pools there are of it.
    pub pools: usize,
}

/// What a flush of the query cache has reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheFlushed {
    /// How many replies are gone.
    pub flushed: usize,
}

impl Control {
    fn query_cache(&self) -> Result<Arc<QueryCacheState>, ControlError> {
        let generation = self.generation();
        let held = generation.kinds.db.as_ref().and_then(|line| line.states.db_query_cache.as_ref());
        held.map(|held| Arc::clone(&held.state)).ok_or_else(|| {
            ControlError::NotFound("there is no query cache: db.db_query_cache has not been on".to_owned())
        })
    }

    /// What the query cache holds.
    ///
    /// # Errors
    /// When `db_query_cache` has not been on.
    pub fn db_cache(&self) -> Result<CacheStats, ControlError> {
        Ok(self.query_cache()?.stats())
    }

    /// Forgets what a rule has kept, or what was read from a table, or all.
    ///
    /// # Errors
    /// When `db_query_cache` has not been on, there is no such rule, or both are named.
    pub fn db_cache_flush(
        &self,
        rule: Option<&str>,
        table: Option<&str>,
    ) -> Result<CacheFlushed, ControlError> {
        let cache = self.query_cache()?;
        let flushed = match (rule, table) {
            (None, None) => cache.flush(),
            (Some(name), None) => cache
                .flush_rule(name)
                .ok_or_else(|| ControlError::NotFound(format!("db_query_cache has no rule {name:?}")))?,
            (None, Some(name)) => cache.flush_table(name),
            (Some(_), Some(_)) => {
                return Err(ControlError::Invalid("`rule` or `table`, not both".to_owned()));
            }
        };
        tracing::info!(rule, table, flushed, "query cache flushed");
        Ok(CacheFlushed { flushed })
    }

    fn pools(&self) -> Option<Arc<Pools>> {
        let generation = self.generation();
        let held = generation.kinds.db.as_ref().and_then(|line| line.states.db_pool.as_ref());
        held.map(|held| Arc::clone(&held.state))
    }

    fn redis_pools(&self) -> Option<Arc<RedisPools>> {
        let generation = self.generation();
        let held = generation.kinds.redis.as_ref().and_then(|line| line.states.redis_pool.as_ref());
        held.map(|held| Arc::clone(&held.state))
    }

    /// The pools with their sessions, connections and statements, and the servers.
    ///
    /// # Errors
    /// When neither `db_pool` nor `redis_pool` has been on.
    pub fn db(&self) -> Result<AllPools, ControlError> {
        let (postgres, redis) = (self.pools(), self.redis_pools());
        if postgres.is_none() && redis.is_none() {
            return Err(none("db.db_pool has not been on, nor has redis.redis_pool"));
        }
        let generation = self.generation();
        let line = generation.kinds.db.as_ref();
        let replicas = line.filter(|line| line.has(ReadReplicas::NAME));
        let replicas = replicas.and_then(|line| line.states.read_replicas.as_ref());
        Ok(AllPools {
            postgres: postgres.map(|pools| pools.status()).unwrap_or_default(),
            redis: redis.map(|pools| pools.status()),
            cluster: replicas.map(|held| held.state.status()).unwrap_or_default(),
            load: line.map(|line| line.upstream().load()).unwrap_or_default(),
        })
    }

    /// Holds back the transactions and commands of a database, or of all, or lets them go on: of one kind, or of both.
    ///
    /// # Errors
    /// When the pools have not been on, or the database has none.
    pub fn db_pause(
        &self,
        paused: bool,
        kind: Option<PoolKind>,
        database: Option<&str>,
    ) -> Result<Paused, ControlError> {
        let postgres = self.pools().filter(|_| kind != Some(PoolKind::Redis));
        let redis = self.redis_pools().filter(|_| kind != Some(PoolKind::Db));
        if postgres.is_none() && redis.is_none() {
            return Err(none(match kind {
                None => "db.db_pool has not been on, nor has redis.redis_pool",
                Some(PoolKind::Db) => "db.db_pool has not been on",
                Some(PoolKind::Redis) => "redis.redis_pool has not been on",
            }));
        }
        let of_postgres =
            postgres.map_or(0, |all| if paused { all.pause(database) } else { all.resume(database) });
        // A database of Redis is a number, so that no other name is one of its.
        let number = database.map(str::parse).transpose();
        let of_redis = redis
            .zip(number.ok())
            .map_or(0, |(all, number)| if paused { all.pause(number) } else { all.resume(number) });
        let pools = of_postgres + of_redis;
        match database {
            Some(name) if pools == 0 => {
                Err(ControlError::NotFound(format!("the database {name:?} has no pool")))
            }
            _ => {
                tracing::info!(paused, ?kind, database, pools, "database pools");
                Ok(Paused { paused, kind, database: database.map(str::to_owned), pools })
            }
        }
    }
}

fn none(why: &str) -> ControlError {
    ControlError::NotFound(format!("there are no database pools: {why}"))
}
