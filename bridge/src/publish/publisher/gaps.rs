//! Tells consumers of changes that no event will carry.
//!
//! In: what was heard, lost, released or made anew. Out: a message on the gap subject, in its place in
//! the stream, kept until it is acked. Invariant: a loss is never only a log line.

use std::time::{Instant, SystemTime};

use wire::checkpoint::Owed;
use wire::gap::{Gap, Reason};
use wire::{Lsn, Message as _, Position};

use super::{Error, Publisher};
use crate::checkpoint;
use crate::claims;
use crate::publish::connection::Connection;
use crate::publish::frame;
use crate::publish::mode::Mode;
use crate::publish::tail::{self, Tail};
use crate::shared::Condition;

impl Publisher {
    /// Somebody else has published into the stream. A bridge on the same slot sends the same events, each
    /// with the same sequence, so it harms nobody.
    pub(super) fn hear(&mut self, subject: String, payload: &[u8]) {
        // In the other modes they do no harm; some are still heard when the chain has ended.
        if self.framing.mode() != Mode::Chain {
            return;
        }
        let is_own = |filter: &String| claims::overlaps(filter, &subject);
        let is_twin =
            self.target.filters.iter().any(is_own) && wire::event::Tail::decode(payload).is_ok();
        if !is_twin && self.foreign.len() < FOREIGN_SUBJECTS_MAX && !self.foreign.contains(&subject)
        {
            self.foreign.push(subject);
        }
    }

    /// A foreign message takes the sequence of one of ours, which is refused without an answer; those
    /// behind it fit again. That cannot be mended, because order is lost: it is told.
    pub(super) async fn judge_foreign(
        &mut self,
        connection: &mut Connection,
        tail: &Tail,
    ) -> Result<(), Error> {
        let own_last = tail.own.iter().map(|(_, sequence)| *sequence).max();
        let through = own_last.unwrap_or(0).min(self.chain.expected());
        let mut events = 0;
        for subject in &self.foreign {
            let stream = &self.target.stream;
            let base = self.chain.base();
            events += tail::sequences(connection, stream, subject, base, through)
                .await?
                .len();
        }
        let subjects = std::mem::take(&mut self.foreign);
        if !subjects.is_empty() {
            self.target.is_shared |= self.target.has_own_tables();
        }
        if events > 0 {
            tracing::error!(
                stream = self.target.stream,
                ?subjects,
                events,
                "somebody else publishes into the stream, and messages took the places of events: these are lost, \
                 consumers are told. Keep others off these subjects, or start the bridge with --table"
            );
            let from = self
                .shared
                .known()
                .map_or(Position::START, |known| known.position);
            self.tell_gap(
                from.commit_lsn,
                self.floor.commit_lsn,
                Reason::ForeignWriter,
            );
        }
        Ok(())
    }

    /// Nothing was released in this run, but the slot may have been told more by an earlier one. Of that
    /// only the LSN is known: a gap that none is costs a snapshot, one that nobody hears of the data.
    pub(super) fn notice_released_before(&mut self) {
        let confirmed = self.shared.confirmed();
        if confirmed.is_valid()
            && let Some(tail) = self.rolled_back_to.take()
        {
            self.tell_gone(tail, Position::new(confirmed, 0));
        }
    }

    /// A new slot begins behind everything that was ever committed in its cluster (PostgreSQL). Taken for
    /// repeats, the changes of another one would be dropped silently.
    pub(super) fn notice_new_slot(&mut self) -> Result<(), Error> {
        let Some(from) = self.shared.slot_made_at() else {
            return Ok(());
        };
        if self.floor.commit_lsn > from {
            return Err(Error::OtherHistory {
                stream: self.target.stream.clone(),
                position: self.floor,
                from,
            });
        }
        self.shared.take_slot_made();
        Ok(())
    }

    /// A gap that the source found, or an earlier run has left. It is told by the bridge that has the slot.
    pub(super) async fn notice_owed(&mut self, connection: &mut Connection) -> Result<(), Error> {
        if self.gap.is_some() || self.shared.source() != Condition::Well {
            return Ok(());
        }
        let Some(owed) = self.shared.owed().filter(|owed| owed.gap.to.is_valid()) else {
            return Ok(());
        };
        // A gap is a group of its own: what is open would be taken for stored with it.
        if !self.chain.is_idle() {
            self.resume(connection).await?;
            if self.gap.is_some() {
                return Ok(());
            }
        }
        let last = tail::last_gap(connection, &self.target.stream, &self.target.gap_subject);
        if let Some(last) = last.await?
            && last.slot == owed.gap.slot
            && last.epoch >= owed.gap.epoch
        {
            tracing::info!(epoch = last.epoch, "an earlier run has told the gap");
            self.shared.gap_told(last.epoch);
            return Ok(());
        }
        let floor = self.floor.commit_lsn;
        let Some(Owed { gap, .. }) = self.shared.complete_debt(floor, floor) else {
            return Ok(());
        };
        if gap.reason == Reason::Skipped && gap.to <= floor {
            tracing::info!(to = %gap.to, last = %self.floor, "the stream holds all that was skipped: there is no gap");
            self.shared.gap_told(gap.epoch);
            return Ok(());
        }
        tracing::error!(
            epoch = gap.epoch, from = %gap.from, to = %gap.to, reason = ?gap.reason,
            "changes between are lost, consumers are told"
        );
        self.gap = Some(gap);
        Ok(())
    }

    /// Released WAL is gone: events that the stream lost and that lie before `released` cannot be read again.
    pub(super) fn tell_gone(&mut self, tail: Position, released: Position) {
        if released <= tail {
            return;
        }
        tracing::error!(
            from = %tail, to = %released,
            "some of them were already confirmed to PostgreSQL; consumers are told on the gap subject"
        );
        self.tell_gap(tail.commit_lsn, released.commit_lsn, Reason::StreamReset);
    }

    pub(super) fn tell_gap(&mut self, from: Lsn, to: Lsn, reason: Reason) {
        let owed = self.shared.owe(Owed {
            gap: Gap {
                slot: self.target.slot.clone(),
                epoch: 0,
                from,
                to,
                reason,
                timestamp: checkpoint::seconds(SystemTime::now()),
            },
            resnapshot: false,
        });
        self.gap = Some(owed.gap);
        self.gap_sequence = None;
    }

    /// A gap goes into the stream in its place, before the first event behind it.
    pub(super) fn send_gap(&mut self, connection: &mut Connection) {
        let Some(gap) = self.gap.as_ref().filter(|_| self.gap_sequence.is_none()) else {
            return;
        };
        if self.chain.is_group_start() {
            self.chain.open(self.ledger.sent(), Instant::now());
        }
        let token = self.chain.ack_token(0, true);
        let mut reply = Vec::new();
        let reply = self.framing.reply(&mut reply, self.chain.place(), true);
        let expected = self.chain.expected();
        let out = connection.out();
        let open = frame::begin(out, &self.target.gap_subject, reply, |out| {
            self.framing.lone_headers(out, expected);
        });
        out.extend_from_slice(&gap.to_msgpack());
        self.chain.sent(self.floor, open.finish(out), token);
        self.gap_sequence = Some(self.chain.expected());
        if gap.reason == Reason::Skipped {
            // PostgreSQL: after a crash the slot may stand where it was before.
            self.floor = self.floor.max(Position::new(gap.to, 0));
        }
    }

    pub(super) fn reset(&self, what: &'static str) -> Error {
        Error::Reset {
            stream: self.target.stream.clone(),
            what,
            gap: self.target.gap_subject.clone(),
        }
    }
}

const FOREIGN_SUBJECTS_MAX: usize = 64;
