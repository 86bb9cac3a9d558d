//! The files an operator uses, `schema/`, `init.sh` and `nats/`, against real servers.

use std::path::PathBuf;

use stack::{Options, Program, Stack};

use crate::DEADLINE;

fn workspace() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn init(stack: &Stack, password: &str) -> Program {
    let bin = stack.postgres().bin_dir().display();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
    let init = stack
        .program(workspace().join("init.sh"))
        .arg(stack.postgres().url());
    init.env("PATH", path)
        .env("PG_PASSWORD", password)
        .env_remove("PROCESSOR_PG_PASSWORD")
        .env_remove("READER_PG_PASSWORD")
}

#[test]
fn init_prepares_a_database_and_may_be_repeated_with_another_password() {
    let stack = Stack::up(Options::default().without_nats()).unwrap();

    for password in ["it's \"odd\" $HOME \\ :x", "second"] {
        let process = init(&stack, password).start();
        let status = process.wait(DEADLINE);
        assert!(status.success(), "{}", process.log_tail());
        let said = process.stdout();
        assert!(
            said.contains("bridge_reader can open a replication session\n"),
            "{said}"
        );
        assert!(
            said.contains(
                "publication cdc_pub: public.orders, public.users, public.write_operations\n"
            ),
            "{said}"
        );
        assert!(said.ends_with("ready\n"), "{said}");
    }
}

#[test]
fn init_lets_the_services_in_with_passwords_of_their_own() {
    let stack = Stack::up(Options::default().without_nats()).unwrap();
    let logins =
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'service\\_%' AND rolcanlogin ORDER BY 1";

    let process = init(&stack, "of the bridge").start();
    let status = process.wait(DEADLINE);
    assert!(status.success(), "{}", process.log_tail());
    assert!(stack.postgres().sql(logins).is_empty());
    let said = process.stdout();
    assert!(
        said.contains("READER_PG_PASSWORD is not set: service_reader keeps"),
        "{said}"
    );

    for (processor, reader) in [("it's \"odd\" $HOME \\ :x", "r"), ("second", "other")] {
        let process = init(&stack, "of the bridge")
            .env("PROCESSOR_PG_PASSWORD", processor)
            .env("READER_PG_PASSWORD", reader)
            .start();
        let status = process.wait(DEADLINE);
        assert!(status.success(), "{}", process.log_tail());
        let said = process.stdout();
        for line in [
            "service_processor can open a writing session\n",
            "service_reader can open a reading session\n",
        ] {
            assert!(said.contains(line), "{said}");
        }
    }
    assert_eq!(stack.postgres().sql(logins).len(), 2);
}

#[test]
fn the_services_logins_may_do_nothing_but_take_their_roles() {
    let stack = Stack::up(Options::default().without_nats().schema(true)).unwrap();
    let postgres = stack.postgres();
    let refused = |sql: &str| postgres.try_sql_in("postgres", sql).unwrap_err();

    let denied = "42501: permission denied for table users";
    for login in ["service_processor", "service_reader"] {
        let own = format!("SET SESSION AUTHORIZATION {login}; SELECT FROM users");
        assert_eq!(refused(&own), denied);
        let rights = format!(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
             FROM pg_roles WHERE rolname = '{login}'"
        );
        assert_eq!(postgres.value(&rights), "f");
    }
    postgres.sql(
        "SET SESSION AUTHORIZATION service_processor; SET ROLE app_writer;
         INSERT INTO users (name, email) VALUES ('Ada', 'a@example.com')",
    );
    assert_eq!(
        refused(
            "SET SESSION AUTHORIZATION service_reader; SET ROLE app_reader;
             SELECT FROM users; DELETE FROM users"
        ),
        denied
    );
    assert_eq!(
        refused("SET SESSION AUTHORIZATION service_reader; SET ROLE app_writer"),
        "42501: permission denied to set role \"app_writer\""
    );
}

#[test]
fn init_says_how_to_switch_logical_decoding_on() {
    let options = Options::default()
        .without_nats()
        .postgres_setting("wal_level", "replica");
    let stack = Stack::up(options).unwrap();

    let process = init(&stack, "secret").start();

    assert_eq!(process.wait(DEADLINE).code(), Some(1));
    let said = process.stderr();
    assert!(
        said.contains("wal_level is replica and must be logical"),
        "{said}"
    );
    assert!(
        said.contains("ALTER SYSTEM SET wal_level = logical"),
        "{said}"
    );
    assert_eq!(
        stack
            .postgres()
            .value("SELECT count(*) FROM pg_publication"),
        "0"
    );
}

#[test]
fn the_bridges_role_reads_published_tables_and_those_made_later_but_changes_nothing() {
    let stack = Stack::up(Options::default().without_nats().schema(true)).unwrap();
    let postgres = stack.postgres();
    postgres.sql("CREATE TABLE later (id int PRIMARY KEY)");

    let refused = postgres.try_sql_in(
        "postgres",
        "SET ROLE bridge_reader; SELECT FROM users; SELECT FROM later; DELETE FROM users",
    );

    assert_eq!(
        refused.unwrap_err(),
        "42501: permission denied for table users"
    );
    let role = "SELECT rolreplication, rolsuper FROM pg_roles WHERE rolname = 'bridge_reader'";
    assert_eq!(
        postgres.sql(role),
        [["t", "f"].map(|value| Some(value.to_owned()))]
    );
}

#[test]
fn the_servers_accept_the_configuration_meant_for_production() {
    let stack = Stack::up(Options::default().without_postgres()).unwrap();
    let config = workspace().join("nats/nats-server.conf");

    let check = stack
        .program(stack.nats().program())
        .args(["-t", "-c"])
        .arg(config)
        .env("NATS_ADMIN_PASSWORD", "a")
        .env("NATS_BRIDGE_PASSWORD", "b")
        .env("NATS_APP_PASSWORD", "c")
        .start();

    assert!(check.wait(DEADLINE).success(), "{}", check.log_tail());
}
