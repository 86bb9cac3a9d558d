//! The shape in the bucket is the shape of the rows.

use futures_util::StreamExt as _;
use stack::eventually_async;
use wire::Message as _;
use wire::schema::{Generated, Privilege, ReplicaIdentity, SchemaChanged};

use crate::world::{DEADLINE, World};

const SETUP: &str = "\
    CREATE ROLE app_reader;; CREATE ROLE app_writer;; \
    CREATE TYPE mood AS ENUM ('sad', 'ok');; \
    CREATE TABLE teams (id int PRIMARY KEY);; \
    CREATE TABLE users (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name varchar(10) NOT NULL, \
      feeling mood DEFAULT 'ok', team int REFERENCES teams, twice int GENERATED ALWAYS AS (1 + 1) STORED);; \
    GRANT SELECT ON users TO app_reader;; GRANT INSERT, UPDATE (name) ON users TO app_writer;; \
    INSERT INTO users (name) VALUES ('a');; \
    CREATE PUBLICATION cdc_pub FOR TABLE users, teams";

/// Listens to what the bridge says of one table.
struct Changes(async_nats::Subscriber);

impl Changes {
    async fn of(world: &World, table: &str) -> Self {
        let changes = world
            .nats
            .subscribe(format!("schema.changed.{table}"))
            .await
            .unwrap();
        world.nats.flush().await.unwrap();
        Self(changes)
    }

    async fn next(&mut self) -> SchemaChanged {
        let message = tokio::time::timeout(DEADLINE, self.0.next())
            .await
            .unwrap()
            .unwrap();
        SchemaChanged::decode(&message.payload).unwrap()
    }
}

#[tokio::test]
async fn the_bucket_tells_all_of_a_table() {
    let world = World::new(SETUP, &[]).await;

    let schema = world.schema("users", |_| true).await;

    assert_eq!(
        (schema.version, schema.schema.as_str()),
        (1, "public.users")
    );
    assert_eq!(schema.primary_key, ["id"]);
    assert_eq!(schema.identity_columns, ["id"]);
    assert_eq!(schema.replica_identity, ReplicaIdentity::Default);
    assert_eq!(schema.foreign_keys[0].foreign_table, "teams");
    assert_eq!(schema.privileges.reader, [Privilege::Select]);
    assert_eq!(schema.privileges.writer, [Privilege::Insert]);
    let column = |name: &str| {
        schema
            .columns
            .iter()
            .find(|column| column.name == name)
            .unwrap()
    };
    assert_eq!(column("id").generated, Generated::IdentityAlways);
    assert!(column("id").has_default);
    assert_eq!(column("name").data_type, "character varying(10)");
    assert_eq!(
        column("name").privileges.writer,
        [Privilege::Insert, Privilege::Update]
    );
    assert_eq!(column("feeling").enum_labels, ["sad", "ok"]);
    assert_eq!(
        column("feeling").column_default.as_deref(),
        Some("'ok'::mood")
    );
    assert_eq!(column("twice").generated, Generated::Stored);
    assert!(!column("name").is_nullable);
}

#[tokio::test]
async fn ddl_is_picked_up_live_and_rows_name_their_version() {
    let world = World::new(SETUP, &[]).await;
    world.schema("users", |_| true).await;
    let mut changes = Changes::of(&world, "users").await;
    let storm = [
        ("ALTER TABLE users ADD COLUMN age int", false),
        ("ALTER TABLE users ADD COLUMN rank int DEFAULT 5", true),
        ("ALTER TABLE users RENAME COLUMN name TO nick", false),
        ("ALTER TABLE users ALTER COLUMN nick TYPE text", false),
        ("ALTER TABLE users ALTER COLUMN age TYPE bigint", true),
        ("ALTER TABLE users DROP COLUMN age", false),
        ("ALTER TYPE mood ADD VALUE 'great'", false),
        ("GRANT DELETE ON users TO app_writer", false),
        ("ALTER TABLE users REPLICA IDENTITY FULL", false),
    ];

    for (index, (statement, resnapshot)) in storm.into_iter().enumerate() {
        world.sql(statement);
        // Half of them are seen with a row, half by looking.
        if index % 2 == 0 {
            let name = if index < 2 { "name" } else { "nick" };
            world.sql(&format!("INSERT INTO users ({name}) VALUES ('r')"));
        }
        let told = changes.next().await;
        assert_eq!(
            told.version,
            index as u32 + 2,
            "{statement}: {}",
            told.reason
        );
        assert_eq!(told.resnapshot, resnapshot, "{statement}: {}", told.reason);
        let version = told.version;
        let schema = world
            .schema("users", |schema| schema.version == version)
            .await;
        assert_eq!(schema.valid_from, told.valid_from);
    }
    world.sql("UPDATE users SET nick = 'last' WHERE id = 1");

    let event = eventually_async(DEADLINE, "the last row", async || {
        let events = world.events("users", 1).await;
        events
            .into_iter()
            .find(|event| event.operation == wire::Operation::Update)
    })
    .await;
    assert_eq!(event.schema_version, 10);
    let versions: Vec<u32> = world
        .events("users", 1)
        .await
        .iter()
        .map(|event| event.schema_version)
        .collect();
    assert!(versions.is_sorted(), "{versions:?}");
}

