//! A TCP relay that can be cut, stalled and slowed.
//!
//! In: the address of a server and faults to play. Out: an address clients use in its place.
//! Must hold: bytes are never changed, reordered or invented; at most 1 MiB per connection and
//! direction is held back, so a stall reaches the sender as backpressure.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::port::Port;

const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS_MAX: usize = 64;
/// How soon a blocked thread notices a fault.
const NOTICE: Duration = Duration::from_millis(10);
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);

/// Which way bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
    Both,
}

/// Stands in front of one server. Dropping it closes all its connections.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _port: Port,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    faults: Mutex<Faults>,
    changed: Condvar,
    accepted: AtomicU64,
    to_server_bytes: AtomicU64,
    to_client_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Faults {
    /// Grows with every cut; a connection of an older generation ends.
    generation: u64,
    is_listening: bool,
    /// Threads that still hold a socket of the current or an older generation.
    holders: usize,
    stalled_to_server: bool,
    stalled_to_client: bool,
    delay: Duration,
}

impl Relay {
    /// Listens on a port of its own and relays to `server`, which need not be up yet.
    pub fn to(server: SocketAddr) -> io::Result<Self> {
        let port = Port::claim()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let shared = Arc::new(Shared {
            server,
            faults: Mutex::default(),
            changed: Condvar::new(),
            accepted: AtomicU64::new(0),
            to_server_bytes: AtomicU64::new(0),
            to_client_bytes: AtomicU64::new(0),
        });
        let relay = Self {
            addr,
            shared,
            _port: port,
        };
        relay.listen()?;
        Ok(relay)
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Resets all connections and refuses new ones; returns when none is left.
    pub fn cut(&self) {
        self.shared.faults().generation += 1;
        // The listener is woken by one last connection, which it does not serve.
        let _ = TcpStream::connect_timeout(&self.addr, NOTICE);
        let faults = self.shared.faults();
        let (faults, wait) = self
            .shared
            .changed
            .wait_timeout_while(faults, SETTLE_DEADLINE, |faults| {
                faults.is_listening || 0 < faults.holders
            })
            .unwrap_or_else(PoisonError::into_inner);
        assert!(
            !wait.timed_out(),
            "connections are left after a cut: {faults:?}"
        );
    }

    /// Ends every fault: accepts again, flows again, no delay. Cut connections stay lost.
    ///
    /// Panics if another process took the port meanwhile.
    pub fn heal(&self) {
        {
            let mut faults = self.shared.faults();
            faults.stalled_to_server = false;
            faults.stalled_to_client = false;
            faults.delay = Duration::ZERO;
            self.shared.changed.notify_all();
            if faults.is_listening {
                return;
            }
        }
        self.listen()
            .expect("the relay's port is claimed until it is dropped");
    }

    /// From now on nothing is delivered in `direction`, and nothing more is read once 1 MiB waits.
    pub fn stall(&self, direction: Direction) {
        let mut faults = self.shared.faults();
        faults.stalled_to_server |= direction != Direction::ToClient;
        faults.stalled_to_client |= direction != Direction::ToServer;
    }

    /// Each byte arrives this much later, in both directions; throughput is bounded by 1 MiB per
    /// delay.
    pub fn delay(&self, delay: Duration) {
        self.shared.faults().delay = delay;
    }

    /// Bytes delivered to the server so far, over all connections; counted a moment after they arrive.
    pub fn to_server_bytes(&self) -> u64 {
        self.shared.to_server_bytes.load(Ordering::Relaxed)
    }

    /// Bytes delivered to clients so far, over all connections; counted a moment after they arrive.
    pub fn to_client_bytes(&self) -> u64 {
        self.shared.to_client_bytes.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    fn listen(&self) -> io::Result<()> {
        let listener = TcpListener::bind(self.addr)?;
        let mut faults = self.shared.faults();
        faults.is_listening = true;
        let generation = faults.generation;
        drop(faults);
        let shared = Arc::clone(&self.shared);
        start("relay-accept", move || shared.accept(listener, generation));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // No second panic; threads notice the new generation by themselves.
            self.shared.faults().generation += 1;
            let _ = TcpStream::connect_timeout(&self.addr, NOTICE);
        } else {
            self.cut();
        }
    }
}

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: TcpListener, generation: u64) {
        for client in listener.incoming() {
            if self.faults().generation != generation {
                break;
            }
            // A server that is down looks like one: the client is reset.
            let Ok(client) = client else { continue };
            match TcpStream::connect_timeout(&self.server, SETTLE_DEADLINE) {
                Ok(server) => self.connect(&client, &server, generation),
                Err(_) => reset(&client),
            }
        }
        drop(listener);
        self.faults().is_listening = false;
        self.changed.notify_all();
    }

    fn connect(self: &Arc<Self>, client: &TcpStream, server: &TcpStream, generation: u64) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        for stream in [client, server] {
            let prepared = stream
                .set_nodelay(true)
                .and_then(|()| stream.set_read_timeout(Some(NOTICE)))
                .and_then(|()| stream.set_write_timeout(Some(NOTICE)));
            if prepared.is_err() {
                return;
            }
        }
        for (from, to, direction) in [
            (client, server, Direction::ToServer),
            (server, client, Direction::ToClient),
        ] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                return;
            };
            let (chunks, inbox) = sync_channel(CHUNKS_MAX);
            let lane = Lane {
                shared: Arc::clone(self),
                direction,
                generation,
            };
            self.faults().holders += 2;
            let reading = lane.clone();
            start("relay-read", move || {
                reading.hold(|lane| lane.read(from, &chunks));
            });
            start("relay-write", move || {
                lane.hold(|lane| lane.write(to, &inbox));
            });
        }
    }
}

