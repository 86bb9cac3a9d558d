//! Schemas and events with nothing remarkable in them, for tests of one rule and of the whole mirror.

use wire::schema::{Column as SchemaColumn, Generated, Privileges, ReplicaIdentity, Schema};
use wire::{Column, Event, Lsn, Operation, Position, Value};

/// A schema of table `t` from `(attnum, name, type)`; the columns in `key` are its primary key.
pub fn schema(version: u32, columns: &[(u32, &str, &str)], key: &[&str]) -> Schema {
    let columns = columns
        .iter()
        .map(|(position, name, data_type)| SchemaColumn {
            name: (*name).to_owned(),
            position: *position,
            data_type: (*data_type).to_owned(),
            is_nullable: true,
            column_default: None,
            type_oid: 0,
            generated: Generated::Never,
            has_default: false,
            enum_labels: Vec::new(),
            privileges: Privileges::default(),
        });
    let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
    Schema {
        table: "t".to_owned(),
        schema: "public.t".to_owned(),
        timestamp: 0,
        columns: columns.collect(),
        version,
        valid_from: Position::START,
        primary_key: key.clone(),
        replica_identity: ReplicaIdentity::Default,
        identity_columns: key,
        foreign_keys: Vec::new(),
        privileges: Privileges::default(),
        row_security: false,
        relation_id: 0,
        seed_version: 0,
        bridges: Vec::new(),
    }
}

/// An event of table `t` that has no place in the stream yet.
pub fn event(operation: Operation, columns: Vec<Column>) -> Event {
    Event {
        table: "t".to_owned(),
        operation,
        relation_id: 1,
        lsn: Lsn(1),
        columns,
        schema: "public".to_owned(),
        commit_lsn: Lsn(0),
        seq: 0,
        xid: 0,
        commit_time: 0,
        schema_version: 1,
        last: false,
        old: Vec::new(),
        unchanged: Vec::new(),
        cascade: None,
        restart_identity: None,
        oversize: None,
    }
}

pub fn int(name: &str, value: i64) -> Column {
    Column::new(name, Value::Int(value))
}
