//! Instructions of a verification, by backend.

use std::path::Path;

use clap::ValueEnum;
use qudag_mldsa::testing::{Sample, signatures};
use qudag_mldsa::{
    Backend, Content, Edition, ExpandedKey, Job, Key, PublicKey, Scratch, verify, verify_batch,
};

use crate::row::{self, Row};
use crate::{Failure, instructions};

/// What is verified, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum How {
    /// One signature of a key that was made ready before.
    Cached,
    /// One signature of a key that was never seen.
    Fresh,
    /// Eight signatures of eight keys that were made ready before, together.
    EightCached,
    /// Eight signatures of eight keys that were never seen, together.
    EightFresh,
}

impl How {
    const ALL: [Self; 4] = [Self::Cached, Self::Fresh, Self::EightCached, Self::EightFresh];

    /// Those that are counted of a backend. Batches do not make [`Backend::Portable`] faster, and millions of instructions take minutes.
    pub fn counted(backend: Backend) -> &'static [Self] {
        match backend {
            Backend::Portable => &[Self::Cached, Self::Fresh],
            Backend::Avx2 | Backend::Avx512 => &Self::ALL,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Cached => "cached key",
            Self::Fresh => "fresh key",
            Self::EightCached => "batch of 8, cached keys",
            Self::EightFresh => "batch of 8, fresh keys",
        }
    }

    fn operations(self) -> u64 {
        match self {
            Self::Cached | Self::Fresh => 1,
            Self::EightCached | Self::EightFresh => 8,
        }
    }
}

/// A signature of a node, made ready.
struct Signed {
    key: PublicKey,
    expanded: Box<ExpandedKey>,
    message: &'static [u8],
    signature: &'static [u8],
}

/// Eight signatures of QuDAG's library, of messages of up to 72 bytes.
fn signed(backend: Backend) -> Vec<Signed> {
    let signed = signatures().take(8).map(|Sample { key, message, signature }| {
        let key = PublicKey(*key);
        Signed { expanded: key.expand(backend), key, message, signature }
    });
    signed.collect()
}

/// Verifies, for [`instructions::count`].
///
/// # Errors
/// When the processor has no such backend, a signature is refused, or the process cannot be traced.
pub fn counted(backend: Backend, how: How) -> Result<(), Failure> {
    if !backend.is_available() {
        return Err(format!("this processor cannot run {backend}").into());
    }
    let signed = signed(backend);
    let mut scratch = Scratch::new();
    let mut results = vec![Ok(()); signed.len()];
    let jobs = signed.iter().map(|one| Job {
        key: if how == How::EightFresh { Key::Fresh(&one.key) } else { Key::Expanded(&one.expanded) },
        edition: Edition::Draft,
        content: Content::Message { context: b"", message: one.message },
        signature: one.signature,
    });
    let jobs: Vec<_> = jobs.collect();
    // One of a message of 32 bytes.
    let one = signed.get(3).ok_or("the signatures are cut off")?;
    let single = |key: &ExpandedKey| {
        let mu = Content::Message { context: b"", message: one.message }.mu(key.tr(), Edition::Draft)?;
        Ok(verify(backend, key, Edition::Draft, &mu, one.signature)?)
    };
    instructions::counted(|| match how {
        How::Cached => single(&one.expanded),
        How::Fresh => single(&one.key.expand(backend)),
        How::EightCached | How::EightFresh => {
            verify_batch(backend, &mut scratch, &jobs, &mut results);
            Ok(results.iter().copied().collect::<Result<(), _>>()?)
        }
    })
}

/// Instructions of one verification, in a process of its own that runs this benchmark.
///
/// # Errors
/// When the process fails or cannot be traced.
pub fn instructions(program: &Path, backend: Backend, how: How) -> Result<u64, Failure> {
    let name = how.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let arguments = ["counted-signatures", "--backend", backend.name(), "--how", &name];
    let count = instructions::count(program, &arguments)?;
    Ok(count / how.operations())
}

/// The rows: the fastest backend of this processor beside the others.
pub(super) fn rows() -> Result<Vec<Row>, Failure> {
    let program = std::env::current_exe()?;
    let mut rows = Vec::new();
    for how in How::ALL {
        let mut figures = Vec::new();
        for backend in Backend::available().rev().filter(|backend| How::counted(*backend).contains(&how)) {
            figures.push((backend.name(), instructions(&program, backend, how)? as f64));
        }
        let title = format!("crypto, {}: instructions per operation", how.title());
        rows.extend(row::beside(&title, "instr", &figures));
    }
    Ok(rows)
}
