//! HTTP/1 connections, whatever answers them.
//!
//! In: a listener and a service. Out: one conversation per connection. What must hold: a client holds one of a bounded
//! number of places and no longer than it talks, and the shutdown cuts off nobody who is being answered in time.
//!
//! No TLS; a proxy in front does that.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::shutdown::Shutdown;

/// A request's head must arrive within this, and so must its body; a connection that is idle for as long is closed.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// After the shutdown, requests that are being answered may go on for this long.
pub const GRACE: Duration = Duration::from_secs(2);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has it.
    #[error("port {port} on {host} is taken by another process; choose another with {flag}")]
    Taken {
        /// Address asked for.
        host: IpAddr,
        /// Port asked for.
        port: u16,
        /// The flag that changes it.
        flag: &'static str,
    },
    /// Anything else: no such address, no right to a low port.
    #[error("cannot listen on port {port} of {host}, see {flag}")]
    Other {
        /// Address asked for.
        host: IpAddr,
        /// Port asked for.
        port: u16,
        /// The flag that changes it.
        flag: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Opens the port; 0 takes any free one. `flag` is what the error tells people to change (`--port`).
pub async fn listen(
    host: IpAddr,
    port: u16,
    flag: &'static str,
) -> Result<TcpListener, ListenError> {
    let listener = TcpListener::bind(SocketAddr::new(host, port)).await;
    listener.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken { host, port, flag },
        _ => ListenError::Other {
            host,
            port,
            flag,
            source,
        },
    })
}

/// Talks HTTP/1 to at most `connections_max` clients at a time until the shutdown; more wait in the listener's backlog.
/// Then those who are being answered may go on for [`GRACE`]. Each connection gets a task and a clone of the service.
pub async fn serve_connections<S, B>(
    listener: TcpListener,
    service: S,
    connections_max: usize,
    shutdown: Shutdown,
) where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let (stream, place) = tokio::select! {
            biased;
            _ = shutdown.wait() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (service, shutdown) = (service.clone(), shutdown.clone());
        tokio::spawn(async move {
            converse(stream, service, &shutdown).await;
            drop(place);
        });
    }
    drop(listener);
    let all_places = places.acquire_many(connections_max as u32);
    if tokio::time::timeout(GRACE, all_places).await.is_err() {
        tracing::warn!("HTTP requests were cut off by the shutdown");
    }
}

/// Waits for a free place, then for a connection. Cancel safe: a place that was taken is given back.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = places
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            // Usually the limit of open files: wait for one to be closed rather than spin.
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end; the shutdown lets the request in progress finish.
async fn converse<S, B>(stream: TcpStream, service: S, shutdown: &Shutdown)
where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible>,
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
{
    // An answer is written whole: nothing is gained by waiting for more of it.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = shutdown.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection ended");
    }
}
