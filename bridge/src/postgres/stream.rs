//! The replication stream: frames in, status updates out.
//!
//! In: one socket read when asked, and LSNs to report. Out: XLogData and keepalives in order.
//! Invariant: one system call per `read`, none per frame, and no allocation per frame.

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use wire::Lsn;
use wire::event::POSTGRES_EPOCH_UNIX_US;

use super::connection::unexpected;
use super::error::{Error, ServerError};
use super::read_buffer::ReadBuffer;
use super::transport::Transport;

/// What `read` came back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes arrived; they may or may not complete a frame.
    Bytes(usize),
    /// Nothing came in time. Not an error: go and send a status.
    TimedOut,
}

/// What the server sends while streaming. Times are microseconds since 2000-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    XLogData {
        /// 0/0 for messages that have no place in the WAL (Relation, Type).
        wal_start: Lsn,
        wal_end: Lsn,
        clock: i64,
        /// One pgoutput message.
        payload: &'a [u8],
    },
    PrimaryKeepalive {
        /// How far the server has read the WAL. Everything published before it has been sent.
        wal_end: Lsn,
        clock: i64,
        /// Answer with `send_status` at once.
        reply_requested: bool,
    },
}

/// A session in CopyBoth mode. Made for one plain thread that reads, takes all frames, and reads
/// again.
#[derive(Debug)]
pub struct ReplicationStream {
    transport: Transport,
    input: ReadBuffer,
    /// What SO_RCVTIMEO is set to.
    read_timeout: Option<Duration>,
}

impl ReplicationStream {
    pub(super) fn new(transport: Transport, input: ReadBuffer) -> Self {
        Self {
            transport,
            input,
            read_timeout: None,
        }
    }

    /// Reads once, as much as there is room for, and waits at most `timeout` (not zero) for the
    /// first byte. Changing the timeout costs a system call, so keep to one value.
    ///
    /// Frames already buffered are not looked at: take them with `next_frame` first.
    pub fn read(&mut self, timeout: Duration) -> Result<Read, Error> {
        if self.read_timeout != Some(timeout) {
            let set = self.transport.set_read_timeout(Some(timeout));
            set.map_err(Error::Io)?;
            self.read_timeout = Some(timeout);
        }
        match self.input.read_from(&mut self.transport) {
            Ok(0) => Err(Error::Closed),
            Ok(count) => Ok(Read::Bytes(count)),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
                    Ok(Read::TimedOut)
                }
                _ => Err(Error::Io(error)),
            },
        }
    }

    /// The next frame that has arrived whole, or `None`: then `read` again. The end of the stream
    /// and the server's errors are errors here.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Error> {
        loop {
            let Some(frame) = self.input.next()? else {
                return Ok(None);
            };
            match frame.tag {
                b'd' => return copy_data(self.input.body(frame)).map(Some),
                // NoticeResponse, ParameterStatus.
                b'N' | b'S' => {}
                b'E' => return Err(ServerError::parse(self.input.body(frame)).classify()),
                // CopyDone, CommandComplete: the server shuts down in an orderly way.
                b'c' | b'C' => return Err(Error::Closed),
                _ => return Err(unexpected("CopyData")),
            }
        }
    }

    /// Sends a StandbyStatusUpdate. `flush` is what the slot may forget; PostgreSQL ignores it
    /// when it goes backwards.
    pub fn send_status(
        &mut self,
        write: Lsn,
        flush: Lsn,
        apply: Lsn,
        reply_requested: bool,
    ) -> Result<(), Error> {
        let clock = postgres_clock(SystemTime::now());
        let message = status_update(write, flush, apply, clock, reply_requested);
        self.transport.write_all(&message).map_err(Error::Io)
    }

    /// Says goodbye and waits at most `timeout` until the server hung up: by then it has read the
    /// last status and released the slot. What it still sends is thrown away.
    ///
    /// A plain drop would do for the server, but closing a socket with unread data resets the
    /// connection, and a walsender that fails to write first never reads that last status.
    pub fn close(mut self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        let mut goodbye = BytesMut::new();
        frontend::terminate(&mut goodbye);
        self.transport.write_all(&goodbye).map_err(Error::Io)?;
        let mut waste = vec![0; WASTE_BYTES];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Io(ErrorKind::TimedOut.into()));
            }
            let set = self.transport.set_read_timeout(Some(left));
            set.map_err(Error::Io)?;
            match std::io::Read::read(&mut self.transport, &mut waste) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Io(error)),
            }
        }
    }
}

