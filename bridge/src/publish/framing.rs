//! What each mode writes around a message: the reply subject and the headers.
//!
//! In: a message's place in its group. Out: bytes of one frame. Invariant: the reply subject of a message
//! leads back to its group's token, in every mode.

use std::collections::HashMap;
use std::sync::Arc;

use wire::{Operation, Position, SubjectPattern, message_id, names};

use super::chain::Place;
use super::frame::decimal;
use super::mode::Mode;
use super::tail::Tail;
use crate::event::Table;

/// Headers and reply subjects of one connection.
#[derive(Debug)]
pub struct Framing {
    mode: Mode,
    has_msg_id: bool,
    /// `_INBOX.<unique>.`
    inbox: String,
    /// The token behind the inbox that batch ids start with: unique, since the stream knows batches by
    /// their id alone.
    batch: String,
    fences: Fences,
}

/// What a message is, for its headers.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub table: &'a Arc<Table>,
    pub operation: Operation,
    pub position: Position,
}

/// Asked of the server before its second ack in a fast batch; groups are no larger.
const FLOW_EVENTS: &[u8] = b".500.fail.";

impl Framing {
    pub fn new(subjects: SubjectPattern, has_msg_id: bool) -> Self {
        Self {
            mode: Mode::Chain,
            has_msg_id,
            inbox: String::new(),
            batch: String::new(),
            fences: Fences::new(subjects),
        }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Starts over behind `tail`.
    pub fn restart(&mut self, mode: Mode, inbox: &str, tail: &Tail) {
        self.mode = mode;
        inbox.clone_into(&mut self.inbox);
        let unique = inbox.trim_start_matches("_INBOX.").trim_end_matches('.');
        self.batch = format!("{}-", unique.get(..16).unwrap_or(unique));
        self.fences.restart(tail);
    }

    /// Notes that a message of `table` is the next, before anything is written for it.
    #[inline]
    pub fn next(&mut self, table: &Arc<Table>, place: Place) {
        if self.mode == Mode::Batch {
            self.fences.next(table, place.index);
        }
    }

    /// The batch of `events` messages ended at `last_sequence` of the stream.
    pub fn stored(&mut self, last_sequence: u64, events: usize) {
        if self.mode == Mode::Batch {
            self.fences.stored(last_sequence, events);
        }
    }

    /// The reply subject, if there is one. `asked` is true for a group's last message.
    #[inline]
    pub fn reply<'a>(&self, out: &'a mut Vec<u8>, place: Place, asked: bool) -> Option<&'a [u8]> {
        out.clear();
        out.extend_from_slice(self.inbox.as_bytes());
        let is_fast = self.mode == Mode::Fast && !(asked && place.index == 1);
        if is_fast {
            out.extend_from_slice(self.batch.as_bytes());
        } else if !asked {
            return None;
        }
        decimal(out, place.token);
        if is_fast {
            // `<prefix>.<batch id>.<flow>.<gap mode>.<batch sequence>.<operation>.$FI` (ADR-50).
            out.extend_from_slice(FLOW_EVENTS);
            decimal(out, place.index);
            out.extend_from_slice(match (place.index, asked) {
                (_, true) => b".2.$FI",
                (1, false) => b".0.$FI",
                (_, false) => b".1.$FI",
            });
        }
        Some(out)
    }

    /// The token in the reply subject of an answer.
    pub fn token(&self, reply: &str) -> Option<u64> {
        let rest = reply.strip_prefix(self.inbox.as_str())?;
        let token = match rest.strip_prefix(self.batch.as_str()) {
            Some(batch) => batch.split('.').next()?,
            None => rest,
        };
        token.parse().ok()
    }

    /// The header lines of an event. `expected` is the stream's last sequence, if all goes well.
    #[inline]
    pub fn headers(
        &self,
        out: &mut Vec<u8>,
        place: Place,
        asked: bool,
        expected: u64,
        subject: Subject<'_>,
    ) {
        match self.mode {
            Mode::Chain | Mode::Fast => expect(out, expected),
            Mode::Batch => self.batch_headers(out, place, asked),
            Mode::MsgId => return msg_id(out, subject),
        }
        if self.has_msg_id {
            msg_id(out, subject);
        }
    }

    /// The header lines of a message that is no event and a group of its own.
    pub fn lone_headers(&self, out: &mut Vec<u8>, expected: u64) {
        match self.mode {
            Mode::Chain | Mode::Fast => expect(out, expected),
            Mode::Batch | Mode::MsgId => {}
        }
    }

    fn batch_headers(&self, out: &mut Vec<u8>, place: Place, asked: bool) {
        if place.index == 1 {
            // The event behind the tail is the same for whoever goes on from there, so whoever stored
            // it first has moved the end of its table's subjects.
            line(out, names::HEADER_EXPECTED_LAST_SUBJECT_SEQUENCE, |out| {
                decimal(out, self.fences.expected);
            });
            line(out, EXPECTED_SUBJECT, |out| {
                out.extend_from_slice(self.fences.filter.as_bytes());
            });
            if asked {
                return; // Alone it needs no batch.
            }
        }
        line(out, BATCH_ID, |out| {
            out.extend_from_slice(self.batch.as_bytes());
            decimal(out, place.token);
        });
        line(out, BATCH_SEQUENCE, |out| decimal(out, place.index));
        if asked {
            line(out, BATCH_COMMIT, |out| out.push(b'1'));
        }
    }
}

