//! Faults on purpose, for tests of what is done about them. Builds without debug assertions have none.
//!
//! `QUDAG_CRYPTO_FAULT=FAULT:BACKEND` makes one backend faulty: with `illegal-instruction` its self-test executes one, with `wrong-answer` its
//! self-test fails, and with `wrong-verdict` it passes, but every verdict of the service is the opposite of the right one.

use qudag_mldsa::{Backend, Rejected, SelfTestFailed, self_test};

/// The name of the environment variable.
#[cfg(debug_assertions)]
const VARIABLE: &str = "QUDAG_CRYPTO_FAULT";

/// What a backend does wrong.
#[cfg(debug_assertions)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    IllegalInstruction,
    WrongAnswer,
    WrongVerdict,
}

/// The fault of a backend, if the environment asks for one.
#[cfg(debug_assertions)]
fn of(backend: Backend) -> Option<Fault> {
    use std::sync::LazyLock;

    static ASKED: LazyLock<Option<(Fault, Backend)>> = LazyLock::new(|| {
        let value = std::env::var(VARIABLE).ok()?;
        let asked = parse(&value);
        if asked.is_none() {
            tracing::warn!(%value, "{VARIABLE} names no fault");
        }
        asked
    });
    ASKED.and_then(|(fault, of)| (of == backend).then_some(fault))
}

#[cfg(debug_assertions)]
fn parse(text: &str) -> Option<(Fault, Backend)> {
    let (fault, backend) = text.split_once(':')?;
    let fault = match fault {
        "illegal-instruction" => Fault::IllegalInstruction,
        "wrong-answer" => Fault::WrongAnswer,
        "wrong-verdict" => Fault::WrongVerdict,
        _ => return None,
    };
    Some((fault, backend.parse().ok()?))
}

/// The self-test of a backend, in this process: an illegal instruction ends it.
///
/// # Errors
/// When the backend is not available, or judges a known signature wrong.
pub fn test_in_process(backend: Backend) -> Result<(), SelfTestFailed> {
    #[cfg(debug_assertions)]
    match of(backend) {
        Some(Fault::IllegalInstruction) => qudag_mldsa::illegal_instruction(),
        Some(Fault::WrongAnswer) => {
            return Err(SelfTestFailed::Wrong {
                backend,
                edition: qudag_mldsa::Edition::Draft,
                right: Ok(()),
                seen: Err(Rejected::Mismatch),
            });
        }
        Some(Fault::WrongVerdict) | None => {}
    }
    self_test(backend)
}

/// Turns verdicts of a faulty backend round.
pub(crate) fn distort(backend: Backend, results: &mut [Result<(), Rejected>]) {
    #[cfg(debug_assertions)]
    if of(backend) == Some(Fault::WrongVerdict) {
        for result in results {
            *result = if result.is_ok() { Err(Rejected::Mismatch) } else { Ok(()) };
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = (backend, results);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_of_one_backend() {
        assert_eq!(parse("wrong-verdict:avx2"), Some((Fault::WrongVerdict, Backend::Avx2)));
        assert_eq!(
            parse("illegal-instruction:portable"),
            Some((Fault::IllegalInstruction, Backend::Portable))
        );
        for none in ["", "wrong-answer", "wrong-answer:", "wrong-answer:mmx", "other:avx2"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
