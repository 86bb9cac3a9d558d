//! A client that writes HTTP/1.1 by hand.
//!
//! In: a request. Out: the answer, or that there was none.
//! Must hold: whatever is sent arrives as it was written, hostile bytes included.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longer than any `Prefer: wait` in these tests.
const TIMEOUT: Duration = Duration::from_mins(2);

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        let header = self.headers.iter().find(|(header, _)| header == name);
        header.map_or("", |(_, value)| value)
    }
}

/// One request over a connection of its own.
pub async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nhost: circle\r\nconnection: close\r\n").into_bytes();
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"].concat().into_bytes());
    }
    if !body.is_empty() || method != "GET" {
        request.extend(format!("content-length: {}\r\n", body.len()).into_bytes());
    }
    request.extend(b"\r\n");
    request.extend(body);
    exchange(addr, &request).await
}

/// Bytes as they are; the server must close the connection behind its answer.
pub async fn exchange(addr: SocketAddr, request: &[u8]) -> Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await?;
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        parse(&answer).ok_or_else(|| read.err().unwrap_or(ErrorKind::UnexpectedEof.into()))
    };
    let timeout = || Err(Error::from(ErrorKind::TimedOut));
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| timeout())
}

/// None when the answer is cut short.
fn parse(answer: &[u8]) -> Option<Answer> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse::<usize>().ok());
    if length.is_some_and(|length| body.len() < length) {
        return None;
    }
    Some(Answer {
        status,
        headers,
        body: body.to_owned(),
    })
}

/// One server-sent event.
#[derive(Debug, Clone, Default)]
pub struct Event {
    pub name: String,
    pub id: String,
    pub data: String,
}

impl Event {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// An open stream of server-sent events.
pub struct Events(BufReader<TcpStream>);

impl Events {
    /// Behind the event `last_id`, if there is one.
    pub async fn open(addr: SocketAddr, path: &str, last_id: &str) -> Result<Self> {
        let mut stream = BufReader::new(TcpStream::connect(addr).await?);
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: circle\r\naccept: text/event-stream\r\n\
             last-event-id: {last_id}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut events = Self(stream);
        let status = events.line().await?;
        if !status.contains(" 200 ") {
            return Err(Error::other(status));
        }
        while !events.line().await?.is_empty() {}
        Ok(events)
    }

    /// Behind the greeting. Waits for ever.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            let event = self.any().await?;
            if event.name != "ready" {
                return Ok(event);
            }
        }
    }

    async fn any(&mut self) -> Result<Event> {
        let mut event = Event::default();
        loop {
            let line = self.line().await?;
            match line.split_once(": ") {
                Some(("event", value)) => value.clone_into(&mut event.name),
                Some(("id", value)) => value.clone_into(&mut event.id),
                Some(("data", value)) => value.clone_into(&mut event.data),
                // Chunk sizes and heartbeats.
                Some(_) | None if !line.is_empty() || event.data.is_empty() => {}
                Some(_) | None => return Ok(event),
            }
        }
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
