//! Connects and logs in to a walsender, and runs simple queries on it.
//!
//! In: an endpoint. Out: a session in "ready for query". Invariant: every session formats values alike,
//! whatever ALTER ROLE or ALTER DATABASE set: the GUCs that decide it are in the startup packet.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use daemon::postgres::PINNED_GUCS;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend, frontend};
use socket2::{SockRef, TcpKeepalive};

use super::error::{Error, ServerError};
use super::replication::ReplicationStream;

/// Where to connect, and as whom.
#[derive(Clone)]
pub struct Endpoint {
    pub address: Address,
    pub user: String,
    pub password: Option<String>,
    pub database: String,
    /// Shown by `pg_stat_replication`.
    pub application_name: String,
}

#[derive(Debug, Clone)]
pub enum Address {
    Tcp {
        host: String,
        port: u16,
    },
    /// The path of the socket itself.
    Unix(PathBuf),
}

/// The socket. TLS will be a third variant.
#[derive(Debug)]
pub(super) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A session that waits for a query.
#[derive(Debug)]
pub struct Session {
    transport: Transport,
    input: BytesMut,
    out: BytesMut,
}

/// What a query returned: rows of columns in text form.
pub type Rows = Vec<Vec<Option<String>>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For login and queries; making a slot waits for transactions under way to end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// What the kernel may hold for us between two gulps.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

