//! One message of each kind: the examples in the golden files and in the README.

use std::sync::OnceLock;

use serde_json::json;
use wire::checkpoint::Checkpoint;
use wire::command::{OperationError, OperationStatus, Status, WriteCommand, WriteOp};
use wire::event::Oversize;
use wire::gap::{Gap, Reason};
use wire::schema::{
    Bridge, Column as SchemaColumn, ForeignKey, Generated, Privilege, Privileges, ReplicaIdentity,
    Schema, SchemaChanged,
};
use wire::snapshot::{Chunk, Error, ErrorCode, Meta, Progress, Snapshot, Start};
use wire::snapshot_request::{Compression, Options, Range, Reply, Resume, Values};
use wire::sync::{Action, UserDocument, VersionRecord};
use wire::{Column, Event, Lsn, Message, Operation, Position, Row, Value};

/// A message in both formats.
pub struct Sample {
    pub name: &'static str,
    pub msgpack: Vec<u8>,
    /// One short thing a line, one line break at the end.
    pub json: String,
}

fn sample<M: Message>(name: &'static str, message: &M) -> Sample {
    let json = folded(&serde_json::to_string_pretty(message).unwrap()) + "\n";
    assert_eq!(
        M::decode(json.as_bytes()).unwrap().to_json(),
        message.to_json(),
        "{name}"
    );
    let msgpack = message.to_msgpack();
    assert_eq!(M::decode(&msgpack).unwrap().to_msgpack(), msgpack, "{name}");

    Sample {
        name,
        msgpack,
        json,
    }
}

/// Pretty JSON with every list and object that fits a line put on one.
fn folded(pretty: &str) -> String {
    const WIDTH: usize = 96;

    let lines: Vec<&str> = pretty.lines().collect();
    let mut folded = Vec::new();
    let mut next = 1;
    while next < lines.len() {
        let block = &lines[next..=block_end(&lines, next)];
        let line = one_line(block);
        let (shown, count) = if line.len() <= WIDTH {
            (line, block.len())
        } else {
            (lines[next].to_owned(), 1)
        };
        folded.push(shown);
        next += count;
    }
    format!("{}\n{}", lines[0], folded.join("\n"))
}

/// Index of the line that closes what line `start` opens; `start` itself when it opens nothing.
fn block_end(lines: &[&str], start: usize) -> usize {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_close = |line: &&str| indent(line) == indent(lines[start]);
    let is_open = lines[start].ends_with(['{', '[']);
    let end = lines[start + 1..]
        .iter()
        .position(is_close)
        .map(|count| start + 1 + count);
    end.filter(|_| is_open).unwrap_or(start)
}

/// The lines joined, with a space where JSON on one line has one: behind a comma.
fn one_line(block: &[&str]) -> String {
    let mut line = block[0].to_owned();
    for next in &block[1..] {
        if line.ends_with(',') {
            line.push(' ');
        }
        line.push_str(next.trim());
    }
    line
}

pub fn all() -> Vec<Sample> {
    let mut samples = events();
    samples.extend(schemas());
    samples.extend(snapshots());
    samples.extend(services());
    samples
}

/// (MessagePack, JSON) of each, made once.
pub fn all_once() -> &'static [(Vec<u8>, Vec<u8>)] {
    static ALL: OnceLock<Vec<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
    ALL.get_or_init(|| {
        all()
            .into_iter()
            .map(|sample| (sample.msgpack, sample.json.into_bytes()))
            .collect()
    })
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// INSERT of one row into `public.users`; the other events are made from it.
pub fn insert() -> Event {
    Event {
        table: "users".to_owned(),
        operation: Operation::Insert,
        relation_id: 16384,
        lsn: Lsn(0x25C_B3C8),
        columns: vec![
            Column::new("id", Value::Int(1)),
            Column::new("name", text("Alice")),
            Column::new("created_at", text("2025-12-10 10:30:00+00")),
        ],
        schema: "public".to_owned(),
        commit_lsn: Lsn(0x25C_B500),
        seq: 1,
        xid: 4_294_968_040,
        commit_time: 1_765_362_600_123_456,
        schema_version: 1,
        last: true,
        old: Vec::new(),
        unchanged: Vec::new(),
        cascade: None,
        restart_identity: None,
        oversize: None,
    }
}

