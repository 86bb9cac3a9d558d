//! `bridge snapshot <table> [--watch]`.

use std::io::{IsTerminal as _, Write as _};

use async_nats::Client;
use futures_util::StreamExt as _;
use futures_util::stream::select_all;
use wire::snapshot::{self, Meta, Progress};
use wire::snapshot_request::{Options, Reply};
use wire::{Message as _, names};

use super::{Error, connect, name, nats};
use crate::config::Config;

pub(super) async fn run(config: &Config, table: &str, is_watched: bool) -> Result<bool, Error> {
    let (schema, name) = name(table)?;
    let (client, _) = connect(config).await?;
    if !is_watched {
        println!(
            "{}",
            request(&client, &schema, &name, &Options::default()).await?
        );
        return Ok(true);
    }
    let mut bar = Bar::new();
    let meta = make(&client, &schema, &name, &Options::default(), |progress| {
        bar.show(progress);
    })
    .await?;
    bar.end();
    println!(
        "{}: {} rows in {} chunks, joins the stream at {} behind sequence {}",
        meta.snapshot_id, meta.row_count, meta.batch_count, meta.lsn, meta.cdc_seq
    );
    Ok(true)
}

/// Asks; the snapshot's id.
async fn request(
    client: &Client,
    schema: &str,
    table: &str,
    options: &Options,
) -> Result<String, Error> {
    let subject = names::snapshot_request(schema, table);
    let answer = client.request(subject, options.to_msgpack().into()).await;
    match Reply::decode(
        &answer
            .map_err(nats("ask for a snapshot; is a bridge running?"))?
            .payload,
    )? {
        Reply::Accepted { snapshot_id } => Ok(snapshot_id),
        Reply::Refused(error) => Err(Error::Refused(Box::new(error))),
    }
}

/// Asks, and waits until it is made.
pub(super) async fn make(
    client: &Client,
    schema: &str,
    table: &str,
    options: &Options,
    mut show: impl FnMut(&Progress),
) -> Result<Meta, Error> {
    let mut subscriptions = Vec::new();
    for subject in [
        names::init_progress(schema, table),
        names::init_meta(schema, table),
        names::init_error(schema, table),
    ] {
        subscriptions.push(client.subscribe(subject).await.map_err(nats("subscribe"))?);
    }
    let id = request(client, schema, table, options).await?;
    let mut messages = select_all(subscriptions);
    loop {
        let message = messages.next().await.ok_or(Error::Ended)?;
        if message.subject.starts_with("init.meta.") {
            let meta = Meta::decode(&message.payload)?;
            if meta.snapshot_id == id {
                return Ok(meta);
            }
        } else if message.subject.starts_with("init.error.") {
            let error = snapshot::Error::decode(&message.payload)?;
            if error.snapshot_id.as_ref() == Some(&id) {
                return Err(Error::Refused(Box::new(error)));
            }
        } else {
            let progress = Progress::decode(&message.payload)?;
            if progress.snapshot_id == id {
                show(&progress);
            }
        }
    }
}

/// One line, redrawn; on anything but a terminal a line each.
struct Bar {
    is_terminal: bool,
}

impl Bar {
    fn new() -> Self {
        Self {
            is_terminal: std::io::stdout().is_terminal(),
        }
    }

    fn show(&mut self, progress: &Progress) {
        let line = line(progress);
        if self.is_terminal {
            print!("\r{line}\x1b[K");
            let _ = std::io::stdout().flush();
        } else {
            println!("{line}");
        }
    }

    fn end(&self) {
        if self.is_terminal {
            println!();
        }
    }
}

fn line(progress: &Progress) -> String {
    const WIDTH: usize = 30;
    let bar = progress.percent.map(|percent| {
        let filled = ((percent / 100.0).clamp(0.0, 1.0) * WIDTH as f64) as usize;
        format!(
            "[{}{}] {percent:5.1} % ",
            "#".repeat(filled),
            ".".repeat(WIDTH - filled)
        )
    });
    let left = progress.eta_s.map(|seconds| format!(", {seconds} s left"));
    format!(
        "{}{} rows, {:.1} MiB{}",
        bar.unwrap_or_default(),
        progress.rows,
        progress.bytes as f64 / f64::from(1 << 20),
        left.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_needs_an_estimate() {
        let mut progress = Progress {
            table: "users".into(),
            snapshot_id: "snap-1".into(),
            rows: 500,
            bytes: 1 << 20,
            percent: Some(50.0),
            eta_s: Some(3),
            schema: "public".into(),
        };
        assert_eq!(
            line(&progress),
            "[###############...............]  50.0 % 500 rows, 1.0 MiB, 3 s left"
        );

        progress.percent = None;
        progress.eta_s = None;

        assert_eq!(line(&progress), "500 rows, 1.0 MiB");
    }
}