#[tokio::test]
async fn versions_are_the_same_after_a_restart() {
    let mut world = World::new(SETUP, &[]).await;
    world.sql("ALTER TABLE users ADD COLUMN age int");
    let before = world.schema("users", |schema| schema.version == 2).await;
    world.bridge.terminate(DEADLINE);
    // While nobody looks.
    world.sql("ALTER TABLE teams ADD COLUMN name text; INSERT INTO teams VALUES (1, 'x')");

    world.restart();

    let teams = world.schema("teams", |schema| schema.version == 2).await;
    assert_eq!(teams.columns.len(), 2);
    assert_eq!(world.schema("users", |_| true).await, before);
}

#[tokio::test]
async fn rows_older_than_a_change_name_the_older_version() {
    let mut world = World::new(SETUP, &[]).await;
    world.schema("teams", |_| true).await;
    world.bridge.terminate(DEADLINE);
    world.sql("INSERT INTO teams VALUES (1)");
    world.sql("ALTER TABLE teams ADD COLUMN name text");
    world.sql("INSERT INTO teams VALUES (2, 'x')");

    world.restart();

    let events = eventually_async(DEADLINE, "both rows", async || {
        let events = world.events("teams", 1).await;
        (events.len() == 2).then_some(events)
    })
    .await;
    assert_eq!((events[0].schema_version, events[1].schema_version), (1, 2));
}

#[tokio::test]
async fn tables_that_come_go_and_change_their_name_are_followed() {
    let world = World::new(SETUP, &[]).await;
    world.schema("users", |_| true).await;
    let mut changes = Changes::of(&world, "*").await;

    world.sql("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1); ALTER PUBLICATION cdc_pub ADD TABLE late");
    let added = changes.next().await;
    world.sql("ALTER TABLE late RENAME TO later");
    let (mut gone, mut renamed) = (changes.next().await, changes.next().await);
    if gone.table == "later" {
        std::mem::swap(&mut gone, &mut renamed);
    }
    world.sql("DROP TABLE later");
    let dropped = changes.next().await;

    assert_eq!((added.table.as_str(), added.resnapshot), ("late", true));
    assert_eq!(gone.table, "late");
    assert!(
        gone.reason.contains("renamed to public.later"),
        "{}",
        gone.reason
    );
    assert_eq!(
        (renamed.table.as_str(), renamed.resnapshot),
        ("later", true)
    );
    assert_eq!(dropped.table, "later");
    assert_eq!(world.schema_now("later").await, None);
    assert!(world.schema_now("users").await.is_some());
}

#[tokio::test]
async fn the_event_trigger_makes_ddl_visible_ahead_of_the_next_row() {
    let world = World::new(SETUP, &[]).await;
    world.sql(include_str!("../../../schema/optional/ddl_messages.sql"));
    world.schema("users", |_| true).await;
    let mut changes = Changes::of(&world, "users").await;

    for index in 0..5 {
        world.sql(&format!("ALTER TABLE users ADD COLUMN c{index} int"));
        assert_eq!(changes.next().await.version, index + 2);
    }
}

#[tokio::test]
async fn a_rewriting_that_leaves_the_shape_as_it_was_is_told_with_the_event_trigger() {
    let world = World::new(SETUP, &[]).await;
    world.sql(include_str!("../../../schema/optional/ddl_messages.sql"));
    world.schema("users", |_| true).await;
    let mut changes = Changes::of(&world, "users").await;

    world.sql("ALTER TABLE users ALTER name TYPE varchar(10) USING upper(name)");
    let told = changes.next().await;

    assert_eq!((told.version, told.resnapshot), (2, true));
    let schema = world.schema("users", |schema| schema.version == 2).await;
    assert_eq!(schema.seed_version, 2);
    // One that the shape shows as well is told once.
    world.sql("ALTER TABLE users ALTER team TYPE bigint");
    assert_eq!(changes.next().await.version, 3);
    world.sql("ALTER TABLE users ADD COLUMN age int");
    assert_eq!(changes.next().await.version, 4);
    let schema = world.schema("users", |schema| schema.version == 4).await;
    assert_eq!(schema.seed_version, 3);
}

