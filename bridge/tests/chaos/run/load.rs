//! Writes: single rows, ten to a transaction, COPY, very large transactions, and what no stream shows.
//!
//! In: dice. Out: committed transactions, and some that are not. Must hold: it goes on whatever happens to
//! PostgreSQL; nobody asks it what was committed, because a commit whose answer is lost may be either.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use super::Plan;
use super::dice::Dice;
use super::world::World;

pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    transactions: AtomicU64,
}

/// The next statement, and how long to rest after it.
type Write = Box<dyn Fn(&mut Dice) -> (String, Duration) + Send>;

/// A statement that takes longer is given up on, connection and all.
const PATIENCE: Duration = Duration::from_secs(20);

impl Load {
    pub fn start(world: &World, plan: &Plan) -> Self {
        let shared = Arc::new(Shared::default());
        let bulk_rows = plan.bulk_rows;
        let writers: [(u64, Write); 3] = [
            (1, Box::new(small)),
            (2, Box::new(small)),
            (3, Box::new(move |dice| large(dice, bulk_rows))),
        ];
        let threads = writers.map(|(stream, write)| {
            let (shared, url) = (shared.clone(), world.postgres().url());
            let mut dice = Dice::new(plan.seed, stream);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let runtime = runtime.expect("a runtime can be made");
                let mut client = None;
                while !shared.is_stopped.load(Ordering::Relaxed) {
                    let (sql, pause) = write(&mut dice);
                    if runtime.block_on(execute(&mut client, &url, &sql)) {
                        shared.transactions.fetch_add(1, Ordering::Relaxed);
                    } else {
                        client = None;
                    }
                    std::thread::sleep(pause);
                }
            })
        });
        Self {
            shared,
            threads: threads.into(),
        }
    }

    /// Returns how many transactions were committed, as far as their answers came.
    pub fn stop(mut self) -> u64 {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a writer does not fail");
        }
        self.shared.transactions.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
    }
}

/// False: the connection is of no more use, or there is none.
async fn execute(client: &mut Option<Client>, url: &str, sql: &str) -> bool {
    let executed = async {
        if client.is_none() {
            let (connected, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
            tokio::spawn(connection);
            *client = Some(connected);
        }
        client.as_ref()?.batch_execute(sql).await.ok()
    };
    if let Ok(Some(())) = tokio::time::timeout(PATIENCE, executed).await {
        true
    } else {
        tokio::time::sleep(Duration::from_millis(100)).await;
        false
    }
}

fn small(dice: &mut Dice) -> (String, Duration) {
    let note = dice.next();
    let recent = dice.within(0..200);
    let nth =
        |table: &str| format!("(SELECT id FROM {table} ORDER BY id DESC OFFSET {recent} LIMIT 1)");
    let sql = match dice.within(0..100) {
        0..40 => format!("INSERT INTO singles (note, is_odd, amount) VALUES ('{note}', {}, {note}.50)", note % 2 == 1),
        40..45 => "INSERT INTO singles (note) VALUES (NULL)".to_owned(),
        45..55 => format!("UPDATE singles SET note = 'it''s {note}' WHERE id = {}", nth("singles")),
        55..60 => format!("UPDATE singles SET id = nextval('singles_id_seq') WHERE id = {}", nth("singles")),
        60..65 => format!("DELETE FROM singles WHERE id = {}", nth("singles")),
        65..80 => format!("INSERT INTO tens (note) SELECT '{note} ' || n FROM generate_series(1, 10) n"),
        // Large enough to be stored apart, so that a later update does not send it.
        80..84 => format!(
            "INSERT INTO tens (note, body) SELECT '{note}', string_agg(md5(random()::text), '') FROM generate_series(1, 150)"
        ),
        84..90 => format!("UPDATE tens SET note = '{note}' WHERE id IN (SELECT id FROM tens ORDER BY id DESC LIMIT 10)"),
        90..93 => format!("BEGIN; INSERT INTO singles (note) VALUES ('{note}'); ROLLBACK"),
        93..96 => format!(
            "BEGIN; INSERT INTO singles (note) VALUES ('{note}'); SAVEPOINT a; INSERT INTO tens (note) VALUES ('void');
             ROLLBACK TO a; SAVEPOINT b; INSERT INTO tens (note) VALUES ('{note}'); RELEASE b; COMMIT"
        ),
        96..98 => format!("INSERT INTO hidden (note) VALUES ('{note}')"),
        98 if recent < 50 => "TRUNCATE singles".to_owned(),
        98 if recent < 100 => "ALTER TABLE singles ADD COLUMN IF NOT EXISTS extra integer DEFAULT 7".to_owned(),
        98 if recent < 150 => "ALTER TABLE singles DROP COLUMN IF EXISTS extra".to_owned(),
        _ => format!("DELETE FROM tens WHERE id IN (SELECT id FROM tens ORDER BY id LIMIT {recent})"),
    };
    (
        sql,
        if dice.percent(50) {
            Duration::ZERO
        } else {
            dice.millis(0..8)
        },
    )
}

fn large(dice: &mut Dice, bulk_rows: u64) -> (String, Duration) {
    let note = dice.next();
    let sql = match dice.within(0..10) {
        0 => format!(
            "INSERT INTO bulk (note) SELECT 'row ' || n FROM generate_series(1, {bulk_rows}) n"
        ),
        1 => format!(
            "DELETE FROM bulk WHERE id IN (SELECT id FROM bulk ORDER BY id LIMIT {})",
            bulk_rows / 2
        ),
        // More than a message may hold.
        2 => format!(
            "INSERT INTO wide (body) SELECT string_agg(md5(n::text), '') FROM generate_series(1, {}) n",
            dice.within(33_000..70_000)
        ),
        _ => format!(
            "COPY copies (note) FROM PROGRAM 'seq -f \"{note} %.0f\" 1 {}'",
            dice.within(1..3_000)
        ),
    };
    (sql, dice.millis(100..1_500))
}
