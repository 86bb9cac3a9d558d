//! Keys that tokens are checked with.
//!
//! In: a PEM public key, a JWK set, or a shared secret. Out: keys that each know the algorithms they may be used with.
//! What must hold: a public key is never taken for a shared secret.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use ring::{digest, hmac};
use serde_json::Value;

/// Why a text holds no key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither RSA nor Ed25519, a private key, a certificate, or damaged.
    #[error("the PEM block must be an RSA or Ed25519 PUBLIC KEY")]
    Pem,
    /// JSON, but no usable key in it.
    #[error("the JWK set holds no RSA, Ed25519 (OKP) or oct key")]
    Jwks,
    /// Too easy to guess.
    #[error("a shared secret must have at least {SECRET_BYTES_MIN} bytes; it has {0}")]
    ShortSecret(usize),
}

/// A key and its `kid`.
pub struct Key {
    id: Option<String>,
    kind: Kind,
}

enum Kind {
    Secret(Vec<u8>),
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    Ed25519(Vec<u8>),
}

const SECRET_BYTES_MIN: usize = digest::SHA256_OUTPUT_LEN;

impl Key {
    /// Whether a token that names `key_id` may be meant for this key.
    pub fn may_be(&self, key_id: Option<&str>) -> bool {
        match (&self.id, key_id) {
            (Some(id), Some(key_id)) => id == key_id,
            (None, _) | (_, None) => true,
        }
    }

    /// Whether `signature` over `signed` is this key's, by an algorithm that fits the key.
    pub fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        match &self.kind {
            Kind::Secret(secret) => {
                let algorithm = match algorithm {
                    "HS256" => hmac::HMAC_SHA256,
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => return false,
                };
                hmac::verify(&hmac::Key::new(algorithm, secret), signed, signature).is_ok()
            }
            Kind::Rsa { modulus, exponent } => {
                let algorithm = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    _ => return false,
                };
                let key = RsaPublicKeyComponents {
                    n: modulus,
                    e: exponent,
                };
                key.verify(algorithm, signed, signature).is_ok()
            }
            Kind::Ed25519(key) => {
                algorithm == "EdDSA"
                    && UnparsedPublicKey::new(&signature::ED25519, key)
                        .verify(signed, signature)
                        .is_ok()
            }
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Secret(_) => "shared secret",
            Kind::Rsa { .. } => "RSA",
            Kind::Ed25519(_) => "Ed25519",
        };
        write!(formatter, "Key({kind}, {:?})", self.id)
    }
}

/// Reads whichever of the three forms `text` has.
pub fn parse(text: &str) -> Result<Vec<Key>, KeyError> {
    if text.trim_start().starts_with("-----BEGIN") {
        let kind = pem(text).ok_or(KeyError::Pem)?;
        return Ok(vec![Key { id: None, kind }]);
    }
    if let Ok(Value::Object(set)) = serde_json::from_str(text) {
        let keys = set
            .get("keys")
            .and_then(Value::as_array)
            .ok_or(KeyError::Jwks)?;
        // Keys of other kinds are for other readers of the set.
        let keys: Vec<_> = keys.iter().filter_map(jwk).collect();
        return if keys.is_empty() {
            Err(KeyError::Jwks)
        } else {
            Ok(keys)
        };
    }
    if text.len() < SECRET_BYTES_MIN {
        return Err(KeyError::ShortSecret(text.len()));
    }
    Ok(vec![Key {
        id: None,
        kind: Kind::Secret(text.as_bytes().to_vec()),
    }])
}

fn jwk(jwk: &Value) -> Option<Key> {
    let text = |name| jwk.get(name).and_then(Value::as_str);
    let bytes = |name| text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let kind = match (text("kty")?, text("crv")) {
        ("RSA", _) => Kind::Rsa {
            modulus: bytes("n")?,
            exponent: bytes("e")?,
        },
        ("OKP", Some("Ed25519")) => Kind::Ed25519(bytes("x")?),
        ("oct", _) => Kind::Secret(bytes("k").filter(|key| key.len() >= SECRET_BYTES_MIN)?),
        _ => return None,
    };
    Some(Key {
        id: text("kid").map(str::to_owned),
        kind,
    })
}

