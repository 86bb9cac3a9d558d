//! One connection to a NATS server, for publishing alone.
//!
//! In: frames appended to `out`. Out: what the server sends back. Invariant: frames are written in
//! the order they were appended; nothing is ever sent twice or reordered here.
//!
//! Not async-nats, because the bridge must know what is in flight and write a batch with one system
//! call: frames by hand cost 0.1-0.3 us per message. No reconnect here; the publisher does that.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use daemon::nats::{Auth, NatsOptions, ServerVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::protocol::{self, Incoming, Malformed, ServerInfo};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot reach NATS at {server}; check --nats-url (NATS_URL) or NATS_HOST")]
    Connect {
        server: String,
        #[source]
        source: std::io::Error,
    },
    #[error("NATS at {server} did not answer within {waited:?}")]
    Timeout { server: String, waited: Duration },
    #[error("connection to NATS is lost")]
    Lost(#[source] std::io::Error),
    #[error("the NATS server closed the connection")]
    Closed,
    #[error(
        "the NATS server refused: {0}; check NATS_BRIDGE_USER, NATS_BRIDGE_PASSWORD and the server's permissions"
    )]
    Refused(String),
    #[error(
        "NATS at {server} asks for TLS, which the bridge does not speak yet; offer it a listener without TLS"
    )]
    Tls { server: String },
    #[error("credentials files are not supported yet; use a user and password, or a token")]
    Credentials,
    #[error(
        "NATS at {server} is {version}, or has headers off; the bridge needs 2.9 or newer with headers"
    )]
    TooOld { server: String, version: String },
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("no answer to {subject} within {waited:?}")]
    NoAnswer { subject: String, waited: Duration },
}

#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    /// Bytes of `out` that are written already.
    out_start: usize,
    input: Vec<u8>,
    /// Bytes of `input` that are parsed already.
    input_start: usize,
    info: ServerInfo,
    version: ServerVersion,
    /// `_INBOX.<unique>.`; what follows tells the answers apart.
    inbox: String,
    requests: u64,
    is_listening: bool,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Read at once; acks are about 30 bytes.
const INPUT_BYTES: usize = 4 << 10;
/// Kept between batches; a larger buffer, after a large row, is given back.
const OUT_BYTES_KEPT: usize = 512 << 10;

