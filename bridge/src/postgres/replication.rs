//! The commands of the replication protocol that the bridge uses.
//!
//! In: names of slots and publications, unquoted. Out: typed answers, at last a `ReplicationStream`.
//! Invariant: a name reaches the server as an identifier or literal whatever is in it.

use wire::Lsn;

use super::connection::{Session, unexpected};
use super::error::{Error, ServerError};
use super::stream::ReplicationStream;

/// Options of pgoutput beside the protocol version and the publications: messages of
/// `pg_logical_emit_message` come too. Needs PostgreSQL 14.
pub const START_OPTIONS: [(&str, &str); 1] = [("messages", "true")];

/// The answer to IDENTIFY_SYSTEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made by initdb; the same on a cluster and its standbys.
    pub system_identifier: String,
    pub timeline: u32,
    /// The WAL's flush position. Not where to start: that is the slot's business.
    pub wal_lsn: Lsn,
    pub database: String,
}

/// Where a timeline ended, on the way to a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineEnd {
    pub timeline: u32,
    /// WAL from here on is of another timeline.
    pub at: Lsn,
}

/// The answer to CREATE_REPLICATION_SLOT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatedSlot {
    /// The slot sends each transaction that commits after this.
    pub consistent_point: Lsn,
}

impl Session {
    pub fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let rows = self.simple_query("IDENTIFY_SYSTEM")?;
        let row = rows.into_iter().next().map(<[Option<String>; 4]>::try_from);
        let Some(Ok(
            [
                Some(system_identifier),
                Some(timeline),
                Some(lsn),
                Some(database),
            ],
        )) = row
        else {
            return Err(unexpected("a row of IDENTIFY_SYSTEM with a database"));
        };
        let lsn = lsn.parse().ok();
        let (Some(wal_lsn), Ok(timeline)) = (lsn, timeline.parse()) else {
            return Err(unexpected("a timeline and an LSN"));
        };
        Ok(SystemIdentity {
            system_identifier,
            timeline,
            wal_lsn,
            database,
        })
    }

    /// The timelines from which this one has come, the first one first. The server's own only, or one before.
    pub fn timeline_history(&mut self, timeline: u32) -> Result<Vec<TimelineEnd>, Error> {
        // PostgreSQL: the first timeline has come from none, and has no history file.
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let rows = self.simple_query(&format!("TIMELINE_HISTORY {timeline}"))?;
        let content = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().nth(1));
        let content = content
            .flatten()
            .ok_or_else(|| unexpected("the history of a timeline"))?;
        timeline_ends(&content).ok_or_else(|| unexpected("lines of a timeline's history"))
    }

    /// Creates a logical slot for pgoutput. Waits for transactions that are running now.
    /// `failover` has standbys keep a copy; servers before PostgreSQL 17 refuse it.
    pub fn create_slot(&mut self, slot: &str, failover: bool) -> Result<CreatedSlot, Error> {
        // PostgreSQL: the options in parentheses came with 15; the keyword works everywhere.
        let options = if failover {
            "(SNAPSHOT 'nothing', FAILOVER true)"
        } else {
            "NOEXPORT_SNAPSHOT"
        };
        let slot = quote_ident(slot);
        let sql = format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput {options}");
        let rows = self.simple_query(&sql)?;
        let consistent_point = rows
            .first()
            .and_then(|row| row.get(1)?.as_deref()?.parse().ok())
            .ok_or_else(|| unexpected("the consistent point of the new slot"))?;
        Ok(CreatedSlot { consistent_point })
    }

    /// Starts to stream from where the slot stands: always at 0/0, because any other LSN that is
    /// ahead of the slot would skip what was written while nobody listened.
    ///
    /// `options` go to pgoutput as they are; see `START_OPTIONS`.
    pub fn start_replication(
        mut self,
        slot: &str,
        publications: &[String],
        options: &[(&str, &str)],
    ) -> Result<ReplicationStream, Error> {
        self.send_query(&start_replication_command(slot, publications, options))?;
        match self.receive()? {
            // CopyBothResponse.
            (b'W', _) => Ok(ReplicationStream::new(self.transport, self.input)),
            (b'E', body) => Err(ServerError::parse(body).classify()),
            _ => Err(unexpected("CopyBothResponse")),
        }
    }
}

/// PostgreSQL: a line of the file is a timeline, where it ended and why, between tabs ("Timelines").
fn timeline_ends(content: &str) -> Option<Vec<TimelineEnd>> {
    let lines = content.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let end = |line: &str| {
        let mut fields = line.split_whitespace();
        Some(TimelineEnd {
            timeline: fields.next()?.parse().ok()?,
            at: fields.next()?.parse().ok()?,
        })
    };
    lines.map(end).collect()
}

fn start_replication_command(
    slot: &str,
    publications: &[String],
    options: &[(&str, &str)],
) -> String {
    let names: Vec<_> = publications.iter().map(|name| quote_ident(name)).collect();
    let names = names.join(",");
    let all = [("proto_version", "1"), ("publication_names", &names)];
    let all: Vec<_> = all
        .iter()
        .chain(options)
        .map(|(name, value)| format!("{} {}", quote_ident(name), quote_literal(value)))
        .collect();
    format!(
        "START_REPLICATION SLOT {} LOGICAL 0/0 ({})",
        quote_ident(slot),
        all.join(", ")
    )
}

/// As SQL's `quote_ident`, but always with quotes.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal. PostgreSQL: the replication grammar has no backslash escapes, and neither
/// has SQL under `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_tells_where_each_timeline_ended() {
        let content = "1\t0/3000060\tno recovery target specified\n\n2\t1/A0\tbefore 2000-01-01 00:00:00+00\n";

        let ends = timeline_ends(content).unwrap();

        assert_eq!(ends[0].timeline, 1);
        assert_eq!(ends[0].at, Lsn(0x300_0060));
        assert_eq!(ends[1].at, Lsn(0x1_0000_00A0));
        assert_eq!(timeline_ends("one\t0/1\tno"), None);
    }

    #[test]
    fn names_survive_quoting() {
        let publications = ["plain".to_owned(), "it's \"odd\", really".to_owned()];

        let command = start_replication_command("cdc_slot", &publications, &START_OPTIONS);

        assert_eq!(
            command,
            "START_REPLICATION SLOT \"cdc_slot\" LOGICAL 0/0 (\"proto_version\" '1', \
             \"publication_names\" '\"plain\",\"it''s \"\"odd\"\", really\"', \"messages\" 'true')"
        );
    }
}
