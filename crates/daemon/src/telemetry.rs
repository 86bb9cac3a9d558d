//! Sends logs to stderr.
//!
//! In: a format, a default level, `LOG_LEVEL` or `RUST_LOG`. Out: the process-wide subscriber. What must hold: stdout
//! stays free for what a process prints by contract (the `METRICS` lines).

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Registry, fmt};

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("unknown log format {other:?}; it is text or json")),
        }
    }
}

/// Installs the subscriber. The filter is `LOG_LEVEL`, else `RUST_LOG`, else `default_level`: a level (`debug`) or
/// directives (`info,bridge=debug`). A filter that cannot be read is said on stderr and the default is used. A second
/// call changes nothing.
pub fn init(format: LogFormat, default_level: &str) {
    let wanted = ["LOG_LEVEL", "RUST_LOG"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|filter| !filter.trim().is_empty());
    let (filter, complaint) = filter(wanted.as_deref(), default_level);
    if install(format, filter).is_ok()
        && let Some(complaint) = complaint
    {
        tracing::warn!("{complaint}");
    }
}

fn filter(wanted: Option<&str>, default_level: &str) -> (Targets, Option<String>) {
    let default = || default_level.parse().unwrap_or_default();
    match wanted.map(|text| (text, text.parse::<Targets>())) {
        None => (default(), None),
        Some((_, Ok(filter))) => (filter, None),
        Some((text, Err(error))) => {
            let complaint =
                format!("log filter {text:?} cannot be read ({error}); using {default_level:?}");
            (default(), Some(complaint))
        }
    }
}

fn install(format: LogFormat, filter: Targets) -> Result<(), TryInitError> {
    let registry = Registry::default().with(filter);
    match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            registry
                .with(fmt::layer().with_writer(std::io::stderr).with_ansi(ansi))
                .try_init()
        }
        LogFormat::Json => registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .try_init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_init_changes_nothing() {
        init(LogFormat::Text, "info");
        init(LogFormat::Json, "trace");
    }

    #[test]
    fn a_filter_that_cannot_be_read_falls_back_and_says_so() {
        let (used, complaint) = filter(Some("bridge=loudest"), "warn");

        assert_eq!(used.to_string(), "warn");
        assert!(complaint.unwrap().contains("bridge=loudest"));
    }

    #[test]
    fn directives_are_taken_as_they_are() {
        let (used, complaint) = filter(Some("warn,bridge=debug"), "info");

        assert_eq!(used.to_string(), "bridge=debug,warn");
        assert_eq!(complaint, None);
    }

    #[test]
    fn formats_are_read_by_name() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