const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";

#[inline]
fn line(out: &mut Vec<u8>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    value(out);
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn expect(out: &mut Vec<u8>, sequence: u64) {
    out.extend_from_slice(b"Nats-Expected-Last-Sequence: ");
    decimal(out, sequence);
    out.extend_from_slice(b"\r\n");
}

fn msg_id(out: &mut Vec<u8>, subject: Subject<'_>) {
    let relation = &subject.table.relation;
    // Two bridges count one transaction's events each for itself: the schema must tell their ids apart.
    let table = names::table_path(&relation.namespace, &relation.name);
    line(out, names::HEADER_MSG_ID, |out| {
        message_id::write(out, subject.position, &table, subject.operation);
    });
}

/// The last message on each table's subjects, as far as this bridge has written.
#[derive(Debug)]
struct Fences {
    subjects: SubjectPattern,
    /// By filter; 0 when there is none.
    last: HashMap<String, u64>,
    /// Of the group being sent: the expectation of its first message.
    filter: String,
    expected: u64,
    /// Tables of the group, each with the index of its last message.
    tables: Vec<(Arc<Table>, u64)>,
}

impl Fences {
    fn new(subjects: SubjectPattern) -> Self {
        Self {
            subjects,
            last: HashMap::new(),
            filter: String::new(),
            expected: 0,
            tables: Vec::new(),
        }
    }

    fn restart(&mut self, tail: &Tail) {
        self.last = tail.own.iter().cloned().collect();
        self.tables.clear();
    }

    fn next(&mut self, table: &Arc<Table>, index: u64) {
        if index == 1 {
            self.tables.clear();
            self.filter = self.filter_of(table);
            self.expected = self.last.get(&self.filter).copied().unwrap_or(0);
        }
        match self
            .tables
            .iter_mut()
            .rev()
            .find(|(known, _)| Arc::ptr_eq(known, table))
        {
            Some((_, last)) => *last = index,
            None => self.tables.push((table.clone(), index)),
        }
    }

    /// An atomic batch is stored without a gap.
    fn stored(&mut self, last_sequence: u64, events: usize) {
        for (table, index) in std::mem::take(&mut self.tables) {
            let filter = self.filter_of(&table);
            let last = self.last.entry(filter).or_default();
            // A table altered meanwhile is here twice.
            *last = (*last).max(last_sequence - events as u64 + index);
        }
    }

    fn filter_of(&self, table: &Table) -> String {
        let relation = &table.relation;
        self.subjects.filter(&relation.namespace, &relation.name)
    }
}
