//! Says where NATS is and how to log in.
//!
//! In: the values of flags and environment. Out: options for async-nats, or the bare parts for a connection of one's
//! own. What must hold: a client made here reconnects for ever and never in a rush, and no secret is printed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::{self, ErrorCode, stream};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};

use crate::secret::Secret;
use crate::{backoff, percent};

/// Values as they came from flags and environment, none of them checked yet.
#[derive(Debug, Default, Clone, Copy)]
pub struct Settings<'a> {
    /// `--nats-url`, `NATS_URL`: `nats://user:password@host:port`, `nats://token@host` or a bare host, several separated
    /// by commas.
    pub url: Option<&'a str>,
    /// `NATS_HOST`: `host` or `host:port`; read when there is no URL.
    pub host: Option<&'a str>,
    /// `NATS_BRIDGE_USER`; read when the URL has no user.
    pub user: Option<&'a str>,
    /// `NATS_BRIDGE_PASSWORD`.
    pub password: Option<&'a Secret>,
    /// `--nats-creds`, `NATS_CREDS`: path of a credentials file. It wins over everything else that logs in.
    pub credentials: Option<&'a Path>,
}

/// Why the values make no sense together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a URL that NATS knows. The text is shown without its secrets.
    #[error("{url:?} is not a NATS server, check --nats-url (NATS_URL)")]
    Url {
        /// The URL, with what stands before the `@` hidden.
        url: String,
        /// What the parser says.
        #[source]
        source: std::io::Error,
    },
    /// WebSockets are left out of the build.
    #[error("{0:?} is a WebSocket address; use nats:// or tls:// in --nats-url (NATS_URL)")]
    WebSocket(String),
    /// Two servers of one list with different users: the cluster has one user for us.
    #[error(
        "the servers of --nats-url (NATS_URL) name different users; name the same one in each or only in the first"
    )]
    DifferentUsers,
    /// A user without a password.
    #[error(
        "user {0:?} has no password; set NATS_BRIDGE_PASSWORD or write it into --nats-url (NATS_URL)"
    )]
    NoPassword(String),
    /// The credentials file cannot be read.
    #[error("cannot read the credentials file {}, check --nats-creds (NATS_CREDS)", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The first connection failed.
    #[error("cannot connect to NATS at {servers}")]
    Connect {
        /// The servers that were tried.
        servers: String,
        /// What the client says.
        #[source]
        source: async_nats::ConnectError,
    },
}

/// How the client logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    None,
    /// User and password.
    Password {
        /// User name.
        user: String,
        /// Its password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// A file with a JWT and a seed.
    Credentials(PathBuf),
}

/// Whether the first connection must succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstConnect {
    /// Return a client at once and go on trying in the background.
    Retry,
    /// Fail when no server answers.
    MustSucceed,
}

/// Where NATS is and how to log in. `{}` shows it without secrets.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    servers: Vec<ServerAddr>,
    auth: Auth,
}

impl NatsOptions {
    /// Checks the values. Without any, NATS is at `localhost:4222` and needs no login.
    pub fn new(settings: Settings<'_>) -> Result<Self, Error> {
        let list = settings.url.or(settings.host).unwrap_or("localhost");
        let mut servers = Vec::new();
        let mut login = None;
        for text in list
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
        {
            let (server, server_login) = server(text)?;
            servers.push(server);
            match (&login, server_login) {
                (_, None) => {}
                (None, found) => login = found,
                (Some(first), Some(found)) if *first == found => {}
                (Some(_), Some(_)) => return Err(Error::DifferentUsers),
            }
        }
        if servers.is_empty() {
            servers.push(server("localhost")?.0);
        }
        let auth = match (settings.credentials, login, settings.user) {
            (Some(path), _, _) => Auth::Credentials(path.to_owned()),
            (None, Some(login), _) => login,
            (None, None, Some(user)) => Auth::Password {
                user: user.to_owned(),
                password: settings
                    .password
                    .cloned()
                    .ok_or_else(|| Error::NoPassword(user.to_owned()))?,
            },
            (None, None, None) => Auth::None,
        };
        Ok(Self { servers, auth })
    }

