//! The socket under a session.
//!
//! In: an `Endpoint`. Out: a connected blocking socket as `Read` and `Write`.
//! Invariant: a peer that vanished is noticed within about 30 s, on reads (keepalive) as on
//! writes (user timeout). TLS will be a third variant around the first.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::endpoint::{Endpoint, Host};

#[derive(Debug)]
pub(super) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Transport {
    /// Tries each address of the host in turn; the error is the last one's.
    pub(super) fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match &endpoint.host {
            Host::Tcp(host) => {
                let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in (host.as_str(), endpoint.port).to_socket_addrs()? {
                    match connect_tcp(&address.into(), endpoint.connect_timeout) {
                        Ok(stream) => return Ok(Self::Tcp(stream)),
                        Err(failed) => error = failed,
                    }
                }
                Err(error)
            }
            Host::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", endpoint.port));
                connect_unix(&path, endpoint.connect_timeout).map(Self::Unix)
            }
        }
    }

    /// SO_RCVTIMEO; `None` waits for ever. A system call, so not for every read.
    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// The hash of the server's certificate that SCRAM binds to; only TLS has one.
    pub(super) fn tls_server_end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }
}

fn connect_tcp(address: &SockAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(address.domain(), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(WRITE_TIMEOUT))?;
    // SO_RCVBUF stays the kernel's own: a nap gathers some 35 KB of small rows, which its default
    // of 128 KiB takes. 64 KiB and 1 MiB showed no gain (example `gulp`, on a busy machine).
    socket.connect_timeout(address, timeout)?;
    socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
    Ok(socket.into())
}

fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, timeout)?;
    socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
    Ok(socket.into())
}

impl Read for Transport {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}

// 10 s + 3 x 5 s: a vanished peer is noticed on reads after 25 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// We write a few bytes at a time; if those do not leave, nobody reads them.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
