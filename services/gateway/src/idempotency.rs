//! Turns an `Idempotency-Key` into the operation's id, and a request into its fingerprint.
//!
//! In: the key, who sends it, the request. Out: a UUID and a SHA-256. What must hold: one key of one principal is one
//! operation id for ever, on every replica; two different requests never share a fingerprint.

use std::fmt;

use ring::digest;
use uuid::Uuid;

/// Why a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No header, or an empty one.
    #[error("send an Idempotency-Key with every write: the same one when you repeat it")]
    Missing,
    /// Too long, or not visible ASCII.
    #[error("an Idempotency-Key is 1 to {KEY_BYTES_MAX} visible ASCII characters")]
    Malformed,
}

/// Longest key.
pub const KEY_BYTES_MAX: usize = 128;

/// Under which names are hashed; must never change, or repeats would become new writes.
const NAMESPACE: Uuid = Uuid::from_u128(0x1d0c_5b6e_41f3_4a0f_9a57_6c7e_8a2b_33d1);

/// A UUID in its usual form is the operation id itself. Any other key is hashed (UUIDv5) with the principal, so that two
/// principals may both call a write `1`.
pub fn operation_id(key: Option<&[u8]>, principal: Option<&str>) -> Result<Uuid, KeyError> {
    let key = key.filter(|key| !key.is_empty()).ok_or(KeyError::Missing)?;
    if key.len() > KEY_BYTES_MAX || !key.iter().all(u8::is_ascii_graphic) {
        return Err(KeyError::Malformed);
    }
    let is_hyphenated = key.len() == uuid::fmt::Hyphenated::LENGTH;
    if is_hyphenated && let Ok(id) = Uuid::try_parse_ascii(key) {
        return Ok(id);
    }
    // A key holds no line break, so the last one ends the principal.
    let name = [principal.unwrap_or("").as_bytes(), b"\n", key].concat();
    Ok(Uuid::new_v5(&NAMESPACE, &name))
}

/// SHA-256 over everything that makes a request what it is. `{}` shows it in lower-case hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (halves, _) = self.0.as_chunks();
        for half in halves {
            write!(f, "{:032x}", u128::from_be_bytes(*half))?;
        }
        Ok(())
    }
}

/// The fingerprint of a request.
pub fn fingerprint(method: &str, path: &str, principal: Option<&str>, body: &[u8]) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [
        method.as_bytes(),
        path.as_bytes(),
        principal.unwrap_or("").as_bytes(),
        body,
    ] {
        // With its length in front, no part can run into the next.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let digest = context.finish();
    let digest = digest.as_ref().first_chunk();
    Fingerprint(*digest.expect("a SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_taken_as_it_is() {
        let key = "0191D2A0-7B7A-7CC3-8E6B-000000000001";

        let id = operation_id(Some(key.as_bytes()), Some("alice")).unwrap();

        assert_eq!(id.to_string(), key.to_lowercase());
    }

    #[test]
    fn any_other_key_is_hashed_with_its_principal() {
        let id = |key: &str, principal| operation_id(Some(key.as_bytes()), principal).unwrap();

        assert_eq!(
            id("order-1", None).to_string(),
            "04e41e8e-7310-5d10-9a41-accffd7ae718"
        );
        assert_eq!(id("order-1", Some("alice")), id("order-1", Some("alice")));
        assert_ne!(id("order-1", Some("alice")), id("order-1", Some("bob")));
        assert_ne!(id("order-1", Some("alice")), id("order-2", Some("alice")));
    }

    #[test]
    fn keys_that_are_missing_long_or_invisible_are_refused() {
        assert_eq!(operation_id(None, None), Err(KeyError::Missing));
        assert_eq!(operation_id(Some(b""), None), Err(KeyError::Missing));
        assert!(operation_id(Some(&[b'x'; 128]), None).is_ok());
        for key in [
            &[b'x'; 129][..],
            b"a b",
            b"a\tb",
            "\u{e9}".as_bytes(),
            b"\x7f",
        ] {
            assert_eq!(
                operation_id(Some(key), None),
                Err(KeyError::Malformed),
                "{key:?}"
            );
        }
    }

    #[test]
    fn a_fingerprint_is_shown_digit_by_digit() {
        let bytes = std::array::from_fn(|index| index as u8);

        assert_eq!(
            Fingerprint(bytes).to_string(),
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        );
    }

    #[test]
    fn a_fingerprint_depends_on_every_part_and_its_place() {
        let base = fingerprint("POST", "/users", None, b"{}");

        assert_eq!(base.to_string().len(), 64);
        assert_eq!(base, fingerprint("POST", "/users", None, b"{}"));
        for other in [
            fingerprint("PUT", "/users", None, b"{}"),
            fingerprint("POST", "/users/", None, b"{}"),
            fingerprint("POST", "/users", Some("alice"), b"{}"),
            fingerprint("POST", "/users", None, b"{ }"),
            fingerprint("POST/users", "", None, b"{}"),
        ] {
            assert_ne!(base, other);
        }
    }
}
