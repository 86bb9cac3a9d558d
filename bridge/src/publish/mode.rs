//! Chooses how to publish: by what was asked for, the server's version and the stream's settings.
//!
//! In: facts read with the tail. Out: a mode, and the reason in words. Invariant: a mode is chosen only
//! where the server keeps what it needs; what is asked for and cannot be had gives way, saying so.
//!
//! What a 200 byte message costs the server, in us of its CPU time (file storage, one connection,
//! nats-server 2.9 / 2.14 / 2.15): chain 2.4 / 2.9 / 3.1, fast - / 3.7 / 4.0, batch - / 5.3 / 8.6,
//! msg-id 6.1 / 5.9 / 6.4.
//!
//! The chain costs least, but it needs the stream for itself: a message of somebody else's takes the
//! sequence of one of ours, which is refused without a word, and those behind it fit again. A fast
//! batch ends there and says so, so `auto` takes it where it is to be had.

use std::time::Duration;

use daemon::nats::ServerVersion;

/// `--publish-mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wanted {
    #[default]
    Auto,
    Chain,
    Fast,
    MsgId,
}

/// How messages are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Each message names the sequence it follows; one PubAck proves all before it. Any server.
    #[default]
    Chain,
    /// The same in fast-ingest batches that fail at a gap (ADR-50). nats-server 2.14.
    Fast,
    /// Each group is an atomic batch that names the last message on its own table's subjects; one group
    /// at a time. For a stream with other writers. nats-server 2.12.
    Batch,
    /// Each message has a `Nats-Msg-Id` and is acked for itself; the server drops repeats, for as long as
    /// its duplicate window remembers. Any server, any writers.
    MsgId,
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    pub server: ServerVersion,
    pub settings: Settings,
    /// Others write to the stream, on other subjects.
    pub is_shared: bool,
}

/// What a stream allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// `allow_atomic`: atomic batches.
    pub allows_atomic: bool,
    /// `allow_batched`: fast-ingest batches.
    pub allows_fast: bool,
    pub duplicate_window: Duration,
}

/// A mode, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    pub mode: Mode,
    pub reason: String,
}

const FAST_SINCE: ServerVersion = ServerVersion::new(2, 14, 0);
const ATOMIC_SINCE: ServerVersion = ServerVersion::new(2, 12, 0);

pub fn choose(wanted: Wanted, facts: &Facts) -> Choice {
    match (wanted, facts.is_shared) {
        (Wanted::MsgId, _) => Choice {
            mode: Mode::MsgId,
            reason: "asked for with --publish-mode".to_owned(),
        },
        (Wanted::Auto | Wanted::Chain | Wanted::Fast, true) => shared(facts),
        (Wanted::Fast, false) => fast(facts),
        (Wanted::Chain, false) => Choice {
            mode: Mode::Chain,
            reason: "asked for with --publish-mode".to_owned(),
        },
        (Wanted::Auto, false) => match lacks_fast(facts) {
            None => Choice {
                mode: Mode::Fast,
                reason: "nobody else is known to write to the stream; if somebody does, the batch fails and says so"
                    .to_owned(),
            },
            Some(lacking) => Choice {
                mode: Mode::Chain,
                reason: format!("nobody else is known to write to the stream, and {lacking}"),
            },
        },
    }
}

fn fast(facts: &Facts) -> Choice {
    match lacks_fast(facts) {
        None => Choice {
            mode: Mode::Fast,
            reason: "asked for with --publish-mode".to_owned(),
        },
        Some(lacking) => Choice {
            mode: Mode::Chain,
            reason: format!("fast cannot be had: {lacking}"),
        },
    }
}

fn lacks_fast(facts: &Facts) -> Option<String> {
    if facts.server < FAST_SINCE {
        Some(format!(
            "nats-server {} is older than {FAST_SINCE}",
            facts.server
        ))
    } else if !facts.settings.allows_fast {
        Some("the stream does not allow fast batches; set allow_batched".to_owned())
    } else {
        None
    }
}

fn shared(facts: &Facts) -> Choice {
    let lacking = if facts.server < ATOMIC_SINCE {
        format!("nats-server {} is older than {ATOMIC_SINCE}", facts.server)
    } else if !facts.settings.allows_atomic {
        "the stream does not allow atomic batches; set allow_atomic".to_owned()
    } else {
        return Choice {
            mode: Mode::Batch,
            reason:
                "others write to the stream: each batch names the last message on its own subjects"
                    .to_owned(),
        };
    };
    Choice {
        mode: Mode::MsgId,
        reason: format!(
            "others write to the stream, and {lacking}: repeats are dropped within the duplicate window of {:?} only",
            facts.settings.duplicate_window
        ),
    }
}

impl Mode {
    /// As in the log and in `/status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Fast => "fast",
            Self::Batch => "batch",
            Self::MsgId => "msg-id",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(minor: u32, is_shared: bool) -> Facts {
        Facts {
            server: ServerVersion::new(2, minor, 0),
            settings: Settings {
                allows_atomic: minor >= 12,
                allows_fast: minor >= 14,
                duplicate_window: Duration::from_mins(2),
            },
            is_shared,
        }
    }

    fn mode(wanted: Wanted, facts: Facts) -> Mode {
        choose(wanted, &facts).mode
    }

    #[test]
    fn a_lone_writer_takes_fast_batches_where_they_are_to_be_had() {
        for (minor, expected) in [
            (9, Mode::Chain),
            (12, Mode::Chain),
            (14, Mode::Fast),
            (15, Mode::Fast),
        ] {
            assert_eq!(mode(Wanted::Auto, facts(minor, false)), expected);
            assert_eq!(mode(Wanted::Fast, facts(minor, false)), expected);
            assert_eq!(mode(Wanted::Chain, facts(minor, false)), Mode::Chain);
        }
    }

    #[test]
    fn what_is_lacking_is_said() {
        let old = choose(Wanted::Fast, &facts(12, false));
        assert!(old.reason.contains("older than 2.14.0"), "{}", old.reason);

        let mut forbidden = facts(14, false);
        forbidden.settings.allows_fast = false;
        let forbidden = choose(Wanted::Auto, &forbidden);
        assert_eq!(forbidden.mode, Mode::Chain);
        assert!(forbidden.reason.contains("allow_batched"));
    }

    #[test]
    fn a_shared_stream_needs_batches_or_message_ids() {
        assert_eq!(mode(Wanted::Auto, facts(12, true)), Mode::Batch);
        assert_eq!(mode(Wanted::Fast, facts(15, true)), Mode::Batch);
        assert_eq!(mode(Wanted::Chain, facts(9, true)), Mode::MsgId);

        let mut forbidden = facts(14, true);
        forbidden.settings.allows_atomic = false;
        let forbidden = choose(Wanted::Auto, &forbidden);
        assert_eq!(forbidden.mode, Mode::MsgId);
        assert!(forbidden.reason.contains("allow_atomic"));
        assert!(forbidden.reason.contains("120s"));
    }
}
