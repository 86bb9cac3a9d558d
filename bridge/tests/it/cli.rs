//! What people and service managers see: flags, exit codes, routes, logins.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use stack::{Options, eventually};
use wire::Operation;

use crate::columns::{assert_same, int};
use crate::rig::{DEADLINE, Rig};

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_bridge"))
        .args(arguments)
        .output()
        .expect("the bridge can be started");
    (
        output.status.code().expect("no signal ends it"),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn flags_that_make_no_sense_end_it_with_2_and_a_hint() {
    for (arguments, hint) in [
        (&["--slott", "x"][..], "--slot"),
        (&["--slot", "My-Slot"], "--slot"),
        (&["--port", "ninety"], "--port"),
        (&["--stream", "A,B,C"], "--stream"),
        (&["--stream", "a.b"], "--stream"),
        (&["--table", "users,,orders"], "--table"),
        (&["--create-publication"], "--table"),
        (&["--drain-timeout", "soon"], "--drain-timeout"),
        (&["--ring-bytes", "much"], "--ring-bytes"),
        (&["--pg-url", "mysql://localhost/x"], "--pg-url"),
        (&["--nats-url", "http://localhost"], "--nats-url"),
        (&["--subject", "cdc.{tabel}.{op}"], "{table}"),
        (&["--subject-prefix", "init"], "--subject-prefix"),
        (&["users"], "--help"),
    ] {
        let (code, stdout, stderr) = run(arguments);

        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(hint), "{arguments:?}: {stderr}");
        assert!(stderr.contains("--help"), "{arguments:?}: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
    }
}

#[test]
fn help_lists_every_flag_variable_and_exit_code() {
    let (code, help, _) = run(&["--help"]);

    assert_eq!(code, 0);
    assert_eq!(run(&["-h"]).0, 0);
    for word in [
        "--stream <CDC,INIT>",
        "--slot",
        "--publication",
        "--table",
        "--create-publication",
        "--port",
        "--pg-url",
        "--nats-url",
        "--subject-prefix",
        "--subject",
        "--oversize",
        "--drain-timeout",
        "--ring-events",
        "--ring-bytes",
        "--log-format",
        "--version",
        "PG_HOST",
        "PG_PORT",
        "PG_USER",
        "PG_PASSWORD",
        "PG_DB",
        "DATABASE_URL",
        "NATS_HOST",
        "NATS_BRIDGE_USER",
        "NATS_BRIDGE_PASSWORD",
        "NATS_URL",
        "BRIDGE_PORT",
        "[default: CDC,INIT]",
        "[default: cdc_slot]",
        "[default: cdc_pub]",
        "9090",
        "Exit codes",
    ] {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
}

#[test]
fn an_absent_publication_ends_it_with_13_and_the_sql_to_make_it() {
    let mut rig = Rig::new();
    rig.publication = "Other Pub".to_owned();

    let (code, said) = rig.refused(&[]);

    assert_eq!(code, 13, "{said}");
    assert!(
        said.contains(r#"CREATE PUBLICATION "Other Pub" FOR TABLE"#),
        "{said}"
    );
    assert!(said.contains("--create-publication"), "{said}");
}

#[test]
fn a_publication_is_made_for_the_tables_of_the_flag_when_asked_for() {
    let mut rig = Rig::new();
    rig.sql(r#"CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY); CREATE TABLE "My Users" (id int PRIMARY KEY)"#);
    rig.publication = "made".to_owned();
    let bridge = rig.bridge(&[
        "--create-publication",
        "--table",
        "sales.orders,My Users,fence",
    ]);

    rig.sql(r#"INSERT INTO sales.orders VALUES (1); INSERT INTO "My Users" VALUES (2)"#);
    let events = rig.events();
    bridge.drain();

    let rows: Vec<_> = events
        .iter()
        .map(|event| event.columns[0].clone())
        .collect();
    assert_eq!(rows, [int("id", 1), int("id", 2)]);
    // Again, now that it is there.
    rig.bridge(&["--create-publication", "--table", "fence"])
        .drain();
}

#[test]
fn a_server_without_logical_wal_ends_it_with_14_and_the_setting() {
    let rig = Rig::alone(Options::default().postgres_setting("wal_level", "replica"));

    let (code, said) = rig.refused(&[]);

    assert_eq!(code, 14, "{said}");
    assert!(
        said.contains("ALTER SYSTEM SET wal_level = logical"),
        "{said}"
    );
}

#[test]
fn a_login_that_is_refused_ends_it_with_15_and_no_password_is_printed() {
    let mut rig = Rig::new();
    rig.pg_url = rig.postgres().url_as("postgres", "not-it", &rig.database);

    let (code, said) = rig.refused(&[]);

    assert_eq!(code, 15, "{said}");
    assert!(said.contains("password authentication failed"), "{said}");
    assert!(!said.contains("not-it"), "{said}");
}

#[test]
fn a_role_without_replication_ends_it_with_15() {
    let mut rig = Rig::new();
    let role = format!("plain_of_{}", rig.database);
    rig.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'secret'"));
    rig.pg_url = rig.postgres().url_as(&role, "secret", &rig.database);

    let (code, said) = rig.refused(&[]);
    rig.sql(&format!("DROP ROLE {role}"));

    assert_eq!(code, 15, "{said}");
    assert!(said.contains("REPLICATION"), "{said}");
}

#[test]
fn a_table_that_is_not_published_ends_it_with_2_and_those_that_are() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE users (id int)");

    let (code, said) = rig.refused(&["--table", "users,ordres"]);

    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("ordres") && said.contains("public.users"),
        "{said}"
    );
}

#[test]
fn tables_that_would_share_a_subject_end_it_with_2() {
    let rig = Rig::new();
    rig.sql("CREATE SCHEMA sales; CREATE TABLE users (id int); CREATE TABLE sales.users (id int)");

    let (code, said) = rig.refused(&["--subject", "{prefix}.{table}.{op}"]);

    assert_eq!(code, 2, "{said}");
    assert!(said.contains("users"), "{said}");
}

#[test]
fn a_port_that_is_taken_ends_it_with_2() {
    let rig = Rig::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();

    let process = rig.program().args(["--port", &port.to_string()]).start();
    let status = process.wait(DEADLINE);

    assert_eq!(status.code(), Some(2), "{}", process.log_tail());
    assert!(process.stderr().contains("--port"), "{}", process.stderr());
}

#[test]
fn a_slot_dropped_under_it_ends_it_with_10_and_is_not_made_again() {
    let rig = Rig::new();
    let bridge = rig.bridge(&[]);

    rig.drop_slot();
    let status = bridge.wait(DEADLINE);

    assert_eq!(status.code(), Some(10), "{}", bridge.log_tail());
    assert!(bridge.said().contains(&rig.slot));
    assert_eq!(
        rig.confirmed_flush_lsn(),
        None,
        "no slot was made behind the gap"
    );
}

#[test]
fn a_publication_dropped_under_it_ends_it_with_13() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let bridge = rig.bridge(&[]);

    rig.sql("DROP PUBLICATION cdc_pub");
    rig.sql("INSERT INTO t VALUES (1)");
    let status = bridge.wait(DEADLINE);

    assert_eq!(status.code(), Some(13), "{}", bridge.log_tail());
    assert!(
        bridge.said().contains("CREATE PUBLICATION"),
        "{}",
        bridge.said()
    );
}

#[test]
fn a_slot_of_another_database_ends_it_with_12() {
    let mut rig = Rig::new();
    let other = Rig::new();
    other.bridge(&[]).drain();
    let own = std::mem::replace(&mut rig.slot, other.slot.clone());

    let (code, said) = rig.refused(&[]);
    rig.slot = own;

    assert_eq!(code, 12, "{said}");
}

#[test]
fn a_table_without_a_usable_key_is_reported_with_the_sql_to_mend_it() {
    let rig = Rig::new();
    rig.sql(r#"CREATE TABLE "No Key" (id int); CREATE TABLE keyed (id int PRIMARY KEY)"#);

    let bridge = rig.bridge(&[]);
    let line = bridge.wait_for_line("No Key", DEADLINE);
    bridge.drain();

    assert!(line.contains("WARN"), "{line}");
    assert!(
        bridge
            .said()
            .contains(r#"ALTER TABLE "public"."No Key" REPLICA IDENTITY FULL;"#)
    );
    assert!(!bridge.said().contains("keyed"), "{}", bridge.said());
}

#[test]
fn the_routes_answer_as_the_contract_says() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let bridge = rig.bridge(&[]);
    rig.sql("INSERT INTO t VALUES (1)");
    rig.events();

    assert_eq!(
        bridge.request("GET", "/health"),
        (200, r#"{"status":"ok"}"#.to_owned())
    );
    let (status, body) = bridge.request("GET", "/ready");
    assert_eq!(status, 200, "{body}");
    for name in [
        "uptime_seconds",
        "wal_messages_received_total",
        "cdc_events_published_total",
        "last_ack_lsn",
        "connected",
        "reconnects_total",
        "nats_reconnects_total",
        "last_processing_time_us",
        "slot_active",
        "wal_lag_bytes",
    ] {
        bridge.metric(&format!("bridge_{name}"));
    }
    eventually(DEADLINE, "both events are counted", || {
        bridge.metric("bridge_cdc_events_published_total") >= 2.0
    });
    let status = bridge.status();
    for (key, is_of_its_type) in [
        ("status", status["status"] == "connected"),
        ("uptime_seconds", status["uptime_seconds"].is_u64()),
        (
            "wal_messages_received",
            status["wal_messages_received"].is_u64(),
        ),
        (
            "cdc_events_published",
            status["cdc_events_published"].is_u64(),
        ),
        ("is_connected", status["is_connected"] == true),
        ("reconnect_count", status["reconnect_count"] == 0),
        ("nats_reconnect_count", status["nats_reconnect_count"] == 0),
        (
            "last_processing_time_us",
            status["last_processing_time_us"].is_u64(),
        ),
        ("slot_active", status["slot_active"].is_boolean()),
        ("wal_lag_bytes", status["wal_lag_bytes"].is_i64()),
        ("wal_lag_mb", status["wal_lag_mb"].is_i64()),
    ] {
        assert!(is_of_its_type, "{key} in {status}");
    }
    let lsn = status["current_lsn"].as_str().expect("text");
    assert!(
        lsn.parse::<wire::Lsn>().is_ok() && lsn == lsn.to_lowercase(),
        "{lsn}"
    );
    assert_eq!(bridge.request("GET", "/nothing").0, 404);
    assert_eq!(bridge.request("GET", "/shutdown").0, 405);
    assert_eq!(bridge.request("POST", "/metrics").0, 405);
    assert!(bridge.is_running());
    assert!(matches!(bridge.request("POST", "/shutdown").0, 200..300));
    assert_eq!(
        bridge.wait(DEADLINE).code(),
        Some(0),
        "{}",
        bridge.log_tail()
    );
}

#[test]
fn the_metrics_line_is_the_one_dashboards_parse() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let bridge = rig.bridge(&[]);
    rig.sql("INSERT INTO t VALUES (1)");
    rig.events();
    bridge.drain();

    // The last one is printed at the end.
    let stdout = bridge.stdout();
    let line = stdout.lines().last().expect("a line");
    let fields: Vec<(&str, &str)> = line
        .strip_prefix("METRICS ")
        .expect(line)
        .split(' ')
        .map(|field| field.split_once('=').expect(line))
        .collect();
    let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
    let known = [
        "uptime",
        "wal_messages",
        "cdc_events",
        "lsn",
        "connected",
        "reconnects",
        "nats_reconnects",
        "lag_bytes",
        "slot_active",
    ];
    assert_eq!(names[..known.len()], known, "{line}");
    for (name, value) in fields {
        if name == "lsn" {
            assert!(value.parse::<wire::Lsn>().is_ok(), "{line}");
        } else {
            assert!(value.bytes().all(|byte| byte.is_ascii_digit()), "{line}");
        }
    }
    assert!(line.contains(" cdc_events=2 "), "{line}");
}

#[test]
fn it_goes_on_when_nobody_reads_its_lines() {
    let rig = Rig::new();
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let port = rig.stack().claim_port();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bridge"));
    command
        .args(["--slot", &rig.slot, "--port", &port.to_string()])
        .env("DATABASE_URL", &rig.pg_url)
        .env("NATS_URL", &rig.nats_url)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null());

    let mut bridge = command.spawn().expect("the bridge starts");
    drop(bridge.stdout.take());
    rig.sql("INSERT INTO t VALUES (1)");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    eventually(DEADLINE, "it streams", || {
        match stack::http_get(address, "/ready") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // It prints a line at the end, at the latest.
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    std::io::Write::write_all(
        &mut stream,
        b"POST /shutdown HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
    .expect("it reads");
    let status = bridge.wait().expect("it ends");

    assert_eq!(status.code(), Some(0));
}

#[test]
fn it_logs_in_over_a_unix_socket() {
    let mut rig = Rig::new();
    let directory = rig.postgres().socket_dir().display().to_string();
    rig.pg_url = format!(
        "host={directory} port={} user=postgres password=postgres dbname={}",
        rig.postgres().port(),
        rig.database
    );

    assert_streams(&rig);
}

#[test]
fn it_reads_the_environment_of_the_contract() {
    let rig = Rig::new();
    let port = rig.stack().claim_port();
    let bridge = rig
        .program()
        .env_remove("DATABASE_URL")
        .env_remove("NATS_URL")
        .env("PG_HOST", rig.postgres().host())
        .env("PG_PORT", rig.postgres().port().to_string())
        .env("PG_USER", "postgres")
        .env("PG_PASSWORD", "postgres")
        .env("PG_DB", &rig.database)
        .env("NATS_HOST", rig.nats().addr().to_string())
        .env("NATS_BRIDGE_USER", "bridge")
        .env("NATS_BRIDGE_PASSWORD", "bridge")
        .env("BRIDGE_PORT", port.to_string())
        .start();

    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    bridge.wait_for_line("replication started", DEADLINE);
    rig.sql("INSERT INTO t VALUES (1)");
    let events = rig.events();

    assert_eq!(events[0].columns, [int("id", 1)]);
    assert_eq!(bridge.terminate(DEADLINE).code(), Some(0));
    assert!(!bridge.stderr().contains("PASSWORD"), "{}", bridge.stderr());
}

#[test]
fn it_logs_in_with_md5_and_with_scram() {
    let rig = Rig::alone(Options::default());
    let hba = rig.postgres().data_dir().join("pg_hba.conf");
    let kept = fs::read_to_string(&hba).unwrap();
    // PostgreSQL: method md5 takes a SCRAM password too, so the method and the password must be md5.
    for (role, encryption, method) in [
        ("old", "md5", "md5"),
        ("new", "scram-sha-256", "scram-sha-256"),
    ] {
        rig.sql(&format!(
            "SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN SUPERUSER REPLICATION PASSWORD 'pass word'"
        ));
        let line = format!("host all {role} 127.0.0.1/32 {method}\n");
        fs::write(&hba, line + &kept).unwrap();
        rig.sql("SELECT pg_reload_conf()");

        let bridge = rig
            .program()
            .args(["--port", &rig.stack().claim_port().to_string()])
            .env(
                "DATABASE_URL",
                rig.postgres().url_as(role, "pass%20word", &rig.database),
            )
            .start();
        bridge.wait_for_line("replication started", DEADLINE);
        rig.events();
        assert_eq!(bridge.terminate(DEADLINE).code(), Some(0));
    }
}

#[test]
fn the_reader_role_of_the_schema_files_is_enough() {
    let mut rig = Rig::alone(Options::default().schema(true).nats_login_required(true));
    rig.database = "postgres".to_owned();
    rig.sql("CREATE TABLE fence (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub ADD TABLE fence");
    rig.pg_url = rig
        .postgres()
        .url_as("bridge_reader", "bridge_reader", "postgres");
    rig.nats_url = rig.nats().url_as("bridge", "bridge");

    let bridge = rig.bridge(&[]);
    rig.sql("INSERT INTO users (name, email) VALUES ('Alice', 'alice@example.com')");
    let events = rig.events();
    bridge.drain();

    assert_eq!(events.len(), 1);
    assert_same(&events[0].columns, &rig.rows("users", "")[0]);
}

#[track_caller]
fn assert_streams(rig: &Rig) {
    rig.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let bridge = rig.bridge(&[]);
    rig.sql("INSERT INTO t VALUES (1)");
    let events = rig.events();
    bridge.drain();
    assert_eq!(events[0].operation, Operation::Insert);
}
