//! Frames of the NATS client protocol, appended to a buffer that is written as a whole.
//!
//! In: a subject, headers, a payload that is encoded in place. Out: one HPUB (NATS client protocol, "HPUB").
//! Invariant: between `begin` and `finish` only header and payload bytes are appended.

/// An HPUB whose sizes are still missing.
#[derive(Debug)]
#[must_use]
pub struct Open {
    frame_start: usize,
    header_start: usize,
    header_len: usize,
}

/// Sizes are written with leading zeros, because the payload is encoded where it will be sent from:
/// the server reads up to nine digits (nats-server, `parseSize`).
const SIZE_DIGITS: usize = 9;

/// Starts a frame and writes its header block: `Nats-Expected-Last-Sequence` and the like, each line
/// with its `\r\n`. `subject` and `reply` must be valid subjects.
#[inline]
pub fn begin(
    out: &mut Vec<u8>,
    subject: &str,
    reply: Option<&[u8]>,
    headers: impl FnOnce(&mut Vec<u8>),
) -> Open {
    let frame_start = out.len();
    out.extend_from_slice(b"HPUB ");
    out.extend_from_slice(subject.as_bytes());
    out.push(b' ');
    if let Some(reply) = reply {
        out.extend_from_slice(reply);
        out.push(b' ');
    }
    out.extend_from_slice(b"000000000 000000000\r\n");
    let header_start = out.len();
    out.extend_from_slice(b"NATS/1.0\r\n");
    headers(out);
    out.extend_from_slice(b"\r\n");
    Open {
        frame_start,
        header_start,
        header_len: out.len() - header_start,
    }
}

impl Open {
    /// Bytes of header and payload so far: what the server compares with its `max_payload`.
    #[inline]
    pub fn size(&self, out: &[u8]) -> usize {
        out.len() - self.header_start
    }

    /// Where the payload starts.
    pub fn payload_start(&self) -> usize {
        self.header_start + self.header_len
    }

    /// Fills the sizes in and ends the frame. Returns its length in bytes.
    #[inline]
    pub fn finish(self, out: &mut Vec<u8>) -> usize {
        let total = self.size(out);
        let sizes_start = self.header_start - 2 - 2 * SIZE_DIGITS - 1;
        patch(
            &mut out[sizes_start..sizes_start + SIZE_DIGITS],
            self.header_len,
        );
        let total_start = sizes_start + SIZE_DIGITS + 1;
        patch(&mut out[total_start..total_start + SIZE_DIGITS], total);
        out.extend_from_slice(b"\r\n");
        out.len() - self.frame_start
    }

    /// Takes the frame back.
    pub fn abandon(self, out: &mut Vec<u8>) {
        out.truncate(self.frame_start);
    }
}

/// A decimal number without leading zeros.
#[inline]
pub fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Over zeros, from the right.
#[inline]
fn patch(digits: &mut [u8], mut value: usize) {
    for digit in digits.iter_mut().rev() {
        if value == 0 {
            break;
        }
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_sizes_of_its_parts() {
        let mut out = b"PING\r\n".to_vec();

        let open = begin(&mut out, "cdc.users.insert", Some(b"_INBOX.x.7"), |out| {
            out.extend_from_slice(b"Nats-Expected-Last-Sequence: ");
            decimal(out, 41);
            out.extend_from_slice(b"\r\n");
        });
        out.extend_from_slice(b"payload");
        let len = open.finish(&mut out);

        let frame = b"HPUB cdc.users.insert _INBOX.x.7 000000045 000000052\r\nNATS/1.0\r\n\
            Nats-Expected-Last-Sequence: 41\r\n\r\npayload\r\n";
        assert_eq!(&out[6..], frame);
        assert_eq!(len, frame.len());
    }

    #[test]
    fn an_abandoned_frame_leaves_nothing() {
        let mut out = b"PING\r\n".to_vec();

        let open = begin(&mut out, "a", None, |_| {});
        out.extend_from_slice(b"too large");
        open.abandon(&mut out);

        assert_eq!(out, b"PING\r\n");
    }

    #[test]
    fn numbers_are_decimal() {
        let mut out = Vec::new();
        for value in [0, 7, 10, u64::MAX] {
            decimal(&mut out, value);
            out.push(b' ');
        }

        assert_eq!(out, b"0 7 10 18446744073709551615 ");
    }
}
