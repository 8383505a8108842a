//! What a client asks, in every way that the protocol has.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::Seen;
use super::judge::{Answer, compare, is_refused, rows};
use crate::postgres::client::PATIENCE;
use crate::postgres::{Batch, Link, Lost};
use crate::questions::Dice;

/// Error of a statement that was cancelled.
const CANCELLED: &str = "57014";
const FILLING: &str = "----------------------------------------------------------------";

/// Named statements of a client.
const NAMES: usize = 6;

pub(super) struct Client {
    door: SocketAddr,
    number: u64,
    asked: u64,
    dice: Dice,
    /// Which text each named statement of this connection has.
    names: [Option<u64>; NAMES],
    /// How long it was told to wait.
    pause: Cell<Duration>,
    seen: Arc<Seen>,
}

/// Why a client goes on with another connection.
enum Next {
    Keep,
    Leave,
}

impl Client {
    pub(super) fn new(door: SocketAddr, number: u64, seed: u64, seen: Arc<Seen>) -> Self {
        let (dice, names) = (Dice::new(seed + number * 7919), [None; NAMES]);
        Self { door, number, asked: 0, dice, names, pause: Cell::default(), seen }
    }

    pub(super) async fn go_on(&mut self, questions: u64) {
        let mut link = None;
        while self.seen.right.load(Ordering::Relaxed) < questions
            && self.seen.wrong.load(Ordering::Relaxed) + self.seen.lost.load(Ordering::Relaxed) < 1000
        {
            let mut open = match link.take() {
                Some(open) => open,
                None => match Link::to(self.door).await {
                    Ok(open) => {
                        self.names = [None; NAMES];
                        open
                    }
                    Err(lost) => {
                        self.lost("login", &lost);
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let asked = self.one(&mut open).await;
            sleep(self.pause.take()).await;
            match asked {
                Ok(Next::Keep) => link = Some(open),
                Ok(Next::Leave) => {
                    self.seen.left.fetch_add(1, Ordering::Relaxed);
                    if self.dice.once_in(2) {
                        open.reset();
                    }
                }
                Err(lost) => self.lost("a question", &lost),
            }
        }
    }

    fn lost(&self, at: &str, lost: &Lost) {
        self.seen.lost.fetch_add(1, Ordering::Relaxed);
        self.seen.tell(format!("client {}: lost at {at}: {}", self.number, lost.0));
    }

    fn token(&mut self) -> String {
        self.asked += 1;
        let padding = self.dice.below(60) as usize;
        format!(
            "t-{}-{}-{:08x}{:.padding$}",
            self.number,
            self.asked,
            self.dice.below(u32::MAX.into()),
            FILLING
        )
    }

    fn count(&mut self) -> u32 {
        [1, 1, 1, 2, 3, 10, 60][self.dice.below(7) as usize]
    }

    async fn one(&mut self, link: &mut Link) -> Result<Next, Lost> {
        match self.dice.below(1000) {
            0..300 => self.simple(link).await?,
            300..420 => self.extended(link).await?,
            420..640 => self.named(link).await?,
            640..800 => self.pipeline(link).await?,
            800..840 => self.flushed(link).await?,
            840..880 => self.transaction(link).await?,
            880..920 => self.portal(link).await?,
            920..950 => self.copy(link).await?,
            950..970 => self.large(link).await?,
            970..976 => self.cancel(link).await?,
            976..980 => self.times_out(link).await?,
            980..992 => return self.leave_in_result(link).await,
            992..996 => return self.give_up(link).await,
            _ => return Ok(Next::Leave),
        }
        Ok(Next::Keep)
    }

    /// A text of the simple protocol with what it must be answered with.
    fn literal(&mut self) -> (String, Answer) {
        let token = self.token();
        match self.dice.below(20) {
            0 => (format!("select '{token}'::int"), Answer::Error(token)),
            1 => (format!("select say('{token}'), 1"), Answer::Said(token)),
            _ => {
                let count = self.count();
                (
                    format!("select '{token}', n from generate_series(1, {count}) n"),
                    Answer::Rows(token, count),
                )
            }
        }
    }

    async fn simple(&mut self, link: &mut Link) -> Result<(), Lost> {
        let several = if self.dice.once_in(6) { 2 + self.dice.below(3) } else { 1 };
        let (texts, answers): (Vec<_>, Vec<_>) = (0..several).map(|_| self.literal()).unzip();
        link.query(&texts.join("; "));
        let batch = link.ask().await?;
        self.judge(&batch, &answers);
        Ok(())
    }

    /// Parse, Bind and Execute of the unnamed statement.
    fn put_extended(&mut self, link: &mut Link) -> Answer {
        let token = self.token();
        match self.dice.below(20) {
            0 => {
                link.extended("select $1::text::int, 1", &[&token]);
                Answer::Error(token)
            }
            1 => {
                link.extended("select say($1), 1", &[&token]);
                Answer::Said(token)
            }
            _ => {
                let count = self.count();
                link.extended(
                    "select $1::text, n from generate_series(1, $2::int) n",
                    &[&token, &count.to_string()],
                );
                Answer::Rows(token, count)
            }
        }
    }

    async fn extended(&mut self, link: &mut Link) -> Result<(), Lost> {
        let answer = self.put_extended(link);
        link.sync();
        let batch = link.ask().await?;
        self.judge(&batch, &[answer]);
        Ok(())
    }

    /// Bind and Execute of a named statement, which is parsed before when it is new, or has another text from now on. All clients
    /// use the same names; some texts are those of other clients, some are their own.
    fn put_named(&mut self, link: &mut Link) -> Answer {
        let at = self.dice.below(NAMES as u64) as usize;
        let name = format!("s{at}");
        if self.names[at].is_some() && self.dice.once_in(12) {
            link.close(&name);
            self.names[at] = None;
        }
        let version = match self.names[at] {
            Some(version) => version,
            None => {
                let version = if self.dice.once_in(2) {
                    self.dice.below(4)
                } else {
                    1000 + self.number * 4 + self.dice.below(4)
                };
                link.parse(
                    &name,
                    &format!("select $1::text || '/v{version}', n from generate_series(1, $2::int) n"),
                );
                self.names[at] = Some(version);
                version
            }
        };
        let (token, count) = (self.token(), self.count());
        link.bind("", &name, &[&token, &count.to_string()]);
        link.execute("", 0);
        Answer::Rows(format!("{token}/v{version}"), count)
    }

    async fn named(&mut self, link: &mut Link) -> Result<(), Lost> {
        let before = self.names;
        let answer = self.put_named(link);
        link.sync();
        let batch = link.ask().await?;
        if !self.judge(&batch, &[answer]) {
            self.names = before;
        }
        Ok(())
    }

    /// Several batches on their way before the first reply, and several statements in a batch.
    async fn pipeline(&mut self, link: &mut Link) -> Result<(), Lost> {
        let mut batches = Vec::new();
        for _ in 0..2 + self.dice.below(10) {
            let mut answers = Vec::new();
            if self.dice.once_in(4) {
                let (text, answer) = self.literal();
                link.query(&text);
                answers.push(answer);
            } else {
                for _ in 0..1 + self.dice.below(3) {
                    answers.push(self.put_extended(link));
                }
                link.sync();
            }
            batches.push(answers);
        }
        link.send().await?;
        for answers in batches {
            let batch = link.batch().await?;
            self.judge(&batch, &answers);
        }
        Ok(())
    }

    /// Replies that are asked for with Flush, and Sync after they were read.
    async fn flushed(&mut self, link: &mut Link) -> Result<(), Lost> {
        let answer = self.put_extended(link);
        link.flush();
        link.send().await?;
        let mut batch = link.replies(b'C').await?;
        link.sync();
        let end = link.ask().await?;
        batch.status = end.status;
        batch.errors.extend(end.errors);
        batch.rows.extend(end.rows);
        self.judge(&batch, &[answer]);
        Ok(())
    }

    async fn transaction(&mut self, link: &mut Link) -> Result<(), Lost> {
        link.query("begin");
        let begun = link.ask().await?;
        if self.refused(&begun) {
            return Ok(());
        }
        for _ in 0..1 + self.dice.below(4) {
            let answer = if self.dice.once_in(2) {
                let (text, answer) = self.literal();
                link.query(&text);
                answer
            } else {
                let answer = self.put_extended(link);
                link.sync();
                answer
            };
            let failed = matches!(answer, Answer::Error(_));
            let batch = link.ask().await?;
            self.check(&batch, &[answer], if failed { b'E' } else { b'T' });
            if failed {
                break;
            }
        }
        link.query(if self.dice.once_in(2) { "commit" } else { "rollback" });
        let ended = link.ask().await?;
        if ended.status != b'I' || !ended.errors.is_empty() {
            self.seen.wrong(format!("client {}: a transaction ended with {ended:?}", self.number));
        }
        Ok(())
    }

    /// Rows a few at a time, from a portal.
    async fn portal(&mut self, link: &mut Link) -> Result<(), Lost> {
        let (token, count) = (self.token(), 7);
        link.parse("", "select $1::text, n from generate_series(1, $2::int) n");
        link.bind("", "", &[&token, &count.to_string()]);
        for _ in 0..3 {
            link.execute("", 3);
        }
        link.sync();
        let batch = link.ask().await?;
        self.judge(&batch, &[Answer::Rows(token, count)]);
        Ok(())
    }

    async fn copy(&mut self, link: &mut Link) -> Result<(), Lost> {
        let (token, count) = (self.token(), 1 + self.dice.below(300) as u32);
        link.query(&format!(
            "copy (select '{token}', n from generate_series(1, {count}) n) to stdout (delimiter '|')"
        ));
        let mut batch = link.ask().await?;
        for row in &mut batch.rows {
            let line = row.pop().flatten().unwrap_or_default();
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            *row = line.split(|byte| *byte == b'|').map(|word| Some(Bytes::copy_from_slice(word))).collect();
        }
        self.judge(&batch, &[Answer::Rows(token, count)]);
        Ok(())
    }

    /// Parameters and rows that do not fit into one buffer.
    async fn large(&mut self, link: &mut Link) -> Result<(), Lost> {
        let token = self.token().repeat(1 + self.dice.below(2000) as usize);
        link.extended("select $1::text, n from generate_series(1, 2) n", &[&token]);
        link.sync();
        let batch = link.ask().await?;
        self.judge(&batch, &[Answer::Rows(token, 2)]);
        Ok(())
    }

    /// Asks for what takes long, and cancels it, sometimes before it has begun.
    async fn cancel(&mut self, link: &mut Link) -> Result<(), Lost> {
        let token = self.token();
        if self.dice.once_in(2) {
            link.query(&format!("select '{token}', 1 from pg_sleep(30)"));
        } else {
            link.extended("select $1::text, 1 from pg_sleep(30)", &[&token]);
            link.sync();
        }
        link.send().await?;
        sleep(Duration::from_millis(self.dice.below(20))).await;
        // One that comes before the statement has begun does nothing, as it must be.
        for _ in 0..200 {
            link.cancel().await?;
            if timeout(Duration::from_millis(100), link.more()).await.is_ok_and(|read| read.is_ok()) {
                break;
            }
        }
        let batch = link.batch().await?;
        if self.refused(&batch) {
            return Ok(());
        }
        let cancelled = batch.errors.len() == 1 && batch.errors[0].code == CANCELLED;
        if !cancelled || !batch.rows.is_empty() {
            self.seen.wrong(format!("client {}: cancelled with {batch:?}", self.number));
            return Ok(());
        }
        self.seen.cancelled.fetch_add(1, Ordering::Relaxed);
        // The last of several may hit the client's own next statement, and nobody else's.
        let token = self.token();
        link.query(&format!("select '{token}', 1"));
        let batch = link.ask().await?;
        if !batch.errors.iter().any(|fault| fault.code == CANCELLED) {
            self.judge(&batch, &[Answer::Rows(token, 1)]);
        }
        Ok(())
    }

    /// A time limit of the server's.
    async fn times_out(&mut self, link: &mut Link) -> Result<(), Lost> {
        let token = self.token();
        link.query(&format!(
            "begin; set local statement_timeout = '20ms'; select '{token}', 1; select '{token}', 2 from pg_sleep(30)"
        ));
        let batch = link.ask().await?;
        if self.refused(&batch) {
            return Ok(());
        }
        let right = matches!(&batch.errors[..], [fault] if fault.code == CANCELLED && fault.message.contains("timeout"));
        // On a busy machine the first SELECT may take so long.
        let rows = rows(&batch);
        let own = rows.is_empty() || rows == [format!("{token} 1")];
        if !right || !own || batch.status != b'E' {
            self.seen.wrong(format!("client {}: {token} timed out with {batch:?}", self.number));
        }
        link.query("rollback");
        let ended = link.ask().await?;
        if ended.status != b'I' {
            self.seen.wrong(format!("client {}: a transaction ended with {ended:?}", self.number));
        }
        self.seen.right.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the connection in the middle of a result.
    async fn leave_in_result(&mut self, link: &mut Link) -> Result<Next, Lost> {
        let token = self.token();
        if self.dice.once_in(2) {
            link.query(&format!("select '{token}', n from generate_series(1, 20000) n"));
        } else {
            link.extended("select $1::text, n from generate_series(1, 20000) n", &[&token]);
            link.sync();
        }
        link.send().await?;
        let mut row = 0;
        for _ in 0..self.dice.below(2000) {
            match link.message().await? {
                (b'D', body) => {
                    row += 1;
                    let number = row.to_string();
                    let wanted = [token.as_bytes(), number.as_bytes()];
                    if !wanted.iter().all(|part| body.windows(part.len()).any(|bytes| bytes == *part)) {
                        self.seen.wrong(format!("client {}: {body:?} instead of {token} {row}", self.number));
                        break;
                    }
                }
                (b'E' | b'Z', _) => break,
                _ => {}
            }
        }
        Ok(Next::Leave)
    }

    /// Does not wait for the answer, nor always for the place.
    async fn give_up(&mut self, link: &mut Link) -> Result<Next, Lost> {
        let token = self.token();
        if self.dice.once_in(2) {
            link.query(&format!("begin; select '{token}', 1 from pg_sleep(0.05)"));
        } else {
            link.query(&format!("select '{token}', 1 from pg_sleep(0.05)"));
        }
        link.send().await?;
        sleep(Duration::from_millis(self.dice.below(30))).await;
        Ok(Next::Leave)
    }

    /// Whether the sidecar refused it, which must be all that it said. It must not make the client wait for longer than for a reply.
    fn refused(&self, batch: &Batch) -> bool {
        match is_refused(batch) {
            Some(whole) => {
                self.seen.refused.fetch_add(1, Ordering::Relaxed);
                let pause = batch.retry_after().unwrap_or_default();
                self.pause.set(pause.min(PATIENCE));
                if !whole || pause > PATIENCE {
                    self.seen.wrong(format!("client {}: refused with {batch:?}", self.number));
                }
                true
            }
            None => false,
        }
    }

    fn judge(&self, batch: &Batch, answers: &[Answer]) -> bool {
        self.check(batch, answers, b'I')
    }

    /// Compares what came with what must; `false` when the batch was refused or did not succeed as a whole.
    fn check(&self, batch: &Batch, answers: &[Answer], status: u8) -> bool {
        if self.refused(batch) {
            return false;
        }
        match compare(batch, answers, status) {
            Ok(right) => {
                self.seen.right.fetch_add(right, Ordering::Relaxed);
            }
            Err(why) => self.seen.wrong(format!("client {}: {why}", self.number)),
        }
        batch.errors.is_empty()
    }
}
