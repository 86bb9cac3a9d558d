//! Where to go on: after a start, a failure, a takeover, or when the stream is not the one known.
//!
//! In: the stream's tail. Out: a floor to go on behind, and a mode to publish in.
//! Invariant: this is the only recovery there is; it ends with everything in flight void and the ledger
//! and the chain started over behind what the stream surely holds.

use std::time::{Duration, Instant, SystemTime};

use wire::Position;
use wire::gap::Reason;

use super::{Error, Publisher};
use crate::counting::Counted;
use crate::publish::chain::Order;
use crate::publish::connection::Connection;
use crate::publish::incarnation::{self, Known, Verdict};
use crate::publish::mode::{self, Facts, Mode};
use crate::publish::tail::{self, Tail};

impl Publisher {
    /// Finds out what the stream holds, and starts over right behind it.
    pub(super) async fn resume(&mut self, connection: &mut Connection) -> Result<(), Error> {
        let counted = self.shared.counted();
        let tail = self.read_tail(connection, &counted).await?;
        let proven = self.proven_before(&tail);
        self.judge_foreign(connection, &tail).await?;
        let mut floor = self.judged(&tail)?;
        // It was for the stream as it is now.
        self.shared.take_reset_acceptance();
        self.gap_sequence = None;
        if self.sent > Position::START && floor > self.sent {
            self.yield_to_another(floor);
        }
        let mode = self.choose_mode(connection, &tail);
        if mode == Mode::MsgId && proven.position < floor {
            warn_of_repeats(&tail, proven.at);
            floor = proven.position;
        }
        if mode != Mode::Chain {
            connection.stop_listening();
        }
        self.framing.restart(mode, connection.inbox(), &tail);
        self.chain.set_order(match mode {
            Mode::Chain | Mode::Fast => Order::Sequence,
            Mode::Batch => Order::Group,
            Mode::MsgId => Order::Each,
        });
        self.chain.restart(tail.last_sequence);
        self.ledger.restart();
        self.floor = floor;
        self.shared
            .handoff
            .stored(tail.position.commit_lsn, tail.last_sequence);
        self.cursor = 0;
        for retained in &mut self.retained {
            retained.next = 0;
        }
        self.shared.set_known(Known {
            created: tail.created.clone(),
            sequence: tail.last_sequence,
            position: self.floor,
            at: match mode {
                Mode::MsgId => proven.at,
                // The last event has been there since it was first seen, however often it is seen.
                Mode::Chain | Mode::Fast | Mode::Batch if proven.position == floor => proven.at,
                Mode::Chain | Mode::Fast | Mode::Batch => SystemTime::now(),
            },
        });
        let max_payload = connection.info().max_payload;
        self.message_bytes_max = tail.max_msg_size.unwrap_or(max_payload).min(max_payload);
        tracing::info!(
            position = %tail.position,
            sequence = tail.last_sequence,
            server = connection.info().server_name,
            version = %connection.version(),
            "going on from the stream's tail"
        );
        Ok(())
    }

