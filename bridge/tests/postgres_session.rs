//! The replication session against a real PostgreSQL.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use bridge::pgoutput::{Cell, Change, Message, OldTuple, Relations, TupleData, decode};
use bridge::postgres::{
    Endpoint, Error, Frame, Host, Read, ReplicationStream, START_OPTIONS, Session,
    WAL_SENDER_TIMEOUT, quote_ident,
};
use stack::{Options, Stack, eventually};
use wire::Lsn;

const DEADLINE: Duration = Duration::from_secs(30);

fn postgres() -> Stack {
    Stack::up(Options::default().without_nats()).unwrap()
}

fn endpoint(stack: &Stack) -> Endpoint {
    let postgres = stack.postgres();
    Endpoint {
        host: Host::from(postgres.host()),
        port: postgres.port(),
        user: postgres.user().to_owned(),
        password: Some(postgres.password().to_owned()),
        database: "postgres".to_owned(),
        application_name: "bridge-test".to_owned(),
        connect_timeout: Duration::from_secs(10),
    }
}

fn connect(stack: &Stack) -> Session {
    Session::connect(&endpoint(stack), WAL_SENDER_TIMEOUT).unwrap()
}

/// Puts lines before all others of pg_hba.conf.
fn prepend_hba(stack: &Stack, lines: &str) {
    let path = stack.postgres().data_dir().join("pg_hba.conf");
    let rest = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{lines}\n{rest}")).unwrap();
    stack.postgres().sql("SELECT pg_reload_conf()");
}

/// A table, its publication and a slot, and the stream from there.
fn stream_of(stack: &Stack, ddl: &str) -> ReplicationStream {
    stack.postgres().sql(ddl);
    stack
        .postgres()
        .sql("CREATE PUBLICATION cdc_pub FOR ALL TABLES");
    let mut session = connect(stack);
    session.create_slot("cdc_slot", false).unwrap();
    start(session).unwrap()
}

fn start(session: Session) -> Result<ReplicationStream, Error> {
    session.start_replication("cdc_slot", &["cdc_pub".to_owned()], &START_OPTIONS)
}

/// The server's WAL position, to confirm everything written so far.
fn wal_lsn(stack: &Stack) -> Lsn {
    let lsn = stack.postgres().value("SELECT pg_current_wal_lsn()");
    lsn.parse().unwrap()
}

fn text(tuple: TupleData<'_>) -> String {
    let cells: Vec<_> = tuple
        .cells()
        .map(|cell| match cell {
            Cell::Null => "NULL".to_owned(),
            Cell::UnchangedToast => "UNCHANGED".to_owned(),
            Cell::Text(value) if value.len() > 100 => format!("{} bytes", value.len()),
            Cell::Text(value) => String::from_utf8_lossy(value).into_owned(),
            Cell::Binary(value) => format!("{value:?}"),
        })
        .collect();
    cells.join("|")
}

fn old_text(old: OldTuple<'_>) -> String {
    match old {
        OldTuple::Key(tuple) => format!("key {}", text(tuple)),
        OldTuple::Full(tuple) => format!("full {}", text(tuple)),
    }
}

/// One line per message, as a person would say it.
fn describe(message: Message<'_>, relations: &mut Relations) -> String {
    let mut name = |id| {
        let relation = relations.get(id).expect("Relation comes before its rows");
        relation.name.clone()
    };
    match message {
        Message::Begin(_) => "begin".to_owned(),
        Message::Commit(commit) => {
            assert!(commit.end_lsn > commit.commit_lsn);
            "commit".to_owned()
        }
        Message::Origin { .. } => "origin".to_owned(),
        Message::Type(_) => "type".to_owned(),
        Message::Relation(relation) => {
            let line = format!("relation {}.{}", relation.namespace, relation.name);
            match relations.insert(relation, |relation| relation) {
                Change::New => line,
                Change::Same => format!("{line} again"),
                Change::Changed => format!("{line} changed"),
            }
        }
        Message::Insert { relation_id, new } => {
            format!("insert {}: {}", name(relation_id), text(new))
        }
        Message::Update {
            relation_id,
            old,
            new,
        } => {
            let old = old.map(|old| format!("{} -> ", old_text(old)));
            let old = old.unwrap_or_default();
            format!("update {}: {old}{}", name(relation_id), text(new))
        }
        Message::Delete { relation_id, old } => {
            format!("delete {}: {}", name(relation_id), old_text(old))
        }
        Message::Truncate(truncate) => {
            let cascade = if truncate.cascade { " cascade" } else { "" };
            let restart = if truncate.restart_identity {
                " restart"
            } else {
                ""
            };
            let names: Vec<_> = truncate.relation_ids.map(name).collect();
            format!("truncate {}{cascade}{restart}", names.join(","))
        }
        Message::LogicalMessage(message) => format!(
            "message {} {}",
            String::from_utf8_lossy(message.prefix),
            String::from_utf8_lossy(message.content)
        ),
    }
}

