//! Writes records of names under `.dark`, made and signed by the node's own crates, for tests that do without those.

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;

use qudag_crypto::ml_dsa::MlDsaKeyPair;
use qudag_crypto::ml_kem::MlKem768;
use qudag_network::types::{NetworkAddress, PeerId};
use qudag_network::DarkDomainRecord;

/// A hundred years.
const TTL: u32 = 100 * 365 * 24 * 60 * 60;

/// `dark-records FOLDER`: writes the files that `filters/dns/tests/data/dark/README.md` tells about.
fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: dark-records FOLDER")?);
    let pair = MlDsaKeyPair::generate(&mut rand::thread_rng())?;
    let (encryption, _) = MlKem768::keygen().map_err(|why| format!("{why:?}"))?;
    let encryption = encryption.as_bytes().to_vec();
    let four = NetworkAddress::new([192, 0, 2, 20], 4001);
    let six = NetworkAddress::from_ip_port("2001:db8::20".parse()?, 4001);
    let owner = PeerId::from_bytes([7; 32]);
    let record = |addresses, alias: Option<&str>, ttl| {
        DarkDomainRecord::new(&pair, encryption.clone(), addresses, alias.map(str::to_owned), ttl, owner)
    };
    let mut whole = record(vec![four.clone(), six], Some("node b"), TTL)?;
    // Nobody signs these.
    whole.metadata = HashMap::from([("note".to_owned(), "not signed".to_owned())]);
    for (name, record) in [
        ("node-b", whole),
        ("plain", record(vec![four.clone()], None, TTL)?),
        ("expired", record(vec![four], None, 1)?),
    ] {
        record.verify_signature()?;
        std::fs::write(folder.join(format!("{name}.json")), serde_json::to_vec(&record)?)?;
    }
    Ok(())
}
