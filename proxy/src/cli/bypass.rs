//! `bypass …`

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::args::{BypassState, Common, Format, Target};
use super::exit::{FAILED, Failure, USAGE};
use super::remote::block_on;
use super::{find, output, view};
use crate::admin::client::{Client, ClientError};
use crate::bypass::Published;
use crate::bypass::withdraw::{until_alive, until_dead, withdraw};
use crate::config::{self, Config, Source};
use crate::resolve::SystemResolver;

/// How often a verification under way is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often a guard looks whether the sidecar lives; three misses in a row are a death.
const GUARD: Duration = Duration::from_millis(500);

/// Does it.
///
/// # Errors
/// When no sidecar answers, a step failed, or names cannot be moved.
pub(super) fn run(
    state: BypassState,
    common: &Common,
    target: &Target,
    format: Format,
) -> Result<(), Failure> {
    match state {
        BypassState::On | BypassState::Off => {
            let client = find::client(common, target)?;
            block_on(Box::pin(switch(&client, state == BypassState::On, format)))?
        }
        BypassState::Status => {
            let client = find::client(common, target)?;
            let answer = block_on(async { client.get("/bypass", &SystemResolver::new()).await })??;
            output::answer(&answer, view::bypass, format)
        }
        BypassState::Withdraw => {
            let config = configured(common)?;
            let published =
                block_on(Box::pin(async { withdraw(&config.bypass, &SystemResolver::new()).await }))?;
            report(&published, format)
        }
        BypassState::Guard => {
            let config = configured(common)?;
            block_on(Box::pin(guard(&config)))?
        }
    }
}

/// Switches, and follows the verification, if there is one, to its end.
async fn switch(client: &Client, on: bool, format: Format) -> Result<(), Failure> {
    let resolve = SystemResolver::new();
    let mut applied = client.post("/bypass", &json!({"on": on}), &resolve).await?;
    if !format.json {
        output::answer(&applied, view::applied, format)?;
    }
    let colour = output::colour_on_stdout();
    let (mut shown, mut progress) = (0, String::new());
    let report = loop {
        let answer = client.get("/bypass", &resolve).await?;
        let report = answer.get("verification").cloned().unwrap_or_default();
        // None where there are no names, or of an earlier command.
        if report.get("bypass").and_then(Value::as_bool) != Some(on) {
            break Value::Null;
        }
        let steps = report.get("steps").and_then(Value::as_array).cloned().unwrap_or_default();
        let over = |step: &&Value| step.get("state").and_then(Value::as_str) != Some("running");
        for step in steps.iter().skip(shown).take_while(over) {
            shown += 1;
            if !format.json {
                output::print(&view::step_line(step, colour))?;
            }
        }
        if let Some(step) = steps.get(shown)
            && !format.json
            && std::io::stdout().is_terminal()
        {
            let detail = step.get("detail").and_then(Value::as_str).unwrap_or_default();
            if detail != progress {
                progress = detail.to_owned();
                output::print(&view::step_line(step, colour))?;
            }
        }
        if report.get("done").and_then(Value::as_bool) == Some(true) {
            break report;
        }
        sleep(LOOK).await;
    };
    let failed = report.get("ok").and_then(Value::as_bool) == Some(false);
    if format.json {
        if let Some(fields) = applied.as_object_mut() {
            fields.insert("verification".to_owned(), report);
        }
        output::answer(&applied, view::applied, format)?;
    } else if !report.is_null() {
        output::print(&view::verdict(&report, colour))?;
    }
    if failed {
        let hint = "`qudag-sidecar bypass status` shows it again; docs/rollback.md says what each step means";
        return Err(Failure::new(FAILED, "a step failed".to_owned()).hint(hint));
    }
    Ok(())
}

/// The configuration of a sidecar that need not run.
fn configured(common: &Common) -> Result<Config, Failure> {
    let Some(file) = &common.config else {
        return Err(Failure::new(USAGE, "which configuration?".to_owned()).hint("give it with --config FILE"));
    };
    let source = Source::new(Some(file)).map_err(Failure::from)?;
    let config = config::load(&source, std::env::vars_os()).map_err(Failure::from)?.config;
    if config.bypass.update.is_none() {
        return Err(Failure::new(FAILED, "there is no `bypass.update` in the configuration".to_owned())
            .hint("the zone that a sidecar serves itself ends with it"));
    }
    Ok(config)
}

fn report(published: &Published, format: Format) -> Result<(), Failure> {
    let value = json!({ "update": published });
    if format.json {
        output::json(&value)?;
    } else {
        for name in &published.names {
            let more = name.error.as_deref().or(name.server.as_deref()).unwrap_or_default();
            output::print(&format!("{}: {} {more}\n", name.name, name.outcome))?;
        }
    }
    if published.complete {
        Ok(())
    } else {
        Err(Failure::new(FAILED, "a name could not be moved".to_owned()))
    }
}

/// Moves the names to the node whenever the sidecar is dead.
async fn guard(config: &Config) -> Result<(), Failure> {
    let client = Client::new(config.admin.bind.clone(), None);
    let resolve = SystemResolver::new();
    let alive = async || {
        let answer = tokio::time::timeout(GUARD, client.get_text("/healthz", &resolve)).await;
        // Whatever it says, it lives.
        matches!(answer, Ok(Ok(_) | Err(ClientError::Refused(_))))
    };
    loop {
        until_dead(GUARD, alive).await;
        let published = withdraw(&config.bypass, &resolve).await;
        for name in &published.names {
            let more = name.error.as_deref().or(name.server.as_deref()).unwrap_or_default();
            output::print(&format!("the sidecar is dead; {}: {} {more}\n", name.name, name.outcome))?;
        }
        if published.complete {
            until_alive(GUARD, alive).await;
        }
    }
}
