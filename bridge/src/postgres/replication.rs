//! The frames of a walsender in CopyBoth mode (PostgreSQL: "Streaming Replication Protocol").
//!
//! In: bytes, as many as one read gives. Out: XLogData and keepalives that borrow from the buffer.
//! Invariant: no system call and no allocation per frame; the buffer grows for a frame that does not
//! fit it, and shrinks again.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use postgres_protocol::message::backend;
use wire::Lsn;

use super::connection::Transport;
use super::error::{Error, ServerError};

/// A walsender that sends.
#[derive(Debug)]
pub struct ReplicationStream {
    transport: Transport,
    slot: String,
    /// `buffer[start..end]` is read and not yet taken.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// What one read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Bytes(usize),
    TimedOut,
}

/// One message of the walsender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    XLogData {
        /// 0/0 for messages that carry no WAL of their own, such as Relation.
        wal_start: Lsn,
        payload: &'a [u8],
    },
    PrimaryKeepalive {
        /// All WAL before it has been looked at and what was to be sent of it was.
        wal_end: Lsn,
        reply_requested: bool,
    },
}

/// Room for a gulp. A larger row makes it grow, up to PostgreSQL's own 1 GB for a field and beyond.
const BUFFER_BYTES: usize = 256 << 10;

impl ReplicationStream {
    pub(super) fn new(transport: Transport, received: &[u8], slot: &str) -> Self {
        let mut buffer = vec![0; BUFFER_BYTES.max(received.len())];
        buffer[..received.len()].copy_from_slice(received);
        Self {
            transport,
            slot: slot.to_owned(),
            buffer,
            start: 0,
            end: received.len(),
        }
    }

    /// How long `read` waits for the first byte.
    pub fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), Error> {
        self.transport
            .set_read_timeout(timeout)
            .map_err(Error::Lost)
    }

    /// One read of the socket, as large as there is room. Take all frames first.
    pub fn read(&mut self) -> Result<Read, Error> {
        self.make_room();
        match self.transport.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(Error::Closed),
            Ok(count) => {
                self.end += count;
                Ok(Read::Bytes(count))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => Ok(Read::TimedOut),
                _ => Err(Error::Lost(error)),
            },
        }
    }

    /// What is left of an unfinished frame goes to the front, and the buffer is fitted to it.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        // A frame's length is the server's word, so room is made as bytes come, not ahead.
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        } else if self.buffer.len() > BUFFER_BYTES && self.end < BUFFER_BYTES {
            self.buffer.truncate(BUFFER_BYTES);
            self.buffer.shrink_to_fit();
        }
    }

    /// The next whole frame that has been read. None: read again.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Error> {
        let unread = &self.buffer[self.start..self.end];
        let Some((&[tag, a, b, c, d], rest)) = unread.split_first_chunk() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(body_len) = len.checked_sub(4) else {
            return Err(Error::Protocol(format!("a message of {len} bytes")));
        };
        if rest.len() < body_len {
            return Ok(None);
        }
        let body_start = self.start + 5;
        self.start = body_start + body_len;
        if tag != b'd' {
            return self.other(tag, body_start);
        }
        frame(&self.buffer[body_start..self.start]).map(Some)
    }

    /// Everything but CopyData ends the session, notices excepted.
    #[cold]
    fn other(&mut self, tag: u8, body_start: usize) -> Result<Option<Frame<'_>>, Error> {
        match tag {
            b'N' | b'S' => self.next_frame(),
            b'E' => {
                let mut message = BytesMut::from(&self.buffer[body_start - 5..self.start]);
                match backend::Message::parse(&mut message) {
                    Ok(Some(backend::Message::ErrorResponse(body))) => Err(Error::of_server(
                        ServerError::from_fields(body.fields()),
                        Some(&self.slot),
                    )),
                    _ => Err(Error::Protocol("an unreadable ErrorResponse".to_owned())),
                }
            }
            // CopyDone: the walsender stops, usually because the server does.
            b'c' | b'C' | b'Z' => Err(Error::Closed),
            _ => Err(Error::Protocol(format!(
                "a message of type {:?}",
                char::from(tag)
            ))),
        }
    }

    /// StandbyStatusUpdate: everything before `flush` is safe with us and may be removed.
    pub fn send_status(&mut self, write: Lsn, flush: Lsn, apply: Lsn) -> Result<(), Error> {
        let mut frame = [0; 39];
        frame[0] = b'd';
        frame[1..5].copy_from_slice(&38_u32.to_be_bytes());
        frame[5] = b'r';
        frame[6..14].copy_from_slice(&write.0.to_be_bytes());
        frame[14..22].copy_from_slice(&flush.0.to_be_bytes());
        frame[22..30].copy_from_slice(&apply.0.to_be_bytes());
        frame[30..38].copy_from_slice(&now_us().to_be_bytes());
        // The last byte asks for no reply.
        self.transport.write_all(&frame).map_err(Error::Lost)
    }
}

#[inline]
fn frame(body: &[u8]) -> Result<Frame<'_>, Error> {
    // XLogData: 'w', start, end, clock, payload. Keepalive: 'k', end, clock, reply requested.
    match body.split_first() {
        Some((b'w', fields)) => {
            let header = fields.split_first_chunk::<24>();
            header.map(|(header, payload)| Frame::XLogData {
                wal_start: lsn(header),
                payload,
            })
        }
        Some((b'k', fields)) => {
            let header = fields.split_first_chunk::<17>();
            header.map(|(header, _)| Frame::PrimaryKeepalive {
                wal_end: lsn(header),
                reply_requested: header[16] == 1,
            })
        }
        _ => None,
    }
    .ok_or_else(|| {
        Error::Protocol("a replication message that is neither XLogData nor a keepalive".to_owned())
    })
}

/// The first eight bytes.
#[inline]
fn lsn<const N: usize>(header: &[u8; N]) -> Lsn {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[..8]);
    Lsn(u64::from_be_bytes(bytes))
}

/// Microseconds since 2000-01-01 UTC.
fn now_us() -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since_1970.as_micros() as i64 - 946_684_800_000_000
}
