//! nats-server fed with ready-made messages.
//!
//! In: a mode, a payload. Out: how long it took until all were stored, and what it cost.
//! Must hold: the bytes are written as the bridge writes them, through its own connection; only
//! the work of making them is left out.

use std::time::{Duration, Instant};

use anyhow::bail;
use bridge::ledger::Ledger;
use bridge::publish::chain::{Chain, Limits, PubAck};
use bridge::publish::connection::Connection;
use bridge::publish::frame;
use bridge::publish::framing::Framing;
use bridge::publish::mode;
use bridge::publish::protocol::Incoming;
use bridge::publish::tail;
use wire::{Position, SubjectPattern};

use crate::usage;
use crate::world::{DEADLINE, World};

/// How a message is proven to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A PubAck for every 500th and no check of the order between them. The reference: not safe.
    Core,
    /// A PubAck for each message.
    PubAck,
    /// A PubAck and a Nats-Msg-Id for each message: the usual way.
    MsgId,
    /// Each message expects its predecessor's sequence, every 500th asks for a PubAck.
    Chain,
    /// Fast-ingest batches that fail at a gap, with the same expectation; nats-server 2.14.
    Fast,
}

impl Mode {
    /// Those the server has.
    pub fn all(world: &World) -> Vec<Self> {
        let fast = world.has_fast_batches().then_some(Self::Fast);
        let older = [Self::PubAck, Self::MsgId, Self::Chain, Self::Core];
        older.into_iter().chain(fast).collect()
    }

    /// The bridge's own name for it.
    fn framed(self) -> Option<mode::Mode> {
        match self {
            Self::Core | Self::PubAck | Self::MsgId => None,
            Self::Chain => Some(mode::Mode::Chain),
            Self::Fast => Some(mode::Mode::Fast),
        }
    }

    /// Whether the bridge calls its mode so.
    pub fn is_called(self, name: &str) -> bool {
        self.framed().is_some_and(|mode| mode.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Core => "core publish, no order check",
            Self::PubAck => "PubAck each",
            Self::MsgId => "PubAck and Nats-Msg-Id each",
            Self::Chain => "chain, sparse PubAcks",
            Self::Fast => "fast batches",
        }
    }
}

/// Unacked messages at most, in the modes without groups: newer servers drop what comes when more
/// than 10,000 wait for their stream (`max_buffered_msgs`).
pub const WINDOW: u64 = 8192;
/// Messages a PubAck proves in mode `Core`, as in the bridge's groups.
const CORE_GROUP: u64 = 500;
/// Written at once, as in the bridge.
const UNSENT_BYTES_MAX: usize = 256 << 10;

/// Sends messages of one payload on one connection.
pub struct Sender {
    connection: Connection,
    mode: Mode,
    subject: String,
    payload: Vec<u8>,
    chain: Chain,
    framing: Framing,
    reply: Vec<u8>,
    ledger: Ledger,
    pub sent: u64,
    acked: u64,
}

impl Sender {
    pub async fn open(
        world: &World,
        mode: Mode,
        subject: &str,
        payload: Vec<u8>,
    ) -> anyhow::Result<Self> {
        let mut chain = Chain::new(Limits::default());
        chain.restart(0);
        let mut connection = Connection::open(&world.nats_options()?, 0, "bench").await?;
        let mut framing = Framing::new(SubjectPattern::default(), false);
        if let Some(mode) = mode.framed() {
            let tail = tail::read(&mut connection, "FLOOR", &["floor.>".to_owned()]).await?;
            framing.restart(mode, connection.inbox(), &tail);
        }
        Ok(Self {
            connection,
            mode,
            subject: subject.to_owned(),
            payload,
            chain,
            framing,
            reply: Vec::new(),
            ledger: Ledger::default(),
            sent: 0,
            acked: 0,
        })
    }

    /// Sends until `total` messages are sent in all, as fast as the window allows.
    pub async fn send_up_to(&mut self, total: u64) -> anyhow::Result<()> {
        while self.sent < total || self.connection.unsent() > 0 {
            while self.sent < total
                && self.connection.unsent() < UNSENT_BYTES_MAX
                && !self.is_full()
            {
                self.append(self.sent + 1 == total);
            }
            self.progress().await?;
        }
        Ok(())
    }

