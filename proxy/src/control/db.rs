//! What an operator sees of pooled database sessions, and how they are held back.

use std::sync::Arc;

use qudag_filter_api::FilterSpec;
use qudag_filter_db::pool::{DbStatus, Pools};
use qudag_filter_db::{CacheStats, LoadStatus, QueryCacheState, ReadReplicas, ReplicaStatus};
use serde::Serialize;

use super::{Control, ControlError};

/// What a pause, or its end, has reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Paused {
    /// Whether transactions are held back now.
    pub paused: bool,
    /// Of which database; `null` for all.
    pub database: Option<String>,
    /// How many pools there are of it.
    pub pools: usize,
}

/// What there is to see of databases.
#[derive(Clone, Debug, Serialize)]
pub struct DbSeen {
    /// The pools.
    #[serde(flatten)]
    pub pools: DbStatus,
    /// The servers of the cluster, while `read_replicas` is on.
    pub cluster: Vec<ReplicaStatus>,
    /// How loaded the servers are.
    pub load: Vec<LoadStatus>,
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

    fn pools(&self) -> Result<Arc<Pools>, ControlError> {
        let generation = self.generation();
        let held = generation.kinds.db.as_ref().and_then(|line| line.states.db_pool.as_ref());
        held.map(|held| Arc::clone(&held.state)).ok_or_else(|| {
            ControlError::NotFound("there are no database pools: db.db_pool has not been on".to_owned())
        })
    }

    /// The pools with their sessions, connections and statements, and the servers.
    ///
    /// # Errors
    /// When `db_pool` has not been on.
    pub fn db(&self) -> Result<DbSeen, ControlError> {
        let pools = self.pools()?.status();
        let generation = self.generation();
        let line = generation.kinds.db.as_ref();
        let replicas = line.filter(|line| line.has(ReadReplicas::NAME));
        let replicas = replicas.and_then(|line| line.states.read_replicas.as_ref());
        let cluster = replicas.map(|held| held.state.status()).unwrap_or_default();
        let load = line.map(|line| line.upstream().load()).unwrap_or_default();
        Ok(DbSeen { pools, cluster, load })
    }

    /// Holds back the transactions of a database, or of all, or lets them go on.
    ///
    /// # Errors
    /// When `db_pool` has not been on, or the database has no pool.
    pub fn db_pause(&self, paused: bool, database: Option<&str>) -> Result<Paused, ControlError> {
        let all = self.pools()?;
        let pools = if paused { all.pause(database) } else { all.resume(database) };
        match database {
            Some(name) if pools == 0 => {
                Err(ControlError::NotFound(format!("the database {name:?} has no pool")))
            }
            _ => {
                tracing::info!(paused, database, pools, "database pools");
                Ok(Paused { paused, database: database.map(str::to_owned), pools })
            }
        }
    }
}
