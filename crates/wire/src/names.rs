//! The fixed names: streams, buckets, roles, headers and every subject that is not a row change.
//!
//! In: schema, table and ids. Out: the subject or key.
//! Invariant: `{table}` below is the table's path: the escaped table in schema `public`, escaped
//! `schema.table` elsewhere. A table `a.b` of `public` is `a%2Eb`, so no two tables share a path.

use crate::token::{UnescapeError, escape_key, escape_token, unescape_key, unescape_token};

/// Stream of the row changes.
pub const STREAM_CDC: &str = "CDC";
/// Stream of the snapshots.
pub const STREAM_INIT: &str = "INIT";
/// Stream of the snapshot requests: one message per subject, discard new.
pub const STREAM_REQUESTS: &str = "REQUESTS";
/// Stream (work queue) of the write commands.
pub const STREAM_WRITES: &str = "WRITES";
/// Stream of the idempotency keys that were used: the gateways' memory.
pub const STREAM_WRITE_KEYS: &str = "WRITE_KEYS";
/// Stream of the write commands that no processor could apply.
pub const STREAM_WRITES_DLQ: &str = "WRITES_DLQ";
/// Stream of the documents clients publish.
pub const STREAM_USERS_UPDATE: &str = "USERS_UPDATE";
/// Stream of the version records sent back to all clients.
pub const STREAM_USERS_BROADCAST: &str = "USERS_BROADCAST";

/// What `INIT` holds.
pub const INIT_SUBJECTS: &str = "init.>";
/// What `REQUESTS` holds.
pub const REQUEST_SUBJECTS: &str = "snapshot.request.>";
/// What `WRITES` holds.
pub const WRITE_SUBJECTS: &str = "writes.>";
/// What `WRITE_KEYS` holds.
pub const WRITE_KEYS: &str = "write_keys";
/// What `WRITES_DLQ` holds.
pub const DEAD_LETTER_SUBJECTS: &str = "writes_dlq.>";
/// Where clients publish documents.
pub const USERS_UPDATE: &str = "users.update";
/// Where version records are broadcast.
pub const USERS_BROADCAST: &str = "users.broadcast";
/// Every question for what became of a write.
pub const OPERATION_STATUS_SUBJECTS: &str = "operations.status.*";
/// Every cancel request.
pub const CANCEL_SUBJECTS: &str = "snapshot.cancel.*";

/// KV bucket of the schemas, history 10.
pub const BUCKET_SCHEMAS: &str = "schemas";
/// KV bucket of the bridges' checkpoints, key = slot.
pub const BUCKET_BRIDGE_STATE: &str = "bridge_state";
/// Object Store bucket of the events too large for a message.
pub const BUCKET_OVERSIZE: &str = "oversize";

/// PostgreSQL role the bridge connects as.
pub const ROLE_BRIDGE_READER: &str = "bridge_reader";
/// PostgreSQL role whose SELECT grants decide what the services show.
pub const ROLE_APP_READER: &str = "app_reader";
/// PostgreSQL role whose INSERT, UPDATE and DELETE grants decide what the services write.
pub const ROLE_APP_WRITER: &str = "app_writer";

/// Table of schema `public` in which the processor keeps what became of each write.
pub const TABLE_WRITE_OPERATIONS: &str = "write_operations";

/// Header with the message id, in publish mode `msg-id`.
pub const HEADER_MSG_ID: &str = "Nats-Msg-Id";
/// Header with the stream sequence the message expects to follow.
pub const HEADER_EXPECTED_LAST_SEQUENCE: &str = "Nats-Expected-Last-Sequence";
/// Header with the sequence the message expects to follow on its own subjects.
pub const HEADER_EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
/// Header with the W3C trace context of the request a write command came from.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// Header naming the compression of a payload: `zstd`, `lz4` or `gzip`; absent when none.
pub const HEADER_CONTENT_ENCODING: &str = "Content-Encoding";

/// The schema whose tables are named without it.
pub const PUBLIC: &str = "public";

/// A table in the subjects below: `users`, or `sales.orders` outside `public`. One or two tokens.
pub fn table_path(schema: &str, table: &str) -> String {
    if schema == PUBLIC {
        escape_token(table)
    } else {
        format!("{}.{}", escape_token(schema), escape_token(table))
    }
}