/// SubjectPublicKeyInfo (RFC 5280): SEQUENCE { SEQUENCE { OID, .. }, BIT STRING { key } }.
fn pem(text: &str) -> Option<Kind> {
    const RSA_OID: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
    const ED25519_OID: &[u8] = &[0x2B, 0x65, 0x70];

    let body = text.trim().strip_prefix("-----BEGIN PUBLIC KEY-----")?;
    let (body, _) = body.split_once("-----END PUBLIC KEY-----")?;
    let base64: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(base64).ok()?;

    let (info, _) = tlv(&der, 0x30)?;
    let (algorithm, rest) = tlv(info, 0x30)?;
    let (oid, _) = tlv(algorithm, 0x06)?;
    let (bits, _) = tlv(rest, 0x03)?;
    let key = bits.strip_prefix(&[0])?;
    match oid {
        RSA_OID => {
            let (numbers, _) = tlv(key, 0x30)?;
            let (modulus, rest) = tlv(numbers, 0x02)?;
            let (exponent, _) = tlv(rest, 0x02)?;
            // A leading zero only says that the number is positive.
            let unsigned = |number: &[u8]| number.strip_prefix(&[0]).unwrap_or(number).to_vec();
            Some(Kind::Rsa {
                modulus: unsigned(modulus),
                exponent: unsigned(exponent),
            })
        }
        ED25519_OID => Some(Kind::Ed25519(key.to_vec())),
        _ => None,
    }
}

/// One DER value with the tag that must stand there, and what follows it.
fn tlv(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = bytes.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7F => (usize::from(length), rest),
        0x81 => {
            let (&[length], rest) = rest.split_first_chunk()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with `openssl genpkey` and `openssl dgst -sha256 -sign`; the private halves are thrown away.
    const RSA_PEM: &str = include_str!("testdata/rsa.pem");
    const ED25519_PEM: &str = include_str!("testdata/ed25519.pem");
    const SIGNED: &[u8] = b"signed";
    const RSA_SIGNATURE: &[u8] = include_bytes!("testdata/rsa.sig");
    const ED25519_SIGNATURE: &[u8] = include_bytes!("testdata/ed25519.sig");

    #[test]
    fn pem_keys_verify_what_openssl_signed() {
        for (pem, algorithm, signature) in [
            (RSA_PEM, "RS256", RSA_SIGNATURE),
            (ED25519_PEM, "EdDSA", ED25519_SIGNATURE),
        ] {
            let keys = parse(pem).unwrap();

            assert!(
                keys[0].verifies(algorithm, SIGNED, signature),
                "{algorithm}"
            );
            assert!(
                !keys[0].verifies(algorithm, b"other", signature),
                "{algorithm}"
            );
            assert!(!keys[0].verifies("HS256", SIGNED, signature), "{algorithm}");
        }
    }

    #[test]
    fn a_cut_pem_key_is_refused_wherever_it_is_cut() {
        let body: Vec<_> = RSA_PEM
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect();
        let der = STANDARD.decode(body.concat()).unwrap();
        for length in 0..der.len() {
            let base64 = STANDARD.encode(&der[..length]);
            let cut = format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----");
            assert_eq!(parse(&cut).unwrap_err(), KeyError::Pem, "{length}");
        }
    }

    #[test]
    fn nothing_but_a_long_secret_is_a_secret() {
        let private = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----";

        assert_eq!(parse(private).unwrap_err(), KeyError::Pem);
        assert_eq!(parse("{}").unwrap_err(), KeyError::Jwks);
        assert_eq!(
            parse(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#).unwrap_err(),
            KeyError::Jwks
        );
        assert_eq!(parse("short").unwrap_err(), KeyError::ShortSecret(5));
        assert_eq!(
            format!("{:?}", parse(&"s".repeat(32))),
            "Ok([Key(shared secret, None)])"
        );
    }
}