    /// The same from `NATS_URL`, `NATS_HOST`, `NATS_BRIDGE_USER`, `NATS_BRIDGE_PASSWORD` and `NATS_CREDS`; an empty
    /// variable counts as unset.
    pub fn from_env() -> Result<Self, Error> {
        let value = |name| {
            std::env::var(name)
                .ok()
                .filter(|value: &String| !value.is_empty())
        };
        let password = value("NATS_BRIDGE_PASSWORD").map(Secret::from);
        Self::new(Settings {
            url: value("NATS_URL").as_deref(),
            host: value("NATS_HOST").as_deref(),
            user: value("NATS_BRIDGE_USER").as_deref(),
            password: password.as_ref(),
            credentials: value("NATS_CREDS").as_deref().map(Path::new),
        })
    }

    /// The servers to try, in the order they were given, without user or password.
    pub fn servers(&self) -> &[ServerAddr] {
        &self.servers
    }

    /// How to log in.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// Options of a client that reconnects for ever (50 ms to 5 s apart, with jitter), answers requests within 5 s or
    /// fails them, finds a dead server within 20 s and logs its changes of state. Reads the credentials file.
    pub fn connect_options(&self, name: &str) -> Result<ConnectOptions, Error> {
        let options = ConnectOptions::new()
            .name(name)
            .max_reconnects(None)
            .reconnect_delay_callback(|attempts| {
                let failures = u32::try_from(attempts)
                    .unwrap_or(u32::MAX)
                    .saturating_sub(1);
                backoff::delay(
                    RECONNECT_INITIAL,
                    RECONNECT_CAP,
                    failures,
                    backoff::random(),
                )
            })
            .connection_timeout(Duration::from_secs(5))
            .request_timeout(Some(Duration::from_secs(5)))
            .ping_interval(Duration::from_secs(10))
            .event_callback(async |event| log(&event));
        Ok(match &self.auth {
            Auth::None => options,
            Auth::Password { user, password } => {
                options.user_and_password(user.clone(), password.expose().to_owned())
            }
            Auth::Token(token) => options.token(token.expose().to_owned()),
            Auth::Credentials(path) => std::fs::read_to_string(path)
                .and_then(|credentials| options.credentials(&credentials))
                .map_err(|source| Error::Credentials {
                    path: path.clone(),
                    source,
                })?,
        })
    }

    /// A client under `name`, which the server's monitoring shows.
    pub async fn connect(&self, name: &str, first: FirstConnect) -> Result<Client, Error> {
        let options = self.connect_options(name)?;
        let options = match first {
            FirstConnect::Retry => options.retry_on_initial_connect(),
            FirstConnect::MustSucceed => options,
        };
        let connected = options.connect(self.servers.as_slice()).await;
        connected.map_err(|source| Error::Connect {
            servers: self.server_list(),
            source,
        })
    }

    fn server_list(&self) -> String {
        let servers: Vec<_> = self
            .servers
            .iter()
            .map(|server| format!("{}:{}", server.host(), server.port()))
            .collect();
        servers.join(",")
    }
}

impl fmt::Display for NatsOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.auth {
            Auth::None => {}
            Auth::Password { user, password } => write!(formatter, "{user}:{password}@")?,
            Auth::Token(token) => write!(formatter, "{token}@")?,
            Auth::Credentials(path) => write!(formatter, "[{}]@", path.display())?,
        }
        formatter.write_str(&self.server_list())
    }
}

const RECONNECT_INITIAL: Duration = Duration::from_millis(50);
const RECONNECT_CAP: Duration = Duration::from_secs(5);

/// One server of the list, and the login written into its URL.
fn server(text: &str) -> Result<(ServerAddr, Option<Auth>), Error> {
    let shown = || match text.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => text.to_owned(),
    };
    let invalid = |source| Error::Url {
        url: shown(),
        source,
    };
    let parsed = ServerAddr::from_str(text).map_err(invalid)?;
    if parsed.is_websocket() {
        return Err(Error::WebSocket(shown()));
    }
    let login = match (parsed.username().map(percent::decode), parsed.password()) {
        (None, _) => None,
        (Some(token), None) => Some(Auth::Token(Secret::from(token))),
        (Some(user), Some(password)) => Some(Auth::Password {
            user,
            password: Secret::from(percent::decode(password)),
        }),
    };
    let mut url = parsed.into_inner();
    // Both only fail for a URL without a host, which does not parse as a server.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    let server = ServerAddr::from_url(url).map_err(invalid)?;
    Ok((server, login))
}

