//! Answers the server's authentication requests.
//!
//! In: the body of an AuthenticationRequest. Out: the message to send back, if any.
//! Invariant: once SCRAM has begun, the login counts only after the server proved that it knows
//! the password too.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use super::endpoint::Endpoint;
use super::error::Error;

/// The login so far.
pub(super) struct Authentication<'a> {
    endpoint: &'a Endpoint,
    /// For SCRAM's channel binding: the hash of the server's certificate, under TLS.
    tls_server_end_point: Option<Vec<u8>>,
    scram: Option<Scram>,
}

enum Scram {
    InProgress(ScramSha256),
    ServerProved,
}

impl<'a> Authentication<'a> {
    pub(super) fn new(endpoint: &'a Endpoint, tls_server_end_point: Option<Vec<u8>>) -> Self {
        Self {
            endpoint,
            tls_server_end_point,
            scram: None,
        }
    }

    /// Takes one request and appends the answer to `out`. True when the server is content.
    pub(super) fn answer(&mut self, request: &[u8], out: &mut BytesMut) -> Result<bool, Error> {
        let Some((code, data)) = request.split_first_chunk() else {
            return Err(PROTOCOL_ERROR);
        };
        match u32::from_be_bytes(*code) {
            OK if matches!(self.scram, Some(Scram::InProgress(_))) => return Err(PROTOCOL_ERROR),
            OK => return Ok(true),
            CLEARTEXT_PASSWORD => {
                frontend::password_message(self.password()?, out).map_err(Error::Io)?;
            }
            MD5_PASSWORD => {
                let salt = *data.first_chunk().ok_or(PROTOCOL_ERROR)?;
                let hash = md5_hash(self.endpoint.user.as_bytes(), self.password()?, salt);
                frontend::password_message(hash.as_bytes(), out).map_err(Error::Io)?;
            }
            SASL => self.begin_scram(data, out)?,
            SASL_CONTINUE => {
                let Some(Scram::InProgress(scram)) = &mut self.scram else {
                    return Err(PROTOCOL_ERROR);
                };
                scram.update(data).map_err(Error::Scram)?;
                frontend::sasl_response(scram.message(), out).map_err(Error::Io)?;
            }
            SASL_FINAL => {
                let Some(Scram::InProgress(scram)) = &mut self.scram else {
                    return Err(PROTOCOL_ERROR);
                };
                scram.finish(data).map_err(Error::Scram)?;
                self.scram = Some(Scram::ServerProved);
            }
            other => return Err(Error::UnsupportedAuthentication(other)),
        }
        Ok(false)
    }

    fn begin_scram(&mut self, mechanisms: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        let offers = |mechanism: &str| {
            let mut offered = mechanisms.split(|&byte| byte == 0);
            offered.any(|name| name == mechanism.as_bytes())
        };
        let (mechanism, binding) = match self.tls_server_end_point.take() {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => (
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(hash),
            ),
            // Tells the server that we could have bound: it notices if someone hid its offer.
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(Error::UnsupportedAuthentication(SASL));
        }
        let scram = ScramSha256::new(self.password()?, binding);
        frontend::sasl_initial_response(mechanism, scram.message(), out).map_err(Error::Io)?;
        self.scram = Some(Scram::InProgress(scram));
        Ok(())
    }

    fn password(&self) -> Result<&'a [u8], Error> {
        let password = self.endpoint.password.as_deref();
        password.map(str::as_bytes).ok_or(Error::PasswordMissing)
    }
}

const PROTOCOL_ERROR: Error = Error::Protocol {
    expected: "another authentication request",
};

// PostgreSQL: "Message Formats", AuthenticationOk and following.
const OK: u32 = 0;
const CLEARTEXT_PASSWORD: u32 = 3;
const MD5_PASSWORD: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;
