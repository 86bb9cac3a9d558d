//! Reads fields off the front of a message.
//!
//! In: bytes that may be short, long or wrong. Out: fields, or which field was expected at which byte.
//! Invariant: never panics, and never reads past the end.

use super::decode::Error;

/// What is left of a message. `expected` names the field for the error text.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            len: bytes.len(),
        }
    }

    /// The error "`expected` should start where the cursor stands".
    #[cold]
    pub(super) fn error(&self, expected: &'static str) -> Error {
        Error {
            expected,
            at: self.len - self.rest.len(),
        }
    }

    /// The error "`expected` should have been the byte just read".
    #[cold]
    pub(super) fn error_before(&self, expected: &'static str) -> Error {
        Error {
            expected,
            at: (self.len - self.rest.len()).saturating_sub(1),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], Error> {
        let Some((head, rest)) = self.rest.split_first_chunk() else {
            return Err(self.error(expected));
        };
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub(super) fn u8(&mut self, expected: &'static str) -> Result<u8, Error> {
        self.array(expected).map(u8::from_be_bytes)
    }

    #[inline]
    pub(super) fn u16(&mut self, expected: &'static str) -> Result<u16, Error> {
        self.array(expected).map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self, expected: &'static str) -> Result<u32, Error> {
        self.array(expected).map(u32::from_be_bytes)
    }

    #[inline]
    pub(super) fn i32(&mut self, expected: &'static str) -> Result<i32, Error> {
        self.array(expected).map(i32::from_be_bytes)
    }

    #[inline]
    pub(super) fn u64(&mut self, expected: &'static str) -> Result<u64, Error> {
        self.array(expected).map(u64::from_be_bytes)
    }

    #[inline]
    pub(super) fn i64(&mut self, expected: &'static str) -> Result<i64, Error> {
        self.array(expected).map(i64::from_be_bytes)
    }

    /// The next `count` bytes.
    #[inline]
    pub(super) fn take(&mut self, count: usize, expected: &'static str) -> Result<&'a [u8], Error> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.error(expected));
        };
        self.rest = rest;
        Ok(head)
    }

    /// The bytes up to a NUL, which is consumed but not returned.
    pub(super) fn c_bytes(&mut self, expected: &'static str) -> Result<&'a [u8], Error> {
        let Some(end) = self.rest.iter().position(|&byte| byte == 0) else {
            return Err(self.error(expected));
        };
        let text = self.take(end, expected)?;
        self.u8(expected)?;
        Ok(text)
    }

    /// As `c_bytes`, and they must be UTF-8.
    pub(super) fn c_str(&mut self, expected: &'static str) -> Result<&'a str, Error> {
        let start = *self;
        std::str::from_utf8(self.c_bytes(expected)?).map_err(|_| start.error(expected))
    }

    /// What has been read since `earlier`, a copy of this cursor taken before.
    #[inline]
    pub(super) fn since(&self, earlier: Self) -> &'a [u8] {
        let read = earlier.rest.len().saturating_sub(self.rest.len());
        earlier.rest.get(..read).unwrap_or_default()
    }

    /// The message must end here.
    #[inline]
    pub(super) fn end(&self) -> Result<(), Error> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.error("the end of the message"))
        }
    }
}