#[tokio::test]
async fn a_default_that_came_and_went_between_two_looks_has_filled_the_old_rows() {
    let world = World::new(SETUP, &[]).await;
    world.schema("teams", |_| true).await;
    let mut changes = Changes::of(&world, "*").await;

    world.sql("BEGIN; ALTER TABLE teams ADD COLUMN a int DEFAULT 5; ALTER TABLE teams ALTER a DROP DEFAULT; COMMIT");
    assert!(changes.next().await.resnapshot);
    world.sql("BEGIN; ALTER TABLE teams ADD COLUMN b float DEFAULT random(); ALTER TABLE teams ALTER b DROP DEFAULT; COMMIT");
    assert!(changes.next().await.resnapshot);
    world.sql("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'");
    assert!(changes.next().await.resnapshot);
}

#[tokio::test]
async fn another_table_under_a_known_name_is_not_taken_for_the_old_one() {
    let world = World::new(SETUP, &[]).await;
    let before = world.schema("teams", |_| true).await;
    let mut changes = Changes::of(&world, "teams").await;

    // The way tables are rebuilt by hand: the shape is the same.
    world.sql(
        "BEGIN; CREATE TABLE teams_new (id int PRIMARY KEY); ALTER TABLE users DROP CONSTRAINT users_team_fkey; \
         ALTER TABLE teams RENAME TO teams_old; ALTER TABLE teams_new RENAME TO teams; \
         ALTER PUBLICATION cdc_pub DROP TABLE teams_old; ALTER PUBLICATION cdc_pub ADD TABLE teams; \
         INSERT INTO teams VALUES (9); COMMIT",
    );
    let told = changes.next().await;

    assert_eq!((told.version, told.resnapshot), (2, true));
    let schema = world.schema("teams", |schema| schema.version == 2).await;
    assert_ne!(schema.relation_id, before.relation_id);
    let event = eventually_async(DEADLINE, "its row", async || {
        world.events("teams", 1).await.pop()
    })
    .await;
    assert_eq!(
        (event.relation_id, event.schema_version),
        (schema.relation_id, 2)
    );
}

#[tokio::test]
async fn a_table_dropped_while_no_bridge_ran_is_taken_out_by_the_next() {
    let mut world = World::new(SETUP, &[]).await;
    world.schema("teams", |_| true).await;
    assert!(world.bridge.terminate(DEADLINE).success());
    world.sql("DROP TABLE teams CASCADE");

    world.restart();
    world.is_up().await;

    eventually_async(DEADLINE, "the table is taken out", async || {
        world.schema_now("teams").await.is_none()
    })
    .await;
    let users = world.schema("users", |_| true).await;
    assert_eq!(
        (
            users.bridges[0].stream.as_str(),
            users.bridges[0].slot.as_str()
        ),
        ("CDC", "cdc_slot")
    );
    // It counts on, should it come back.
    world.sql("CREATE TABLE teams (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub ADD TABLE teams");
    let teams = world.schema("teams", |_| true).await;
    assert_eq!((teams.version, teams.seed_version), (2, 2));
}

#[tokio::test]
async fn a_snapshot_names_the_version_its_rows_have() {
    let world = World::new(SETUP, &[]).await;
    world.schema("teams", |_| true).await;

    for index in 0..4 {
        // Before the bridge has looked again.
        world.sql(&format!("ALTER TABLE teams ADD COLUMN c{index} int"));
        let id = world.accepted("teams", "").await;
        world.load("teams", &id).await;

        let starts = world
            .messages("INIT", &["init.start.teams".into()], 1)
            .await;
        let start = wire::snapshot::Start::decode(&starts.last().unwrap().payload).unwrap();
        let schema = world
            .schema("teams", |schema| schema.version == start.schema_version)
            .await;
        let columns: Vec<_> = schema.columns.iter().map(|column| &column.name).collect();
        assert_eq!(start.columns.iter().collect::<Vec<_>>(), columns);
    }
}