/// Resolves when the connection that the client has now was replaced by another one, at most [`RECONNECTED_POLL`]
/// later. The client resumes its subscriptions by itself and tells nobody.
pub fn reconnected(client: &Client) -> impl Future<Output = ()> + use<> {
    let statistics = client.statistics();
    let connects = statistics.connects.load(Ordering::Relaxed);
    async move {
        while statistics.connects.load(Ordering::Relaxed) == connects {
            tokio::time::sleep(RECONNECTED_POLL).await;
        }
    }
}

/// The stream or the server's storage has reached a limit: the server is there, and refuses.
pub fn is_full(error: &PublishError) -> bool {
    let source = std::error::Error::source(error);
    let code = source
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
        .map(jetstream::Error::error_code);
    matches!(
        code,
        Some(ErrorCode::STREAM_STORE_FAILED | ErrorCode::STORAGE_RESOURCES_EXCEEDED)
    )
}

/// How often [`reconnected`] looks.
pub const RECONNECTED_POLL: Duration = Duration::from_millis(500);

/// The definition of the queue of writes: a full one refuses, and a command is in it until it is acked. The gateway and
/// the processor make it, whoever comes first.
pub fn write_queue(
    name: &str,
    subjects: &str,
    messages_max: i64,
    bytes_max: i64,
) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        retention: stream::RetentionPolicy::WorkQueue,
        storage: stream::StorageType::File,
        discard: stream::DiscardPolicy::New,
        max_messages: messages_max,
        max_bytes: bytes_max,
        duplicate_window: WRITES_DUPLICATE_WINDOW,
        allow_direct: true,
        ..stream::Config::default()
    }
}

/// A repeat of a command is dropped within this: as long as the gateway waits for an ack. Later ones the gateway knows by
/// their keys and the processor by their outcomes. Each id costs nats-server some 200 bytes meanwhile, through which its
/// garbage collector walks: of 20,000 writes a second 16 MB in two windows, and half a gigabyte in those of two minutes
/// that are its default.
pub const WRITES_DUPLICATE_WINDOW: Duration = Duration::from_secs(2);
/// Commands that the queue holds unless somebody says otherwise.
pub const WRITES_MAX: u32 = 1_000_000;
/// Bytes of commands that the queue holds unless somebody says otherwise.
pub const WRITES_BYTES_MAX: i64 = 1 << 30;

/// The definition of a KV bucket's stream: `create_stream(bucket("schemas", 10))` makes bucket `schemas` that keeps ten
/// values of each key. async-nats' own `create_key_value` first asks for the account's limits and cannot read the answer
/// of servers before 2.10.
pub fn bucket(name: &str, history: i64) -> stream::Config {
    stream::Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: history,
        storage: stream::StorageType::File,
        discard: stream::DiscardPolicy::New,
        duplicate_window: Duration::from_mins(2),
        num_replicas: 1,
        allow_rollup: true,
        allow_direct: true,
        deny_delete: true,
        ..stream::Config::default()
    }
}

fn log(event: &Event) {
    match event {
        Event::Connected => tracing::info!("NATS connected"),
        Event::Disconnected => tracing::warn!("NATS disconnected"),
        Event::LameDuckMode => tracing::warn!("NATS server is about to shut down"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "NATS connection"),
        Event::SlowConsumer(subscription) => {
            tracing::warn!(subscription, "slow consumer, messages were dropped");
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS server refused"),
        Event::ClientError(error) => tracing::warn!(%error, "NATS client"),
    }
}

/// A server's version. A pre-release counts as its release: it has the features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    /// 2 in `2.14.0`.
    pub major: u32,
    /// 14 in `2.14.0`.
    pub minor: u32,
    /// 0 in `2.14.0`.
    pub patch: u32,
}

impl ServerVersion {
    /// A version to compare with.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }
}

/// The text is not `major.minor.patch`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a server version like 2.14.0")]
pub struct NotAVersion(String);

