//! A session with a walsender: login and simple queries.
//!
//! In: an `Endpoint` and SQL or replication commands. Out: rows as text.
//! Invariant: between calls the server is ready for the next query, or the session is broken and
//! every further call fails.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use super::authentication::Authentication;
use super::endpoint::Endpoint;
use super::error::{Error, ServerError};
use super::read_buffer::{BadLength, RawFrame, ReadBuffer};
use super::transport::Transport;

/// One row of a simple query; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// A logged-in replication session that is not streaming. No reconnect here; the supervisor
/// does that.
#[derive(Debug)]
pub struct Session {
    pub(super) transport: Transport,
    pub(super) input: ReadBuffer,
    output: BytesMut,
    server_version: String,
}

impl Session {
    /// Connects with `replication=database`, logs in and waits until the server is ready.
    ///
    /// `wal_sender_timeout` is what the server is told: it drops a stream whose client has been
    /// silent for so long.
    pub fn connect(endpoint: &Endpoint, wal_sender_timeout: Duration) -> Result<Self, Error> {
        let connect = || {
            let transport = Transport::connect(endpoint)?;
            transport.set_read_timeout(Some(endpoint.connect_timeout))?;
            Ok(transport)
        };
        let transport = connect().map_err(|source| Error::Connect {
            endpoint: endpoint.to_string(),
            source,
        })?;
        let mut session = Self {
            transport,
            input: ReadBuffer::new(),
            output: BytesMut::new(),
            server_version: String::new(),
        };
        let timeout = format!("{}ms", wal_sender_timeout.as_millis());
        session.log_in(endpoint, &timeout)?;
        // A command may take its time: creating a slot waits for running transactions to end.
        let blocking = session.transport.set_read_timeout(None);
        blocking.map_err(Error::Io)?;
        Ok(session)
    }

    /// As the server reports it: `15.14 (Debian 15.14-0+deb12u1)`.
    pub fn server_version(&self) -> &str {
        &self.server_version
    }

    /// The first number of the version; 0 if it makes no sense.
    pub fn server_major_version(&self) -> u32 {
        let digits = self.server_version.split(|c: char| !c.is_ascii_digit());
        digits
            .take(1)
            .find_map(|major| major.parse().ok())
            .unwrap_or(0)
    }

    /// Runs one statement or replication command; the rows of several come one after another.
    /// After a server's error the session can be used again.
    pub fn simple_query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        self.send_query(sql)?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let (tag, body) = self.receive()?;
            match tag {
                b'D' => rows.push(data_row(body)?),
                b'E' => failed = Some(ServerError::parse(body).classify()),
                // RowDescription, CommandComplete, EmptyQueryResponse.
                b'T' | b'C' | b'I' => {}
                b'Z' => return failed.map_or(Ok(rows), Err),
                _ => return Err(unexpected("the rows of a query")),
            }
        }
    }

    pub(super) fn send_query(&mut self, sql: &str) -> Result<(), Error> {
        frontend::query(sql, &mut self.output).map_err(Error::Io)?;
        self.send()
    }

    /// Waits for the next message that is neither a notice nor a parameter's new value.
    pub(super) fn receive(&mut self) -> Result<(u8, &[u8]), Error> {
        let frame = loop {
            let frame = self.receive_any()?;
            match frame.tag {
                b'N' => {}
                b'S' => self.parameter_status(frame),
                _ => break frame,
            }
        };
        Ok((frame.tag, self.input.body(frame)))
    }

    fn log_in(&mut self, endpoint: &Endpoint, wal_sender_timeout: &str) -> Result<(), Error> {
        let parameters = endpoint.startup_parameters(wal_sender_timeout);
        frontend::startup_message(parameters, &mut self.output).map_err(Error::Io)?;
        self.send()?;
        self.authenticate(endpoint)?;
        loop {
            match self.receive()? {
                // BackendKeyData.
                (b'K', _) => {}
                (b'Z', _) => return Ok(()),
                (b'E', body) => return Err(ServerError::parse(body).classify()),
                _ => return Err(unexpected("ReadyForQuery")),
            }
        }
    }

    fn authenticate(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        let binding = self.transport.tls_server_end_point();
        let mut authentication = Authentication::new(endpoint, binding);
        loop {
            let frame = self.receive_any()?;
            let body = self.input.body(frame.clone());
            match frame.tag {
                b'R' => {
                    if authentication.answer(body, &mut self.output)? {
                        return Ok(());
                    }
                    self.send()?;
                }
                b'E' => return Err(ServerError::parse(body).classify()),
                b'N' => {}
                _ => return Err(unexpected("an authentication request")),
            }
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        let bytes = self.output.split();
        self.transport.write_all(&bytes).map_err(Error::Io)
    }

    fn receive_any(&mut self) -> Result<RawFrame, Error> {
        loop {
            if let Some(frame) = self.input.next()? {
                return Ok(frame);
            }
            match self.input.read_from(&mut self.transport) {
                Ok(0) => return Err(Error::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Io(error)),
            }
        }
    }

    fn parameter_status(&mut self, frame: RawFrame) {
        let mut fields = self.input.body(frame).split(|&byte| byte == 0);
        if let (Some(b"server_version"), Some(value)) = (fields.next(), fields.next()) {
            self.server_version = String::from_utf8_lossy(value).into_owned();
        }
    }
}

impl From<BadLength> for Error {
    fn from(_: BadLength) -> Self {
        unexpected("a message of at least 4 bytes and less than 1 GiB")
    }
}

pub(super) fn unexpected(expected: &'static str) -> Error {
    Error::Protocol { expected }
}

/// PostgreSQL: DataRow: a count, then per column a length (-1 for NULL) and that many bytes.
fn data_row(body: &[u8]) -> Result<Row, Error> {
    let malformed = || unexpected("a whole DataRow");
    let (count, mut rest) = body.split_first_chunk().ok_or_else(malformed)?;
    let mut row = Row::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, behind) = rest.split_first_chunk().ok_or_else(malformed)?;
        let Ok(len) = usize::try_from(i32::from_be_bytes(*len)) else {
            row.push(None);
            rest = behind;
            continue;
        };
        let (value, behind) = behind.split_at_checked(len).ok_or_else(malformed)?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = behind;
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_row_tells_null_from_the_empty_string() {
        let body = b"\0\x03\xFF\xFF\xFF\xFF\0\0\0\0\0\0\0\x02ab";

        let row = data_row(body).unwrap();

        assert_eq!(row, [None, Some(String::new()), Some("ab".into())]);
    }

    #[test]
    fn a_truncated_data_row_is_an_error() {
        let body = b"\0\x02\0\0\0\x02ab\0\0\0\x01c";
        for end in 0..body.len() {
            assert!(data_row(&body[..end]).is_err());
        }
    }
}
