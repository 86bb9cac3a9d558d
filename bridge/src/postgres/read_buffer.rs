//! Collects what a socket delivers and cuts it into frames of the PostgreSQL protocol.
//!
//! In: one `read` at a time, as large as the free space. Out: whole frames, each once.
//! Invariant: grows only for a frame larger than itself, and only as its bytes arrive; at most
//! `FRAME_BYTES_MAX`; shrinks back when that frame is gone. No allocation per frame.

use std::io;
use std::ops::Range;

/// PostgreSQL: a message is built in a StringInfo, which ends below 1 GiB (MaxAllocSize).
/// Beside the length there is the tag.
const FRAME_BYTES_MAX: usize = (1 << 30) + 1;

/// The buffer's size unless a frame needs more.
const INITIAL_BYTES: usize = 256 * 1024;

/// Tag and length.
const HEADER_BYTES: usize = 5;

/// The peer does not speak our protocol: a frame claims a length that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadLength(pub(super) u32);

/// A whole frame in the buffer. Valid until the next `read_from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawFrame {
    pub(super) tag: u8,
    pub(super) body: Range<usize>,
}

#[derive(Debug)]
pub(super) struct ReadBuffer {
    /// All of it is initialised; `start..end` has been read and not yet been handed out.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; INITIAL_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// One `read` into all the free space. 0 is the end of the stream.
    pub(super) fn read_from(&mut self, source: &mut impl io::Read) -> io::Result<usize> {
        self.make_room();
        let count = source.read(&mut self.bytes[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// The next whole frame, or `None` if more must be read first.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<RawFrame>, BadLength> {
        let Some((tag, len)) = self.header() else {
            return Ok(None);
        };
        // The length counts itself, not the tag.
        let frame_len = len as usize + 1;
        if !(HEADER_BYTES..=FRAME_BYTES_MAX).contains(&frame_len) {
            return Err(BadLength(len));
        }
        if self.end - self.start < frame_len {
            return Ok(None);
        }
        let body = self.start + HEADER_BYTES..self.start + frame_len;
        self.start = body.end;
        Ok(Some(RawFrame { tag, body }))
    }

    /// The bytes of a frame `next` gave since the last read.
    #[inline]
    pub(super) fn body(&self, frame: RawFrame) -> &[u8] {
        self.bytes.get(frame.body).unwrap_or_default()
    }

    #[inline]
    fn header(&self) -> Option<(u8, u32)> {
        let [tag, len @ ..] = self
            .bytes
            .get(self.start..self.end)?
            .first_chunk::<HEADER_BYTES>()?;
        Some((*tag, u32::from_be_bytes(*len)))
    }

    /// Moves the incomplete frame to the front and lets the buffer grow or shrink for it.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            // The frame is longer than the buffer. Doubling follows what really arrives: a wrong
            // length in the header costs no memory. The frame fits in `FRAME_BYTES_MAX`, `next`
            // has seen to that. No more than the frame, or a large one would cost twice its size.
            let (_, len) = self.header().unwrap_or_default();
            let frame_len = len as usize + 1;
            let enough = frame_len.max(self.bytes.len() + INITIAL_BYTES);
            let len = (self.bytes.len() * 2).min(enough);
            self.bytes.resize(len, 0);
        } else if self.end <= INITIAL_BYTES / 2 && self.bytes.len() > INITIAL_BYTES {
            self.bytes.truncate(INITIAL_BYTES);
            self.bytes.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![tag];
        frame.extend((body.len() as u32 + 4).to_be_bytes());
        frame.extend(body);
        frame
    }

    fn drain(buffer: &mut ReadBuffer) -> Vec<(u8, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(frame) = buffer.next().unwrap() {
            frames.push((frame.tag, buffer.body(frame).to_vec()));
        }
        frames
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let mut bytes = frame(b'd', b"one");
        bytes.extend(frame(b'd', b""));
        bytes.extend(frame(b'E', b"three"));

        for step in 1..bytes.len() {
            let mut buffer = ReadBuffer::new();
            let mut frames = Vec::new();
            for mut part in bytes.chunks(step) {
                buffer.read_from(&mut part).unwrap();
                frames.extend(drain(&mut buffer));
            }
            let bodies: Vec<_> = frames.iter().map(|(_, body)| body.as_slice()).collect();
            assert_eq!(bodies, [b"one".as_slice(), b"", b"three"]);
        }
    }

    #[test]
    fn a_frame_larger_than_the_buffer_grows_it_and_then_it_shrinks_back() {
        let body = vec![7; 3 * INITIAL_BYTES];
        let bytes = frame(b'd', &body);
        let mut source = bytes.as_slice();
        let mut buffer = ReadBuffer::new();

        let mut frames = Vec::new();
        while buffer.read_from(&mut source).unwrap() > 0 {
            frames.extend(drain(&mut buffer));
        }

        assert!(frames == [(b'd', body)]);
        assert_eq!(buffer.bytes.len(), INITIAL_BYTES);
        assert_eq!(buffer.bytes.capacity(), INITIAL_BYTES);
    }

    #[test]
    fn a_frame_that_fills_the_buffer_to_the_last_byte_comes_out() {
        let body = vec![7; INITIAL_BYTES - HEADER_BYTES];
        let bytes = frame(b'd', &body);
        let mut buffer = ReadBuffer::new();

        buffer.read_from(&mut bytes.as_slice()).unwrap();

        assert!(drain(&mut buffer) == [(b'd', body)]);
    }

    #[test]
    fn an_impossible_length_is_an_error_and_costs_no_memory() {
        for len in [0, 3, u32::MAX, 1 << 31] {
            let mut bytes = vec![b'd'];
            bytes.extend(len.to_be_bytes());
            let mut buffer = ReadBuffer::new();

            buffer.read_from(&mut bytes.as_slice()).unwrap();

            assert_eq!(buffer.next(), Err(BadLength(len)));
            assert_eq!(buffer.bytes.len(), INITIAL_BYTES);
        }
    }
}