fn events() -> Vec<Sample> {
    let update = Event {
        operation: Operation::Update,
        columns: vec![
            Column::new("id", Value::Int(2)),
            Column::new("name", text("Alice")),
        ],
        last: false,
        old: vec![Column::new("id", Value::Int(1))],
        unchanged: strings(&["body"]),
        ..insert()
    };
    let delete = Event {
        table: "Order Items".to_owned(),
        operation: Operation::Delete,
        columns: vec![
            Column::new("order_id", text("5f1c7b1e-2f4a-4c53-9d57-0d8b6d0a2c11")),
            Column::new("line", Value::Int(-7)),
        ],
        schema: "sales".to_owned(),
        seq: 2,
        ..insert()
    };
    let truncate = Event {
        operation: Operation::Truncate,
        columns: Vec::new(),
        seq: 3,
        cascade: Some(true),
        restart_identity: Some(false),
        ..insert()
    };
    let oversize = Event {
        columns: vec![Column::new("id", Value::Int(1))],
        oversize: Some(Oversize {
            bytes: 67_109_000,
            sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(),
            object: "25cb500:1-users-insert".to_owned(),
        }),
        ..insert()
    };
    let values = Event {
        columns: every_value(),
        ..insert()
    };
    let gap = Gap {
        slot: "cdc_slot".to_owned(),
        epoch: 1,
        from: Lsn(0x25C_B500),
        to: Lsn(0x1_0000_0028),
        reason: Reason::SlotLost,
        timestamp: 1_765_362_600,
    };
    vec![
        sample("event_insert", &insert()),
        sample("event_update", &update),
        sample("event_delete", &delete),
        sample("event_truncate", &truncate),
        sample("event_oversize", &oversize),
        sample("event_values", &values),
        sample("gap", &gap),
    ]
}

/// Each kind of value, and the integers at which MessagePack changes form.
fn every_value() -> Vec<Column> {
    let mut columns = vec![
        Column::new("null", Value::Null),
        Column::new("bool", Value::Bool(true)),
        Column::new("int8_min", Value::Int(i64::MIN)),
        Column::new("int8_max", Value::Int(i64::MAX)),
        Column::new("int8_json", Value::Int((1 << 53) - 1)),
        Column::new("int8_text", Value::Int(1 << 53)),
    ];
    let edges = [
        0, 127, 128, 255, 256, 65_535, 65_536, -1, -32, -33, -128, -129, -32_769,
    ];
    columns.extend(edges.map(|edge| Column::new("int4", Value::Int(edge))));
    columns.extend([
        Column::new("float4", Value::Float(1.1)),
        Column::new("zero", Value::Float(-0.0)),
        Column::new("nan", Value::Float(f64::NAN)),
        Column::new("infinity", Value::Float(f64::INFINITY)),
        Column::new("minus_infinity", Value::Float(f64::NEG_INFINITY)),
        Column::new("numeric", text("12345678901234567890.1234567890")),
        Column::new("timestamptz", text("0044-03-15 12:00:00+00 BC")),
        Column::new("json", text("{\"a\": [1, null]}")),
        Column::new("array", text("{1,NULL,\"a b\"}")),
        Column::new("empty", text("")),
        Column::new("unicode", text("größe 🦀")),
        Column::new("bytea", Value::Bytes(vec![0x00, 0xDE, 0xAD, 0xFF])),
    ]);
    columns
}