impl Connection {
    /// Tries the `attempt`-th server of the list, so that a caller who counts its attempts goes round.
    pub async fn open(options: &NatsOptions, attempt: usize, name: &str) -> Result<Self, Error> {
        let servers = options.servers();
        let server = &servers[attempt % servers.len()];
        let address = format!("{}:{}", server.host(), server.port());
        let opened = Self::handshake(options.auth(), &address, name);
        match timeout(CONNECT_TIMEOUT, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::Timeout {
                server: address,
                waited: CONNECT_TIMEOUT,
            }),
        }
    }

    async fn handshake(auth: &Auth, address: &str, name: &str) -> Result<Self, Error> {
        let server = || address.to_owned();
        let stream = TcpStream::connect(address)
            .await
            .map_err(|source| Error::Connect {
                server: server(),
                source,
            })?;
        // The bridge writes whole batches; waiting for more to send would only add latency.
        stream.set_nodelay(true).map_err(Error::Lost)?;
        let mut connection = Self {
            stream,
            out: Vec::new(),
            out_start: 0,
            input: Vec::with_capacity(INPUT_BYTES),
            input_start: 0,
            info: ServerInfo::default(),
            version: ServerVersion::new(0, 0, 0),
            inbox: format!(
                "_INBOX.{:016x}{:016x}.",
                daemon::backoff::random(),
                daemon::backoff::random()
            ),
            requests: 0,
            is_listening: false,
        };
        match connection.receive().await? {
            Incoming::Info(info) => connection.info = parse_info(&info)?,
            other => {
                return Err(Malformed {
                    line: format!("{other:?}"),
                }
                .into());
            }
        }
        if connection.info.tls_required {
            return Err(Error::Tls { server: server() });
        }
        let version = connection
            .info
            .version
            .parse()
            .unwrap_or(ServerVersion::new(0, 0, 0));
        if version < ServerVersion::new(2, 9, 0) || !connection.info.headers {
            return Err(Error::TooOld {
                server: server(),
                version: connection.info.version,
            });
        }
        connection.version = version;
        let hello = connect_line(auth, name)?;
        let inbox = format!("SUB {}> 1\r\n", connection.inbox);
        for frame in [hello.as_str(), inbox.as_str(), "PING\r\n"] {
            connection.out.extend_from_slice(frame.as_bytes());
        }
        loop {
            match connection.receive().await? {
                Incoming::Pong => return Ok(connection),
                Incoming::Error(error) => return Err(Error::Refused(error)),
                Incoming::Ok | Incoming::Ping | Incoming::Info(_) | Incoming::Message { .. } => {}
            }
        }
    }

    /// Where frames are appended.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes that wait to be written.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.out_start
    }

    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    pub fn version(&self) -> ServerVersion {
        self.version
    }

    /// Prefix of the reply subjects this connection hears.
    pub fn inbox(&self) -> &str {
        &self.inbox
    }

    /// From now on also hears what others publish on `subjects`; the server leaves out what is published
    /// on this connection.
    pub fn listen(&mut self, subjects: &str) {
        if !self.is_listening {
            self.is_listening = true;
            let frame = format!("SUB {subjects} 2\r\n");
            self.out.extend_from_slice(frame.as_bytes());
        }
    }

    /// Ends that.
    pub fn stop_listening(&mut self) {
        if self.is_listening {
            self.is_listening = false;
            self.out.extend_from_slice(b"UNSUB 2\r\n");
        }
    }

    /// Writes and reads what the socket takes and gives; returns when it did either.
    ///
    /// Cancel safety: what was written or read is in the buffers' state before it returns.
    pub async fn progress(&mut self) -> Result<(), Error> {
        poll_fn(|context| {
            let mut has_moved = false;
            while self.out_start < self.out.len() {
                let unsent = &self.out[self.out_start..];
                match Pin::new(&mut self.stream).poll_write(context, unsent) {
                    Poll::Ready(Ok(written)) => {
                        self.out_start += written;
                        has_moved = true;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Lost(error))),
                    Poll::Pending => break,
                }
            }
            if self.out_start == self.out.len() {
                self.out.clear();
                self.out.shrink_to(OUT_BYTES_KEPT);
                self.out_start = 0;
            }
            let mut chunk = [MaybeUninit::uninit(); INPUT_BYTES];
            let mut buffer = ReadBuf::uninit(&mut chunk);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    Poll::Ready(Err(Error::Closed))
                }
                Poll::Ready(Ok(())) => {
                    self.input.extend_from_slice(buffer.filled());
                    Poll::Ready(Ok(()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(Error::Lost(error))),
                Poll::Pending if has_moved => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// The next message that has arrived whole. Pings are answered here.
    pub fn next_message(&mut self) -> Result<Option<Incoming>, Error> {
        while let Some((incoming, len)) = protocol::parse(&self.input[self.input_start..])? {
            self.input_start += len;
            if incoming == Incoming::Ping {
                self.out.extend_from_slice(b"PONG\r\n");
                continue;
            }
            return Ok(Some(incoming));
        }
        self.input.drain(..self.input_start);
        self.input_start = 0;
        Ok(None)
    }

    async fn receive(&mut self) -> Result<Incoming, Error> {
        loop {
            if let Some(incoming) = self.next_message()? {
                return Ok(incoming);
            }
            self.progress().await?;
        }
    }

    /// Asks the server's API and waits for the answer; other answers that arrive meanwhile are dropped.
    pub async fn request(&mut self, subject: &str, payload: &str) -> Result<Vec<u8>, Error> {
        self.requests += 1;
        let reply = format!("{}r{}", self.inbox, self.requests);
        let frame = format!("PUB {subject} {reply} {}\r\n{payload}\r\n", payload.len());
        self.out.extend_from_slice(frame.as_bytes());
        let answer = async {
            loop {
                match self.receive().await? {
                    Incoming::Message {
                        subject, payload, ..
                    } if subject == reply => return Ok(payload),
                    Incoming::Error(error) => return Err(Error::Refused(error)),
                    Incoming::Message { .. }
                    | Incoming::Info(_)
                    | Incoming::Ok
                    | Incoming::Ping
                    | Incoming::Pong => {}
                }
            }
        };
        timeout(REQUEST_TIMEOUT, answer).await.unwrap_or_else(|_| {
            Err(Error::NoAnswer {
                subject: subject.to_owned(),
                waited: REQUEST_TIMEOUT,
            })
        })
    }
}

fn parse_info(json: &str) -> Result<ServerInfo, Malformed> {
    serde_json::from_str(json).map_err(|_| Malformed {
        line: json.chars().take(80).collect(),
    })
}

fn connect_line(auth: &Auth, name: &str) -> Result<String, Error> {
    let mut options = serde_json::json!({
        "verbose": false, "pedantic": false, "tls_required": false, "lang": "rust", "name": name,
        "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "echo": false, "headers": true, "no_responders": true,
    });
    match auth {
        Auth::None => {}
        Auth::Password { user, password } => {
            options["user"] = user.as_str().into();
            options["pass"] = password.expose().into();
        }
        Auth::Token(token) => options["auth_token"] = token.expose().into(),
        Auth::Credentials(_) => return Err(Error::Credentials),
    }
    Ok(format!("CONNECT {options}\r\n"))
}
