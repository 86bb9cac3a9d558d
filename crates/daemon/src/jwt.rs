//! Checks JSON Web Tokens.
//!
//! In: a token and the time. Out: its claims. What must hold: the key decides the algorithm, never the token; a claim of
//! the wrong type is a refusal, never an absent claim.
//!
//! HS256/384/512, RS256/384/512 and EdDSA (Ed25519) by `ring`, which is in the tree for NATS anyway. No encryption, no
//! key fetching: keys come from a file.

mod key;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use self::key::Key;
pub use self::key::KeyError;

/// Clocks of two machines may differ by this much.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// Longer tokens are refused unread.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// Keys, and what a token must say beside being signed.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<Key>,
    issuer: Option<String>,
    audience: Option<String>,
}

/// Who a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Claim `sub`, not empty.
    pub subject: String,
    /// Every claim, `sub` among them.
    pub all: Map<String, Value>,
}

/// Why a token is refused. The text may be shown to the client: it says nothing about keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not three parts of base64url around JSON objects, or too long.
    #[error("the token is malformed")]
    Malformed,
    /// No key of ours made this signature with an algorithm of that key.
    #[error("the token's signature is not valid")]
    Signature,
    /// `exp` is over.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is not reached.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iss` or `aud` is not what is configured.
    #[error("the token was issued by or for someone else")]
    WrongParty,
    /// A claim of a wrong type, or no `sub`.
    #[error("the token's claims are unusable: sub must be text; exp and nbf, if present, numbers")]
    Claims,
}

/// Why there is no verifier.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the JWT key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// Its content is no key.
    #[error("the JWT key file {} holds no usable key", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
}

impl Verifier {
    /// Takes a PEM public key (RSA or Ed25519), a JWK set, or else a shared secret of at least 32 bytes.
    pub fn new(key_text: &str) -> Result<Self, KeyError> {
        Ok(Self {
            keys: key::parse(key_text)?,
            issuer: None,
            audience: None,
        })
    }

    /// The same from a file; a line break at its end is not part of a secret.
    pub fn from_file(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::new(text.trim_end()).map_err(|source| LoadError::Key {
            path: path.to_owned(),
            source,
        })
    }

    /// Tokens must name this issuer (`iss`) and this audience (`aud`); None asks for nothing.
    #[must_use]
    pub fn expecting(self, issuer: Option<String>, audience: Option<String>) -> Self {
        Self {
            issuer,
            audience,
            ..self
        }
    }

    /// The token's claims, if it holds at `now`.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, Error> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Error::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Error::Malformed)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| Error::Malformed)?;
        let header = object(header)?;
        let algorithm = header
            .get("alg")
            .and_then(Value::as_str)
            .ok_or(Error::Malformed)?;
        let key_id = header.get("kid").and_then(Value::as_str);

        let is_signed = self
            .keys
            .iter()
            .filter(|key| key.may_be(key_id))
            .any(|key| key.verifies(algorithm, signed.as_bytes(), &signature));
        if !is_signed {
            return Err(Error::Signature);
        }
        self.check(object(claims)?, now)
    }

    fn check(&self, claims: Map<String, Value>, now: SystemTime) -> Result<Claims, Error> {
        let now = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        let leeway = LEEWAY.as_secs_f64();
        let time = |name| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Error::Claims),
        };
        if time("exp")?.is_some_and(|expires| expires + leeway <= now) {
            return Err(Error::Expired);
        }
        if time("nbf")?.is_some_and(|not_before| now + leeway < not_before) {
            return Err(Error::NotYetValid);
        }
        let is_for = |claim: Option<&Value>, wanted: &Option<String>| match (claim, wanted) {
            (_, None) => true,
            (Some(Value::String(text)), Some(wanted)) => text == wanted,
            (Some(Value::Array(texts)), Some(wanted)) => texts.iter().any(|text| text == wanted),
            (_, Some(_)) => false,
        };
        if !is_for(claims.get("iss"), &self.issuer) || !is_for(claims.get("aud"), &self.audience) {
            return Err(Error::WrongParty);
        }
        match claims.get("sub").and_then(Value::as_str) {
            // PostgreSQL: text holds no NUL.
            Some(subject) if !subject.is_empty() && !subject.contains('\0') => Ok(Claims {
                subject: subject.to_owned(),
                all: claims,
            }),
            _ => Err(Error::Claims),
        }
    }
}