/// PostgreSQL: "Streaming Replication Protocol", XLogData and Primary keepalive message.
#[inline]
fn copy_data(body: &[u8]) -> Result<Frame<'_>, Error> {
    match body.split_first() {
        Some((b'w', rest)) => {
            let (wal_start, rest) = u64_field(rest)?;
            let (wal_end, rest) = u64_field(rest)?;
            let (clock, payload) = u64_field(rest)?;
            Ok(Frame::XLogData {
                wal_start: Lsn(wal_start),
                wal_end: Lsn(wal_end),
                clock: clock as i64,
                payload,
            })
        }
        Some((b'k', rest)) => {
            let (wal_end, rest) = u64_field(rest)?;
            let (clock, rest) = u64_field(rest)?;
            let reply = rest.first().ok_or_else(|| unexpected(WHOLE_FRAME))?;
            Ok(Frame::PrimaryKeepalive {
                wal_end: Lsn(wal_end),
                clock: clock as i64,
                reply_requested: *reply != 0,
            })
        }
        _ => Err(unexpected("XLogData or a keepalive")),
    }
}

#[inline]
fn u64_field(bytes: &[u8]) -> Result<(u64, &[u8]), Error> {
    let Some((field, rest)) = bytes.split_first_chunk() else {
        return Err(unexpected(WHOLE_FRAME));
    };
    Ok((u64::from_be_bytes(*field), rest))
}

const WHOLE_FRAME: &str = "a whole XLogData or keepalive";

/// A StandbyStatusUpdate in its CopyData frame.
fn status_update(
    write: Lsn,
    flush: Lsn,
    apply: Lsn,
    clock: i64,
    reply_requested: bool,
) -> [u8; STATUS_BYTES] {
    let mut message = [0; STATUS_BYTES];
    message[0] = b'd';
    message[1..5].copy_from_slice(&(STATUS_BYTES as u32 - 1).to_be_bytes());
    message[5] = b'r';
    message[6..14].copy_from_slice(&write.0.to_be_bytes());
    message[14..22].copy_from_slice(&flush.0.to_be_bytes());
    message[22..30].copy_from_slice(&apply.0.to_be_bytes());
    message[30..38].copy_from_slice(&clock.to_be_bytes());
    message[38] = u8::from(reply_requested);
    message
}

/// Tag and length, then a kind, three LSNs, a clock and a flag.
const STATUS_BYTES: usize = 5 + 1 + 3 * 8 + 8 + 1;

const WASTE_BYTES: usize = 64 * 1024;

fn postgres_clock(now: SystemTime) -> i64 {
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    since_1970.as_micros() as i64 - POSTGRES_EPOCH_UNIX_US
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_frame_is_an_error() {
        let data = b"w\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03";
        let keepalive = b"k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01";
        for frame in [data.as_slice(), keepalive] {
            assert!(copy_data(frame).is_ok());
            for end in 0..frame.len() {
                assert!(copy_data(&frame[..end]).is_err());
            }
        }
    }

    #[test]
    fn a_status_update_has_every_field_in_its_place() {
        let message = status_update(Lsn(1), Lsn(2), Lsn(3), 4, true);

        let body = [1_u64, 2, 3, 4].map(u64::to_be_bytes).concat();
        assert_eq!(message[..6], *b"d\0\0\0\x26r");
        assert_eq!(message[6..38], body);
        assert_eq!(message[38], 1);
    }

    #[test]
    fn the_clock_counts_from_the_year_2000() {
        let start_of_2000 = UNIX_EPOCH + Duration::from_micros(POSTGRES_EPOCH_UNIX_US as u64);
        let a_second_later = start_of_2000 + Duration::from_secs(1);

        assert_eq!(postgres_clock(a_second_later), 1_000_000);
    }
}