/// Reads until `last` was seen. Begin and commit are left out, and what the server may tell again
/// whenever its own cache was invalidated: types, and relations that did not change.
fn lines_until(stream: &mut ReplicationStream, last: &str) -> Vec<String> {
    let deadline = Instant::now() + DEADLINE;
    let mut relations = Relations::default();
    let mut lines = Vec::new();
    loop {
        while let Some(frame) = stream.next_frame().unwrap() {
            if let Frame::XLogData { payload, .. } = frame {
                let line = describe(decode(payload).unwrap(), &mut relations);
                let left_out = ["begin", "commit", "type"];
                if !left_out.contains(&line.as_str()) && !line.ends_with(" again") {
                    lines.push(line);
                }
            }
        }
        if lines.last().is_some_and(|line| line == last) {
            return lines;
        }
        assert!(Instant::now() < deadline, "no {last:?}; got {lines:#?}");
        stream.read(Duration::from_millis(100)).unwrap();
    }
}

/// Reads until the stream fails.
fn failure(stream: &mut ReplicationStream) -> Error {
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline, "the stream goes on");
        match stream.next_frame() {
            Ok(Some(_)) => {}
            Ok(None) => {
                if let Err(error) = stream.read(Duration::from_millis(100)) {
                    return error;
                }
            }
            Err(error) => return error,
        }
    }
}

#[test]
fn each_way_to_log_in_works_over_tcp() {
    let stack = postgres();
    stack.postgres().sql(
        "SET password_encryption = 'scram-sha-256';
         CREATE ROLE scram LOGIN REPLICATION PASSWORD 'pencil';
         SET password_encryption = 'md5';
         CREATE ROLE md5 LOGIN REPLICATION PASSWORD 'pencil';
         CREATE ROLE clear LOGIN REPLICATION PASSWORD 'pencil';
         CREATE ROLE trusted LOGIN REPLICATION",
    );
    prepend_hba(
        &stack,
        "host all scram all scram-sha-256\n\
         host all md5 all md5\n\
         host all clear all password\n\
         host all trusted all trust",
    );
    let endpoint = endpoint(&stack);
    let log_in = |user: &str, password: Option<&str>| {
        let endpoint = Endpoint {
            user: user.to_owned(),
            password: password.map(str::to_owned),
            ..endpoint.clone()
        };
        Session::connect(&endpoint, WAL_SENDER_TIMEOUT).map(drop)
    };

    eventually(DEADLINE, "the new pg_hba.conf holds", || {
        log_in("trusted", None)
    });
    for user in ["scram", "md5", "clear"] {
        log_in(user, Some("pencil")).unwrap();
        let wrong = log_in(user, Some("crayon")).unwrap_err();
        assert!(matches!(wrong, Error::Authentication(_)), "{user}: {wrong}");
        assert!(!wrong.is_retryable());
        let missing = log_in(user, None).unwrap_err();
        assert!(
            matches!(missing, Error::PasswordMissing),
            "{user}: {missing}"
        );
    }
}

