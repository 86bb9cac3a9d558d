use stack::{Options, PostgresVersion, Stack, eventually};

use crate::DEADLINE;

fn up(options: Options) -> Stack {
    Stack::up(options.without_nats()).unwrap()
}

#[test]
fn it_is_ready_for_logical_replication_over_tcp_with_a_password() {
    let stack = up(Options::default());
    let postgres = stack.postgres();

    assert_eq!(postgres.value("SHOW wal_level"), "logical");
    assert_eq!(postgres.value("SHOW max_replication_slots"), "20");
    let rules =
        postgres.value("SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules");
    assert_eq!(rules, "scram-sha-256");
}

#[test]
fn rows_written_before_a_crash_are_there_after_a_restart_on_the_same_port() {
    let stack = up(Options::default());
    let postgres = stack.postgres();
    postgres.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (1), (2)");
    let (addr, pid) = (postgres.addr(), postgres.pid());

    postgres.kill();
    assert!(postgres.try_sql_in("postgres", "SELECT 1").is_err());
    postgres.start();

    assert_eq!(postgres.addr(), addr);
    assert_ne!(postgres.pid(), pid);
    assert_eq!(postgres.value("SELECT count(*) FROM t"), "2");
}

#[test]
fn a_paused_server_answers_nobody_until_it_is_resumed() {
    let stack = up(Options::default());
    let postgres = stack.postgres();
    postgres.sql("CREATE TABLE t (id int)");

    postgres.pause();
    let insert = std::thread::scope(|scope| {
        let insert = scope.spawn(|| postgres.try_sql_in("postgres", "INSERT INTO t VALUES (1)"));
        // Its connection waits in the kernel's queue: only a running server would answer.
        eventually(DEADLINE, "a connection that gets no answer", || {
            let refused = std::net::TcpStream::connect(postgres.addr()).is_err();
            !refused && !insert.is_finished()
        });
        postgres.resume();
        insert.join().unwrap()
    });

    assert_eq!(insert, Ok(vec![]));
    assert_eq!(postgres.value("SELECT count(*) FROM t"), "1");
}

#[test]
fn settings_are_applied_and_null_is_not_an_empty_string() {
    let stack = up(Options::default()
        .fsync(true)
        .postgres_setting("wal_sender_timeout", "3s")
        .postgres_setting("cluster_name", "it's mine"));
    let postgres = stack.postgres();

    assert_eq!(postgres.value("SHOW fsync"), "on");
    assert_eq!(postgres.value("SHOW wal_sender_timeout"), "3s");
    assert_eq!(postgres.value("SHOW cluster_name"), "it's mine");
    assert_eq!(
        postgres.sql("SELECT NULL, ''"),
        [[None, Some(String::new())]]
    );
}

#[test]
fn other_databases_can_be_made_and_asked() {
    let stack = up(Options::default());
    let postgres = stack.postgres();

    postgres.create_database("Other \"db\"");

    let name = postgres.sql_in("Other \"db\"", "SELECT current_database()");
    assert_eq!(name, [[Some("Other \"db\"".to_owned())]]);
}

#[test]
fn a_refused_statement_says_why() {
    let stack = up(Options::default());

    let error = stack
        .postgres()
        .try_sql_in("postgres", "SELECT * FROM missing")
        .unwrap_err();

    assert_eq!(error, "42P01: relation \"missing\" does not exist");
}

#[test]
fn only_an_initdb_of_its_own_gives_a_system_identifier_of_its_own() {
    let identifier = |options: Options| {
        up(options)
            .postgres()
            .value("SELECT system_identifier FROM pg_control_system()")
    };

    let copied = identifier(Options::default());

    assert_eq!(identifier(Options::default()), copied);
    assert_ne!(identifier(Options::default().own_initdb(true)), copied);
}

#[test]
fn dropping_the_stack_ends_the_server_and_removes_its_directory() {
    let stack = up(Options::default());
    let dir = stack.dir().to_path_buf();
    let addr = stack.postgres().addr();
    assert!(dir.is_dir());

    drop(stack);

    assert!(!dir.exists());
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn a_killed_and_dropped_server_leaves_no_shared_memory_behind() {
    let stack = up(Options::default());
    let pid_file = stack.postgres().data_dir().join("postmaster.pid");
    let lines = std::fs::read_to_string(pid_file).unwrap();
    let id = lines
        .lines()
        .nth(6)
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .to_owned();

    stack.postgres().kill();
    drop(stack);

    let segments = std::process::Command::new("ipcs")
        .arg("-m")
        .output()
        .unwrap();
    let segments = String::from_utf8(segments.stdout).unwrap();
    assert!(
        !segments
            .lines()
            .any(|line| line.split_whitespace().nth(1) == Some(&id)),
        "{segments}"
    );
}

#[test]
fn a_wanted_version_is_the_version_that_runs() {
    let stack = up(Options::default().postgres(PostgresVersion::V15));

    assert_eq!(stack.postgres().major_version(), 15);
    assert!(
        stack
            .postgres()
            .value("SHOW server_version")
            .starts_with("15.")
    );
}

#[tokio::test]
async fn sql_may_be_asked_from_inside_a_tokio_runtime() {
    let stack = up(Options::default());

    assert_eq!(stack.postgres().value("SELECT 1"), "1");
}
