//! Signatures of other implementations.

use super::{Signed, backends};
use crate::{Backend, Edition, Rejected, SelfTestFailed, matches_in_any_range, self_test};

#[test]
fn signatures_of_the_draft_are_accepted_and_no_others() {
    let drafts = Signed::drafts();
    assert_eq!(drafts.len(), 16);
    for mut signed in drafts {
        let length = signed.message.len();
        assert_eq!(signed.verify(), Ok(()), "{length}");
        signed.edition = Edition::Final;
        assert_eq!(signed.verify(), Err(Rejected::Mismatch), "{length}");
        signed.edition = Edition::Draft;
        signed.message.push(b'+');
        assert_eq!(signed.verify(), Err(Rejected::Mismatch), "{length}");
    }
}

#[test]
fn signatures_out_of_range_are_refused_and_told_from_others() {
    let crafted = Signed::out_of_range();
    assert_eq!(crafted.len(), 16);
    for signed in crafted {
        assert_eq!(signed.verify(), Err(Rejected::Range));
        for backend in backends() {
            let key = signed.key.expand(backend);
            let mu = signed.mu(key.tr());
            let matches =
                |edition, signature: &[u8]| matches_in_any_range(backend, &key, edition, &mu, signature);
            assert!(matches(Edition::Draft, &signed.signature), "{backend}");
            assert!(!matches(Edition::Final, &signed.signature), "{backend}");
            assert!(!matches(Edition::Draft, &signed.signature[1..]), "{backend}");
            let mut other = signed.signature.clone();
            other[0] ^= 1;
            assert!(!matches(Edition::Draft, &other), "{backend}");
        }
    }
}

#[test]
fn signatures_of_the_standard_are_accepted_and_no_others() {
    for length in 0..100 {
        let mut signed = Signed::standard(&vec![length as u8; length]);
        assert_eq!(signed.verify(), Ok(()), "{length}");
        signed.edition = Edition::Draft;
        assert_eq!(signed.verify(), Err(Rejected::Mismatch), "{length}");
        signed.edition = Edition::Final;
        signed.message.push(b'+');
        assert_eq!(signed.verify(), Err(Rejected::Mismatch), "{length}");
    }
}

#[test]
fn the_key_of_another_is_not_accepted() {
    for mut one in [Signed::draft(), Signed::standard(b"message")] {
        one.key = Signed::standard(b"message").key;
        assert_eq!(one.verify(), Err(Rejected::Mismatch));
    }
}

#[test]
fn expanded_keys_are_the_same_on_all_backends() {
    for signed in [Signed::draft(), Signed::standard(b"")] {
        let plain = signed.key.expand(Backend::Portable);
        for backend in backends() {
            assert!(signed.key.expand(backend) == plain, "{backend}");
            assert_eq!(signed.key.tr(backend), *plain.tr());
        }
    }
}

#[test]
fn known_answers_are_given() {
    for backend in backends() {
        assert_eq!(self_test(backend), Ok(()));
    }
    for backend in Backend::ALL.into_iter().filter(|backend| !backend.is_available()) {
        assert_eq!(self_test(backend), Err(SelfTestFailed::Unavailable(backend)));
    }
}

#[test]
fn backends_have_names() {
    for backend in Backend::ALL {
        assert_eq!(backend.to_string().parse(), Ok(backend));
    }
    let unknown = "neon".parse::<Backend>().unwrap_err();
    assert_eq!(unknown.to_string(), "\"neon\" is no backend: portable, avx2 and avx512 are");
    assert_eq!(Backend::available().next(), Some(Backend::Portable));
    assert!(Backend::best().is_available());
}