/// One direction of one connection.
#[derive(Clone)]
struct Lane {
    shared: Arc<Shared>,
    direction: Direction,
    generation: u64,
}

/// Bytes and when they were read; empty at the end of the stream.
type Chunk = (Instant, Vec<u8>);

impl Lane {
    fn hold(self, work: impl FnOnce(&Self)) {
        work(&self);
        self.shared.faults().holders -= 1;
        self.shared.changed.notify_all();
    }

    fn is_cut(&self) -> bool {
        self.shared.faults().generation != self.generation
    }

    fn is_stalled(&self) -> bool {
        let faults = self.shared.faults();
        match self.direction {
            Direction::ToServer => faults.stalled_to_server,
            Direction::ToClient => faults.stalled_to_client,
            Direction::Both => unreachable!("a lane goes one way"),
        }
    }

    fn read(&self, mut from: TcpStream, chunks: &SyncSender<Chunk>) {
        let mut buffer = vec![0; CHUNK_BYTES];
        while !self.is_cut() {
            let chunk = match from.read(&mut buffer) {
                Ok(length) => (Instant::now(), buffer[..length].to_vec()),
                Err(error) if is_timeout(&error) => continue,
                // A reset travels on as the end of the stream.
                Err(_) => (Instant::now(), Vec::new()),
            };
            let is_end = chunk.1.is_empty();
            if !self.pass(chunk, chunks) || is_end {
                break;
            }
        }
        self.close(&from);
    }

    /// Hands a chunk to the writer, waiting for room; false when there is no use in going on.
    fn pass(&self, mut chunk: Chunk, chunks: &SyncSender<Chunk>) -> bool {
        loop {
            match chunks.try_send(chunk) {
                Ok(()) => return true,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(_)) if self.is_cut() => return false,
                Err(TrySendError::Full(back)) => chunk = back,
            }
            std::thread::sleep(NOTICE / 10);
        }
    }

    fn write(&self, mut to: TcpStream, inbox: &Receiver<Chunk>) {
        while !self.is_cut() {
            let (read_at, bytes) = match inbox.recv_timeout(NOTICE) {
                Ok(chunk) => chunk,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.wait_out_faults(read_at);
            if bytes.is_empty() {
                let _ = to.shutdown(Shutdown::Write);
                break;
            }
            if !self.deliver(&mut to, &bytes) {
                // The reader of the other lane sees the end and closes its side.
                let _ = to.shutdown(Shutdown::Both);
                break;
            }
        }
        self.close(&to);
    }

    fn wait_out_faults(&self, read_at: Instant) {
        while !self.is_cut() {
            let due = read_at + self.shared.faults().delay;
            let remaining = due.saturating_duration_since(Instant::now());
            if remaining.is_zero() && !self.is_stalled() {
                return;
            }
            std::thread::sleep(if remaining.is_zero() {
                NOTICE
            } else {
                remaining.min(NOTICE)
            });
        }
    }

    fn deliver(&self, to: &mut TcpStream, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.is_cut() {
                return false;
            }
            if self.is_stalled() {
                std::thread::sleep(NOTICE);
                continue;
            }
            match to.write(bytes) {
                Ok(length) => {
                    self.count(length);
                    bytes = &bytes[length..];
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn count(&self, bytes: usize) {
        let counter = match self.direction {
            Direction::ToServer | Direction::Both => &self.shared.to_server_bytes,
            Direction::ToClient => &self.shared.to_client_bytes,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The last holder's drop closes the socket: with a reset if the relay was cut.
    fn close(&self, stream: &TcpStream) {
        if self.is_cut() {
            reset(stream);
        }
    }
}

/// Makes the coming close a reset.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .expect("a test process can start a thread");
}
