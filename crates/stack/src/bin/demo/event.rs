//! One event as a consumer sees it.
//!
//! In: a message of the CDC stream. Out: its place in the order of commits, its latency, and a few
//! lines for people.
//! Must hold: what is not understood is an error, never a default.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;

use crate::value::Value;

/// Identity and order: the transaction's commit LSN, then the event's number within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub commit_lsn: u64,
    pub seq: u64,
}

pub struct Event {
    pub subject: String,
    pub position: Position,
    /// From commit to here; both clocks are this machine's.
    pub latency: Duration,
    pub committed_at: SystemTime,
    body: Value,
}

impl Event {
    pub fn decode(subject: &str, payload: &[u8]) -> anyhow::Result<Self> {
        let received = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let body: Value = rmp_serde::from_slice(payload).context("not MessagePack")?;
        let lsn = body
            .get("commit_lsn")
            .and_then(Value::text)
            .context("no commit_lsn")?;
        let seq = body.get("seq").and_then(Value::integer).context("no seq")?;
        let committed = body
            .get("commit_time")
            .and_then(Value::integer)
            .context("no commit_time")?;
        let committed = Duration::from_micros(u64::try_from(committed)?);
        Ok(Self {
            subject: subject.to_owned(),
            position: Position {
                commit_lsn: parse_lsn(lsn)?,
                seq: u64::try_from(seq)?,
            },
            latency: received.saturating_sub(committed),
            committed_at: UNIX_EPOCH + committed,
            body,
        })
    }

    /// Columns that the row has and the event leaves out: TOASTed and not changed.
    pub fn unchanged(&self) -> Vec<&str> {
        let names = self
            .body
            .get("unchanged")
            .map(Value::list)
            .unwrap_or_default();
        names.iter().filter_map(Value::text).collect()
    }

    /// `name=value` for each column of the list under `key`; `None` if there is none.
    fn columns(&self, key: &str) -> Option<String> {
        let columns = self.body.get(key)?.list().iter().map(|column| {
            let name = column.get("name").and_then(Value::text).unwrap_or("?");
            let value = column.get("value").unwrap_or(&Value::Nil);
            format!("{name}={value}")
        });
        Some(columns.collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
    }
}

fn parse_lsn(text: &str) -> anyhow::Result<u64> {
    let (high, low) = text.split_once('/').context("an LSN has a slash")?;
    Ok(u64::from_str_radix(high, 16)? << 32 | u64::from_str_radix(low, 16)?)
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { commit_lsn, seq } = self.position;
        let (high, low) = (commit_lsn >> 32, commit_lsn & 0xFFFF_FFFF);
        let milliseconds = self.latency.as_secs_f64() * 1e3;
        write!(
            f,
            "  -> {:<20} {high:X}/{low:X}:{seq}  {milliseconds:.1} ms",
            self.subject
        )?;
        for (label, key) in [("old", "old"), ("row", "columns")] {
            if let Some(columns) = self.columns(key) {
                write!(f, "\n       {label}: {columns}")?;
            }
        }
        let unchanged = self.unchanged();
        if !unchanged.is_empty() {
            write!(f, "\n       unchanged: {}", unchanged.join(" "))?;
        }
        Ok(())
    }
}