#[test]
fn a_session_identifies_the_system_over_tcp_and_a_unix_socket() {
    let stack = postgres();
    let mut over_unix = endpoint(&stack);
    // A socket's path may have 107 bytes, and a temporary directory's may have more.
    let directory = tempfile::tempdir().unwrap();
    let short = directory.path().join("s");
    symlink(stack.postgres().socket_dir(), &short).unwrap();
    over_unix.host = Host::Unix(short);
    let identifier = stack
        .postgres()
        .value("SELECT system_identifier FROM pg_control_system()");

    for endpoint in [endpoint(&stack), over_unix] {
        let mut session = Session::connect(&endpoint, WAL_SENDER_TIMEOUT).unwrap();
        let identity = session.identify_system().unwrap();

        assert_eq!(identity.system_identifier, identifier);
        assert_eq!(identity.timeline, 1);
        assert_eq!(identity.database, "postgres");
        assert!(identity.wal_lsn > Lsn(0));
        assert_eq!(
            session.server_major_version(),
            stack.postgres().major_version()
        );
    }
}

#[test]
fn the_defaults_of_a_role_do_not_leak_into_the_session() {
    let stack = postgres();
    stack.postgres().sql(
        "ALTER ROLE postgres SET timezone = 'Asia/Tokyo';
         ALTER ROLE postgres SET datestyle = 'German';
         ALTER ROLE postgres SET bytea_output = 'escape'",
    );

    let mut session = Session::connect(&endpoint(&stack), Duration::from_secs(3)).unwrap();
    let rows = session
        .simple_query(
            "SELECT to_timestamp(0), '\\x61'::bytea, current_setting('wal_sender_timeout')",
        )
        .unwrap();

    let expected = ["1970-01-01 00:00:00+00", "\\x61", "3s"];
    assert_eq!(rows, [expected.map(|value| Some(value.to_owned()))]);
}

#[test]
fn a_session_goes_on_after_an_error_of_the_server() {
    let stack = postgres();
    let mut session = connect(&stack);

    let error = session.simple_query("SELECT 1/0").unwrap_err();

    assert!(error.to_string().contains("SQLSTATE 22012"), "{error}");
    assert!(session.identify_system().is_ok());
}

#[test]
fn every_kind_of_row_change_is_decoded() {
    let stack = postgres();
    let mut stream = stream_of(
        &stack,
        "CREATE TABLE users (id int PRIMARY KEY, name text, body text);
         ALTER TABLE users ALTER body SET STORAGE EXTERNAL;
         CREATE TABLE logs (id int, line text);
         ALTER TABLE logs REPLICA IDENTITY FULL;
         CREATE TYPE mood AS ENUM ('sad');
         CREATE TABLE moods (id int PRIMARY KEY REFERENCES users, mood mood)",
    );
    let statements = [
        "INSERT INTO users VALUES (1, 'Ann', repeat('x', 9000)), (2, NULL, '')",
        "UPDATE users SET name = 'Bob' WHERE id = 1",
        "UPDATE users SET id = 3 WHERE id = 2",
        "DELETE FROM users WHERE id = 3",
        "INSERT INTO logs VALUES (1, 'a')",
        "UPDATE logs SET line = 'b'",
        "DELETE FROM logs",
        "INSERT INTO moods VALUES (1, 'sad')",
        "ALTER TABLE users ADD age int",
        "UPDATE users SET age = 7",
        "TRUNCATE users RESTART IDENTITY CASCADE",
        "SELECT pg_logical_emit_message(true, 'test', 'done')",
    ];
    for statement in statements {
        stack.postgres().sql(statement);
    }

    let lines = lines_until(&mut stream, "message test done");

    assert_eq!(
        lines,
        [
            "relation public.users",
            "insert users: 1|Ann|9000 bytes",
            "insert users: 2|NULL|",
            "update users: 1|Bob|UNCHANGED",
            "update users: key 2|NULL|NULL -> 3|NULL|",
            "delete users: key 3|NULL|NULL",
            "relation public.logs",
            "insert logs: 1|a",
            "update logs: full 1|a -> 1|b",
            "delete logs: full 1|b",
            "relation public.moods",
            "insert moods: 1|sad",
            "relation public.users changed",
            "update users: 1|Bob|UNCHANGED|7",
            "truncate users,moods cascade restart",
            "message test done",
        ]
    );
}

#[test]
fn a_row_larger_than_the_buffer_arrives_whole() {
    let stack = postgres();
    let mut stream = stream_of(&stack, "CREATE TABLE files (id int PRIMARY KEY, body text)");
    stack.postgres().sql(
        "INSERT INTO files VALUES (1, repeat('x', 20000000));
         INSERT INTO files VALUES (2, 'small')",
    );

    let lines = lines_until(&mut stream, "insert files: 2|small");

    assert_eq!(
        lines,
        [
            "relation public.files",
            "insert files: 1|20000000 bytes",
            "insert files: 2|small",
        ]
    );
}

