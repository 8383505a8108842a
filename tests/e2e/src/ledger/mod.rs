//! Money that goes from account to account, while everything that takes part in it is killed and changed: what was acknowledged is
//! there, once, and the sum is what it was.
//!
//! Each transfer is a transaction with an id that its client chose, and which is recorded in the same transaction. Nothing keeps an id from
//! being recorded twice, so that a transfer that was carried out twice is seen. Clients are processes of their own
//! ([`client`]); what they know of their transfers is in their journals, which outlive them.

pub mod client;
mod journal;

use std::collections::BTreeMap;

use crate::postgres::{Link, Lost};
pub use journal::{Journal, Known};

/// The number of accounts.
pub const ACCOUNTS: u64 = 40;
/// What is in each at first.
pub const BALANCE: u64 = 1_000_000;
/// The ids of a client begin with its number, shifted by so many bits.
pub const CLIENT_BITS: u32 = 40;

/// Makes the tables.
pub const SETUP: &str = "create table accounts (id int primary key, balance bigint not null); create table transfers (id bigint not null, \
                         payer int not null, payee int not null, amount int not null); create index on transfers (id); insert \
                         into accounts select n, 1000000 from generate_series(1, 40) n";

/// Accounts whose balance is not what the recorded transfers make of it.
const UNBALANCED: &str = "select count(*) from accounts a left join (select account, sum(change) as change from (select payee as account, \
                          amount as change from transfers union all select payer, -amount from transfers) changes group by account) c on \
                          c.account = a.id where a.balance <> 1000000 + coalesce(c.change, 0)";

/// What the books and the journals say together.
#[derive(Debug, Default)]
pub struct Audit {
    /// Transfers that clients know to be committed.
    pub acknowledged: u64,
    /// Those whose outcome their client did not learn, or not before it was killed.
    pub unknown: u64,
    /// Of these, what was committed.
    pub unknown_committed: u64,
    /// Transfers that a client knows not to be committed: refused, rolled back, or left before COMMIT was sent.
    pub not_committed: u64,
    /// Acknowledged, or found when they were looked up, and not there.
    pub lost: Vec<u64>,
    /// Carried out more than once.
    pub doubled: Vec<u64>,
    /// There, though not committed.
    pub undead: Vec<u64>,
    /// There, though nobody tried.
    pub foreign: Vec<u64>,
    /// The sum of all accounts.
    pub sum: u64,
    /// Accounts that do not fit to the recorded transfers.
    pub unbalanced: u64,
    /// What the journals say of what is not as it should be.
    pub stories: Vec<String>,
}

impl Audit {
    /// Compares; the server must do nothing for anybody else any more.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn of(link: &mut Link, journals: &mut [Journal]) -> Result<Self, Lost> {
        let mut audit =
            Self { sum: number(link, "select sum(balance) from accounts").await?, ..Self::default() };
        audit.unbalanced = number(link, UNBALANCED).await?;
        let mut expected = 0;
        for journal in journals {
            journal.catch_up();
            let first = journal.client << CLIENT_BITS;
            let range = format!("id >= {first} and id < {}", first + (1 << CLIENT_BITS));
            let booked = booked(link, &range).await?;
            expected += booked.values().sum::<u64>();
            audit.compare(journal, booked);
        }
        let booked = number(link, "select count(*) from transfers").await?;
        if booked != expected {
            audit.foreign.push(booked - expected);
        }
        Ok(audit)
    }

    fn compare(&mut self, journal: &Journal, mut booked: BTreeMap<u64, u64>) {
        for (id, known) in &journal.transfers {
            let times = booked.remove(id).unwrap_or(0);
            if times > 1 {
                self.doubled.push(*id);
            }
            match known {
                Known::Committed => self.acknowledged += 1,
                Known::NotCommitted => self.not_committed += 1,
                Known::Found | Known::Nothing => {
                    self.unknown += 1;
                    self.unknown_committed += times.min(1);
                }
            }
            match known {
                Known::Committed | Known::Found if times == 0 => self.lost.push(*id),
                Known::NotCommitted if times > 0 => self.undead.push(*id),
                _ if times > 1 => {}
                _ => continue,
            }
            self.stories.push(journal.story(*id));
        }
        self.foreign.extend(booked.into_keys());
    }

    /// Expects that nothing was lost, doubled or made up.
    ///
    /// # Panics
    /// When something was.
    pub fn judge(&self) {
        let wrong = [&self.lost, &self.doubled, &self.undead, &self.foreign];
        assert!(wrong.iter().all(|ids| ids.is_empty()), "{self:?}");
        assert_eq!((self.sum, self.unbalanced), (ACCOUNTS * BALANCE, 0), "{self:?}");
    }
}

/// The ids in the books that a condition names, and how often each is there.
async fn booked(link: &mut Link, condition: &str) -> Result<BTreeMap<u64, u64>, Lost> {
    link.query(&format!("select id, count(*) from transfers where {condition} group by id"));
    let batch = link.ask().await?;
    let value = |column: &Option<bytes::Bytes>| {
        std::str::from_utf8(column.as_ref().unwrap()).unwrap().parse().unwrap()
    };
    Ok(batch.rows.iter().map(|row| (value(&row[0]), value(&row[1]))).collect())
}

async fn number(link: &mut Link, sql: &str) -> Result<u64, Lost> {
    link.query(sql);
    let batch = link.ask().await?;
    let value = batch.rows.first().and_then(|row| row[0].clone());
    let value = value.unwrap_or_else(|| panic!("{batch:?}"));
    Ok(std::str::from_utf8(&value).unwrap().parse().unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_or_made_up_is_found() {
        let known = [
            (1, Known::Committed),
            (2, Known::Committed),
            (3, Known::Committed),
            (4, Known::NotCommitted),
            (5, Known::Found),
            (6, Known::Nothing),
            (7, Known::Nothing),
            (8, Known::NotCommitted),
        ];
        let journal = Journal::known(known.into());
        let mut audit = Audit::default();
        audit.compare(&journal, [(1, 1), (2, 2), (4, 1), (6, 1), (9, 1)].into());
        assert_eq!((&audit.lost[..], &audit.doubled[..]), (&[3, 5][..], &[2][..]));
        assert_eq!((&audit.undead[..], &audit.foreign[..]), (&[4][..], &[9][..]));
        assert_eq!((audit.acknowledged, audit.not_committed), (3, 2));
        assert_eq!((audit.unknown, audit.unknown_committed), (3, 1));
    }
}
