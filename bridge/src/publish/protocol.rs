//! Reads what a NATS server sends (NATS client protocol).
//!
//! In: bytes as they arrive, cut anywhere. Out: whole messages. Invariant: no input panics, and what
//! is kept of an unfinished message is bounded by the size its own first line names.

use serde::Deserialize;

/// One message of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// `MSG` or `HMSG` on a subject we subscribed to; `status` is that of the headers, 503 for "no responders".
    Message {
        subject: String,
        status: Option<u16>,
        payload: Vec<u8>,
    },
    Ping,
    Pong,
    Info(String),
    /// `-ERR`, without its quotes.
    Error(String),
    /// `+OK`.
    Ok,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the NATS server sent what is not its protocol: {line:?}")]
pub struct Malformed {
    pub line: String,
}

/// What the server tells of itself in `INFO`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    pub server_name: String,
    pub version: String,
    pub max_payload: usize,
    pub headers: bool,
    pub tls_required: bool,
    pub connect_urls: Vec<String>,
}

/// A line longer than this is not NATS; its own limit for a control line is 4096.
const LINE_BYTES_MAX: usize = 256 << 10;

/// The first whole message in `input`, and how many bytes it took. None: more bytes are needed.
pub fn parse(input: &[u8]) -> Result<Option<(Incoming, usize)>, Malformed> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return if input.len() > LINE_BYTES_MAX {
            Err(malformed(input))
        } else {
            Ok(None)
        };
    };
    let line = &input[..end];
    let text = std::str::from_utf8(line).map_err(|_| malformed(line))?;
    let (verb, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    let incoming = match verb.to_ascii_uppercase().as_str() {
        "MSG" | "HMSG" => {
            let has_headers = verb.len() == 4;
            let sizes = Sizes::parse(rest, has_headers).ok_or_else(|| malformed(line))?;
            return Ok(message(&sizes, input, end + 2));
        }
        "PING" => Incoming::Ping,
        "PONG" => Incoming::Pong,
        "+OK" => Incoming::Ok,
        "INFO" => Incoming::Info(rest.to_owned()),
        "-ERR" => Incoming::Error(rest.trim().trim_matches('\'').to_owned()),
        _ => return Err(malformed(line)),
    };
    Ok(Some((incoming, end + 2)))
}

/// What the first line of a message tells.
struct Sizes<'a> {
    subject: &'a str,
    header_len: usize,
    total: usize,
}

impl<'a> Sizes<'a> {
    /// `<subject> <sid> [reply] [header bytes] <total bytes>`.
    fn parse(arguments: &'a str, has_headers: bool) -> Option<Self> {
        let arguments: Vec<&str> = arguments.split_ascii_whitespace().collect();
        let sizes = if has_headers { 2 } else { 1 };
        if !(2 + sizes..=3 + sizes).contains(&arguments.len()) {
            return None;
        }
        let total: usize = arguments.last()?.parse().ok()?;
        let header_len = if has_headers {
            arguments[arguments.len() - 2].parse().ok()?
        } else {
            0
        };
        (header_len <= total && total <= PAYLOAD_BYTES_MAX).then_some(Self {
            subject: arguments[0],
            header_len,
            total,
        })
    }
}

fn message(sizes: &Sizes<'_>, input: &[u8], body_start: usize) -> Option<(Incoming, usize)> {
    let body = input.get(body_start..body_start + sizes.total)?;
    let frame_end = body_start + sizes.total + 2;
    let incoming = Incoming::Message {
        subject: sizes.subject.to_owned(),
        status: status(&body[..sizes.header_len]),
        payload: body[sizes.header_len..].to_vec(),
    };
    (input.len() >= frame_end).then_some((incoming, frame_end))
}

/// More than any answer we ask for: a server's `max_payload` ends at 64 MiB, base64 adds a third.
const PAYLOAD_BYTES_MAX: usize = 128 << 20;

/// `NATS/1.0 503 ...`.
fn status(header: &[u8]) -> Option<u16> {
    let line = header.strip_prefix(b"NATS/1.0 ")?;
    std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()
}

#[cold]
fn malformed(line: &[u8]) -> Malformed {
    let shown = &line[..line.len().min(80)];
    Malformed {
        line: String::from_utf8_lossy(shown).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(subject: &str, status: Option<u16>, payload: &[u8]) -> Incoming {
        Incoming::Message {
            subject: subject.into(),
            status,
            payload: payload.into(),
        }
    }

    #[test]
    fn a_message_is_read_with_and_without_reply_or_headers() {
        let plain = b"MSG _INBOX.a.1 1 4\r\n{\r\n}\r\nrest";
        let reply = b"MSG _INBOX.a.1 1 there 2\r\n{}\r\n";
        let headers = b"HMSG _INBOX.a.1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";

        assert_eq!(
            parse(plain),
            Ok(Some((message("_INBOX.a.1", None, b"{\r\n}"), 26)))
        );
        assert_eq!(
            parse(reply),
            Ok(Some((message("_INBOX.a.1", None, b"{}"), reply.len())))
        );
        assert_eq!(
            parse(headers),
            Ok(Some((message("_INBOX.a.1", Some(503), b""), headers.len())))
        );
    }

    #[test]
    fn an_unfinished_message_waits_for_more() {
        let whole = b"MSG _INBOX.a.1 1 4\r\n{\r\n}\r\n";
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn control_lines_are_told_apart() {
        assert_eq!(parse(b"PING\r\n"), Ok(Some((Incoming::Ping, 6))));
        assert_eq!(parse(b"+OK\r\n"), Ok(Some((Incoming::Ok, 5))));
        let error = b"-ERR 'Authorization Violation'\r\n";
        assert_eq!(
            parse(error),
            Ok(Some((
                Incoming::Error("Authorization Violation".into()),
                error.len()
            )))
        );
        assert!(parse(b"HTTP/1.1 400 Bad Request\r\n").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, header in "(H?MSG|INFO|-ERR) [a-z0-9 ]{0,30}\r\n") {
            let _ = parse(&bytes);
            let mut framed = header.into_bytes();
            framed.extend_from_slice(&bytes);
            let _ = parse(&framed);
        }
    }
}