/// (schema, table) of a path. `public.users` is accepted for `users`; None with three or more tokens
/// or a broken escape.
pub fn parse_table_path(path: &str) -> Option<(String, String)> {
    let (schema, table) = path.split_once('.').unwrap_or((PUBLIC, path));
    let is_path = !schema.is_empty() && !table.is_empty() && !table.contains('.');
    is_path
        .then(|| Some((unescape_token(schema).ok()?, unescape_token(table).ok()?)))
        .flatten()
}

/// Where a snapshot is asked for.
pub fn snapshot_request(schema: &str, table: &str) -> String {
    format!("snapshot.request.{}", table_path(schema, table))
}

/// (schema, table) of a snapshot request's subject. The names are the requester's: check them
/// against the catalogue before use.
pub fn parse_snapshot_request(subject: &str) -> Option<(String, String)> {
    parse_table_path(subject.strip_prefix("snapshot.request.")?)
}

/// Where a running or queued snapshot is cancelled.
pub fn snapshot_cancel(snapshot_id: &str) -> String {
    format!("snapshot.cancel.{}", escape_token(snapshot_id))
}

/// Snapshot id of a cancel request's subject.
pub fn parse_snapshot_cancel(subject: &str) -> Option<String> {
    let token = subject
        .strip_prefix("snapshot.cancel.")
        .filter(|token| !token.contains('.'))?;
    unescape_token(token).ok()
}

/// Says that chunks follow.
pub fn init_start(schema: &str, table: &str) -> String {
    format!("init.start.{}", table_path(schema, table))
}

/// One chunk of a snapshot; chunks count from 0.
pub fn init_snap(schema: &str, table: &str, snapshot_id: &str, chunk: u64) -> String {
    format!(
        "init.snap.{}.{}.{chunk}",
        table_path(schema, table),
        escape_token(snapshot_id)
    )
}

/// Filter over the chunks of one snapshot.
pub fn init_snap_filter(schema: &str, table: &str, snapshot_id: &str) -> String {
    format!(
        "init.snap.{}.{}.*",
        table_path(schema, table),
        escape_token(snapshot_id)
    )
}

/// Says that all chunks are there, and how to join the row changes.
pub fn init_meta(schema: &str, table: &str) -> String {
    format!("init.meta.{}", table_path(schema, table))
}

/// Says why there is no snapshot.
pub fn init_error(schema: &str, table: &str) -> String {
    format!("init.error.{}", table_path(schema, table))
}

/// How far a snapshot has come.
pub fn init_progress(schema: &str, table: &str) -> String {
    format!("init.progress.{}", table_path(schema, table))
}

/// Says that a table has a new shape.
pub fn schema_changed(schema: &str, table: &str) -> String {
    format!("schema.changed.{}", table_path(schema, table))
}

/// One write command.
pub fn writes(schema: &str, table: &str, operation_id: &str) -> String {
    format!(
        "writes.{}.{}",
        table_path(schema, table),
        escape_token(operation_id)
    )
}

/// (schema, table, operation id) of a write command's subject.
pub fn parse_writes(subject: &str) -> Option<(String, String, String)> {
    let (path, operation_id) = subject.strip_prefix("writes.")?.rsplit_once('.')?;
    let (schema, table) = parse_table_path(path)?;
    Some((schema, table, unescape_token(operation_id).ok()?))
}

/// Where is asked what became of a write: a core NATS request, answered with the `OperationStatus` by those who know.
pub fn operation_status(operation_id: &str) -> String {
    format!("operations.status.{}", escape_token(operation_id))
}

/// Operation id of such a question's subject.
pub fn parse_operation_status(subject: &str) -> Option<String> {
    let token = subject.strip_prefix("operations.status.")?;
    unescape_token(token).ok()
}

/// Stream of a KV bucket.
pub fn kv_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// One write command that could not be applied.
pub fn dead_letter(schema: &str, table: &str, operation_id: &str) -> String {
    format!(
        "writes_dlq.{}.{}",
        table_path(schema, table),
        escape_token(operation_id)
    )
}

