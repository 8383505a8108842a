//! A signer that leaves out one check: it makes signatures whose z is out of range and whose challenge is right.
//!
//! Everything is computed by definition, slowly, in integers, after FIPS 204 and its draft: 6.2 (ML-DSA.Sign_internal), 7.2 to 7.5.

use qudag_mldsa::{Backend, PublicKey, SIGNATURE_BYTES};
use rand::Rng;
use rand::rngs::StdRng;
use shake::digest::{ExtendableOutput, Update, XofReader};
use shake::{Shake128, Shake256};

const Q: i64 = 8_380_417;
const N: usize = 256;
/// A 512th root of unity: ζ.
const ZETA: i64 = 1753;
const D: u32 = 13;
const TAU: usize = 49;
const GAMMA1: i64 = 1 << 19;
const GAMMA2: i64 = (Q - 1) / 32;
const ETA: i64 = 4;
const BETA: i64 = TAU as i64 * ETA;
const K: usize = 6;
const L: usize = 5;
const OMEGA: usize = 55;

type Polynomial = [i64; N];

/// A secret key in its parts (algorithm 25, skDecode), with Â.
pub struct Unbounded {
    a: [[Polynomial; L]; K],
    s1: [Polynomial; L],
    s2: [Polynomial; K],
    t0: [Polynomial; K],
    tr: [u8; 64],
}

impl Unbounded {
    /// Takes a secret key apart.
    ///
    /// # Panics
    /// When it has not 4,032 bytes.
    pub fn new(secret_key: &[u8], key: &PublicKey) -> Self {
        let (seeds, packed) = secret_key.split_at(128);
        let (s, t0) = packed.split_at((L + K) * 128);
        let mut s = s.chunks(128).map(|bytes| unpack(bytes, 4).map(|bits| ETA - bits));
        let mut t0 = t0.chunks(416).map(|bytes| unpack(bytes, 13).map(|bits| (1 << (D - 1)) - bits));
        let rho = &seeds[..32];
        let mut next = || s.next().expect("s₁ and s₂");
        Self {
            a: std::array::from_fn(|row| std::array::from_fn(|column| rejected_ntt(rho, row, column))),
            s1: std::array::from_fn(|_| next()),
            s2: std::array::from_fn(|_| next()),
            t0: std::array::from_fn(|_| t0.next().expect("t₀")),
            tr: key.tr(Backend::Portable),
        }
    }

    /// Signs by the draft. The signature is right in everything but that a coefficient of z is γ₁ − β or more, which the standard's signer
    /// would have thrown away (algorithm 7, step 23).
    pub fn sign(&self, message: &[u8], random: &mut StdRng) -> Vec<u8> {
        let mu = hash::<64>(&[&self.tr, message]);
        loop {
            let y: [Polynomial; L] =
                std::array::from_fn(|_| std::array::from_fn(|_| random.gen_range(1 - GAMMA1..=GAMMA1)));
            if let Some(signature) = self.attempt(&mu, &y) {
                return signature;
            }
        }
    }

    /// What becomes of one y; `None` where it is thrown away.
    fn attempt(&self, mu: &[u8; 64], y: &[Polynomial; L]) -> Option<Vec<u8>> {
        let y_hat = y.each_ref().map(ntt);
        let w = self.a.each_ref().map(|row| {
            inverse_ntt(&std::array::from_fn(|i| row.iter().zip(&y_hat).map(|(a, y)| a[i] * y[i] % Q).sum()))
        });
        let w1 = pack(w.iter().flatten().map(|w| decompose(*w).0), 4);
        let c_tilde = hash::<48>(&[mu, &w1]);
        let c = sample_in_ball(&c_tilde[..32]);

        let z: [Polynomial; L] =
            std::array::from_fn(|i| add(&y[i], &multiply(&c, &self.s1[i])).map(centered));
        let largest = z.as_flattened().iter().map(|z| z.abs()).max()?;
        let fits = z.as_flattened().iter().all(|z| (1 - GAMMA1..=GAMMA1).contains(z));
        if largest < GAMMA1 - BETA || !fits {
            return None;
        }

        let mut hints = [0; OMEGA + K];
        let mut count = 0;
        for row in 0..K {
            let rest = add(&w[row], &multiply(&c, &self.s2[row]).map(|c| -c));
            let c_t0 = multiply(&c, &self.t0[row]).map(centered);
            if rest.iter().any(|rest| decompose(*rest).1.abs() >= GAMMA2 - BETA)
                || c_t0.iter().any(|c| c.abs() >= GAMMA2)
            {
                return None;
            }
            for place in 0..N {
                let corrected = (rest[place] + c_t0[place]).rem_euclid(Q);
                if decompose(corrected).0 != decompose(rest[place]).0 {
                    *hints[..OMEGA].get_mut(count)? = place as u8;
                    count += 1;
                }
            }
            hints[OMEGA + row] = count as u8;
        }
        let z = pack(z.as_flattened().iter().map(|z| GAMMA1 - z), 20);
        let signature = [&c_tilde[..], &z, &hints].concat();
        assert_eq!(signature.len(), SIGNATURE_BYTES);
        Some(signature)
    }
}

