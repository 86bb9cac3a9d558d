//! Flags that several services have: where the servers are, and who may come in.
//!
//! In: the command line and the environment. Out: connect options and access rules. What must hold: the same flag means
//! the same in every service, and without a key for tokens nobody listens beyond loopback.

use std::net::{IpAddr, Ipv4Addr};
#[cfg(any(feature = "nats", feature = "web"))]
use std::path::PathBuf;

/// Where NATS is.
#[cfg(feature = "nats")]
#[derive(Debug, Clone, clap::Args)]
pub struct Nats {
    /// NATS servers, separated by commas.
    #[arg(
        long,
        env = "NATS_URL",
        default_value = "nats://localhost:4222",
        hide_env_values = true,
        global = true
    )]
    pub nats_url: String,
    /// Credentials file for NATS.
    #[arg(long, env = "NATS_CREDS", global = true)]
    pub nats_creds: Option<PathBuf>,
}

#[cfg(feature = "nats")]
impl Nats {
    /// Checks the values.
    pub fn options(&self) -> Result<crate::nats::NatsOptions, crate::nats::Error> {
        crate::nats::NatsOptions::new(crate::nats::Settings {
            url: Some(&self.nats_url),
            credentials: self.nats_creds.as_deref(),
            ..crate::nats::Settings::default()
        })
    }
}

/// Where PostgreSQL is.
#[cfg(feature = "postgres")]
#[derive(Debug, Clone, clap::Args)]
pub struct Postgres {
    /// PostgreSQL as a URL; PG_HOST, PG_PORT, PG_USER, PG_PASSWORD and PG_DB are read without it.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true, value_parser = secret)]
    pub pg_url: Option<crate::secret::Secret>,
}

#[cfg(feature = "postgres")]
impl Postgres {
    /// Checks the values.
    pub fn options(&self) -> Result<crate::postgres::PostgresOptions, crate::postgres::Error> {
        use crate::postgres::{PostgresOptions, Settings};

        match &self.pg_url {
            Some(url) => PostgresOptions::new(Settings {
                url: Some(url),
                ..Settings::default()
            }),
            None => PostgresOptions::from_env(),
        }
    }
}

/// Who may come in.
#[cfg(feature = "web")]
#[derive(Debug, Clone, clap::Args)]
pub struct Tokens {
    /// File with a PEM public key, a JWK set or a shared secret: every request then needs a token.
    #[arg(long, env = "JWT_KEY_FILE")]
    pub jwt_key_file: Option<PathBuf>,
    /// Issuer that tokens must name.
    #[arg(long, env = "JWT_ISSUER", requires = "jwt_key_file")]
    pub jwt_issuer: Option<String>,
    /// Audience that tokens must name.
    #[arg(long, env = "JWT_AUDIENCE", requires = "jwt_key_file")]
    pub jwt_audience: Option<String>,
}

/// Nobody can be let in like this.
#[cfg(feature = "web")]
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Strangers could come in.
    #[error(
        "without tokens only loopback is listened on: give --jwt-key-file, or --host 127.0.0.1"
    )]
    Open,
    /// The key cannot be used.
    #[error(transparent)]
    Jwt(#[from] crate::jwt::LoadError),
}

#[cfg(feature = "web")]
impl Tokens {
    /// The rule for a service that listens on `host`. Reads the key file.
    pub fn access(&self, host: IpAddr) -> Result<crate::access::Access, AccessError> {
        use crate::access::Access;

        match &self.jwt_key_file {
            Some(path) => {
                let verifier = crate::jwt::Verifier::from_file(path)?;
                let (issuer, audience) = (self.jwt_issuer.clone(), self.jwt_audience.clone());
                Ok(Access::Token(verifier.expecting(issuer, audience)))
            }
            None if host.is_loopback() => Ok(Access::Local),
            None => Err(AccessError::Open),
        }
    }
}

/// For `value_parser`: an IP address, or localhost.
pub fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text
            .parse()
            .map_err(|_| "must be an IP address or localhost".to_owned()),
    }
}

/// For `value_parser`: text that must not be printed.
pub fn secret(text: &str) -> Result<crate::secret::Secret, std::convert::Infallible> {
    Ok(crate::secret::Secret::from(text))
}

#[cfg(all(test, feature = "web"))]
mod tests {
    use super::*;
    use crate::access::Access;

    #[test]
    fn strangers_are_kept_out_without_a_key() {
        let tokens = Tokens {
            jwt_key_file: None,
            jwt_issuer: None,
            jwt_audience: None,
        };
        let access = |text| tokens.access(host(text).unwrap());

        assert!(matches!(access("0.0.0.0"), Err(AccessError::Open)));
        assert!(matches!(access("localhost"), Ok(Access::Local)));
        assert!(matches!(access("::1"), Ok(Access::Local)));
    }
}
