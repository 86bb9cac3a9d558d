//! PostgreSQL with logical replication switched on.
//!
//! In: options and a directory. Out: a server that answers SQL over TCP and a unix socket, with
//! scram-sha-256 on both.
//! Must hold: it never runs as root; data written before a `kill` is there after the next start.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use super::{Server, template};
use crate::home::Home;
use crate::options::Options;
use crate::port::Port;
use crate::program::{Program, User};
use crate::{Error, install, signal, workspace};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Rows of text values; NULL is `None`.
pub type Rows = Vec<Vec<Option<String>>>;

/// A PostgreSQL server; its controls are those of [`Server`].
///
/// Superuser `postgres`, password `postgres`, database `postgres`.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    access: Access,
    data: PathBuf,
    bin_dir: PathBuf,
    version: String,
    // Given up last: the port is ours until the server is gone.
    _port: Port,
}

/// How to reach it.
#[derive(Debug, Clone)]
struct Access {
    port: u16,
    socket_dir: PathBuf,
}

impl Postgres {
    pub(crate) fn boot(options: &Options, home: &Home) -> Result<Option<Self>, Error> {
        let Some(version) = options.postgres else {
            return Ok(None);
        };
        let installation = install::find(&install::postgres(version))?;
        let user = unprivileged_user();
        let directory = home.path().join("postgres");
        let data = directory.join("data");
        let prepare = |source| Error::Prepare {
            path: directory.clone(),
            source,
        };
        fs::create_dir_all(&directory).map_err(prepare)?;
        if let Some(user) = user {
            chown(&directory, Some(user.uid), Some(user.gid)).map_err(prepare)?;
        }
        if options.own_initdb {
            template::initdb(&installation, user, &data).map_err(prepare)?;
        } else {
            template::copy(&installation, user, &data)?;
        }
        let port = Port::claim().map_err(prepare)?;
        let access = Access {
            port: port.number(),
            socket_dir: directory.clone(),
        };
        configure(&data, &access, options).map_err(prepare)?;

        let program = Program::new(installation.program("postgres"), home.path())
            .arg("-D")
            .arg(&data)
            .env("LD_LIBRARY_PATH", &installation.libraries)
            .env_remove("PGDATA")
            .user(user)
            // Immediate shutdown; a plain SIGKILL would leave its System V segment behind.
            .death_signal("QUIT");
        let server = Server::new(program, Signal::INT, Signal::QUIT, {
            let access = access.clone();
            move || access.query("postgres", "SELECT 1").map(|_| ())
        });
        server.try_start()?;
        let postgres = Self {
            server,
            access,
            data,
            bin_dir: installation.bin,
            version: installation.version,
            _port: port,
        };
        if options.schema {
            postgres.apply_schema()?;
        }
        Ok(Some(postgres))
    }

    /// Connection URL of the superuser and database `postgres`, over TCP.
    pub fn url(&self) -> String {
        self.url_as("postgres", "postgres", "postgres")
    }

    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgresql://{user}:{password}@{}/{database}", self.addr())
    }

    /// [`url`](Self::url) with another address, such as that of a [`Relay`](crate::Relay).
    pub fn url_via(&self, addr: SocketAddr) -> String {
        format!("postgresql://postgres:postgres@{addr}/postgres")
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.access.port))
    }

    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    pub fn port(&self) -> u16 {
        self.access.port
    }

    pub fn user(&self) -> &'static str {
        "postgres"
    }

    pub fn password(&self) -> &'static str {
        "postgres"
    }

    /// Directory of the unix socket `.s.PGSQL.{port}`.
    pub fn socket_dir(&self) -> &Path {
        &self.access.socket_dir
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// Directory of the server's programs; `psql` is there too where its package has it.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Such as `15.13`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The first number of the version.
    pub fn major_version(&self) -> u32 {
        let digits = self.version.split('.').next().unwrap_or_default();
        digits.parse().expect("a version starts with a number")
    }

    /// Runs statements in database `postgres`; several in one text are one transaction. The rows
    /// of all of them. Panics with PostgreSQL's message.
    #[track_caller]
    pub fn sql(&self, text: &str) -> Rows {
        self.sql_in("postgres", text)
    }

    /// [`sql`](Self::sql) in another database.
    #[track_caller]
    pub fn sql_in(&self, database: &str, text: &str) -> Rows {
        self.try_sql_in(database, text)
            .unwrap_or_else(|error| panic!("{error}\nin: {text}"))
    }

    /// [`sql_in`](Self::sql_in) for statements that may fail; the error is PostgreSQL's message.
    pub fn try_sql_in(&self, database: &str, text: &str) -> Result<Rows, String> {
        self.access.query(database, text)
    }

    /// The first value of the first row. Panics if there is none or it is NULL.
    #[track_caller]
    pub fn value(&self, text: &str) -> String {
        self.value_in("postgres", text)
    }

    /// [`value`](Self::value) in another database.
    #[track_caller]
    pub fn value_in(&self, database: &str, text: &str) -> String {
        let first = self
            .sql_in(database, text)
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next());
        first
            .flatten()
            .unwrap_or_else(|| panic!("no value from: {text}"))
    }

    /// SIGSTOP to one backend, such as a walsender: its client waits, nobody else does.
    #[track_caller]
    pub fn pause_backend(&self, pid: u32) {
        signal::send(pid, Signal::STOP);
        signal::wait_stopped(&[pid], "the backend");
    }

    /// SIGCONT after [`pause_backend`](Self::pause_backend).
    pub fn resume_backend(&self, pid: u32) {
        signal::send(pid, Signal::CONT);
    }

    #[track_caller]
    pub fn create_database(&self, name: &str) {
        self.sql(&format!(
            "CREATE DATABASE \"{}\"",
            name.replace('"', "\"\"")
        ));
    }

    fn apply_schema(&self) -> Result<(), Error> {
        let directory = workspace::root().join("schema");
        let prepare = |source| Error::Prepare {
            path: directory.clone(),
            source,
        };
        let mut files: Vec<PathBuf> = directory
            .read_dir()
            .map_err(prepare)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
            .collect();
        files.sort();
        for path in files {
            let text = fs::read_to_string(&path).map_err(prepare)?;
            self.try_sql_in("postgres", &text)
                .map_err(|message| Error::Schema { path, message })?;
        }
        // The migrations give them none.
        for role in ["bridge_reader", "service_processor", "service_reader"] {
            self.sql(&format!("ALTER ROLE {role} LOGIN PASSWORD '{role}'"));
        }
        Ok(())
    }
}