/// The remainder between −q/2 and q/2.
fn centered(x: i64) -> i64 {
    let x = x.rem_euclid(Q);
    if x > Q / 2 { x - Q } else { x }
}

fn add(a: &Polynomial, b: &Polynomial) -> Polynomial {
    std::array::from_fn(|i| (a[i] + b[i]).rem_euclid(Q))
}

/// The product in ℤ_q\[X\]/(X²⁵⁶ + 1).
fn multiply(a: &Polynomial, b: &Polynomial) -> Polynomial {
    let mut product = [0; N];
    for (i, a) in a.iter().enumerate().filter(|(_, a)| **a != 0) {
        for (j, b) in b.iter().enumerate() {
            let sign = if i + j < N { 1 } else { -1 };
            product[(i + j) % N] += sign * a * b;
        }
    }
    product.map(|coefficient| coefficient.rem_euclid(Q))
}

/// The powers of ζ.
fn powers() -> [i64; 2 * N] {
    let mut powers = [1; 2 * N];
    for exponent in 1..2 * N {
        powers[exponent] = powers[exponent - 1] * ZETA % Q;
    }
    powers
}

/// Which power of ζ a place of a transform stands for (7.5).
fn exponent(place: usize) -> usize {
    2 * usize::from((place as u8).reverse_bits()) + 1
}

/// The transform: the values at the odd powers of ζ.
fn ntt(w: &Polynomial) -> Polynomial {
    let powers = powers();
    std::array::from_fn(|i| {
        let terms = w.iter().enumerate().map(|(j, w)| w * powers[exponent(i) * j % (2 * N)] % Q);
        terms.sum::<i64>().rem_euclid(Q)
    })
}

/// The polynomial of a transform.
fn inverse_ntt(w: &Polynomial) -> Polynomial {
    /// 256⁻¹.
    const F: i64 = 8_347_681;
    let powers = powers();
    std::array::from_fn(|j| {
        let terms = (0..N).map(|i| w[i] % Q * powers[(2 * N - exponent(i) * j % (2 * N)) % (2 * N)] % Q);
        (terms.sum::<i64>() % Q * F).rem_euclid(Q)
    })
}

/// High and low bits (algorithm 36, Decompose), for 0 ≤ r < q.
fn decompose(r: i64) -> (i64, i64) {
    let r0 = match r % (2 * GAMMA2) {
        r0 if r0 > GAMMA2 => r0 - 2 * GAMMA2,
        r0 => r0,
    };
    if r - r0 == Q - 1 { (0, r0 - 1) } else { ((r - r0) / (2 * GAMMA2), r0) }
}

/// A polynomial of Â (algorithms 32, ExpandA, and 30, RejNTTPoly).
fn rejected_ntt(rho: &[u8], row: usize, column: usize) -> Polynomial {
    let mut xof = Shake128::default();
    xof.update(rho);
    xof.update(&[column as u8, row as u8]);
    let mut xof = xof.finalize_xof();
    std::array::from_fn(|_| {
        loop {
            let mut bytes = [0; 4];
            xof.read(&mut bytes[..3]);
            let candidate = i64::from(u32::from_le_bytes(bytes) & 0x7f_ffff);
            if candidate < Q {
                return candidate;
            }
        }
    })
}

/// The challenge (algorithm 29, SampleInBall).
fn sample_in_ball(seed: &[u8]) -> Polynomial {
    let mut xof = Shake256::default();
    xof.update(seed);
    let mut xof = xof.finalize_xof();
    let mut signs = [0; 8];
    xof.read(&mut signs);
    let signs = u64::from_le_bytes(signs);
    let mut c = [0; N];
    for i in N - TAU..N {
        let mut j = [0];
        loop {
            xof.read(&mut j);
            if usize::from(j[0]) <= i {
                break;
            }
        }
        c[i] = c[usize::from(j[0])];
        c[usize::from(j[0])] = 1 - 2 * (signs >> (i + TAU - N) & 1) as i64;
    }
    c
}

fn hash<const BYTES: usize>(parts: &[&[u8]]) -> [u8; BYTES] {
    let mut hash = Shake256::default();
    parts.iter().for_each(|part| hash.update(part));
    let mut output = [0; BYTES];
    hash.finalize_xof().read(&mut output);
    output
}

/// Coefficients of so many bits each.
fn unpack(bytes: &[u8], bits: usize) -> Polynomial {
    let bit = |at: usize| i64::from(bytes[at / 8] >> (at % 8) & 1);
    std::array::from_fn(|i| (0..bits).map(|place| bit(bits * i + place) << place).sum())
}

/// The reverse.
fn pack(coefficients: impl Iterator<Item = i64>, bits: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut pending, mut length) = (0, 0);
    for coefficient in coefficients {
        pending |= coefficient << length;
        length += bits;
        while length >= 8 {
            bytes.push(pending as u8);
            pending >>= 8;
            length -= 8;
        }
    }
    bytes
}