impl FromStr for ServerVersion {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NotAVersion(text.to_owned());
        let release = text.strip_prefix('v').unwrap_or(text);
        let release = release.split(['-', '+']).next().unwrap_or(release);
        let numbers: Result<Vec<u32>, _> = release.split('.').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[major, minor, patch]) => Ok(Self {
                major,
                minor,
                patch,
            }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_url(url: &str) -> Result<NatsOptions, Error> {
        NatsOptions::new(Settings {
            url: Some(url),
            ..Settings::default()
        })
    }

    #[test]
    fn without_settings_it_is_localhost_without_login() {
        let options = NatsOptions::new(Settings::default()).unwrap();

        assert_eq!(options.to_string(), "localhost:4222");
        assert_eq!(options.auth(), &Auth::None);
    }

    #[test]
    fn a_list_keeps_its_order_and_its_one_login() {
        let options = from_url("nats://bridge:s%40cret@a:4223, tls://b,c:9").unwrap();

        assert_eq!(options.to_string(), "bridge:***@a:4223,b:4222,c:9");
        assert!(options.servers()[1].tls_required());
        assert!(
            options
                .servers()
                .iter()
                .all(|server| !server.has_user_pass())
        );
        let password = Secret::from("s@cret");
        assert_eq!(
            options.auth(),
            &Auth::Password {
                user: "bridge".to_owned(),
                password
            }
        );
    }

    #[test]
    fn a_lone_user_is_a_token() {
        let options = from_url("nats://t0ken@a").unwrap();

        assert_eq!(options.auth(), &Auth::Token(Secret::from("t0ken")));
        assert_eq!(options.to_string(), "***@a:4222");
    }

    #[test]
    fn host_and_user_come_from_their_own_variables() {
        let password = Secret::from("hunter2");
        let options = NatsOptions::new(Settings {
            host: Some("nats.internal:4333"),
            user: Some("bridge"),
            password: Some(&password),
            ..Settings::default()
        })
        .unwrap();

        assert_eq!(options.to_string(), "bridge:***@nats.internal:4333");
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn credentials_win_over_a_login_in_the_url() {
        let options = NatsOptions::new(Settings {
            url: Some("nats://u:p@a"),
            credentials: Some(Path::new("/etc/bridge.creds")),
            ..Settings::default()
        })
        .unwrap();

        assert_eq!(options.to_string(), "[/etc/bridge.creds]@a:4222");
        let error = options.connect_options("test").unwrap_err();
        assert!(error.to_string().contains("--nats-creds"));
    }

    #[test]
    fn errors_name_the_flag_and_hide_the_secret() {
        let error = from_url("http://u:hunter2@a").unwrap_err().to_string();
        assert!(
            error.contains("--nats-url") && !error.contains("hunter2"),
            "{error}"
        );

        assert!(matches!(from_url("wss://a"), Err(Error::WebSocket(_))));
        assert!(matches!(
            from_url("a:b@x,c:d@y"),
            Err(Error::DifferentUsers)
        ));
        let no_password = NatsOptions::new(Settings {
            user: Some("u"),
            ..Settings::default()
        });
        assert!(matches!(no_password, Err(Error::NoPassword(user)) if user == "u"));
    }

    #[tokio::test]
    async fn the_first_connect_fails_or_goes_on_trying_as_asked() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let options = from_url(&unused.to_string()).unwrap();

        let error = options
            .connect("test", FirstConnect::MustSucceed)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot connect to NATS at {unused}")
        );

        let client = options.connect("test", FirstConnect::Retry).await.unwrap();
        assert_ne!(
            client.connection_state(),
            async_nats::connection::State::Connected
        );
    }

    #[test]
    fn versions_compare_by_number() {
        let version = |text: &str| text.parse::<ServerVersion>().unwrap();

        assert!(version("2.9.15") < version("2.14.0"));
        assert_eq!(version("v2.14.0-RC.1"), ServerVersion::new(2, 14, 0));
        assert_eq!(version("2.14.3+build").to_string(), "2.14.3");
        for wrong in ["", "2", "2.14", "2.x.0", "2.14.0.1", "-1.0.0"] {
            assert_eq!(
                wrong.parse::<ServerVersion>(),
                Err(NotAVersion(wrong.to_owned()))
            );
        }
    }
}
