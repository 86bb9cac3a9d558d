//! One world per test: PostgreSQL with two tables, NATS, and processors.
//!
//! In: commands. Out: outcomes. Must hold: the processor logs in as an ordinary user that `schema/` makes for it.

use std::time::Duration;

use async_nats::jetstream::{self, Context};
use serde_json::{Map, Value, json};
use stack::{Options, Process, Stack, eventually};
use uuid::Uuid;
use wire::Message;
use wire::command::{WriteCommand, WriteOp};
use wire::names;

pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct World {
    pub stack: Stack,
    pub jetstream: Context,
}

/// `applied` counts what really happened to `people`, one row for each row event, in order.
const TABLES: &str = "
    CREATE TABLE people (
        id uuid PRIMARY KEY, name text NOT NULL, email text UNIQUE, age integer,
        balance numeric(12,2), tags text[], extra jsonb);
    CREATE TABLE tickets (
        id uuid PRIMARY KEY, person uuid NOT NULL REFERENCES people, title text);
    CREATE TABLE applied (place bigserial, op text, id uuid, name text);
    GRANT SELECT, INSERT, UPDATE, DELETE ON people, tickets TO app_writer;
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO public.applied (op, id, name)
            VALUES (TG_OP, coalesce(new.id, old.id), new.name);
            RETURN NULL;
        END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON people
        FOR EACH ROW EXECUTE FUNCTION note();";

impl World {
    pub async fn up() -> Self {
        let stack = Stack::up(Options::default().schema(true)).unwrap();
        stack.postgres().sql(TABLES);
        let client = async_nats::connect(stack.nats().url()).await.unwrap();
        let jetstream = jetstream::new(client);
        processor::queue::writes(&jetstream).await.unwrap();
        Self { stack, jetstream }
    }

    /// A processor; `name` tells the logs of several apart.
    pub fn processor(&self, name: &str, flags: &[&str]) -> Process {
        self.program(name, flags).start()
    }

    pub fn program(&self, name: &str, words: &[&str]) -> stack::Program {
        let url =
            self.stack
                .postgres()
                .url_as("service_processor", "service_processor", "postgres");
        self.stack
            .program(env!("CARGO_BIN_EXE_processor"))
            .named(name)
            .env("NATS_URL", self.stack.nats().url())
            .env("DATABASE_URL", url)
            .env("PORT", "0")
            .env("LOG_LEVEL", "info")
            .args(words)
    }

    pub async fn send(&self, command: &WriteCommand) {
        let subject = names::writes(&command.schema, &command.table, &command.operation_id);
        self.send_raw(&subject, command.to_msgpack()).await;
    }

    pub async fn send_raw(&self, subject: &str, payload: Vec<u8>) {
        let ack = self
            .jetstream
            .publish(subject.to_owned(), payload.into())
            .await;
        ack.unwrap().await.unwrap();
    }

    /// Waits until every operation has an outcome and the queue is empty.
    pub async fn settle(&self, operations: usize) {
        let have = || {
            let count = self.value("SELECT count(*) FROM write_operations");
            if count == operations.to_string() {
                Ok(())
            } else {
                Err(format!("{count} outcomes"))
            }
        };
        eventually(DEADLINE, &format!("{operations} outcomes"), have);
        let stream = self.jetstream.get_stream("WRITES").await.unwrap();
        stack::eventually_async(DEADLINE, "an empty queue", async || {
            match stream.get_info().await.unwrap().state.messages {
                0 => Ok(()),
                count => Err(format!("{count} messages")),
            }
        })
        .await;
    }

    pub fn value(&self, sql: &str) -> String {
        self.stack.postgres().value(sql)
    }

    /// (status, error) of an operation, once it has an outcome.
    pub fn outcome(&self, operation_id: &str) -> (String, Value) {
        let sql = format!(
            "SELECT status, coalesce(error, 'null') FROM write_operations \
             WHERE operation_id = '{operation_id}'"
        );
        let row = eventually(DEADLINE, "an outcome", || {
            self.stack.postgres().sql(&sql).pop()
        });
        let [status, error] = <[_; 2]>::try_from(row).unwrap().map(Option::unwrap);
        (status, serde_json::from_str(&error).unwrap())
    }
}

pub fn id(number: u128) -> String {
    Uuid::from_u128(number).to_string()
}

/// Operation `number` on row `row` of `people`.
pub fn person(number: u128, op: WriteOp, row: u128, data: Value) -> WriteCommand {
    command(number, op, "people", Some(&id(row)), data)
}

pub fn command(
    number: u128,
    op: WriteOp,
    table: &str,
    entity_id: Option<&str>,
    data: Value,
) -> WriteCommand {
    let data = match data {
        Value::Object(data) => data,
        Value::Null => Map::new(),
        other => panic!("{other} is no row"),
    };
    WriteCommand {
        operation_id: id(number),
        table: table.to_owned(),
        op,
        entity_id: entity_id.map(str::to_owned),
        data,
        principal: None,
        claims: None,
        accepted_at: "2026-01-02T03:04:05Z".to_owned(),
        body_sha256: "00".repeat(32),
        schema: "public".to_owned(),
    }
}

/// A new person named after the row.
pub fn newcomer(number: u128, row: u128) -> WriteCommand {
    person(
        number,
        WriteOp::Create,
        row,
        json!({"name": format!("p{row}")}),
    )
}
