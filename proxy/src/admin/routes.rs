//! The routes and what they answer.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::handler::Handler;
use axum::http::{StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use qudag_filter_api::{Percent, Period};
use qudag_filter_crypto::UnknownBackend;
use qudag_filter_dns::Question;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::auth::Auth;
use super::body::Wish;
use super::error::ApiError;
use super::guard::{guard, may_probe, may_read, may_write};
use super::operations::{Flush, Operations};
use super::tap::Taps;
use crate::control::{
    Applied, CacheRebuild, ControlError, Explanation, FilterStatus, Flushed, Override, PoolKind, Status,
};
use crate::telemetry::Metrics;

type Answer<T> = Result<Json<T>, ApiError>;

/// What the handlers use.
#[derive(Clone)]
struct Api<C> {
    control: C,
    metrics: Metrics,
    taps: Taps,
}

/// The whole API.
pub(super) fn router<C: Operations>(control: C, auth: &Arc<Auth>, metrics: Metrics, taps: Taps) -> Router {
    // Behind the method, so that a wrong method is told apart from a missing token.
    let probe =
        |handler: MethodRouter<Api<C>>| handler.route_layer(from_fn_with_state(Arc::clone(auth), may_probe));
    Router::new()
        .route("/healthz", probe(get(healthz)))
        .route("/readyz", probe(get(readyz::<C>)))
        .route("/metrics", probe(get(metrics_text::<C>)))
        .route("/version", read(auth, version))
        .route("/status", read(auth, status::<C>))
        .route("/config", read(auth, config::<C>))
        .route("/filters", read(auth, filters::<C>))
        .route("/flags/{name}", read(auth, explain::<C>))
        .route("/cache", read(auth, cache_stats::<C>))
        .route("/dns/servers", read(auth, dns_servers::<C>))
        .route("/peers", read(auth, peers::<C>))
        .route("/db", read(auth, db::<C>))
        .route("/db/pause", change(auth, db_pause::<C>))
        .route("/db/resume", change(auth, db_resume::<C>))
        .route("/crypto", read(auth, crypto::<C>))
        .route("/crypto/selftest", change(auth, crypto_selftest::<C>))
        .route("/db/cache", read(auth, db_cache::<C>))
        .route("/db/cache/flush", change(auth, db_cache_flush::<C>))
        .route("/tap/{kind}", read(auth, tap::<C>))
        .route("/bypass", read(auth, bypass_state::<C>).merge(change(auth, bypass::<C>)))
        .route("/settings", read(auth, settings::<C>).merge(change(auth, set::<C>)))
        .route("/settings/reset", change(auth, unset::<C>))
        .route("/reload", change(auth, reload::<C>))
        .route("/cache/flush", change(auth, cache_flush::<C>))
        .route("/cache/rebuild", change(auth, cache_rebuild::<C>))
        .route("/filters/{name}/enable", change(auth, enable::<C>))
        .route("/filters/{name}/disable", change(auth, disable::<C>))
        .route("/filters/{name}/reset", change(auth, reset::<C>))
        .route("/dns/lookup", change(auth, dns_lookup::<C>))
        .route("/drain", change(auth, drain::<C>))
        .fallback(async || ApiError::not_found())
        .with_state(Api { control, metrics, taps })
        .layer(from_fn_with_state(Arc::clone(auth), guard))
}

fn read<C, H, T>(auth: &Arc<Auth>, handler: H) -> MethodRouter<Api<C>>
where
    C: Operations,
    H: Handler<T, Api<C>>,
    T: 'static,
{
    get(handler).route_layer(from_fn_with_state(Arc::clone(auth), may_read))
}

fn change<C, H, T>(auth: &Arc<Auth>, handler: H) -> MethodRouter<Api<C>>
where
    C: Operations,
    H: Handler<T, Api<C>>,
    T: 'static,
{
    post(handler).route_layer(from_fn_with_state(Arc::clone(auth), may_write))
}

/// For a route that takes no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

async fn healthz() -> Json<Value> {
    Json(json!({ "ok": true }))
}

async fn readyz<C: Operations>(State(api): State<Api<C>>) -> Response {
    let readiness = api.control.ready();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

async fn metrics_text<C: Operations>(State(api): State<Api<C>>) -> Response {
    let text = api.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn version() -> Json<Value> {
    Json(json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") }))
}

async fn status<C: Operations>(State(api): State<Api<C>>) -> Json<Status> {
    Json(api.control.status())
}

async fn config<C: Operations>(State(api): State<Api<C>>, uri: Uri) -> Result<Response, ApiError> {
    let text = api.control.config_shown(uri.query().is_some())?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

/// The part of the status that `filters list` shows.
#[derive(Serialize)]
struct Filters {
    generation: u64,
    bypass: bool,
    filters: Vec<FilterStatus>,
}

async fn filters<C: Operations>(State(api): State<Api<C>>) -> Json<Filters> {
    let Status { generation, bypass, filters, .. } = api.control.status();
    Json(Filters { generation, bypass, filters })
}

async fn explain<C: Operations>(
    State(api): State<Api<C>>,
    Path(name): Path<String>,
) -> Answer<Vec<Explanation>> {
    Ok(Json(api.control.explain(&name)?))
}

async fn cache_stats<C: Operations>(State(api): State<Api<C>>) -> Answer<Value> {
    Ok(Json(api.control.cache_stats()?))
}

async fn cache_flush<C: Operations>(State(api): State<Api<C>>, Wish(what): Wish<Flush>) -> Answer<Value> {
    let Flushed { flushed, fleet } = api.control.cache_flush(&what).await?;
    let left = api.control.cache_stats().ok().and_then(|stats| stats.get("entries").cloned());
    let mut answer = json!({ "flushed": flushed, "left": left.unwrap_or_default() });
    if let (Some(fleet), Some(answer)) = (fleet, answer.as_object_mut()) {
        answer.insert("fleet".to_owned(), fleet.into());
    }
    Ok(Json(answer))
}

async fn cache_rebuild<C: Operations>(
    State(api): State<Api<C>>,
    _: Wish<Nothing>,
) -> Result<(StatusCode, Json<CacheRebuild>), ApiError> {
    let rebuild = api.control.cache_rebuild().await?;
    Ok((if rebuild.rebuilding { StatusCode::ACCEPTED } else { StatusCode::OK }, Json(rebuild)))
}

async fn bypass_state<C: Operations>(State(api): State<Api<C>>) -> Json<Value> {
    Json(api.control.bypass_state())
}

/// `{}` means on: who types the command without an argument is in a hurry.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bypass {
    #[serde(default = "on")]
    on: bool,
}

fn on() -> bool {
    true
}

async fn bypass<C: Operations>(State(api): State<Api<C>>, Wish(wish): Wish<Bypass>) -> Answer<Applied> {
    Ok(Json(api.control.bypass(wish.on).await?))
}

async fn settings<C: Operations>(State(api): State<Api<C>>) -> Json<Value> {
    Json(json!({ "settings": api.control.settings() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    key: String,
    /// A text is YAML, as on the command line; anything else is the value itself.
    value: Value,
    ttl: Option<Period>,
}

/// Not the file is to be corrected.
fn unfit(why: ControlError) -> ApiError {
    let refused = matches!(why, ControlError::Refused { .. });
    let error = ApiError::from(why);
    if refused {
        error.hint("nothing has changed; `qudag-sidecar config show` shows what is in force")
    } else {
        error
    }
}

async fn set<C: Operations>(State(api): State<Api<C>>, Wish(wish): Wish<Set>) -> Answer<Applied> {
    let value = match wish.value {
        Value::String(text) => text,
        // JSON is YAML.
        other => other.to_string(),
    };
    let set = api.control.set(&wish.key, &value, ttl(wish.ttl)?).await;
    Ok(Json(set.map_err(unfit)?))
}

/// One key, or all of them, which is to be said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unset {
    key: Option<String>,
    #[serde(default)]
    all: bool,
}

async fn unset<C: Operations>(State(api): State<Api<C>>, Wish(wish): Wish<Unset>) -> Answer<Applied> {
    match (&wish.key, wish.all) {
        (Some(_), false) | (None, true) => {
            Ok(Json(api.control.unset(wish.key.as_deref()).await.map_err(unfit)?))
        }
        _ => Err(ApiError::bad_request("give a key, or `\"all\": true`")),
    }
}

async fn reload<C: Operations>(State(api): State<Api<C>>, _: Wish<Nothing>) -> Answer<Applied> {
    Ok(Json(api.control.reload().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Enable {
    rollout: Option<Percent>,
    ttl: Option<Period>,
}

async fn enable<C: Operations>(
    State(api): State<Api<C>>,
    Path(name): Path<String>,
    Wish(wish): Wish<Enable>,
) -> Answer<Applied> {
    let wish = Override { enabled: true, rollout: wish.rollout, ttl: ttl(wish.ttl)? };
    Ok(Json(api.control.set_override(&name, wish).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Disable {
    ttl: Option<Period>,
}

async fn disable<C: Operations>(
    State(api): State<Api<C>>,
    Path(name): Path<String>,
    Wish(wish): Wish<Disable>,
) -> Answer<Applied> {
    let wish = Override { enabled: false, rollout: None, ttl: ttl(wish.ttl)? };
    Ok(Json(api.control.set_override(&name, wish).await?))
}

fn ttl(ttl: Option<Period>) -> Result<Option<Duration>, ApiError> {
    match ttl.map(|ttl| ttl.0) {
        Some(Duration::ZERO) => Err(ApiError::bad_request("a ttl of 0 would end before it starts")),
        ttl => Ok(ttl),
    }
}

async fn reset<C: Operations>(
    State(api): State<Api<C>>,
    Path(name): Path<String>,
    _: Wish<Nothing>,
) -> Answer<Applied> {
    Ok(Json(api.control.clear_override(&name).await?))
}

async fn dns_servers<C: Operations>(State(api): State<Api<C>>) -> Answer<Value> {
    Ok(Json(json!({ "servers": api.control.dns_servers()? })))
}

async fn peers<C: Operations>(State(api): State<Api<C>>) -> Answer<Value> {
    Ok(Json(api.control.peers()?))
}

async fn db<C: Operations>(State(api): State<Api<C>>) -> Answer<Value> {
    Ok(Json(api.control.db()?))
}

/// Both kinds where none is named, and all databases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Database {
    kind: Option<PoolKind>,
    database: Option<String>,
}

async fn db_pause<C: Operations>(State(api): State<Api<C>>, Wish(of): Wish<Database>) -> Answer<Value> {
    Ok(Json(api.control.db_pause(true, of.kind, of.database.as_deref())?))
}

async fn db_resume<C: Operations>(State(api): State<Api<C>>, Wish(of): Wish<Database>) -> Answer<Value> {
    Ok(Json(api.control.db_pause(false, of.kind, of.database.as_deref())?))
}

async fn crypto<C: Operations>(State(api): State<Api<C>>) -> Answer<Value> {
    Ok(Json(api.control.crypto()?))
}

/// All implementations where none is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Implementation {
    backend: Option<String>,
}

async fn crypto_selftest<C: Operations>(
    State(api): State<Api<C>>,
    Wish(of): Wish<Implementation>,
) -> Answer<Value> {
    let backend = of.backend.map(|name| name.parse()).transpose();
    let backend = backend.map_err(|why: UnknownBackend| ApiError::bad_request(why.to_string()))?;
    Ok(Json(api.control.crypto_selftest(backend).await?))
}

async fn db_cache<C: Operations>(State(api): State<Api<C>>) -> Answer<Value> {
    Ok(Json(api.control.db_cache()?))
}

/// Everything where neither is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replies {
    rule: Option<String>,
    table: Option<String>,
}

async fn db_cache_flush<C: Operations>(State(api): State<Api<C>>, Wish(of): Wish<Replies>) -> Answer<Value> {
    Ok(Json(api.control.db_cache_flush(of.rule.as_deref(), of.table.as_deref())?))
}

async fn dns_lookup<C: Operations>(
    State(api): State<Api<C>>,
    Wish(question): Wish<Question>,
) -> Answer<Value> {
    Ok(Json(api.control.dns_lookup(&question).await?))
}

async fn tap<C: Operations>(
    State(api): State<Api<C>>,
    Path(kind): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    api.taps.open(&kind, uri.query())
}

async fn drain<C: Operations>(State(api): State<Api<C>>, _: Wish<Nothing>) -> (StatusCode, Json<Value>) {
    api.control.drain();
    (StatusCode::ACCEPTED, Json(json!({ "draining": true })))
}