    /// Reads the tail. A server that has not noticed yet that another one leads the stream gives an older one:
    /// before it is said that acked events are lost, it is asked again for as long as that may last.
    async fn read_tail(
        &self,
        connection: &mut Connection,
        counted: &Counted,
    ) -> Result<Tail, Error> {
        let began = Instant::now();
        loop {
            let stream = &self.target.stream;
            let mut tail = tail::read(connection, stream, &counted.by.filters).await?;
            self.reach_counted(&mut tail, counted.from);
            let verdict =
                incarnation::judge(self.shared.known().as_ref(), &tail, SystemTime::now());
            let is_doubtful = tail.is_replicated && verdict == Verdict::RolledBack;
            if !is_doubtful || began.elapsed() > NO_QUORUM_NOTICED {
                return Ok(tail);
            }
            tracing::warn!(
                tail = %tail.position, sequence = tail.last_sequence,
                "the stream seems to end before what was acked; asking again"
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// What was counted in another way may lie under subjects that are not this bridge's any more.
    fn reach_counted(&self, tail: &mut Tail, from: Position) {
        let known = self.shared.known();
        let is_known = known.is_some_and(|known| {
            known.created == tail.created && known.sequence <= tail.last_sequence
        });
        if is_known && !tail.is_empty {
            tail.position = tail.position.max(from);
        }
    }

    /// Chooses the mode anew with each tail: the server may be another one, or another bridge has come.
    pub(super) fn choose_mode(&mut self, connection: &Connection, tail: &Tail) -> Mode {
        self.target.is_shared |= self.shared.is_stream_shared()
            || (self.target.has_own_tables() && tail.ends_with_foreign());
        let choice = mode::choose(
            self.target.publish_mode,
            &Facts {
                server: connection.version(),
                settings: tail.settings,
                is_shared: self.target.is_shared,
            },
        );
        let mode = choice.mode;
        if self.shared.publish_mode().as_ref() != Some(&choice) {
            tracing::info!(
                publish_mode = mode.name(),
                reason = choice.reason,
                "how messages are published"
            );
            self.shared.set_publish_mode(choice);
        }
        if self.target.is_shared {
            self.shared.knows_sharing();
        }
        mode
    }

    /// Another bridge waits for this one to leave a mode that needs the stream alone, or somebody was
    /// heard who did not wait.
    pub(super) async fn notice_sharing(
        &mut self,
        connection: &mut Connection,
    ) -> Result<(), Error> {
        let has_company = self.shared.is_stream_shared() && !self.target.is_shared;
        if !has_company && self.foreign.is_empty() {
            return Ok(());
        }
        self.chain.pause();
        if self.chain.is_idle() {
            self.resume(connection).await?;
        }
        Ok(())
    }

    /// The last event that is known to be stored with all before it, not from the tail alone; and when
    /// that was so.
    fn proven_before(&self, tail: &Tail) -> Proven {
        let known = self
            .shared
            .known()
            .filter(|known| known.created == tail.created);
        known.map_or(
            Proven {
                position: self.chain.proven(),
                at: SystemTime::UNIX_EPOCH,
            },
            |known| Proven {
                position: known.position.max(self.chain.proven()),
                at: known.at,
            },
        )
    }

    /// Compares the tail with what is known of the stream. Gives the position to go on behind.
    pub(super) fn judged(&mut self, tail: &Tail) -> Result<Position, Error> {
        let known = self.shared.known();
        let verdict = match self.shared.reset() {
            Some(_) => Verdict::Purged,
            None => incarnation::judge(known.as_ref(), tail, SystemTime::now()),
        };
        let known_position = known
            .as_ref()
            .map_or(Position::START, |known| known.position);
        match verdict {
            Verdict::First => {
                if tail.last_sequence > 0 && tail.position == Position::START {
                    tracing::warn!(
                        stream = self.target.stream,
                        "the stream's last event has aged out and there is no checkpoint: what the slot sends again is \
                         published again"
                    );
                }
                Ok(tail.position)
            }
            // A gap stands behind events of its transaction.
            Verdict::Same if tail.position.commit_lsn == known_position.commit_lsn => {
                Ok(tail.position.max(known_position))
            }
            Verdict::Same => Ok(tail.position),
            Verdict::AgedOut => Ok(known_position),
            Verdict::RolledBack => {
                self.rewind(tail, known_position);
                Ok(tail.position)
            }
            Verdict::Recreated | Verdict::Purged => {
                let what = if verdict == Verdict::Purged {
                    "purged"
                } else {
                    "deleted and made anew"
                };
                // With a slot that was made now there is no history that could be broken.
                if verdict == Verdict::Recreated && self.shared.is_slot_new() {
                    return Ok(tail.position);
                }
                if !self.shared.take_reset_acceptance() {
                    return Err(self.reset(what));
                }
                self.shared.set_reset(None);
                tracing::warn!(
                    stream = self.target.stream,
                    what,
                    "going on with the stream as it is"
                );
                self.tell_gap(
                    tail.position.commit_lsn,
                    known_position.commit_lsn,
                    Reason::StreamReset,
                );
                // Positions of another stream say nothing about this one.
                if verdict == Verdict::Recreated {
                    self.shared.forget_counted_from();
                }
                Ok(if verdict == Verdict::Purged {
                    known_position
                } else {
                    tail.position
                })
            }
        }
    }

    /// The tail is ahead of everything sent from here: another bridge has the slot. What waits here is
    /// void; the source asks for the slot again, and stands by when it is taken.
    pub(super) fn yield_to_another(&mut self, tail: Position) {
        tracing::warn!(sent = %self.sent, %tail, "another bridge has published; starting over from the slot");
        self.sent = Position::START;
        self.start_over();
    }

    /// Voids everything that was read, and has it read again from the slot.
    pub(super) fn start_over(&mut self) {
        self.shared.rewind();
        for void in self.retained.drain(..) {
            self.ring.recycle(void.slab);
        }
    }

    /// The stream went back to an earlier state: reads from the slot again what it lost.
    pub(super) fn rewind(&mut self, tail: &Tail, known: Position) {
        let released = self.hold.forget();
        tracing::error!(
            stream = self.target.stream,
            tail = %tail.position,
            acked = %known,
            kept_from = %released.lsn,
            "the stream has lost acked events (a power cut, or an older copy was restored); refilling it from the slot"
        );
        if released.position > Position::START {
            self.tell_gone(tail.position, released.position);
        } else {
            self.rolled_back_to = Some(tail.position);
        }
        self.ledger.rewind(released.lsn);
        self.sent = Position::START;
        self.start_over();
    }
}

/// nats-server: a leader that hears from no other for 10 s steps down.
const NO_QUORUM_NOTICED: Duration = Duration::from_secs(12);

/// See `Publisher::proven_before`.
struct Proven {
    position: Position,
    at: SystemTime,
}

/// Messages may be this much older than the last time their proof was noted.
const REPEAT_SLACK: Duration = Duration::from_secs(20);

/// What is behind the last proven event is sent again, though the stream holds some of it.
fn warn_of_repeats(tail: &Tail, proven_at: SystemTime) {
    let window = tail.settings.duplicate_window;
    let age = SystemTime::now()
        .duration_since(proven_at)
        .unwrap_or_default();
    if age + REPEAT_SLACK >= window {
        tracing::warn!(
            tail = %tail.position, ?window,
            "at least once: publish mode msg-id sends again what is not proven to be stored, and the stream's \
             duplicate window may have forgotten it"
        );
    }
}