#[test]
fn a_read_without_traffic_times_out() {
    let stack = postgres();
    let mut stream = stream_of(&stack, "CREATE TABLE users (id int PRIMARY KEY)");

    eventually(DEADLINE, "a read that timed out", || {
        while stream.next_frame().unwrap().is_some() {}
        stream.read(Duration::from_millis(50)).unwrap() == Read::TimedOut
    });
}

#[test]
fn the_last_status_before_close_moves_the_slot() {
    let stack = postgres();
    let mut stream = stream_of(&stack, "CREATE TABLE users (id int PRIMARY KEY)");
    stack
        .postgres()
        .sql("INSERT INTO users SELECT generate_series(1, 100000)");
    let confirmed = wal_lsn(&stack);
    // Some of the rows are read, most stay in the sockets.
    while stream.read(DEADLINE).unwrap() == Read::TimedOut {}

    stream
        .send_status(confirmed, confirmed, confirmed, false)
        .unwrap();
    stream.close(DEADLINE).unwrap();

    let slot = stack
        .postgres()
        .sql("SELECT confirmed_flush_lsn, active::text FROM pg_replication_slots");
    let expected = [confirmed.to_string(), "false".to_owned()];
    assert_eq!(slot, [expected.map(Some)]);
}

#[test]
fn a_stream_resumes_behind_what_was_confirmed() {
    let stack = postgres();
    let mut stream = stream_of(&stack, "CREATE TABLE users (id int PRIMARY KEY)");
    stack.postgres().sql("INSERT INTO users VALUES (1)");
    lines_until(&mut stream, "insert users: 1");
    let confirmed = wal_lsn(&stack);
    stream
        .send_status(confirmed, confirmed, confirmed, false)
        .unwrap();
    stream.close(DEADLINE).unwrap();
    stack.postgres().sql("INSERT INTO users VALUES (2)");

    let mut stream = start(connect(&stack)).unwrap();

    let lines = lines_until(&mut stream, "insert users: 2");
    assert_eq!(lines, ["relation public.users", "insert users: 2"]);
}

#[test]
fn a_keepalive_answers_a_request_for_a_reply() {
    let stack = postgres();
    let mut stream = stream_of(&stack, "CREATE TABLE users (id int PRIMARY KEY)");
    stream.send_status(Lsn(0), Lsn(0), Lsn(0), true).unwrap();

    eventually(DEADLINE, "a keepalive", || {
        stream.read(Duration::from_millis(100)).unwrap();
        let frame = stream.next_frame().unwrap();
        matches!(frame, Some(Frame::PrimaryKeepalive { .. }))
    });
}

#[test]
fn trouble_with_the_slot_is_told_apart() {
    let stack = postgres();
    let stream = stream_of(&stack, "CREATE TABLE users (id int PRIMARY KEY)");
    stack.postgres().create_database("other");

    let error = start(connect(&stack)).unwrap_err();
    assert!(matches!(error, Error::SlotInUse(_)), "{error}");
    assert!(error.is_retryable());

    let error = connect(&stack).create_slot("cdc_slot", false).unwrap_err();
    assert!(matches!(error, Error::SlotExists(_)), "{error}");

    stream.close(DEADLINE).unwrap();
    let elsewhere = Endpoint {
        database: "other".to_owned(),
        ..endpoint(&stack)
    };
    let session = Session::connect(&elsewhere, WAL_SENDER_TIMEOUT).unwrap();
    let error = start(session).unwrap_err();
    assert!(matches!(error, Error::WrongDatabase(_)), "{error}");
    assert!(!error.is_retryable());

    stack
        .postgres()
        .sql("SELECT pg_drop_replication_slot('cdc_slot')");
    let error = start(connect(&stack)).unwrap_err();
    assert!(matches!(error, Error::SlotMissing(_)), "{error}");
    assert!(!error.is_retryable());
}

