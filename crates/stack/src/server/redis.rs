//! redis-server without persistence.
//!
//! In: a directory. Out: a server that answers PING.
//! Must hold: it is a cache; a restart finds it empty, as a crash of a real one may.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::time::Duration;

use rustix::process::Signal;

use super::Server;
use crate::home::Home;
use crate::port::Port;
use crate::program::Program;
use crate::{Error, install};

/// A redis-server; its controls are those of [`Server`].
#[derive(Debug)]
pub struct Redis {
    server: Server,
    port: Port,
}

impl Redis {
    pub(crate) fn boot(home: &Home) -> Result<Self, Error> {
        let installation = install::find(&install::redis())?;
        let directory = home.path().join("redis");
        let prepare = |source| Error::Prepare {
            path: directory.clone(),
            source,
        };
        fs::create_dir_all(&directory).map_err(prepare)?;
        let port = Port::claim().map_err(prepare)?;
        let program = Program::new(installation.program("redis-server"), home.path())
            .args(["--bind", "127.0.0.1", "--port", &port.number().to_string()])
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--daemonize",
                "no",
                "--dir",
            ])
            .arg(&directory)
            .env("LD_LIBRARY_PATH", &installation.libraries);
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let server = Server::new(program, Signal::TERM, Signal::KILL, move || {
            ping(addr).map_err(|error| error.to_string())
        });
        server.try_start()?;
        Ok(Self { server, port })
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.number()))
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }
}

impl Deref for Redis {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

fn ping(addr: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    if &answer == b"+PONG" {
        Ok(())
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}