    /// Waits for the acks of everything sent, if the mode has any.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        while self.acked < self.sent {
            self.progress().await?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        match self.mode {
            Mode::Core | Mode::PubAck | Mode::MsgId => self.sent - self.acked >= WINDOW,
            Mode::Chain | Mode::Fast => self.chain.is_full(),
        }
    }

    fn append(&mut self, is_last: bool) {
        match self.mode {
            Mode::Core => self.append_plain(is_last || (self.sent + 1).is_multiple_of(CORE_GROUP)),
            Mode::PubAck => self.append_plain(true),
            Mode::MsgId => self.append_with_id(),
            Mode::Chain | Mode::Fast => self.append_chained(is_last),
        }
        self.sent += 1;
    }

    /// The reply subject ends in the number of messages its PubAck proves.
    fn append_plain(&mut self, is_asked: bool) {
        let count = self.sent + 1;
        let reply = is_asked.then(|| format!("{}{count} ", self.connection.inbox()));
        let out = self.connection.out();
        out.extend_from_slice(b"PUB ");
        out.extend_from_slice(self.subject.as_bytes());
        out.push(b' ');
        out.extend_from_slice(reply.unwrap_or_default().as_bytes());
        frame::decimal(out, self.payload.len() as u64);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.payload);
        out.extend_from_slice(b"\r\n");
    }

    fn append_with_id(&mut self) {
        let number = self.sent;
        let reply = format!("{}{}", self.connection.inbox(), number + 1);
        let out = self.connection.out();
        let open = frame::begin(out, &self.subject, Some(reply.as_bytes()), |out| {
            out.extend_from_slice(b"Nats-Msg-Id: 0/25CB3C8:");
            frame::decimal(out, number);
            out.extend_from_slice(b"-bench-insert\r\n");
        });
        out.extend_from_slice(&self.payload);
        open.finish(out);
    }

    /// As the bridge's publisher does it.
    fn append_chained(&mut self, is_last: bool) {
        if self.chain.is_group_start() {
            self.chain.open(self.ledger.sent(), Instant::now());
        }
        let (place, expected) = (self.chain.place(), self.chain.expected());
        let asked = self.chain.ack_token(self.payload.len(), is_last);
        let framing = &self.framing;
        let reply = framing.reply(&mut self.reply, place, asked.is_some());
        let out = self.connection.out();
        let open = frame::begin(out, &self.subject, reply, |out| {
            framing.lone_headers(out, expected);
        });
        out.extend_from_slice(&self.payload);
        let bytes = open.finish(out);
        self.chain.sent(Position::START, bytes, asked);
    }

    async fn progress(&mut self) -> anyhow::Result<()> {
        tokio::time::timeout(Duration::from_secs(10), self.connection.progress()).await??;
        while let Some(incoming) = self.connection.next_message()? {
            let Incoming::Message {
                subject, payload, ..
            } = incoming
            else {
                continue;
            };
            if self.mode.framed().is_some() {
                let token = self.framing.token(&subject).unwrap_or(0);
                let ack: PubAck = serde_json::from_slice(&payload)?;
                if let Some(proof) = self.chain.answered(token, &ack, Instant::now())? {
                    self.acked += proof.events as u64;
                }
            } else if payload.starts_with(b"{\"stream\"") {
                let count = subject.strip_prefix(self.connection.inbox());
                let count = count.and_then(|count| count.parse().ok());
                self.acked = self.acked.max(count.unwrap_or(0));
            } else {
                bail!("refused: {}", String::from_utf8_lossy(&payload));
            }
        }
        Ok(())
    }
}

/// What publishing cost.
#[derive(Debug, Clone, Copy)]
pub struct Publishing {
    pub elapsed: Duration,
    pub own_cpu: Duration,
    pub nats_cpu: Duration,
}

/// `count` messages of one payload.
pub fn run(world: &World, mode: Mode, payload: &[u8], count: u64) -> anyhow::Result<Publishing> {
    measured(world, count, async {
        let mut sender = Sender::open(world, mode, "floor.bench.insert", payload.to_vec()).await?;
        sender.send_up_to(count).await?;
        sender.finish().await
    })
}

/// Drives `send`, which feeds `count` messages into a stream of their own, until that holds them.
pub fn measured(
    world: &World,
    count: u64,
    send: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Publishing> {
    world.create_stream("FLOOR", "floor.>")?;
    let mut nats = usage::Meter::start(world.nats_pid()?);
    let (started, cpu_before) = (Instant::now(), usage::thread_cpu());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let published = runtime.block_on(send);
    let own_cpu = usage::thread_cpu().saturating_sub(cpu_before);
    let stored = published.and_then(|()| wait_stored(world, "FLOOR", count));
    let elapsed = started.elapsed();
    let nats_cpu = nats.read();
    world.delete_streams(&["FLOOR"]);
    stored?;
    Ok(Publishing {
        elapsed,
        own_cpu,
        nats_cpu,
    })
}

/// Until the stream holds `count` messages.
pub fn wait_stored(world: &World, stream: &str, count: u64) -> anyhow::Result<()> {
    let started = Instant::now();
    while world.messages(stream) < count {
        if started.elapsed() > DEADLINE {
            bail!("stream {stream} does not reach {count} messages");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
