//! `bridge check [--json]`: every preflight, one line each, and nothing is changed.
//!
//! In: the flags the bridge would be started with. Out: lines of ok, warn or fail, each with its remedy.
//! Invariant: a check that cannot be made is a line too, never left out.

mod nats;
mod postgres;

use daemon::chained::Chained;
use serde::Serialize;

use super::Error;
use crate::catalog::Catalog;
use crate::checkpoint;
use crate::config::Config;
use crate::identity::{self, Identity};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// The bridge would start; somebody should look.
    Warn,
    /// It would not start, or lose what it promises.
    Fail,
}

#[derive(Debug, Serialize)]
struct Line {
    level: Level,
    what: &'static str,
    text: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

#[derive(Debug, Default)]
struct Report(Vec<Line>);

impl Report {
    fn ok(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(Level::Ok, what, text, "");
    }

    fn warn(&mut self, what: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Warn, what, text, remedy);
    }

    fn fail(&mut self, what: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Fail, what, text, remedy);
    }

    fn add(
        &mut self,
        level: Level,
        what: &'static str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        // One line each: what PostgreSQL says may have several.
        let flat = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.0.push(Line {
            level,
            what,
            text: flat(text.into()),
            remedy: flat(remedy.into()),
        });
    }
}

/// True when nothing has failed.
pub(super) async fn run(config: &Config, is_json: bool) -> Result<bool, Error> {
    let mut report = Report::default();
    let mut catalog = Catalog::new(config.postgres.clone());
    let server = postgres::check(config, &mut catalog, &mut report).await;
    let remembered = nats::check(config, &mut report).await;
    if let (Some(server), Some(remembered)) = (server, remembered) {
        same_history(&server, &remembered, &mut report);
    }
    if is_json {
        let json = serde_json::to_string_pretty(&report.0).expect("lines of strings are JSON");
        println!("{json}");
    } else {
        for Line {
            level,
            what,
            text,
            remedy,
        } in &report.0
        {
            let level = match level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "fail",
            };
            let remedy = if remedy.is_empty() {
                String::new()
            } else {
                format!(" -> {remedy}")
            };
            println!("{level:<4}  {what:<12}  {text}{remedy}");
        }
    }
    Ok(report.0.iter().all(|line| line.level != Level::Fail))
}

/// The server's side and the checkpoint's belong together.
fn same_history(
    server: &postgres::Found,
    remembered: &wire::checkpoint::Checkpoint,
    report: &mut Report,
) {
    let known = Identity {
        system_identifier: remembered.system_identifier.clone(),
        timeline: remembered.timeline,
    };
    let judged = identity::check(
        Some(&known),
        &server.identity,
        &server.history,
        checkpoint::known(remembered).position,
    );
    match judged {
        Ok(()) => report.ok(
            "identity",
            format!(
                "system identifier {}, timeline {}, as in the checkpoint or a promotion of it",
                server.identity.system_identifier, server.identity.timeline
            ),
        ),
        Err(error) => report.fail("identity", Chained(&error).to_string(), ""),
    }
    match server.confirmed {
        None => report.fail(
            "slot",
            "a bridge has used the slot, and it is gone: changes since are lost",
            "--on-slot-loss resnapshot makes a new one, tells consumers and makes snapshots",
        ),
        Some(confirmed)
            if remembered.confirmed.is_valid()
                && confirmed > remembered.confirmed.max(remembered.position.commit_lsn) =>
        {
            report.warn(
                "slot",
                format!(
                    "it is at {confirmed}, ahead of {} that the checkpoint knows of: moved by hand, or the stream was \
                     restored from an older copy",
                    remembered.confirmed
                ),
                "the next start tells consumers of the gap",
            );
        }
        Some(_) => {}
    }
}
