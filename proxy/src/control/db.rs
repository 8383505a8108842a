//! What an operator sees of pooled database sessions, and how they are held back.

use std::sync::Arc;

use qudag_filter_db::pool::{DbStatus, Pools};
use qudag_filter_db::redis::{Pools as RedisPools, RedisStatus};
use serde::{Deserialize, Serialize};

use super::{Control, ControlError};

/// All pools of databases.
#[derive(Clone, Debug, Serialize)]
pub struct AllPools {
    /// Those of PostgreSQL; none where `db_pool` has not been on.
    #[serde(flatten)]
    pub postgres: DbStatus,
    /// Those of Redis; `null` where `redis_pool` has not been on.
    pub redis: Option<RedisStatus>,
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

impl Control {
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

    /// The pools with their sessions, connections and statements.
    ///
    /// # Errors
    /// When neither `db_pool` nor `redis_pool` has been on.
    pub fn db(&self) -> Result<AllPools, ControlError> {
        match (self.pools(), self.redis_pools()) {
            (None, None) => Err(none("db.db_pool has not been on, nor has redis.redis_pool")),
            (postgres, redis) => Ok(AllPools {
                postgres: postgres.map(|pools| pools.status()).unwrap_or_default(),
                redis: redis.map(|pools| pools.status()),
            }),
        }
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
