//! `bridge check`: what is wrong is said with its remedy, and nothing is changed.

use async_nats::jetstream::stream::{Config, StorageType};
use stack::Options;

use crate::rig::{DEADLINE, Rig};
use crate::stream;

/// Exit code and lines of `bridge check` with further arguments.
#[track_caller]
fn check(rig: &Rig, arguments: &[&str]) -> (i32, String) {
    let process = rig.program().arg("check").args(arguments.iter().copied());
    let process = process.start();
    let status = process.wait(DEADLINE);
    (status.code().expect("no signal ends it"), process.stdout())
}

/// The line that begins so and has this in it.
#[track_caller]
fn assert_line(said: &str, begin: &str, part: &str) {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines = said.lines().map(words);
    assert!(
        lines.any(|line| line.starts_with(begin) && line.contains(part)),
        "no line {begin} ... {part} in\n{said}"
    );
}

fn streams(rig: &Rig) -> Vec<String> {
    use futures_util::TryStreamExt as _;
    stream::runtime().block_on(async {
        let context = stream::jetstream(rig.nats()).await;
        context.stream_names().try_collect().await.expect("a list")
    })
}

#[test]
fn what_is_ready_for_a_bridge_is_ok_and_stays_as_it_is() {
    let rig = Rig::alone(Options::default().postgres_setting("max_slot_wal_keep_size", "1GB"));
    rig.create_numbers();

    let (code, said) = check(&rig, &[]);

    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("fail "), "{said}");
    for (begin, part) in [
        ("ok postgres", "15."),
        ("ok wal_level", "logical"),
        ("ok replication", "may log in"),
        ("ok slot", "not there yet"),
        ("ok publication", "cdc_pub"),
        ("ok tables", "2 to stream"),
        ("ok wal_kept", "until the slot is lost"),
        ("ok nats", "nats-server 2."),
        ("ok jetstream", "enabled"),
        ("ok stream", "CDC is not there yet"),
        ("ok publish_mode", "chain"),
        ("ok durability", "loses nothing"),
        ("ok checkpoint", "none yet"),
    ] {
        assert_line(&said, begin, part);
    }
    assert_eq!(rig.confirmed_flush_lsn(), None, "no slot was made");
    assert_eq!(streams(&rig), Vec::<String>::new());
}

#[test]
fn what_needs_a_look_is_a_warning_with_a_remedy() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE keyless (id int)");
    stream::runtime().block_on(async {
        let config = Config {
            name: "CDC".into(),
            subjects: vec!["cdc.>".into()],
            storage: StorageType::Memory,
            ..Config::default()
        };
        let made = stream::jetstream(rig.nats())
            .await
            .create_stream(config)
            .await;
        made.expect("the stream can be made");
    });

    let (code, said) = check(&rig, &["--durability", "acked"]);

    assert_eq!(code, 0, "{said}");
    assert_line(&said, "warn keys", "\"keyless\" REPLICA IDENTITY FULL");
    assert_line(&said, "warn wal_kept", "set max_slot_wal_keep_size");
    assert_line(&said, "warn stream", "kept in memory");
    assert_line(
        &said,
        "warn durability",
        "could lose the last 120s; --durability held covers it",
    );
}

#[test]
fn what_would_end_the_bridge_fails() {
    let mut rig = Rig::alone(Options::default().postgres_setting("wal_level", "replica"));
    let role = "plain";
    rig.sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'secret'; CREATE TABLE secret (id int PRIMARY KEY)"
    ));
    rig.pg_url = rig.postgres().url_as(role, "secret", &rig.database);
    rig.publication = "cdc_pub,absent".to_owned();

    let (code, said) = check(&rig, &["--table", "secret,nothing"]);

    assert_eq!(code, 1, "{said}");
    assert_line(
        &said,
        "fail wal_level",
        "ALTER SYSTEM SET wal_level = logical",
    );
    assert_line(&said, "fail replication", "REPLICATION");
    assert_line(&said, "fail publication", "CREATE PUBLICATION \"absent\"");
    assert_line(&said, "fail tables", "nothing of --table is not published");
    assert_line(
        &said,
        "warn privileges",
        "GRANT SELECT ON \"public\".\"secret\" TO \"plain\"",
    );

    rig.postgres().stop();
    rig.nats().stop();
    let (code, said) = check(&rig, &[]);
    assert_eq!(code, 1, "{said}");
    assert_line(&said, "fail postgres", "check --pg-url");
    assert_line(&said, "fail nats", "check --nats-url");
}

#[test]
fn a_slot_that_is_gone_and_another_cluster_are_seen_from_the_checkpoint() {
    let mut rig = Rig::new();
    rig.create_numbers();
    rig.bridge(&[]).drain();

    let (code, said) = check(&rig, &[]);
    assert_eq!(code, 0, "{said}");
    assert_line(&said, "ok identity", "timeline 1");

    rig.drop_slot();
    let (code, said) = check(&rig, &[]);
    assert_eq!(code, 1, "{said}");
    assert_line(&said, "fail slot", "--on-slot-loss resnapshot");

    let other = Rig::alone(Options::default().own_initdb(true));
    let own = std::mem::replace(&mut rig.pg_url, other.pg_url.clone());
    let (code, said) = check(&rig, &["--json"]);
    rig.pg_url = own;
    assert_eq!(code, 1, "{said}");
    let lines: serde_json::Value = serde_json::from_str(&said).expect("it is JSON");
    let identity = lines.as_array().expect("a list").iter();
    let mut identity = identity.filter(|line| line["what"] == "identity");
    let line = identity.next().expect("it is there");
    assert_eq!(line["level"], "fail");
    assert!(line["text"].to_string().contains("another cluster"));
}
