//! nats-server with JetStream: one, or a cluster of three.
//!
//! In: options and a directory. Out: servers whose JetStream takes requests.
//! Must hold: a node comes back on the same ports and store, so clients find it and its streams.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::Server;
use crate::home::Home;
use crate::http::http_get;
use crate::install::Installation;
use crate::options::Options;
use crate::port::Port;
use crate::program::Program;
use crate::{Error, install};

/// A nats-server; its controls are those of [`Server`].
///
/// Users (password = name): `admin`, `bridge` and `app`, all in the one account with JetStream,
/// and `sys` in the system account. Whoever connects without a name is `admin`, unless
/// [`Options::nats_login_required`]: async-nats does not send the user of a URL by itself.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    ports: Ports,
    program: PathBuf,
    version: String,
    store: PathBuf,
}

#[derive(Debug)]
struct Ports {
    client: Port,
    monitoring: Port,
    cluster: Port,
}

impl Nats {
    pub(crate) fn boot(options: &Options, home: &Home) -> Result<Vec<Self>, Error> {
        let Some(version) = options.nats else {
            return Ok(Vec::new());
        };
        let installation = install::find(&install::nats(version))?;
        let prepare = |source| Error::Prepare {
            path: home.path().to_path_buf(),
            source,
        };
        let ports = (0..options.nats_nodes)
            .map(|_| {
                let (client, monitoring, cluster) =
                    (Port::claim()?, Port::claim()?, Port::claim()?);
                Ok(Ports {
                    client,
                    monitoring,
                    cluster,
                })
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(prepare)?;
        let routes: Vec<u16> = ports.iter().map(|node| node.cluster.number()).collect();
        let nodes = ports
            .into_iter()
            .enumerate()
            .map(|(index, ports)| {
                Self::node(
                    index + 1,
                    ports,
                    &routes,
                    options,
                    home.path(),
                    &installation,
                )
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(prepare)?;
        // A cluster elects its leader only once a majority runs: launch all, then wait for each.
        for node in &nodes {
            node.server.launch()?;
        }
        for node in &nodes {
            node.server.wait_ready()?;
        }
        Ok(nodes)
    }

    fn node(
        number: usize,
        ports: Ports,
        routes: &[u16],
        options: &Options,
        home: &Path,
        installation: &Installation,
    ) -> std::io::Result<Self> {
        let name = format!("nats-{number}");
        let directory = home.join(&name);
        fs::create_dir_all(&directory)?;
        let config = directory.join("nats-server.conf");
        fs::write(
            &config,
            configuration(&name, &ports, routes, options, &directory),
        )?;
        let mut program = Program::new(installation.program("nats-server"), home)
            .named(&name)
            .arg("-c")
            .arg(&config)
            .env("LD_LIBRARY_PATH", &installation.libraries);
        for (name, value) in &options.nats_env {
            program = program.env(name, value);
        }
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.monitoring.number()));
        let ready = move || match http_get(addr, "/healthz") {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("/healthz says {status} {body}")),
            Err(error) => Err(error.to_string()),
        };
        let server = Server::new(program, Signal::TERM, Signal::KILL, ready);
        Ok(Self {
            server,
            ports,
            program: installation.program("nats-server"),
            version: installation.version.clone(),
            store: store(&directory),
        })
    }

    /// Where it keeps streams and consumers.
    pub fn store_dir(&self) -> &Path {
        &self.store
    }

    /// With the name and password of `admin`.
    pub fn url(&self) -> String {
        self.url_as("admin", "admin")
    }

    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("nats://{user}:{password}@{}", self.addr())
    }

    /// [`url`](Self::url) with another address, such as that of a [`Relay`](crate::Relay).
    pub fn url_via(&self, addr: SocketAddr) -> String {
        format!("nats://admin:admin@{addr}")
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.client.number()))
    }

    pub fn port(&self) -> u16 {
        self.ports.client.number()
    }

    /// Of the HTTP monitoring port (`/varz`, `/jsz`, `/healthz`).
    pub fn monitoring_addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.monitoring.number()))
    }

    /// The server's binary.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Such as `2.9.10`.
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl Deref for Nats {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

fn store(directory: &Path) -> PathBuf {
    directory.join("store")
}

fn configuration(
    name: &str,
    ports: &Ports,
    routes: &[u16],
    options: &Options,
    directory: &Path,
) -> String {
    let client = ports.client.number();
    let monitoring = ports.monitoring.number();
    let store = store(directory);
    let jetstream = options.jetstream_config.join("\n  ");
    let anonymous = if options.nats_login_required {
        ""
    } else {
        "no_auth_user: admin"
    };
    let mut text = format!(
        r#"server_name: "{name}"
listen: "127.0.0.1:{client}"
http: "127.0.0.1:{monitoring}"
jetstream {{
  store_dir: "{}"
  {jetstream}
}}
accounts {{
  APP {{
    jetstream: enabled
    users: [
      {{ user: admin, password: admin }}
      {{ user: bridge, password: bridge }}
      {{ user: app, password: app }}
    ]
  }}
  $SYS {{ users: [ {{ user: sys, password: sys }} ] }}
}}
{anonymous}
"#,
        store.display()
    );
    if 1 < routes.len() {
        let cluster = ports.cluster.number();
        let urls: Vec<String> = routes
            .iter()
            .map(|port| format!("\"nats://127.0.0.1:{port}\""))
            .collect();
        let routes = urls.join(", ");
        let cluster = format!(
            "cluster {{ name: stack, listen: \"127.0.0.1:{cluster}\", routes: [ {routes} ] }}\n"
        );
        text.push_str(&cluster);
    }
    for line in &options.nats_config {
        text.push_str(line);
        text.push('\n');
    }
    text
}