fn schemas() -> Vec<Sample> {
    use Privilege::{Delete, Insert, Select, Update};

    let column = |name: &str, position, data_type: &str, type_oid| SchemaColumn {
        name: name.to_owned(),
        position,
        data_type: data_type.to_owned(),
        is_nullable: false,
        column_default: None,
        type_oid,
        generated: Generated::Never,
        has_default: false,
        enum_labels: Vec::new(),
        privileges: Privileges {
            reader: vec![Select],
            writer: vec![Insert, Update],
        },
    };
    let schema = Schema {
        table: "users".to_owned(),
        schema: "public.users".to_owned(),
        timestamp: 1_765_201_228,
        columns: vec![
            SchemaColumn {
                column_default: Some("nextval('users_id_seq'::regclass)".to_owned()),
                has_default: true,
                ..column("id", 1, "integer", 23)
            },
            SchemaColumn {
                enum_labels: strings(&["active", "gone"]),
                ..column("status", 2, "user_status", 16_399)
            },
            SchemaColumn {
                is_nullable: true,
                ..column("team_id", 4, "integer", 23)
            },
        ],
        version: 3,
        valid_from: Position::new(Lsn(0x25C_B500), 1),
        primary_key: strings(&["id"]),
        replica_identity: ReplicaIdentity::Default,
        identity_columns: strings(&["id"]),
        foreign_keys: vec![ForeignKey {
            name: "users_team_id_fkey".to_owned(),
            columns: strings(&["team_id"]),
            foreign_schema: "public".to_owned(),
            foreign_table: "teams".to_owned(),
            foreign_columns: strings(&["id"]),
        }],
        privileges: Privileges {
            reader: vec![Select],
            writer: vec![Insert, Update, Delete],
        },
        row_security: false,
        relation_id: 16_384,
        seed_version: 3,
        bridges: vec![Bridge {
            stream: "CDC".to_owned(),
            slot: "cdc_slot".to_owned(),
        }],
    };
    let changed = SchemaChanged {
        table: "users".to_owned(),
        schema: "public".to_owned(),
        version: 3,
        valid_from: Position::new(Lsn(0x25C_B500), 1),
        resnapshot: true,
        reason: "column team_id added with a default".to_owned(),
    };
    vec![
        sample("schema", &schema),
        sample("schema_changed", &changed),
    ]
}

fn snapshots() -> Vec<Sample> {
    let table = || "users".to_owned();
    let schema = || "public".to_owned();
    let snapshot_id = || "snap-1765208480".to_owned();
    let lsn = Lsn(0x191_BFD0);
    let timestamp = 1_765_208_480;

    let request = Options {
        values: Values::Typed,
        columns: strings(&["id", "name"]),
        range: Some(Range {
            column: "id".to_owned(),
            from: Some(Value::Int(1)),
            to: Some(Value::Int(1001)),
        }),
        compression: Compression::Zstd,
        resume: Some(Resume {
            snapshot_id: snapshot_id(),
            chunk: 3,
        }),
    };
    let start = Start {
        table: table(),
        snapshot_id: snapshot_id(),
        schema: schema(),
        values: Values::Text,
        compression: Compression::None,
        columns: strings(&["id", "name", "email", "created_at"]),
        schema_version: 1,
        rows_estimated: Some(4000),
        timestamp,
        partial: false,
    };
    let chunk = Chunk {
        table: table(),
        operation: Snapshot::Snapshot,
        snapshot_id: snapshot_id(),
        chunk: 3,
        lsn,
        data: vec![Row(vec![
            Column::new("id", text("3001")),
            Column::new("name", text("User-3001")),
            Column::new("email", Value::Null),
            Column::new("created_at", text("2025-12-08 13:45:21.719719+00")),
        ])],
        values: Values::Text,
        schema: schema(),
    };
    let typed = Chunk {
        data: vec![Row(vec![
            Column::new("id", Value::Int(3001)),
            Column::new("avatar", Value::Bytes(vec![0x89, 0x50])),
        ])],
        values: Values::Typed,
        ..chunk.clone()
    };
    let meta = Meta {
        snapshot_id: snapshot_id(),
        lsn,
        timestamp,
        batch_count: 4,
        row_count: 4000,
        table: table(),
        skip_xids: vec![4_294_968_040],
        cdc_seq: 288,
        schema: schema(),
    };
    let error = Error {
        table: "user".to_owned(),
        snapshot_id: None,
        code: ErrorCode::UnknownTable,
        error: "there is no table public.user".to_owned(),
        hint: "published tables are listed by: SELECT * FROM pg_publication_tables".to_owned(),
        schema: schema(),
    };
    let progress = Progress {
        table: table(),
        snapshot_id: snapshot_id(),
        rows: 3000,
        bytes: 214_000,
        percent: Some(75.0),
        eta_s: Some(1),
        schema: schema(),
    };

    let refused = Reply::Refused(error.clone());
    assert_eq!(Reply::decode(&refused.to_msgpack()).unwrap(), refused);
    assert_eq!(refused.to_msgpack(), error.to_msgpack());

    vec![
        sample("snapshot_request", &request),
        sample(
            "snapshot_accepted",
            &Reply::Accepted {
                snapshot_id: snapshot_id(),
            },
        ),
        sample("snapshot_start", &start),
        sample("snapshot_chunk", &chunk),
        sample("snapshot_chunk_typed", &typed),
        sample("snapshot_meta", &meta),
        sample("snapshot_error", &error),
        sample("snapshot_progress", &progress),
    ]
}

