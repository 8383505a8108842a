//! Follows the files of an identity.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use qudag_filter_common::{LiveGauge, Watch};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::IdentitySettings;
use super::certificate::Standing;
use super::error::{IdentityError, Part, Problem};
use super::load::{self, Material};

/// How often the files are looked at although nothing was reported, and read again while they cannot be used. Certificate and key
/// are written one after the other: what does not fit at first is not complained about before this time has passed.
const POLL: Duration = Duration::from_secs(1);
/// How long a file must be left alone before it is read: writers write in several steps.
const SETTLE: Duration = Duration::from_millis(30);
/// How often the clock is looked at, for certificates that expire.
const CLOCK: Duration = Duration::from_secs(60);

/// What the task and the identity share.
pub(super) struct Shared {
    pub(super) current: ArcSwap<Material>,
    pub(super) changes: watch::Sender<u64>,
    settings: IdentitySettings,
    expires: LiveGauge,
}

/// Reads the files and starts to follow them.
///
/// # Errors
/// When they cannot be used, or there is no runtime.
pub(super) fn open(
    settings: &IdentitySettings,
) -> Result<(Arc<Shared>, AbortOnDropHandle<()>), IdentityError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|why| IdentityError {
        part: Part::Certificate,
        file: settings.certificate.clone(),
        problem: Problem::Unwatched(why.to_string()),
    })?;
    // Before the first reading, so that no change is lost between the two.
    let files = [&settings.certificate, &settings.key, &settings.authorities]
        .map(|file| Watch::new(file.clone(), POLL, SETTLE));
    let first = load::load(settings)?;
    let expires =
        LiveGauge::new(gauge!("qudag_sidecar_identity_expiry_seconds"), seconds(first.facts.not_after));
    let shared = Shared {
        current: ArcSwap::from_pointee(first),
        changes: watch::Sender::new(0),
        settings: settings.clone(),
        expires,
    };
    shared.tell(&shared.current.load());
    let shared = Arc::new(shared);
    let follower = runtime.spawn(follow(files, Arc::clone(&shared)));
    Ok((shared, AbortOnDropHandle::new(follower)))
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Shared {
    /// Says what is in use from now on.
    fn tell(&self, material: &Material) {
        let file = self.settings.certificate.display();
        info!(name = %material.name, certificate = %file, "the identity was loaded");
        for remark in &material.remarks {
            warn!("{remark}");
        }
    }

    /// Warns when the certificate stands worse than before.
    fn warn_of(&self, standing: Standing) {
        let file = self.settings.certificate.display();
        match standing {
            Standing::Good => {}
            Standing::NotYet => {
                warn!("the certificate in {file} does not hold yet: other sidecars refuse it")
            }
            Standing::Soon => {
                warn!("the certificate in {file} expires soon: replace the file, it is read at once")
            }
            Standing::Expired => {
                warn!(
                    "the certificate in {file} has expired: other sidecars refuse it until the file is replaced"
                );
            }
        }
    }

    /// Puts new contents to use; false when they are the old ones.
    fn take(&self, new: Material) -> bool {
        if **self.current.load() == new {
            return false;
        }
        self.tell(&new);
        self.expires.set(seconds(new.facts.not_after));
        self.current.store(Arc::new(new));
        counter!("qudag_sidecar_identity_reloads_total", "outcome" => "ok").increment(1);
        self.changes.send_modify(|number| *number += 1);
        true
    }

    fn complain(&self, why: &IdentityError) {
        counter!("qudag_sidecar_identity_reloads_total", "outcome" => "error").increment(1);
        let hint = why.hint();
        warn!(hint, "new files of the identity cannot be used, the old ones go on: {why}");
    }
}

/// How the last reading went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Good,
    /// It failed for the first time.
    Failed,
    /// And again; it was told.
    Told,
}

async fn follow(mut files: [Watch; 3], shared: Arc<Shared>) {
    let mut last = Last::Good;
    let mut standing = Standing::Good;
    loop {
        let now = shared.current.load().facts.standing(SystemTime::now());
        if now != standing {
            standing = now;
            shared.warn_of(standing);
        }
        let [certificate, key, authorities] = &mut files;
        tokio::select! {
            () = certificate.changed() => {}
            () = key.changed() => {}
            () = authorities.changed() => {}
            // What made a file unusable need not show in its fingerprint, nor need its end.
            () = sleep(POLL), if last != Last::Good => {}
            () = sleep(CLOCK) => continue,
        }
        let settings = shared.settings.clone();
        let read = tokio::task::spawn_blocking(move || load::load(&settings)).await;
        last = match read {
            Ok(Ok(new)) => {
                shared.take(new);
                Last::Good
            }
            Ok(Err(why)) if last == Last::Failed => {
                shared.complain(&why);
                Last::Told
            }
            Ok(Err(_)) if last == Last::Good => Last::Failed,
            // The runtime ends, or it was told already.
            _ => last,
        };
    }
}
