//! Many HTTP clients at once.
//!
//! In: connections, a rate, and what the n-th request is. Out: answers by status, and latencies.
//! Must hold: a client costs little beside the service that it loads; one that is late waits for nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What came of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    pub good: u64,
    /// 503: asked to come back.
    pub refused: u64,
    /// Answers with this header line in them.
    pub marked: u64,
    pub elapsed: Duration,
    latencies: Vec<Duration>,
}

/// A load on one service.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub addr: SocketAddr,
    pub connections: usize,
    pub seconds: u64,
    /// Requests a second of all connections; None is as many as there are answers.
    pub rate: Option<f64>,
    /// Header line that is counted.
    pub mark: &'static str,
}

impl Load {
    /// `request` writes the n-th request, of all connections together.
    pub async fn run(
        self,
        next: Arc<AtomicU64>,
        request: fn(u64, &mut Vec<u8>),
    ) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        let clients: Vec<_> = (0..self.connections)
            .map(|index| tokio::spawn(self.client(index, next.clone(), request)))
            .collect();
        let mut total = Outcome::default();
        for client in clients {
            let outcome = client.await??;
            total.good += outcome.good;
            total.refused += outcome.refused;
            total.marked += outcome.marked;
            total.latencies.extend(outcome.latencies);
        }
        total.elapsed = began.elapsed();
        total.latencies.sort_unstable();
        Ok(total)
    }

    async fn client(
        self,
        index: usize,
        next: Arc<AtomicU64>,
        request: fn(u64, &mut Vec<u8>),
    ) -> anyhow::Result<Outcome> {
        let mut stream = TcpStream::connect(self.addr).await?;
        stream.set_nodelay(true)?;
        let mut outcome = Outcome::default();
        let (mut sent, mut received) = (Vec::new(), Vec::with_capacity(4096));
        let interval = self
            .rate
            .map(|rate| Duration::from_secs_f64(self.connections as f64 / rate));
        let end = Instant::now() + Duration::from_secs(self.seconds);
        // The connections take turns.
        let mut due = Instant::now()
            + interval
                .unwrap_or_default()
                .mul_f64(index as f64 / self.connections as f64);
        while Instant::now() < end {
            if let Some(interval) = interval {
                tokio::time::sleep_until(due.into()).await;
                due += interval;
            }
            sent.clear();
            request(next.fetch_add(1, Ordering::Relaxed), &mut sent);
            let began = Instant::now();
            stream.write_all(&sent).await?;
            let head = answer(&mut stream, &mut received).await?;
            match head.get(9..12) {
                Some("200" | "202") => {
                    outcome.good += 1;
                    outcome.latencies.push(began.elapsed());
                }
                Some("503") => outcome.refused += 1,
                _ => anyhow::bail!("answered {head}"),
            }
            outcome.marked += u64::from(head.contains(self.mark));
        }
        Ok(outcome)
    }
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        self.good as f64 / self.elapsed.as_secs_f64()
    }

    /// In milliseconds.
    pub fn quantile(&self, part: f64) -> f64 {
        let index = (self.latencies.len() as f64 * part) as usize;
        let latency = self.latencies.get(index).or(self.latencies.last());
        latency.copied().unwrap_or_default().as_secs_f64() * 1e3
    }
}

/// Reads one whole answer; its head.
async fn answer<'a>(stream: &mut TcpStream, received: &'a mut Vec<u8>) -> anyhow::Result<&'a str> {
    received.clear();
    let (head, length) = loop {
        anyhow::ensure!(
            stream.read_buf(received).await? != 0,
            "the connection ended"
        );
        let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end {
            let head = std::str::from_utf8(&received[..end])?;
            let mut lines = head.lines();
            let length = lines.find_map(|line| line.strip_prefix("content-length: "));
            break (end, length.context("no length")?.parse::<usize>()?);
        }
    };
    while received.len() < head + 4 + length {
        anyhow::ensure!(
            stream.read_buf(received).await? != 0,
            "the connection ended"
        );
    }
    Ok(std::str::from_utf8(&received[..head])?)
}
