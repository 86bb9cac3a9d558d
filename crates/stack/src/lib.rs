//! Real PostgreSQL, nats-server and redis-server for tests, benches and the demo.
//!
//! In: [`Options`]. Out: a [`Stack`] of running servers in a temporary directory on ports of its
//! own, with handles to ask them, break them and bring them back.
//! Invariant: nothing outlives the `Stack` (not the servers, not the directory unless a test
//! failed), and nothing outside the directory and the cache under `target/stack/` is changed.
//!
//! ```no_run
//! let stack = stack::Stack::up(stack::Options::default()).unwrap();
//! let rows = stack.postgres().sql("SELECT 1");
//! stack.nats().kill();
//! stack.nats().start();
//! ```
//!
//! Everything here is plain threads and processes, so it may be called from `#[test]` and from
//! inside a tokio runtime alike. Calls that cannot fail in a healthy test ([`Server::kill`],
//! [`Postgres::sql`]) panic with the server's log instead of returning an error.

mod arguments;
mod eventually;
mod files;
mod home;
mod http;
mod install;
mod options;
mod port;
mod process;
mod program;
mod relay;
mod server;
mod signal;
mod spawner;
mod workspace;

pub use arguments::arguments;
pub use eventually::{Outcome, eventually, eventually_async};
pub use files::copy;
pub use http::http_get;
pub use install::Error as InstallError;
pub use options::{NatsVersion, Options, PostgresVersion};
pub use process::Process;
pub use program::Program;
pub use relay::{Direction, Relay};
pub use rustix::process::Signal;
pub use server::nats::Nats;
pub use server::nginx::Nginx;
pub use server::postgres::Postgres;
pub use server::redis::Redis;
pub use server::{Server, StartError};
pub use workspace::{binary, bridge_binary, build_binaries, build_binary};

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use home::Home;
use port::Port;

/// Running servers. Dropping it stops them and removes their directory; when the dropping thread
/// panics, the directory stays and its path and the logs' tails are printed.
#[derive(Debug)]
pub struct Stack {
    // Fields drop in this order: servers first, then the directory under them.
    postgres: Option<Postgres>,
    nats: Vec<Nats>,
    redis: Option<Redis>,
    ports: Mutex<Vec<Port>>,
    home: Home,
}

/// Why a stack did not come up.
#[derive(thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Install(#[from] install::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot prepare {}", path.display())]
    Prepare {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("schema file {} was refused: {message}", path.display())]
    Schema { path: PathBuf, message: String },
}

/// `unwrap` prints `Debug`; people should read the line to type there, not field names.
impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Stack {
    /// Finds or fetches the binaries, boots the servers and waits until each one answers.
    ///
    /// The first boot on a machine may download packages (said on stderr); later ones take well
    /// under two seconds.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers build the options in place"
    )]
    pub fn up(options: Options) -> Result<Self, Error> {
        let home = Home::create()?;
        let (postgres, nats, redis) = std::thread::scope(|scope| {
            let postgres = scope.spawn(|| Postgres::boot(&options, &home));
            let nats = scope.spawn(|| Nats::boot(&options, &home));
            let redis = options.redis.then(|| Redis::boot(&home)).transpose();
            (
                postgres.join().expect("booting PostgreSQL does not panic"),
                nats.join().expect("booting nats-server does not panic"),
                redis,
            )
        });
        Ok(Self {
            postgres: postgres?,
            nats: nats?,
            redis: redis?,
            ports: Mutex::default(),
            home,
        })
    }

    /// Panics if the options left PostgreSQL out.
    pub fn postgres(&self) -> &Postgres {
        self.postgres
            .as_ref()
            .expect("this stack was asked for without PostgreSQL")
    }

    /// The only NATS server, or the first node of the cluster. Panics if the options left it out.
    pub fn nats(&self) -> &Nats {
        self.nats
            .first()
            .expect("this stack was asked for without NATS")
    }

    /// All nodes of the NATS cluster; one for a single server, none when left out.
    pub fn nats_nodes(&self) -> &[Nats] {
        &self.nats
    }

    /// Panics unless the options asked for it.
    pub fn redis(&self) -> &Redis {
        self.redis
            .as_ref()
            .expect("ask for it with Options::redis(true)")
    }

    /// Where servers and programs keep data and logs.
    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    /// A TCP port on 127.0.0.1 that stays free for the program it is given to, restarts included,
    /// for as long as the stack lives.
    pub fn claim_port(&self) -> u16 {
        let port = Port::claim().expect("there is a free TCP port");
        let number = port.number();
        self.ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(port);
        number
    }

    /// An nginx with this configuration, which must listen on 127.0.0.1 and `port`. It stops when it is dropped.
    pub fn nginx(&self, config: &str, port: u16) -> Result<Nginx, Error> {
        Nginx::boot(self, config, port)
    }

    /// A program to run beside the servers, its output captured in this stack's directory.
    pub fn program(&self, path: impl Into<PathBuf>) -> Program {
        Program::new(path, self.dir())
    }
}