impl Deref for Postgres {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Drop for Postgres {
    /// A killed server has left its System V segment; the next start would have removed it.
    fn drop(&mut self) {
        if self.server.is_running() {
            return;
        }
        let Ok(lines) = fs::read_to_string(self.data.join("postmaster.pid")) else {
            return;
        };
        // PostgreSQL: the seventh line is "shmem key and id".
        if let Some(id) = lines
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1))
        {
            let _ = Command::new("ipcrm").args(["-m", id]).output();
        }
    }
}

impl Access {
    /// On a thread of its own, because the caller may be inside a tokio runtime.
    fn query(&self, database: &str, text: &str) -> Result<Rows, String> {
        let mut config = Config::new();
        config
            .host_path(&self.socket_dir)
            .port(self.port)
            .user("postgres")
            .password("postgres")
            .dbname(database)
            .application_name("stack")
            .connect_timeout(CONNECT_TIMEOUT);
        let query = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?;
            runtime
                .block_on(run(&config, text))
                .map_err(|error| message(&error))
        };
        std::thread::scope(|scope| scope.spawn(query).join().expect("a query does not panic"))
    }
}

async fn run(config: &Config, text: &str) -> Result<Rows, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let messages = client.simple_query(text).await?;
    drop(client);
    // Ends once the server has been told goodbye.
    let _ = connection.await;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|index| row.get(index).map(str::to_owned))
                .collect(),
        ),
        _ => None,
    });
    Ok(rows.collect())
}

fn message(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => {
            let detail = error
                .detail()
                .map(|detail| format!(" ({detail})"))
                .unwrap_or_default();
            format!("{}: {}{detail}", error.code().code(), error.message())
        }
        None => error.to_string(),
    }
}

fn configure(data: &Path, access: &Access, options: &Options) -> std::io::Result<()> {
    let durable = if options.fsync { "on" } else { "off" };
    let mut text = format!(
        "
listen_addresses = '127.0.0.1'
port = {}
unix_socket_directories = '{}'
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_prepared_transactions = 20
shared_buffers = 32MB
# A killed server then leaves nothing outside its data directory but one tiny segment.
dynamic_shared_memory_type = mmap
fsync = {durable}
full_page_writes = {durable}
",
        access.port,
        access.socket_dir.display(),
    );
    for (name, value) in &options.postgres_settings {
        let value = value.replace('\'', "''");
        text.extend([name.as_str(), " = '", value.as_str(), "'\n"]);
    }
    File::options()
        .append(true)
        .open(data.join("postgresql.conf"))?
        .write_all(text.as_bytes())
}

/// Whom PostgreSQL, which refuses to run as root, runs as. `None` for an ordinary user: itself.
fn unprivileged_user() -> Option<User> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let fields: Vec<&str> = accounts
            .lines()
            .map(|line| line.split(':').collect())
            .find(|fields: &Vec<&str>| fields.first() == Some(&name))?;
        Some(User {
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
        })
    };
    // 65534 is `nobody` wherever it has no name.
    Some(find("postgres").or_else(|| find("nobody")).unwrap_or(User {
        uid: 65_534,
        gid: 65_534,
    }))
}
