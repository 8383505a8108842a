//! The same over the socket of a sidecar, with the processor time of both sides.

use std::io;
use std::path::PathBuf;

use qudag_crypto_peers::Signed;
use qudag_crypto_peers::measure::{Figure, Way, measure};
use qudag_mldsa::{Backend, Edition, ExpandedKey};
use qudag_offload_client::{
    Client, Content, Edition as WireEdition, Fallback, Key, Options, Signature, Verdict,
};
use rustix::process::Pid;
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use crate::floor::Floor;
use crate::single;

/// How many signatures are sent together.
const BATCHES: [usize; 4] = [1, 16, 32, 64];

/// A sidecar that runs.
pub struct Sidecar {
    /// Its socket.
    pub socket: PathBuf,
    /// Its process.
    pub process: u32,
}

impl Sidecar {
    /// Takes this thread, and what it starts, to the processors of the sidecar.
    ///
    /// # Errors
    /// When the sidecar has gone.
    pub fn follow(&self) -> io::Result<()> {
        let process = i32::try_from(self.process).ok().and_then(Pid::from_raw);
        Ok(sched_setaffinity(None, &sched_getaffinity(process)?)?)
    }

    /// Signatures of registered keys and of keys that are sent along, beside the same in this process and the node's library.
    pub fn figures(
        &self,
        rounds: usize,
        signed: &[Signed],
        expanded: &[Box<ExpandedKey>],
    ) -> Vec<Vec<Figure>> {
        let mut figures = Vec::new();
        for (registered, keys) in [(true, "registered keys"), (false, "keys sent along")] {
            for count in BATCHES {
                let what = match count {
                    1 => format!("over the socket, one signature, {keys}"),
                    _ => format!("over the socket, batch of {count}, {keys}"),
                };
                let signed = &signed[..count];
                figures.push(measure(&what, rounds, self.ways(registered, signed, expanded)));
            }
        }
        figures
    }

    fn ways<'a>(
        &self,
        registered: bool,
        signed: &'a [Signed],
        expanded: &'a [Box<ExpandedKey>],
    ) -> Vec<Way<'a>> {
        let options = Options { fallback: Fallback::Error, ..Options::default() };
        let mut client = Client::connect_with(&self.socket, options).expect("a sidecar that answers");
        let keys: Vec<_> = signed.iter().map(|one| &one.key.0).collect();
        let ids = client.register(&keys).expect("keys are registered").value;
        let all: Vec<_> = signed
            .iter()
            .zip(ids)
            .map(|(one, id)| Signature {
                key: if registered { Key::Id(id) } else { Key::Public(&one.key.0[..]) },
                edition: WireEdition::Draft,
                content: Content::Message { context: &[][..], message: &one.message[..] },
                signature: &one.signature[..],
            })
            .collect();
        let socket = Way::new("socket", all.len(), move || {
            let verdicts = client.verify(&all).expect("an answer of the sidecar").value;
            assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Valid));
        });
        let here = Way::new(Backend::best(), signed.len(), move || {
            for (one, key) in signed.iter().zip(expanded) {
                single(Backend::best(), key, Edition::Draft, &one.message, &one.signature);
            }
        });
        let node = Way::new("qudag-crypto", signed.len(), move || {
            for one in signed {
                one.node_key.verify(&one.message, &one.signature).expect("a good signature");
            }
        });
        let mut floor = Floor::start(signed.len());
        let process = floor.process();
        let floor = Way::new("socket floor", signed.len(), move || floor.call());
        vec![socket.by(self.process), here, node, floor.by(process)]
    }
}