#[test]
fn a_failover_slot_is_made_where_the_server_knows_them() {
    let stack = postgres();

    let created = connect(&stack).create_slot("cdc_slot", true);

    if stack.postgres().major_version() >= 17 {
        assert!(created.unwrap().consistent_point > Lsn(0));
        let failover = "SELECT failover::text FROM pg_replication_slots";
        assert_eq!(stack.postgres().value(failover), "true");
    } else {
        let error = created.unwrap_err();
        assert!(matches!(error, Error::Server(_)), "{error}");
    }
}

#[test]
fn a_slot_whose_wal_was_removed_is_lost() {
    let options = Options::default()
        .without_nats()
        .postgres_setting("max_slot_wal_keep_size", "1MB")
        .postgres_setting("min_wal_size", "32MB")
        .postgres_setting("max_wal_size", "32MB");
    let stack = Stack::up(options).unwrap();
    let stream = stream_of(&stack, "CREATE TABLE users (id int PRIMARY KEY)");
    stream.close(DEADLINE).unwrap();

    eventually(DEADLINE, "the slot is lost", || {
        let postgres = stack.postgres();
        postgres.sql("SELECT pg_switch_wal()");
        postgres.sql("INSERT INTO users SELECT count(*) FROM users");
        postgres.sql("CHECKPOINT");
        postgres.value("SELECT wal_status FROM pg_replication_slots") == "lost"
    });

    let error = start(connect(&stack)).unwrap_err();
    assert!(matches!(error, Error::SlotLost(_)), "{error:?}");
    assert!(!error.is_retryable());
}

#[test]
fn a_missing_publication_is_said_when_the_server_says_it() {
    let stack = postgres();
    let mut stream = stream_of(&stack, "CREATE TABLE users (id int PRIMARY KEY)");
    stack.postgres().sql("DROP PUBLICATION cdc_pub");
    stack.postgres().sql("INSERT INTO users VALUES (1)");

    // PostgreSQL: 18 says nothing; whoever streams has to ask the catalogue.
    if stack.postgres().major_version() < 18 {
        let error = failure(&mut stream);
        assert!(matches!(error, Error::PublicationMissing(_)), "{error}");
        assert!(!error.is_retryable());
    } else {
        eventually(DEADLINE, "silence", || {
            while stream.next_frame().unwrap().is_some() {}
            stream.read(Duration::from_millis(500)).unwrap() == Read::TimedOut
        });
    }
}

#[test]
fn a_role_without_replication_is_told_what_it_needs() {
    let stack = postgres();
    stack
        .postgres()
        .sql("CREATE ROLE plain LOGIN PASSWORD 'pencil'");
    let endpoint = Endpoint {
        user: "plain".to_owned(),
        password: Some("pencil".to_owned()),
        ..endpoint(&stack)
    };

    let error = Session::connect(&endpoint, WAL_SENDER_TIMEOUT).unwrap_err();

    assert!(matches!(error, Error::Privilege(_)), "{error}");
    assert!(error.to_string().contains("REPLICATION"), "{error}");
}

#[test]
fn a_server_that_is_away_is_worth_another_try() {
    let stack = postgres();
    let mut stream = stream_of(&stack, "CREATE TABLE users (id int PRIMARY KEY)");

    stack.postgres().kill();

    let error = failure(&mut stream);
    assert!(error.is_retryable(), "{error}");
    let error = Session::connect(&endpoint(&stack), WAL_SENDER_TIMEOUT).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(error.is_retryable());
}

#[test]
fn names_with_quotes_and_commas_reach_the_server() {
    let stack = postgres();
    let publication = "it's \"odd\", really";
    stack
        .postgres()
        .sql("CREATE TABLE users (id int PRIMARY KEY)");
    stack.postgres().sql(&format!(
        "CREATE PUBLICATION {} FOR TABLE users",
        quote_ident(publication)
    ));
    let mut session = connect(&stack);
    session.create_slot("cdc_slot", false).unwrap();
    let mut stream = session
        .start_replication("cdc_slot", &[publication.to_owned()], &START_OPTIONS)
        .unwrap();
    stack.postgres().sql("INSERT INTO users VALUES (1)");

    let lines = lines_until(&mut stream, "insert users: 1");

    assert_eq!(lines, ["relation public.users", "insert users: 1"]);
}