fn services() -> Vec<Sample> {
    let operation_id = || "3b241101-e2bb-4255-8caf-4136c566a962".to_owned();
    let entity_id = || "5f1c7b1e-2f4a-4c53-9d57-0d8b6d0a2c11".to_owned();
    let at = |second: u32| format!("2025-12-10T10:30:{second:02}Z");
    let map = |value: serde_json::Value| value.as_object().cloned().unwrap();

    let checkpoint = Checkpoint {
        slot: "cdc_slot".to_owned(),
        position: Position::new(Lsn(0x25C_B500), 1),
        stream: "CDC".to_owned(),
        stream_sequence: 288,
        stream_created: "2025-12-08T13:41:20.482131Z".to_owned(),
        system_identifier: "7581422336213352475".to_owned(),
        timeline: 1,
        epoch: 0,
        publication: "cdc_pub".to_owned(),
        filter_hash: "a54d88e06612d820".to_owned(),
        tables: vec!["users".to_owned(), "orders".to_owned()],
        filters: vec!["cdc.users.*".to_owned(), "cdc.orders.*".to_owned()],
        counted_from: Position::START,
        updated_at: 1_765_362_600,
        confirmed: Lsn(0x25C_B528),
        owed: None,
    };
    let command = WriteCommand {
        operation_id: operation_id(),
        table: "orders".to_owned(),
        op: WriteOp::Create,
        entity_id: Some(entity_id()),
        data: map(json!({"items": [{"sku": "A-1", "quantity": 2}], "total": "19.90"})),
        principal: Some("alice".to_owned()),
        claims: Some(map(json!({"role": "member", "sub": "alice"}))),
        accepted_at: at(0),
        body_sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(),
        schema: "public".to_owned(),
    };
    let status = OperationStatus {
        operation_id: operation_id(),
        status: Status::Failed,
        error: Some(OperationError {
            code: "23503".to_owned(),
            constraint: Some("orders_user_id_fkey".to_owned()),
            message: "the user does not exist".to_owned(),
        }),
        table: Some("orders".to_owned()),
        entity_id: Some(entity_id()),
        lsn: None,
        xid: None,
        accepted_at: Some(at(0)),
        completed_at: Some(at(1)),
    };
    let document = UserDocument {
        id: entity_id(),
        email: "alice@example.com".to_owned(),
        status: "active".to_owned(),
        role: "member".to_owned(),
        created_at: at(0),
        updated_at: at(1),
        deleted: false,
    };
    let version = VersionRecord {
        object_type: "user".to_owned(),
        object_id: entity_id(),
        version: 2,
        json: serde_json::to_value(&document).unwrap(),
        action: Action::Update,
        actor: "alice".to_owned(),
        created_at: at(1),
    };
    vec![
        sample("checkpoint", &checkpoint),
        sample("write_command", &command),
        sample("operation_status", &status),
        sample("user_document", &document),
        sample("version_record", &version),
    ]
}