/// Durable consumer of a table's write commands: `users-writer`, or `sales==orders-writer` outside
/// `public`. Consumer names take what KV keys take, but for `.` and `/`.
pub fn writer_consumer(schema: &str, table: &str) -> String {
    let escape = |name| escape_key(name).replace('/', "=2F");
    if schema == PUBLIC {
        format!("{}-writer", escape(table))
    } else {
        format!("{}=={}-writer", escape(schema), escape(table))
    }
}

/// Filter over the write commands of one table.
pub fn writes_filter(schema: &str, table: &str) -> String {
    format!("writes.{}.*", table_path(schema, table))
}

/// Key of a table in bucket `schemas`: `users`, or `sales.orders` outside `public`.
pub fn schema_key(schema: &str, table: &str) -> String {
    if schema == PUBLIC {
        escape_key(table)
    } else {
        format!("{}.{}", escape_key(schema), escape_key(table))
    }
}

/// (schema, table) of a key in bucket `schemas`.
pub fn parse_schema_key(key: &str) -> Result<(String, String), UnescapeError> {
    let (schema, table) = key.split_once('.').unwrap_or((PUBLIC, key));
    Ok((unescape_key(schema)?, unescape_key(table)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_table_of_public_is_named_without_its_schema() {
        assert_eq!(
            snapshot_request("public", "users"),
            "snapshot.request.users"
        );
        assert_eq!(
            snapshot_request("sales", "orders"),
            "snapshot.request.sales.orders"
        );
        assert_eq!(
            init_snap("public", "users", "snap-1", 3),
            "init.snap.users.snap-1.3"
        );
        assert_eq!(schema_key("sales", "a.b"), "sales.a=2Eb");
    }

    #[test]
    fn a_hostile_request_is_a_name_or_nothing() {
        let name = |table: &str| Some(("public".to_owned(), table.to_owned()));

        assert_eq!(
            parse_snapshot_request("snapshot.request.users\";drop"),
            name("users\";drop")
        );
        assert_eq!(parse_snapshot_request("snapshot.request.a.b.c"), None);
        assert_eq!(parse_snapshot_request("snapshot.request."), None);
        assert_eq!(parse_snapshot_request("snapshot.request.%2"), None);
        assert_eq!(parse_snapshot_cancel("snapshot.cancel.a.b"), None);
    }

    #[test]
    fn a_write_command_s_subject_leads_back_to_its_parts() {
        let subject = writes("sales", "a.b", "7d1e");

        assert_eq!(subject, "writes.sales.a%2Eb.7d1e");
        let parts = ["sales", "a.b", "7d1e"].map(str::to_owned).into();
        assert_eq!(parse_writes(&subject), Some(parts));
        assert_eq!(parse_writes("writes.users"), None);
        assert_eq!(
            dead_letter("public", "users", "7d1e"),
            "writes_dlq.users.7d1e"
        );
    }

    #[test]
    fn a_question_for_an_outcome_leads_back_to_the_operation() {
        let subject = operation_status("7d1e");

        assert_eq!(subject, "operations.status.7d1e");
        assert_eq!(parse_operation_status(&subject), Some("7d1e".to_owned()));
        assert_eq!(parse_operation_status("operations.7d1e"), None);
    }

    #[test]
    fn consumers_of_two_tables_never_share_a_name() {
        assert_eq!(writer_consumer("public", "users"), "users-writer");
        assert_eq!(writer_consumer("sales", "orders"), "sales==orders-writer");
        assert_eq!(
            writer_consumer("public", "sales==orders"),
            "sales=3D=3Dorders-writer"
        );
        assert_eq!(writer_consumer("public", "a/b.c"), "a=2Fb=2Ec-writer");
    }

    proptest! {
        #[test]
        fn paths_and_keys_lead_back_to_the_table(schema: String, table: String) {
            let names = (schema, table);

            let path = table_path(&names.0, &names.1);
            prop_assert_eq!(parse_table_path(&path), Some(names.clone()));
            let key = schema_key(&names.0, &names.1);
            prop_assert_eq!(parse_schema_key(&key), Ok(names));
        }

        #[test]
        fn any_subject_is_read_without_panic(subject: String) {
            let _ = parse_table_path(&subject);
            let _ = parse_schema_key(&subject);
        }
    }
}
