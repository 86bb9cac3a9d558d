//! What a stack consists of.
//!
//! In: setters, each naming one wish. Out: plain fields read by the servers' boot functions.
//! Must hold: the default is what most tests want (any PostgreSQL, one nats-server, no redis, no
//! schema), so that a test mentions only what it is about.

use clap::ValueEnum;

/// Which PostgreSQL to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PostgresVersion {
    /// Whatever is installed, else what the system's packages offer.
    #[default]
    #[value(name = "installed")]
    Any,
    #[value(name = "15")]
    V15,
    #[value(name = "17")]
    V17,
    #[value(name = "18")]
    V18,
}

/// Which nats-server to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NatsVersion {
    /// Whatever is installed, else what the system's packages offer (2.9 on Debian 12).
    #[default]
    #[value(name = "installed")]
    Any,
    #[value(name = "2.14")]
    V2_14,
    #[value(name = "2.15")]
    V2_15,
}

/// What [`Stack::up`](crate::Stack::up) boots.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent wishes, not states of one thing"
)]
pub struct Options {
    pub(crate) postgres: Option<PostgresVersion>,
    pub(crate) postgres_settings: Vec<(String, String)>,
    pub(crate) fsync: bool,
    pub(crate) own_initdb: bool,
    pub(crate) schema: bool,
    pub(crate) nats: Option<NatsVersion>,
    pub(crate) nats_nodes: usize,
    pub(crate) nats_config: Vec<String>,
    pub(crate) nats_env: Vec<(String, String)>,
    pub(crate) jetstream_config: Vec<String>,
    pub(crate) nats_login_required: bool,
    pub(crate) redis: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            postgres: Some(PostgresVersion::Any),
            postgres_settings: Vec::new(),
            fsync: false,
            own_initdb: false,
            schema: false,
            nats: Some(NatsVersion::Any),
            nats_nodes: 1,
            nats_config: Vec::new(),
            nats_env: Vec::new(),
            jetstream_config: Vec::new(),
            nats_login_required: false,
            redis: false,
        }
    }
}

impl Options {
    #[must_use]
    pub fn postgres(mut self, version: PostgresVersion) -> Self {
        self.postgres = Some(version);
        self
    }

    #[must_use]
    pub fn without_postgres(mut self) -> Self {
        self.postgres = None;
        self
    }

    /// One more line of `postgresql.conf`; the last of equal names wins.
    #[must_use]
    pub fn postgres_setting(mut self, name: &str, value: &str) -> Self {
        self.postgres_settings
            .push((name.to_owned(), value.to_owned()));
        self
    }

    /// Off by default: a test does not survive a power cut, and is faster for it.
    #[must_use]
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// Runs `initdb` for this stack (about a second) instead of copying the cached data directory:
    /// for tests that need a system identifier unlike any other stack's.
    #[must_use]
    pub fn own_initdb(mut self, own: bool) -> Self {
        self.own_initdb = own;
        self
    }

    /// Applies `schema/*.sql` in the order of their names to database `postgres`; roles
    /// `bridge_reader`, `service_processor` and `service_reader` then have their names as passwords.
    #[must_use]
    pub fn schema(mut self, apply: bool) -> Self {
        self.schema = apply;
        self
    }

    #[must_use]
    pub fn nats(mut self, version: NatsVersion) -> Self {
        self.nats = Some(version);
        self
    }

    #[must_use]
    pub fn without_nats(mut self) -> Self {
        self.nats = None;
        self
    }

    /// 1 (default), or 3 for a cluster that can hold R3 streams.
    #[must_use]
    pub fn nats_nodes(mut self, nodes: usize) -> Self {
        self.nats_nodes = nodes;
        self
    }

    /// One more top-level line of the server's configuration, such as `max_payload: 64KB`.
    #[must_use]
    pub fn nats_config(mut self, line: &str) -> Self {
        self.nats_config.push(line.to_owned());
        self
    }

    /// A variable in the environment of nats-server, such as `GOGC`.
    #[must_use]
    pub fn nats_env(mut self, name: &str, value: &str) -> Self {
        self.nats_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more line of the `jetstream` block, such as `sync_interval: always` (2.10 and newer).
    #[must_use]
    pub fn jetstream_config(mut self, line: &str) -> Self {
        self.jetstream_config.push(line.to_owned());
        self
    }

    /// Refuses clients that do not name a user; off by default.
    #[must_use]
    pub fn nats_login_required(mut self, required: bool) -> Self {
        self.nats_login_required = required;
        self
    }

    #[must_use]
    pub fn redis(mut self, on: bool) -> Self {
        self.redis = on;
        self
    }
}
