//! The cryptography of Noise_XX_25519_ChaChaPoly_SHA256 by aws-lc.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{Context, SHA256};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};

/// The length of a tag of Poly1305.
const TAG: usize = 16;

/// A new static key of our own: the private and the public one.
pub(super) fn static_key() -> Option<([u8; 32], [u8; 32])> {
    let mut key = Agreement::default();
    key.generate(&mut SystemRandom).ok()?;
    Some((key.private, key.public))
}

pub(super) struct AwsLc;

impl CryptoResolver for AwsLc {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SystemRandom))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        (*choice == DHChoice::Curve25519).then(|| Box::new(Agreement::default()) as _)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        (*choice == HashChoice::SHA256).then(|| Box::new(Sha256(Context::new(&SHA256))) as _)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        (*choice == CipherChoice::ChaChaPoly).then(|| Box::new(ChaChaPoly(None)) as _)
    }
}

struct SystemRandom;

impl Random for SystemRandom {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        aws_lc_rs::rand::fill(out).map_err(|_| Error::Rng)
    }
}

#[derive(Default)]
struct Agreement {
    key: Option<PrivateKey>,
    private: [u8; 32],
    public: [u8; 32],
}

impl Dh for Agreement {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        self.public.len()
    }

    fn priv_len(&self) -> usize {
        self.private.len()
    }

    fn set(&mut self, private: &[u8]) {
        self.key = PrivateKey::from_private_key(&X25519, private).ok();
        let public = self.key.as_ref().and_then(|key| key.compute_public_key().ok());
        if let (Some(public), Ok(private)) = (public, private.try_into())
            && let Ok(public) = public.as_ref().try_into()
        {
            (self.public, self.private) = (public, private);
        }
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut private = [0; 32];
        random.try_fill_bytes(&mut private)?;
        self.set(&private);
        self.key.is_some().then_some(()).ok_or(Error::Dh)
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let key = self.key.as_ref().ok_or(Error::Dh)?;
        // What is behind the key in the longer buffer of the caller is not part of it.
        let public = public.get(..self.pub_len()).ok_or(Error::Dh)?;
        agree(key, UnparsedPublicKey::new(&X25519, public), Error::Dh, |secret| {
            let out = out.get_mut(..secret.len()).ok_or(Error::Dh)?;
            out.copy_from_slice(secret);
            Ok(())
        })
    }
}

struct Sha256(Context);

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Context::new(&SHA256);
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let hash = std::mem::replace(&mut self.0, Context::new(&SHA256)).finish();
        if let Some(out) = out.get_mut(..hash.as_ref().len()) {
            out.copy_from_slice(hash.as_ref());
        }
    }
}

struct ChaChaPoly(Option<LessSafeKey>);

/// Four zeros and the number, least significant byte first (Noise section 12.3).
fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    for (to, from) in nonce.iter_mut().skip(4).zip(number.to_le_bytes()) {
        *to = from;
    }
    Nonce::assume_unique_for_key(nonce)
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new);
    }

    /// 0 when there is no key, which the other side takes for a message without its tag.
    fn encrypt(&self, number: u64, authentic: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let length = plain.len() + TAG;
        let sealed = self.0.as_ref().zip(out.get_mut(..length)).and_then(|(key, out)| {
            let (text, tag) = out.split_at_mut(plain.len());
            text.copy_from_slice(plain);
            let seal = key.seal_in_place_separate_tag(nonce(number), Aad::from(authentic), text).ok()?;
            tag.copy_from_slice(seal.as_ref());
            Some(length)
        });
        sealed.unwrap_or(0)
    }

    fn decrypt(&self, number: u64, authentic: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let mut bytes = sealed.to_vec();
        let opened = key.open_in_place(nonce(number), Aad::from(authentic), &mut bytes);
        let opened = opened.map_err(|_| Error::Decrypt)?;
        out.get_mut(..opened.len()).ok_or(Error::Decrypt)?.copy_from_slice(opened);
        Ok(opened.len())
    }
}
