//! nginx with a configuration of the caller's.
//!
//! In: the configuration, and the port it listens on. Out: a server that takes connections there.
//! Must hold: it needs no root and writes nothing outside the stack's directory, whatever the configuration was made for.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;

use rustix::process::Signal;

use super::Server;
use crate::program::Program;
use crate::{Error, Stack, install};

/// An nginx; its controls are those of [`Server`].
#[derive(Debug)]
pub struct Nginx {
    server: Server,
    addr: SocketAddr,
}

impl Nginx {
    pub(crate) fn boot(stack: &Stack, config: &str, port: u16) -> Result<Self, Error> {
        let installation = install::find(&install::nginx())?;
        let directory = stack.dir().join("nginx");
        let file = directory.join("nginx.conf");
        let prepare = |source| Error::Prepare {
            path: directory.clone(),
            source,
        };
        fs::create_dir_all(&directory).map_err(prepare)?;
        // Built in, these paths belong to root.
        let place = |name: &str| format!("{name}_temp_path {};", directory.join(name).display());
        let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(place);
        let config = config.replacen("http {", &format!("http {{ {}", places.join(" ")), 1);
        fs::write(&file, config).map_err(prepare)?;
        let pid = directory.join("pid");
        let program = Program::new(installation.program("nginx"), stack.dir())
            .args(["-e", "stderr", "-p"])
            .arg(&directory)
            .arg("-c")
            .arg(&file)
            // One process: it runs as whoever runs the test, and dies with its pid.
            .args([
                "-g",
                &format!("daemon off; master_process off; pid {};", pid.display()),
            ])
            .env("LD_LIBRARY_PATH", &installation.libraries);
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let server = Server::new(program, Signal::TERM, Signal::KILL, move || {
            TcpStream::connect(addr)
                .map(drop)
                .map_err(|error| error.to_string())
        });
        server.try_start()?;
        Ok(Self { server, addr })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Deref for Nginx {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}
