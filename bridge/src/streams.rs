//! Sees that the streams exist, and says where an existing one does not fit.
//!
//! In: names. Out: streams. Invariant: an existing stream is never changed.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use daemon::nats::ServerVersion;
use wire::names::INIT_SUBJECTS;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read stream {stream}")]
    Read {
        stream: String,
        #[source]
        source: jetstream::context::GetStreamError,
    },
    #[error(
        "cannot make stream {stream} on {subjects}; JetStream must be on and the NATS user may need $JS.API.STREAM.CREATE"
    )]
    Create {
        stream: String,
        subjects: String,
        #[source]
        source: jetstream::context::CreateStreamError,
    },
    #[error(
        "stream {stream} does not hold {subjects}; add the subject to it, or choose another with --stream or --subject-prefix"
    )]
    Subjects { stream: String, subjects: String },
}

const AGE_MAX: Duration = Duration::from_hours(7 * 24);

/// The stream of the row changes.
pub async fn ensure_cdc(
    context: &jetstream::Context,
    name: &str,
    subjects: &str,
    replicas: usize,
) -> Result<(), Error> {
    ensure(context, name, subjects, replicas, true).await
}

/// The stream of the snapshots.
pub async fn ensure_init(
    context: &jetstream::Context,
    name: &str,
    replicas: usize,
) -> Result<(), Error> {
    ensure(context, name, INIT_SUBJECTS, replicas, false).await
}

/// Kinds of batches a stream may allow.
#[derive(Debug, Clone, Copy, Default)]
struct Batches {
    atomic: bool,
    fast: bool,
}

/// What the server knows; an older one would refuse or forget the setting.
fn batches(context: &jetstream::Context) -> Batches {
    let version = context.client().server_info().version;
    let version = version.parse().unwrap_or(ServerVersion::new(0, 0, 0));
    Batches {
        atomic: version >= ServerVersion::new(2, 12, 0),
        fast: version >= ServerVersion::new(2, 14, 0),
    }
}

async fn ensure(
    context: &jetstream::Context,
    name: &str,
    subjects: &str,
    replicas: usize,
    is_batched: bool,
) -> Result<(), Error> {
    match context.get_stream(name).await {
        Ok(stream) => check(&stream.cached_info().config, subjects),
        Err(error) if is_missing(&error) => {
            // Only now is there surely a connection that knows the server's version.
            let batches = if is_batched {
                batches(context)
            } else {
                Batches::default()
            };
            create(context, name, subjects, replicas, batches).await
        }
        Err(source) => Err(Error::Read {
            stream: name.to_owned(),
            source,
        }),
    }
}

async fn create(
    context: &jetstream::Context,
    name: &str,
    subjects: &str,
    replicas: usize,
    batches: Batches,
) -> Result<(), Error> {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        storage: stream::StorageType::File,
        retention: stream::RetentionPolicy::Limits,
        discard: stream::DiscardPolicy::Old,
        max_age: AGE_MAX,
        num_replicas: replicas,
        allow_direct: true,
        allow_atomic_publish: batches.atomic,
        allow_batch_publish: batches.fast,
        ..stream::Config::default()
    };
    // Two bridges may start at once: the same configuration twice is no error.
    context
        .create_stream(config)
        .await
        .map_err(|source| Error::Create {
            stream: name.to_owned(),
            subjects: subjects.to_owned(),
            source,
        })?;
    tracing::info!(stream = name, subjects, "stream made");
    Ok(())
}

fn check(config: &stream::Config, subjects: &str) -> Result<(), Error> {
    if !config.subjects.iter().any(|held| covers(held, subjects)) {
        return Err(Error::Subjects {
            stream: config.name.clone(),
            subjects: subjects.to_owned(),
        });
    }
    if config.retention != stream::RetentionPolicy::Limits {
        tracing::warn!(stream = config.name, retention = ?config.retention, "messages vanish once they are consumed; set retention to limits");
    }
    if config.storage != stream::StorageType::File {
        tracing::warn!(
            stream = config.name,
            "the stream is kept in memory: a restart of NATS loses it"
        );
    }
    Ok(())
}

/// Whether every subject under `narrow` is under `wide`.
pub(crate) fn covers(wide: &str, narrow: &str) -> bool {
    let mut narrow = narrow.split('.');
    let mut wide = wide.split('.');
    loop {
        match (wide.next(), narrow.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(wide), Some(narrow)) if wide == narrow => {}
            _ => return false,
        }
    }
}

pub(crate) fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    use jetstream::context::GetStreamErrorKind::JetStream;
    matches!(error.kind(), JetStream(error) if error.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_stream_covers_what_its_wildcards_say() {
        assert!(covers("cdc.>", "cdc.>"));
        assert!(covers(">", "cdc.>"));
        assert!(covers("acme.>", "acme.cdc.>"));
        assert!(covers("*.>", "cdc.>"));
        assert!(!covers("cdc.*", "cdc.>"));
        assert!(!covers("cdc", "cdc.>"));
        assert!(!covers("other.>", "cdc.>"));
    }
}