fn object(part: &str) -> Result<Map<String, Value>, Error> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| Error::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| Error::Malformed)
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};
    use serde_json::json;

    use super::*;

    const SECRET: &str = "a secret of thirty-two bytes or more";
    const NOW_S: u64 = 1_800_000_000;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW_S)
    }

    fn encoded(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    fn hs256(header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encoded(header), encoded(claims));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let signature = ring::hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn verify(claims: &Value) -> Result<Claims, Error> {
        Verifier::new(SECRET)
            .unwrap()
            .verify(&hs256(&json!({"alg": "HS256"}), claims), now())
    }

    #[test]
    fn a_good_token_gives_its_claims() {
        let claims = verify(&json!({"sub": "alice", "exp": NOW_S + 1, "role": "admin"})).unwrap();

        assert_eq!(claims.subject, "alice");
        assert_eq!(claims.all["role"], "admin");
    }

    #[test]
    fn times_are_kept_with_the_leeway() {
        let leeway = LEEWAY.as_secs();

        assert!(verify(&json!({"sub": "a", "exp": NOW_S - leeway + 1})).is_ok());
        assert_eq!(
            verify(&json!({"sub": "a", "exp": NOW_S - leeway})),
            Err(Error::Expired)
        );
        assert!(verify(&json!({"sub": "a", "nbf": NOW_S + leeway})).is_ok());
        assert_eq!(
            verify(&json!({"sub": "a", "nbf": NOW_S + leeway + 1})),
            Err(Error::NotYetValid)
        );
    }

    #[test]
    fn claims_of_the_wrong_type_are_not_absent_claims() {
        for claims in [
            json!({"sub": "a", "exp": "never"}),
            json!({"sub": "a", "nbf": null}),
            json!({"sub": 7}),
            json!({"sub": ""}),
            json!({"sub": "a\0b"}),
            json!({}),
        ] {
            assert_eq!(verify(&claims), Err(Error::Claims), "{claims}");
        }
    }

    #[test]
    fn issuer_and_audience_must_match_when_configured() {
        let verifier = Verifier::new(SECRET)
            .unwrap()
            .expecting(Some("https://id".to_owned()), Some("gateway".to_owned()));
        let verify = |claims| verifier.verify(&hs256(&json!({"alg": "HS256"}), &claims), now());

        assert!(verify(json!({"sub": "a", "iss": "https://id", "aud": ["x", "gateway"]})).is_ok());
        for claims in [
            json!({"sub": "a", "iss": "https://id"}),
            json!({"sub": "a", "aud": "gateway"}),
            json!({"sub": "a", "iss": "https://other", "aud": "gateway"}),
        ] {
            assert_eq!(verify(claims), Err(Error::WrongParty));
        }
    }

    #[test]
    fn the_token_does_not_choose_the_algorithm() {
        let claims = json!({"sub": "mallory"});
        let verifier = Verifier::new(SECRET).unwrap();

        for algorithm in ["none", "None", "RS256", "HS512", "EdDSA", ""] {
            let token = hs256(&json!({"alg": algorithm}), &claims);
            assert_eq!(
                verifier.verify(&token, now()),
                Err(Error::Signature),
                "{algorithm}"
            );
        }
    }

    #[test]
    fn a_changed_or_broken_token_is_refused() {
        let verifier = Verifier::new(SECRET).unwrap();
        let token = hs256(&json!({"alg": "HS256"}), &json!({"sub": "alice"}));
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let other = encoded(&json!({"sub": "mallory"}));
        let (header, _) = signed.split_once('.').unwrap();

        let forged = format!("{header}.{other}.{signature}");
        assert_eq!(verifier.verify(&forged, now()), Err(Error::Signature));
        assert_eq!(
            verifier.verify(&format!("{signed}."), now()),
            Err(Error::Signature)
        );
        for broken in ["", ".", "..", "a.b.c", "a.b.c.d", signed, &"x".repeat(9000)] {
            assert_eq!(
                verifier.verify(broken, now()),
                Err(Error::Malformed),
                "{broken}"
            );
        }
    }

    #[test]
    fn a_key_set_finds_the_key_by_its_id() {
        let seed = [7; 32];
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let public = URL_SAFE_NO_PAD.encode(pair.public_key());
        let other = URL_SAFE_NO_PAD.encode([1; 32]);
        let keys = json!({"keys": [
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
            {"kty": "OKP", "crv": "Ed25519", "kid": "old", "x": other},
            {"kty": "OKP", "crv": "Ed25519", "kid": "new", "x": public},
        ]});
        let verifier = Verifier::new(&keys.to_string()).unwrap();
        let token = |key_id: &str| {
            let header = encoded(&json!({"alg": "EdDSA", "kid": key_id}));
            let signed = format!("{header}.{}", encoded(&json!({"sub": "alice"})));
            let signature = URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()));
            format!("{signed}.{signature}")
        };

        assert!(verifier.verify(&token("new"), now()).is_ok());
        assert_eq!(verifier.verify(&token("old"), now()), Err(Error::Signature));
        assert_eq!(
            verifier.verify(&token("unknown"), now()),
            Err(Error::Signature)
        );
    }
}
