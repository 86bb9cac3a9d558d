//! What the demo writes, and which events it must cause.
//!
//! In: a connection to PostgreSQL and the feed. Out: each step's SQL, then its events.
//! Must hold: a step ends when its events are there or after a deadline, so a lost event shows.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Client;

use crate::feed::Feed;
use crate::summary::Summary;

const EVENTS_DEADLINE: Duration = Duration::from_secs(20);
/// Of a step with more events only the first are shown.
const SHOWN_MAX: usize = 3;
const COPIED_ROWS: usize = 1_000;
const SINGLE_ROWS: usize = 500;

struct Step {
    title: &'static str,
    sql: &'static str,
    /// Subjects of the events, in order.
    subjects: &'static [&'static str],
    /// Columns that the last event leaves out as unchanged.
    unchanged: &'static [&'static str],
}

const STEPS: &[Step] = &[
    Step {
        title: "A row",
        sql: "INSERT INTO users (id, name, email)\n  \
              VALUES ('00000000-0000-4000-8000-000000000001', 'Ada', 'ada@example.com')",
        subjects: &["cdc.users.insert"],
        unchanged: &[],
    },
    Step {
        title: "Two tables, one transaction",
        sql: "BEGIN;\n  \
              INSERT INTO users (id, name, email)\n    \
              VALUES ('00000000-0000-4000-8000-000000000002', 'Grace', 'grace@example.com');\n  \
              INSERT INTO orders (id, user_id, items, total)\n    \
              VALUES ('00000000-0000-4000-8000-00000000000a',\n            \
              '00000000-0000-4000-8000-000000000002', '[\"compiler\"]', 1952.50);\n  \
              COMMIT",
        subjects: &["cdc.users.insert", "cdc.orders.insert"],
        unchanged: &[],
    },
    Step {
        title: "A transaction that is rolled back: no event",
        sql: "BEGIN; DELETE FROM orders; DELETE FROM users; ROLLBACK",
        subjects: &[],
        unchanged: &[],
    },
    Step {
        title: "A value so large that PostgreSQL stores it elsewhere (TOAST)",
        sql: "UPDATE users\n  \
              SET bio = (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 400) AS n)\n  \
              WHERE name = 'Ada'",
        subjects: &["cdc.users.update"],
        unchanged: &[],
    },
    Step {
        title: "An update that does not touch it: left out, never null",
        sql: "UPDATE users SET name = 'Ada Lovelace' WHERE name = 'Ada'",
        subjects: &["cdc.users.update"],
        unchanged: &["bio"],
    },
    Step {
        title: "A new primary key: the old one comes along",
        sql: "UPDATE users SET id = '00000000-0000-4000-8000-000000000003'\n  \
              WHERE name = 'Ada Lovelace'",
        subjects: &["cdc.users.update"],
        unchanged: &["bio"],
    },
    Step {
        title: "A delete",
        sql: "DELETE FROM users WHERE name = 'Ada Lovelace'",
        subjects: &["cdc.users.delete"],
        unchanged: &[],
    },
];

pub async fn play(client: &Client, feed: &mut Feed, summary: &mut Summary) -> anyhow::Result<()> {
    for step in STEPS {
        announce(step.title, step.sql);
        client.batch_execute(step.sql).await.context(step.title)?;
        show(step.subjects, feed, summary, step.unchanged).await?;
    }

    announce(
        &format!("A COPY of {COPIED_ROWS} rows, one transaction"),
        "COPY users (name, email) FROM STDIN",
    );
    copy(client).await?;
    show(&vec!["cdc.users.insert"; COPIED_ROWS], feed, summary, &[]).await?;

    announce(
        &format!("{SINGLE_ROWS} small transactions, each awaited before the next: latency"),
        "INSERT INTO users (name, email) VALUES ('Single-n', 'single-n@example.com')",
    );
    single_rows(client, feed, summary).await?;

    let sql = "TRUNCATE orders";
    announce("A truncate", sql);
    client.batch_execute(sql).await?;
    show(&["cdc.orders.truncate"], feed, summary, &[]).await
}

fn announce(title: &str, sql: &str) {
    println!("\n-- {title}\n  {sql};");
}

/// Awaits one event per subject and prints the first ones.
async fn show(
    subjects: &[&str],
    feed: &mut Feed,
    summary: &mut Summary,
    unchanged: &[&str],
) -> anyhow::Result<()> {
    summary.expected += subjects.len() as u64;
    for (index, subject) in subjects.iter().enumerate() {
        let Ok(event) = tokio::time::timeout(EVENTS_DEADLINE, feed.next()).await else {
            let missing = subjects.len() - index;
            println!("  -> nothing for {EVENTS_DEADLINE:?}: {missing} events are missing");
            return Ok(());
        };
        let event = event?;
        summary.saw(&event);
        if index < SHOWN_MAX {
            println!("{event}");
        }
        if event.subject != *subject {
            summary
                .complaints
                .push(format!("{} came in the place of {subject}", event.subject));
        }
        if index + 1 == subjects.len() && event.unchanged() != unchanged {
            let left_out = event.unchanged();
            summary
                .complaints
                .push(format!("{left_out:?} left out instead of {unchanged:?}"));
        }
    }
    match subjects.len() {
        0 => println!("  -> nothing, as it should be"),
        count if SHOWN_MAX < count => println!("  -> and {} more", count - SHOWN_MAX),
        _ => {}
    }
    Ok(())
}

async fn copy(client: &Client) -> anyhow::Result<()> {
    let mut rows = String::new();
    for n in 1..=COPIED_ROWS {
        writeln!(rows, "Copied-{n}\tcopied-{n}@example.com")?;
    }
    let sink = client
        .copy_in::<_, Bytes>("COPY users (name, email) FROM STDIN")
        .await?;
    tokio::pin!(sink);
    sink.send(Bytes::from(rows)).await?;
    sink.as_mut().finish().await?;
    Ok(())
}

/// Each row is awaited before the next is written, so that no event waits behind another.
async fn single_rows(
    client: &Client,
    feed: &mut Feed,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let insert = client
        .prepare("INSERT INTO users (name, email) VALUES ($1, $2)")
        .await?;
    for n in 1..=SINGLE_ROWS {
        let (name, email) = (format!("Single-{n}"), format!("single-{n}@example.com"));
        client.execute(&insert, &[&name, &email]).await?;
        summary.expected += 1;
        let Ok(event) = tokio::time::timeout(EVENTS_DEADLINE, feed.next()).await else {
            println!("  -> nothing for {EVENTS_DEADLINE:?} after row {n}");
            return Ok(());
        };
        let event = event?;
        summary.saw(&event);
        summary.latencies.push(event.latency);
        if n == 1 {
            println!("{event}");
        }
    }
    println!("  -> and {} more", SINGLE_ROWS - 1);
    Ok(())
}
