//! Whether a batch is the answer to what was asked.

use bytes::Bytes;

use crate::postgres::{Batch, Fault};

/// What one statement must be answered with.
#[derive(Debug)]
pub(super) enum Answer {
    /// So many rows: this text, and the row's number.
    Rows(String, u32),
    /// As rows, and the first is said in a notice too.
    Said(String),
    /// An error whose message holds this text; what follows in the batch is not carried out.
    Error(String),
}

/// Whether the sidecar refused a batch, and whether that is all that it said, as it must be.
pub(super) fn is_refused(batch: &Batch) -> Option<bool> {
    let refused = batch.errors.iter().any(Fault::refused);
    let whole =
        batch.errors.len() == 1 && batch.rows.is_empty() && batch.tags.is_empty() && batch.status == b'I';
    refused.then_some(whole)
}

/// How many statements of a batch were answered, if all were, rightly.
///
/// # Errors
/// What came, and what should have come.
pub(super) fn compare(batch: &Batch, answers: &[Answer], status: u8) -> Result<u64, String> {
    let (mut wanted, mut said, mut error, mut done) = (Vec::new(), Vec::new(), None, 0);
    for answer in answers {
        done += 1;
        match answer {
            Answer::Rows(token, count) => {
                wanted.extend((1..=*count).map(|number| format!("{token} {number}")));
            }
            Answer::Said(token) => {
                said.push(token.as_str());
                wanted.push(format!("{token} 1"));
            }
            Answer::Error(token) => {
                error = Some(token);
                break;
            }
        }
    }
    let errors_right = match (&batch.errors[..], error) {
        ([], None) => true,
        ([fault], Some(token)) => fault.code == "22P02" && fault.message.contains(&format!("\"{token}\"")),
        _ => false,
    };
    let notices: Vec<_> = batch.notices.iter().map(|notice| notice.message.as_str()).collect();
    let rows = rows(batch);
    if errors_right && rows == wanted && notices == said && batch.status == status {
        return Ok(done);
    }
    let (errors, tags, status) = (&batch.errors, &batch.tags, char::from(batch.status));
    Err(format!(
        "{rows:?} with {tags:?}, notices {notices:?}, errors {errors:?}, status {status}, instead of {answers:?}"
    ))
}

/// Rows, their columns with a space between them.
pub(super) fn rows(batch: &Batch) -> Vec<String> {
    let column = |column: &Option<Bytes>| match column {
        Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        None => "NULL".into(),
    };
    batch.rows.iter().map(|row| row.iter().map(column).collect::<Vec<_>>().join(" ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: &[(&str, u32)]) -> Batch {
        let row = |(token, number): &(&str, u32)| {
            let columns = [(*token).to_owned(), number.to_string()];
            columns.into_iter().map(|column| Some(Bytes::from(column))).collect()
        };
        Batch { rows: rows.iter().map(row).collect(), status: b'I', ..Batch::default() }
    }

    fn fault(code: &str, message: &str, hint: &str) -> Fault {
        Fault { severity: "ERROR".into(), code: code.into(), message: message.into(), hint: hint.into() }
    }

    #[test]
    fn what_is_not_ones_own_is_found() {
        let wanted = [Answer::Rows("mine".into(), 2), Answer::Rows("too".into(), 1)];
        let right = [("mine", 1), ("mine", 2), ("too", 1)];
        assert_eq!(compare(&batch(&right), &wanted, b'I'), Ok(2));
        for wrong in [
            &right[..2],
            &[],
            &[("mine", 1), ("yours", 2), ("too", 1)],
            &[("mine", 1), ("mine", 1), ("too", 1)],
            &[("too", 1), ("mine", 1), ("mine", 2)],
            &[("mine", 1), ("mine", 2), ("too", 1), ("too", 2)],
        ] {
            assert!(compare(&batch(wrong), &wanted, b'I').is_err(), "{wrong:?}");
        }
        assert!(compare(&batch(&right), &wanted, b'T').is_err(), "another transaction's status");
        let mut noisy = batch(&right);
        noisy.notices.push(fault("00000", "yours", ""));
        assert!(compare(&noisy, &wanted, b'I').is_err(), "another one's notice");
        let mut cancelled = batch(&right[..1]);
        cancelled.errors.push(fault("57014", "canceling statement due to user request", ""));
        assert!(compare(&cancelled, &wanted, b'I').is_err(), "another one's cancellation");
    }

    #[test]
    fn an_error_must_name_the_token_and_ends_the_batch() {
        let wanted = [Answer::Rows("a".into(), 1), Answer::Error("b".into()), Answer::Rows("c".into(), 1)];
        let mut failed = batch(&[("a", 1)]);
        failed.errors.push(fault("22P02", "invalid input syntax for type integer: \"b\"", ""));
        assert_eq!(compare(&failed, &wanted, b'I'), Ok(2));
        failed.errors[0].message = failed.errors[0].message.replace("\"b\"", "\"x\"");
        assert!(compare(&failed, &wanted, b'I').is_err());
    }

    #[test]
    fn a_refusal_stands_alone() {
        assert_eq!(is_refused(&batch(&[])), None);
        let mut refused = batch(&[]);
        refused.errors.push(fault("53300", "too many", "qudag-sidecar: retry after 100 ms"));
        assert_eq!(is_refused(&refused), Some(true));
        refused.tags.push("SELECT 1".into());
        assert_eq!(is_refused(&refused), Some(false));
    }
}
