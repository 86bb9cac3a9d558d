//! NATS's side.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use daemon::chained::Chained;
use daemon::nats::{FirstConnect, ServerVersion};
use wire::checkpoint::Checkpoint;
use wire::names::INIT_SUBJECTS;

use super::Report;
use crate::checkpoint;
use crate::config::Config;
use crate::counting::{Counted, Counting};
use crate::durability;
use crate::publish::mode::{self, Facts, Settings};
use crate::streams;

/// Gives the checkpoint, if there is one.
pub async fn check(config: &Config, report: &mut Report) -> Option<Checkpoint> {
    exposure(config, report).await;
    let connected = config
        .nats
        .connect("bridge check", FirstConnect::MustSucceed);
    let client = match connected.await {
        Ok(client) => client,
        Err(error) => {
            report.fail(
                "nats",
                Chained(&error).to_string(),
                "check --nats-url (NATS_URL, NATS_HOST, NATS_BRIDGE_USER, NATS_BRIDGE_PASSWORD)",
            );
            return None;
        }
    };
    let info = client.server_info();
    let version: ServerVersion = info.version.parse().unwrap_or(ServerVersion::new(0, 0, 0));
    let text = format!("nats-server {} at {}", info.version, config.nats);
    if version < ServerVersion::new(2, 9, 0) {
        report.fail("nats", text, "the bridge needs nats-server 2.9 or newer");
    } else {
        report.ok("nats", text);
    }
    let context = jetstream::new(client);
    let account: Result<serde_json::Value, _> = context.request("INFO", &()).await;
    match account {
        Ok(account) if account.get("error").is_none() => report.ok("jetstream", "enabled"),
        Ok(account) => {
            report.fail(
                "jetstream",
                account["error"]["description"].to_string(),
                "a jetstream block in the server's configuration, enabled for the account",
            );
            return None;
        }
        Err(error) => {
            report.fail(
                "jetstream",
                Chained(&error).to_string(),
                "a jetstream block in the server's configuration, and $JS.API.> for the user",
            );
            return None;
        }
    }
    let subjects = config.subjects.stream_subjects();
    let cdc = stream(&context, &config.cdc_stream, &subjects, report).await;
    let init = stream(&context, &config.init_stream, INIT_SUBJECTS, report).await;
    if let (Some(cdc), Some(init)) = (&cdc, &init) {
        let lasts = |age: Duration| if age.is_zero() { Duration::MAX } else { age };
        if lasts(cdc.max_age) < lasts(init.max_age) {
            report.warn(
                "stream",
                format!(
                    "{} keeps {:?}, less than the {:?} of {}: a snapshot may outlive the changes that follow it",
                    cdc.name, cdc.max_age, init.max_age, init.name
                ),
                format!("raise max_age of {}", cdc.name),
            );
        }
    }
    publish_mode(config, version, cdc.as_ref(), report);
    remembered(config, &context, report).await
}

/// The stream's configuration; None when it is not there.
async fn stream(
    context: &jetstream::Context,
    name: &str,
    subjects: &str,
    report: &mut Report,
) -> Option<stream::Config> {
    let found = match context.get_stream(name).await {
        Ok(found) => found,
        Err(error) if streams::is_missing(&error) => {
            report.ok(
                "stream",
                format!("{name} is not there yet; the first start makes it"),
            );
            return None;
        }
        Err(error) => {
            let remedy = "$JS.API.STREAM.INFO for the NATS user";
            report.fail("stream", format!("{name}: {}", Chained(&error)), remedy);
            return None;
        }
    };
    let info = found.cached_info();
    let stream = info.config.clone();
    if !stream
        .subjects
        .iter()
        .any(|held| streams::covers(held, subjects))
    {
        report.fail(
            "stream",
            format!("{name} does not hold {subjects}"),
            "add the subject to it, or choose another with --stream or --subject-prefix",
        );
    }
    if stream.sealed || stream.no_ack {
        report.fail(
            "stream",
            format!("{name} is sealed, or sends no acks"),
            "choose another with --stream",
        );
    }
    if stream.retention != stream::RetentionPolicy::Limits {
        let text = format!(
            "{name} has retention {:?}: messages vanish once they are consumed",
            stream.retention
        );
        report.warn("stream", text, "set retention to limits");
    }
    if stream.storage != stream::StorageType::File {
        let text = format!("{name} is kept in memory: a restart of NATS loses it");
        report.warn("stream", text, "make it with storage file");
    }
    if stream.discard == stream::DiscardPolicy::New {
        let text = format!(
            "{name} refuses messages when it is full: the bridge waits then, and WAL piles up"
        );
        report.warn("stream", text, "discard old, or watch its size");
    }
    report.ok(
        "stream",
        format!(
            "{name} holds {} messages, max_age {:?}, {} replicas",
            info.state.messages, stream.max_age, stream.num_replicas
        ),
    );
    Some(stream)
}

fn publish_mode(
    config: &Config,
    server: ServerVersion,
    cdc: Option<&stream::Config>,
    report: &mut Report,
) {
    let settings = match cdc {
        Some(cdc) => Settings {
            allows_atomic: cdc.allow_atomic_publish,
            allows_fast: cdc.allow_batch_publish,
            duplicate_window: cdc.duplicate_window,
        },
        // As the bridge makes it.
        None => Settings {
            allows_atomic: true,
            allows_fast: true,
            ..Settings::default()
        },
    };
    let facts = Facts {
        server,
        settings,
        is_shared: false,
    };
    let choice = mode::choose(config.publish_mode, &facts);
    report.ok(
        "publish_mode",
        format!(
            "{}, while no other bridge is on the stream: {}",
            choice.mode.name(),
            choice.reason
        ),
    );
}

async fn exposure(config: &Config, report: &mut Report) {
    let seen = durability::look(&config.nats_monitoring).await;
    let effective = durability::effective(
        config.durability,
        config.hold,
        seen,
        &config.nats_monitoring,
    );
    match effective {
        Ok(effective) if effective.is_exposed => {
            report.warn("durability", effective.exposure, "--durability held");
        }
        Ok(effective) => report.ok("durability", effective.exposure),
        Err(error) => report.fail("durability", error.to_string(), "--durability held"),
    }
}

/// What an earlier run has left.
async fn remembered(
    config: &Config,
    context: &jetstream::Context,
    report: &mut Report,
) -> Option<Checkpoint> {
    let store = checkpoint::Store::find(context, &config.slot).await;
    let found = match store {
        None => None,
        Some(store) => match store.read(&config.cdc_stream).await {
            Ok(found) => found.checkpoint,
            Err(error) => {
                let remedy = "$JS.API.DIRECT.GET.KV_bridge_state.> for the NATS user";
                report.fail("checkpoint", Chained(&error).to_string(), remedy);
                return None;
            }
        },
    };
    let Some(found) = found else {
        report.ok(
            "checkpoint",
            "none yet: no bridge has used the slot with this stream",
        );
        return None;
    };
    report.ok(
        "checkpoint",
        format!(
            "{} at sequence {}, epoch {}",
            found.position, found.stream_sequence, found.epoch
        ),
    );
    if let Some(owed) = &found.owed {
        report.warn(
            "checkpoint",
            format!("a gap up to {} is yet to be told to consumers", owed.gap.to),
            "the next start tells it",
        );
    }
    let own = Counting::of(config);
    if Counted::of(&found, &own).is_none_or(|counted| counted.by != own) {
        report.warn(
            "checkpoint",
            "publications, tables or subjects are others than in the run before",
            "a transaction that was begun is finished as it was; to go on as before give the same flags",
        );
    }
    Some(found)
}
