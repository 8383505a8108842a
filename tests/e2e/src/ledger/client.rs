//! Sessions that transfer money, each transfer in one of the ways in which programs do it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{ACCOUNTS, CLIENT_BITS};
use crate::postgres::{Batch, Link, Lost};
use crate::questions::Dice;

/// The ids of a session begin with its number, shifted by so many bits.
const SESSION_BITS: u32 = 24;

/// Runs sessions until the process is killed.
///
/// # Panics
/// When the journal cannot be written, or an answer makes no sense.
pub async fn run(door: SocketAddr, client: u64, sessions: u64, journal: &Path) {
    let journal = Arc::new(File::options().create(true).append(true).open(journal).unwrap());
    let mut tasks = JoinSet::new();
    for number in 0..sessions {
        let session = Session {
            door,
            journal: Arc::clone(&journal),
            next: client << CLIENT_BITS | number << SESSION_BITS,
            dice: Dice::new(client << 8 | number),
            parsed: BTreeSet::new(),
        };
        tasks.spawn(session.go_on());
    }
    if let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

struct Session {
    door: SocketAddr,
    journal: Arc<File>,
    next: u64,
    dice: Dice,
    /// The named statements that this connection has.
    parsed: BTreeSet<&'static str>,
}

struct Transfer {
    id: u64,
    payer: u64,
    payee: u64,
    amount: u64,
}

/// What the server said.
enum Done {
    Committed,
    /// Why not.
    Not(String),
}

/// Why a transfer has no answer.
enum Gone {
    /// Before COMMIT was sent: it cannot have been committed.
    Before(Lost),
    /// Afterwards: it may have been.
    After,
}

impl From<Lost> for Gone {
    fn from(lost: Lost) -> Self {
        Self::Before(lost)
    }
}

fn after(_: Lost) -> Gone {
    Gone::After
}

impl Session {
    async fn go_on(mut self) {
        let mut link = self.connect().await;
        loop {
            let transfer = self.choose();
            self.note("try", transfer.id);
            match self.transfer(&mut link, &transfer).await {
                Ok(Done::Committed) => self.note("ack", transfer.id),
                Ok(Done::Not(why)) => {
                    self.note("not", format_args!("{} {why}", transfer.id));
                    // A refusal is followed by less haste.
                    sleep(Duration::from_millis(5 + self.dice.below(20))).await;
                }
                Err(Gone::Before(lost)) => {
                    self.note("not", format_args!("{} before COMMIT: {}", transfer.id, lost.0));
                    link = self.connect().await;
                }
                Err(Gone::After) => link = self.look_up(transfer.id).await,
            }
        }
    }

    /// One line in the journal, in one write, so that a kill leaves whole lines but for the last.
    fn note(&self, what: &str, id: impl std::fmt::Display) {
        (&*self.journal).write_all(format!("{what} {id}\n").as_bytes()).unwrap();
    }

    async fn connect(&mut self) -> Link {
        self.parsed.clear();
        loop {
            if let Ok(link) = Link::to(self.door).await {
                return link;
            }
            sleep(Duration::from_millis(20 + self.dice.below(80))).await;
        }
    }

    /// Whether a transfer is in the books, for which the connection was lost. It is not tried again, whatever comes out: one that is
    /// not there may be committed a moment later.
    async fn look_up(&mut self, id: u64) -> Link {
        loop {
            let mut link = self.connect().await;
            link.extended("select count(*) from transfers where id = $1::bigint", &[&id.to_string()]);
            link.sync();
            let Ok(batch) = link.ask().await else { continue };
            // Refused, or the server is about to end.
            let Some(row) = batch.rows.first() else { continue };
            self.note(if row[0].as_deref() == Some(b"0") { "absent" } else { "found" }, id);
            return link;
        }
    }

    fn choose(&mut self) -> Transfer {
        let payer = 1 + self.dice.below(ACCOUNTS);
        let payee = 1 + (payer + self.dice.below(ACCOUNTS - 1)) % ACCOUNTS;
        self.next += 1;
        Transfer { id: self.next, payer, payee, amount: 1 + self.dice.below(100) }
    }

    /// Whether it was committed.
    async fn transfer(&mut self, link: &mut Link, transfer: &Transfer) -> Result<Done, Gone> {
        match self.dice.below(100) {
            0..30 => self.step_by_step(link, transfer, true).await,
            30..35 => self.step_by_step(link, transfer, false).await,
            35..50 => one_query(link, transfer).await,
            50..70 => self.prepared(link, transfer).await,
            70..85 => one_pipeline(link, transfer).await,
            _ => one_statement(link, transfer).await,
        }
    }

    /// Queries of the simple protocol, with a round trip each.
    async fn step_by_step(
        &mut self,
        link: &mut Link,
        transfer: &Transfer,
        commit: bool,
    ) -> Result<Done, Gone> {
        for text in ["begin".to_owned()].iter().chain(&transfer.texts()) {
            link.query(text);
            if let Some(why) = failed(link).await? {
                return Ok(Done::Not(why));
            }
        }
        match self.dice.below(2) {
            _ if commit => {}
            0 => {
                link.query("rollback");
                link.ask().await?;
                return Ok(Done::Not("rolled back".into()));
            }
            // COMMIT of a failed transaction is answered with ROLLBACK.
            _ => {
                link.query("select 1 / 0");
                let batch = link.ask().await?;
                assert!(!batch.errors.is_empty(), "{batch:?}");
            }
        }
        link.query("commit");
        committed(link).await
    }

    /// Named statements with parameters, a round trip each.
    async fn prepared(&mut self, link: &mut Link, transfer: &Transfer) -> Result<Done, Gone> {
        link.extended("begin", &[]);
        link.sync();
        if let Some(why) = failed(link).await? {
            return Ok(Done::Not(why));
        }
        for ((name, text), values) in STATEMENTS.iter().zip(transfer.values()) {
            if !self.parsed.contains(name) {
                link.parse(name, text);
            }
            link.bind("", name, &values.iter().map(String::as_str).collect::<Vec<_>>());
            link.execute("", 0);
            link.sync();
            let batch = link.ask().await?;
            if batch.others.contains(&b'1') {
                self.parsed.insert(name);
            }
            if let Some(why) = roll_back(link, &batch).await? {
                return Ok(Done::Not(why));
            }
        }
        link.extended("commit", &[]);
        link.sync();
        committed(link).await
    }
}

/// All in one Query.
async fn one_query(link: &mut Link, transfer: &Transfer) -> Result<Done, Gone> {
    link.query(&format!("begin; {}; commit", transfer.texts().join("; ")));
    committed(link).await
}

/// All before one Sync.
async fn one_pipeline(link: &mut Link, transfer: &Transfer) -> Result<Done, Gone> {
    link.extended("begin", &[]);
    for ((_, text), values) in STATEMENTS.iter().zip(transfer.values()) {
        link.extended(text, &values.iter().map(String::as_str).collect::<Vec<_>>());
    }
    link.extended("commit", &[]);
    link.sync();
    committed(link).await
}

/// One statement, which is a transaction by itself.
async fn one_statement(link: &mut Link, transfer: &Transfer) -> Result<Done, Gone> {
    let Transfer { id, payer, payee, amount } = transfer;
    link.query(&format!(
        "with debit as (update accounts set balance = balance - {amount} where id = {payer}), credit as (update accounts set balance = \
         balance + {amount} where id = {payee}) insert into transfers values ({id}, {payer}, {payee}, {amount})"
    ));
    link.send().await.map_err(after)?;
    let batch = link.batch().await.map_err(after)?;
    match batch.errors.first() {
        None if batch.tags == ["INSERT 0 1"] => Ok(Done::Committed),
        why => Ok(Done::Not(format!("{why:?}"))),
    }
}

/// Named statements, in the order of [`Transfer::values`].
const STATEMENTS: [(&str, &str); 3] = [
    ("first", "update accounts set balance = balance + $1::int where id = $2::int"),
    ("second", "update accounts set balance = balance + $1::int where id = $2::int"),
    ("record", "insert into transfers values ($1::bigint, $2::int, $3::int, $4::int)"),
];

impl Transfer {
    /// Account and change, the smaller number first, so that transactions seldom wait for each other in a circle.
    fn changes(&self) -> [(u64, String); 2] {
        let mut changes = [(self.payer, format!("-{}", self.amount)), (self.payee, self.amount.to_string())];
        changes.sort();
        changes
    }

    fn values(&self) -> [Vec<String>; 3] {
        let [first, second] = self.changes().map(|(account, change)| vec![change, account.to_string()]);
        let record = [self.id, self.payer, self.payee, self.amount];
        [first, second, record.iter().map(ToString::to_string).collect()]
    }

    fn texts(&self) -> [String; 3] {
        let [first, second] = self.changes().map(|(account, change)| {
            format!("update accounts set balance = balance + {change} where id = {account}")
        });
        let Self { id, payer, payee, amount } = self;
        [first, second, format!("insert into transfers values ({id}, {payer}, {payee}, {amount})")]
    }
}

/// Sends what was put together; why it failed, and the transaction with it.
async fn failed(link: &mut Link) -> Result<Option<String>, Lost> {
    let batch = link.ask().await?;
    roll_back(link, &batch).await
}

/// Ends the transaction, if a statement of it failed; why it did.
async fn roll_back(link: &mut Link, batch: &Batch) -> Result<Option<String>, Lost> {
    let Some(why) = batch.errors.first() else { return Ok(None) };
    if batch.status != b'I' {
        link.query("rollback");
        link.ask().await?;
    }
    Ok(Some(format!("{why:?} after {:?}", batch.tags)))
}

/// Sends what ends with COMMIT; whether it was committed.
async fn committed(link: &mut Link) -> Result<Done, Gone> {
    link.send().await.map_err(after)?;
    let batch = link.batch().await.map_err(after)?;
    // An error keeps what follows it from being carried out, COMMIT too; a lost connection ends the transaction as well.
    if let Some(why) = roll_back(link, &batch).await? {
        return Ok(Done::Not(why));
    }
    match batch.tags.last().map(String::as_str) {
        Some("COMMIT") => Ok(Done::Committed),
        Some("ROLLBACK") => Ok(Done::Not("COMMIT was answered with ROLLBACK".into())),
        _ => panic!("{batch:?}"),
    }
}
