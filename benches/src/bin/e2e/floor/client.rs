//! The chain of messages sent through async-nats, beside the bridge's own frames.
//!
//! In: a payload. Out: how long it took until all were stored, and what it cost.
//! Must hold: subjects, expectations and PubAcks are those of mode `chain`; only the client differs.

use anyhow::Context as _;
use async_nats::header::NATS_EXPECTED_LAST_SEQUENCE;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use daemon::nats::FirstConnect;
use futures_util::StreamExt as _;

use super::publish::{Publishing, WINDOW, measured};
use crate::world::World;

pub const NAME: &str = "chain, through async-nats";

const SUBJECT: &str = "floor.bench.insert";
/// Messages a PubAck proves, as in the bridge's groups.
const GROUP: u64 = 500;

/// `count` messages of one payload.
pub fn run(world: &World, payload: &[u8], count: u64) -> anyhow::Result<Publishing> {
    let payload = Bytes::copy_from_slice(payload);
    measured(world, count, send(world, &payload, count))
}

async fn send(world: &World, payload: &Bytes, count: u64) -> anyhow::Result<()> {
    let options = world.nats_options()?;
    let client = options.connect("bench", FirstConnect::MustSucceed).await?;
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(format!("{inbox}.*")).await?;
    let mut acked = 0;
    for sequence in 0..count {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, HeaderValue::from(sequence));
        let sent = sequence + 1;
        if sent.is_multiple_of(GROUP) || sent == count {
            let reply = format!("{inbox}.{sent}");
            client
                .publish_with_reply_and_headers(SUBJECT, reply, headers, payload.clone())
                .await?;
        } else {
            client
                .publish_with_headers(SUBJECT, headers, payload.clone())
                .await?;
        }
        while acked + WINDOW <= sent || (sent == count && acked < count) {
            let ack = acks.next().await.context("the connection is closed")?;
            let token = ack.subject.rsplit('.').next().unwrap_or_default();
            anyhow::ensure!(
                ack.payload.starts_with(b"{\"stream\""),
                "refused: {}",
                String::from_utf8_lossy(&ack.payload)
            );
            acked = token.parse()?;
        }
    }
    Ok(())
}