impl Session {
    /// Connects in replication mode to the endpoint's database.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, Error> {
        let transport = Transport::connect(&endpoint.address).map_err(|source| Error::Connect {
            address: endpoint.address.to_string(),
            source,
        })?;
        transport
            .set_read_timeout(ANSWER_TIMEOUT)
            .map_err(Error::Lost)?;
        let mut session = Self {
            transport,
            input: BytesMut::new(),
            out: BytesMut::new(),
        };
        session.log_in(endpoint)?;
        Ok(session)
    }

    fn log_in(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        let pinned = PINNED_GUCS.iter().copied();
        let own = [
            ("user", endpoint.user.as_str()),
            ("database", &endpoint.database),
            ("application_name", &endpoint.application_name),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            // A server-wide value may be too short for a drain, or 0 and never find a dead bridge.
            ("wal_sender_timeout", "30s"),
        ];
        frontend::startup_message(own.into_iter().chain(pinned), &mut self.out)
            .map_err(Error::Lost)?;
        self.send()?;
        let mut scram = None;
        loop {
            match self.receive()? {
                backend::Message::AuthenticationCleartextPassword => {
                    let password = password(endpoint)?;
                    frontend::password_message(password, &mut self.out).map_err(Error::Lost)?;
                    self.send()?;
                }
                backend::Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(endpoint.user.as_bytes(), password(endpoint)?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.out)
                        .map_err(Error::Lost)?;
                    self.send()?;
                }
                backend::Message::AuthenticationSasl(body) => {
                    let mut mechanisms = body.mechanisms();
                    let mut offers_scram = false;
                    while let Some(mechanism) = mechanisms.next().map_err(Error::Lost)? {
                        offers_scram |= mechanism == sasl::SCRAM_SHA_256;
                    }
                    if !offers_scram {
                        return Err(Error::Authentication(
                            "an unknown SASL mechanism".to_owned(),
                        ));
                    }
                    // With TLS this becomes SCRAM-SHA-256-PLUS and `tls_server_end_point`.
                    let state = sasl::ScramSha256::new(
                        password(endpoint)?,
                        sasl::ChannelBinding::unsupported(),
                    );
                    frontend::sasl_initial_response(
                        sasl::SCRAM_SHA_256,
                        state.message(),
                        &mut self.out,
                    )
                    .map_err(Error::Lost)?;
                    self.send()?;
                    scram = Some(state);
                }
                backend::Message::AuthenticationSaslContinue(body) => {
                    let state = scram
                        .as_mut()
                        .ok_or_else(|| Error::Protocol("SASL out of order".to_owned()))?;
                    state.update(body.data()).map_err(Error::Lost)?;
                    frontend::sasl_response(state.message(), &mut self.out).map_err(Error::Lost)?;
                    self.send()?;
                }
                backend::Message::AuthenticationSaslFinal(body) => {
                    let state = scram
                        .as_mut()
                        .ok_or_else(|| Error::Protocol("SASL out of order".to_owned()))?;
                    state.finish(body.data()).map_err(Error::Lost)?;
                }
                backend::Message::ReadyForQuery(_) => return Ok(()),
                backend::Message::ErrorResponse(body) => {
                    return Err(Error::of_server(
                        ServerError::from_fields(body.fields()),
                        None,
                    ));
                }
                backend::Message::AuthenticationOk
                | backend::Message::ParameterStatus(_)
                | backend::Message::BackendKeyData(_)
                | backend::Message::NoticeResponse(_) => {}
                backend::Message::AuthenticationGss
                | backend::Message::AuthenticationKerberosV5
                | backend::Message::AuthenticationSspi => {
                    return Err(Error::Authentication("GSSAPI, Kerberos or SSPI".to_owned()));
                }
                _ => {
                    return Err(Error::Protocol(
                        "an unexpected message during login".to_owned(),
                    ));
                }
            }
        }
    }

    /// Runs one statement. `slot` is named in errors that are about it.
    pub fn query(&mut self, sql: &str, slot: Option<&str>) -> Result<Rows, Error> {
        frontend::query(sql, &mut self.out).map_err(Error::Lost)?;
        self.send()?;
        let mut rows = Rows::new();
        let mut failure = None;
        loop {
            match self.receive()? {
                backend::Message::DataRow(body) => rows.push(row(&body).map_err(Error::Lost)?),
                backend::Message::ErrorResponse(body) => {
                    failure = Some(ServerError::from_fields(body.fields()))
                }
                backend::Message::ReadyForQuery(_) => break,
                backend::Message::RowDescription(_)
                | backend::Message::CommandComplete(_)
                | backend::Message::EmptyQueryResponse
                | backend::Message::NoticeResponse(_)
                | backend::Message::ParameterStatus(_) => {}
                _ => {
                    return Err(Error::Protocol(
                        "an unexpected message in a query".to_owned(),
                    ));
                }
            }
        }
        match failure {
            Some(error) => Err(Error::of_server(error, slot)),
            None => Ok(rows),
        }
    }

    /// A 64 bit transaction id of about now: where the epoch of the 32 bit ones comes from.
    pub fn recent_xid(&mut self) -> Result<u64, Error> {
        let rows = self.query("SELECT pg_snapshot_xmax(pg_current_snapshot())", None)?;
        let xid = rows
            .first()
            .and_then(|row| row.first())
            .and_then(|xid| xid.as_ref()?.parse().ok());
        xid.ok_or_else(|| Error::Protocol("no transaction id".to_owned()))
    }

    /// Makes the slot unless it is there. True: it was made now.
    pub fn ensure_slot(&mut self, slot: &str) -> Result<bool, Error> {
        let known = self.query(
            &format!(
                "SELECT FROM pg_replication_slots WHERE slot_name = {}",
                quote_literal(slot)
            ),
            Some(slot),
        )?;
        if !known.is_empty() {
            return Ok(false);
        }
        let sql = format!("CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pgoutput NOEXPORT_SNAPSHOT");
        match self.query(&sql, Some(slot)) {
            Ok(_) => Ok(true),
            // Another bridge was quicker.
            Err(Error::Server(error)) if error.sqlstate == "42710" => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// START_REPLICATION at 0/0: the slot decides where. Anything else could skip what was written
    /// while the bridge was away.
    pub fn start_replication(
        mut self,
        slot: &str,
        publications: &[String],
    ) -> Result<ReplicationStream, Error> {
        // PostgreSQL: publication_names is a list of identifiers inside a literal.
        let names: Vec<String> = publications
            .iter()
            .map(|name| format!("\"{}\"", name.replace('"', "\"\"")))
            .collect();
        let sql = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names {}, messages 'true')",
            quote_literal(&names.join(",")),
        );
        frontend::query(&sql, &mut self.out).map_err(Error::Lost)?;
        self.send()?;
        loop {
            // CopyBothResponse is not a message postgres-protocol knows: it is looked for by its tag.
            if self.input.first() == Some(&b'W') && self.input.len() >= 5 {
                let len = u32::from_be_bytes([
                    self.input[1],
                    self.input[2],
                    self.input[3],
                    self.input[4],
                ]);
                let end = 1 + len as usize;
                if self.input.len() >= end {
                    let rest = self.input.split_off(end);
                    return Ok(ReplicationStream::new(self.transport, &rest, slot));
                }
                self.fill()?;
                continue;
            }
            if self.input.len() < 5 {
                self.fill()?;
                continue;
            }
            match self.receive()? {
                backend::Message::ErrorResponse(body) => {
                    return Err(Error::of_server(
                        ServerError::from_fields(body.fields()),
                        Some(slot),
                    ));
                }
                backend::Message::NoticeResponse(_) | backend::Message::ParameterStatus(_) => {}
                _ => {
                    return Err(Error::Protocol(
                        "an unexpected message before CopyBothResponse".to_owned(),
                    ));
                }
            }
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        self.transport.write_all(&self.out).map_err(Error::Lost)?;
        self.out.clear();
        Ok(())
    }

    fn receive(&mut self) -> Result<backend::Message, Error> {
        loop {
            match backend::Message::parse(&mut self.input) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => self.fill()?,
                Err(error) => return Err(Error::Protocol(error.to_string())),
            }
        }
    }

    fn fill(&mut self) -> Result<(), Error> {
        let mut chunk = [0; 4096];
        match self.transport.read(&mut chunk) {
            Ok(0) => Err(Error::Closed),
            Ok(count) => {
                self.input.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) => Err(Error::Lost(error)),
        }
    }
}

impl Transport {
    fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Ok(Self::Unix(UnixStream::connect(path)?)),
            Address::Tcp { host, port } => {
                let mut last_error =
                    io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                        Ok(stream) => return Self::prepared(stream),
                        Err(error) => last_error = error,
                    }
                }
                Err(last_error)
            }
        }
    }

    fn prepared(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        Ok(Self::Tcp(stream))
    }

    pub(super) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Self::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }
}

impl io::Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl io::Write for Transport {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Endpoint({}@{}/{})",
            self.user, self.address, self.database
        )
    }
}

fn password(endpoint: &Endpoint) -> Result<&[u8], Error> {
    endpoint
        .password
        .as_deref()
        .map(str::as_bytes)
        .ok_or(Error::NoPassword)
}

fn row(body: &backend::DataRowBody) -> io::Result<Vec<Option<String>>> {
    let mut row = Vec::new();
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next()? {
        let cell = range.and_then(|range| body.buffer().get(range));
        row.push(cell.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
    }
    Ok(row)
}

/// As SQL wants a string constant: in single quotes, those in it doubled.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
