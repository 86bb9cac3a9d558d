//! `decode` against a small encoder of the same format.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::pgoutput::Cell;

/// A message with nothing borrowed, as the server would have it before sending.
#[derive(Debug, Clone)]
enum Sent {
    Begin(u64, i64, u32),
    Commit(u8, u64, u64, i64),
    Origin(u64, Vec<u8>),
    Relation(Relation),
    Type(u32, String, String),
    Insert(u32, Vec<SentCell>),
    Update(u32, Option<(bool, Vec<SentCell>)>, Vec<SentCell>),
    Delete(u32, bool, Vec<SentCell>),
    Truncate(Vec<u32>, bool, bool),
    LogicalMessage(bool, u64, Vec<u8>, Vec<u8>),
}

#[derive(Debug, Clone)]
enum SentCell {
    Null,
    UnchangedToast,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl SentCell {
    fn as_cell(&self) -> Cell<'_> {
        match self {
            Self::Null => Cell::Null,
            Self::UnchangedToast => Cell::UnchangedToast,
            Self::Text(value) => Cell::Text(value),
            Self::Binary(value) => Cell::Binary(value),
        }
    }
}

fn encode_cells(cells: &[SentCell], out: &mut Vec<u8>) {
    for cell in cells {
        let (tag, value) = match cell {
            SentCell::Null => (b'n', None),
            SentCell::UnchangedToast => (b'u', None),
            SentCell::Text(value) => (b't', Some(value)),
            SentCell::Binary(value) => (b'b', Some(value)),
        };
        out.push(tag);
        if let Some(value) = value {
            out.extend((value.len() as u32).to_be_bytes());
            out.extend(value);
        }
    }
}

fn encode_tuple(tag: u8, cells: &[SentCell], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend((cells.len() as u16).to_be_bytes());
    encode_cells(cells, out);
}

fn encode_c_bytes(text: &[u8], out: &mut Vec<u8>) {
    out.extend(text);
    out.push(0);
}

fn encode_relation(relation: &Relation, out: &mut Vec<u8>) {
    out.push(b'R');
    out.extend(relation.id.to_be_bytes());
    encode_c_bytes(relation.namespace.as_bytes(), out);
    encode_c_bytes(relation.name.as_bytes(), out);
    out.push(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.extend((relation.columns.len() as u16).to_be_bytes());
    for column in &relation.columns {
        out.push(u8::from(column.is_key));
        encode_c_bytes(column.name.as_bytes(), out);
        out.extend(column.type_oid.to_be_bytes());
        out.extend(column.type_modifier.to_be_bytes());
    }
}

fn old_tag(full: bool) -> u8 {
    if full { b'O' } else { b'K' }
}

fn encode(sent: &Sent) -> Vec<u8> {
    let mut out = Vec::new();
    match sent {
        Sent::Begin(lsn, time, xid) => {
            out.push(b'B');
            out.extend(lsn.to_be_bytes());
            out.extend(time.to_be_bytes());
            out.extend(xid.to_be_bytes());
        }
        Sent::Commit(flags, commit_lsn, end_lsn, time) => {
            out.extend([b'C', *flags]);
            out.extend(commit_lsn.to_be_bytes());
            out.extend(end_lsn.to_be_bytes());
            out.extend(time.to_be_bytes());
        }
        Sent::Origin(lsn, name) => {
            out.push(b'O');
            out.extend(lsn.to_be_bytes());
            encode_c_bytes(name, &mut out);
        }
        Sent::Relation(relation) => encode_relation(relation, &mut out),
        Sent::Type(oid, namespace, name) => {
            out.push(b'Y');
            out.extend(oid.to_be_bytes());
            encode_c_bytes(namespace.as_bytes(), &mut out);
            encode_c_bytes(name.as_bytes(), &mut out);
        }
        Sent::Insert(id, new) => {
            out.push(b'I');
            out.extend(id.to_be_bytes());
            encode_tuple(b'N', new, &mut out);
        }
        Sent::Update(id, old, new) => {
            out.push(b'U');
            out.extend(id.to_be_bytes());
            if let Some((full, old)) = old {
                encode_tuple(old_tag(*full), old, &mut out);
            }
            encode_tuple(b'N', new, &mut out);
        }
        Sent::Delete(id, full, old) => {
            out.push(b'D');
            out.extend(id.to_be_bytes());
            encode_tuple(old_tag(*full), old, &mut out);
        }
        Sent::Truncate(ids, cascade, restart_identity) => {
            out.push(b'T');
            out.extend((ids.len() as u32).to_be_bytes());
            out.push(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            out.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        }
        Sent::LogicalMessage(transactional, lsn, prefix, content) => {
            out.extend([b'M', u8::from(*transactional)]);
            out.extend(lsn.to_be_bytes());
            encode_c_bytes(prefix, &mut out);
            out.extend((content.len() as u32).to_be_bytes());
            out.extend(content);
        }
    }
    out
}

fn assert_cells(tuple: TupleData<'_>, sent: &[SentCell]) {
    let sent: Vec<_> = sent.iter().map(SentCell::as_cell).collect();
    assert_eq!(tuple.cells().collect::<Vec<_>>(), sent);
    assert_eq!(usize::from(tuple.columns()), sent.len());
    let copy = tuple.bytes().to_vec();
    let rebuilt = TupleData::from_parts(tuple.columns(), &copy);
    assert_eq!(rebuilt.cells().collect::<Vec<_>>(), sent);
}

fn assert_old(old: OldTuple<'_>, full: bool, sent: &[SentCell]) {
    match old {
        OldTuple::Key(tuple) => {
            assert!(!full);
            assert_cells(tuple, sent);
        }
        OldTuple::Full(tuple) => {
            assert!(full);
            assert_cells(tuple, sent);
        }
    }
}

/// Decodes what `encode` made of `sent` and compares field by field.
fn assert_round_trip(sent: &Sent) {
    let bytes = encode(sent);
    let message = decode(&bytes).unwrap();
    match (sent, message) {
        (Sent::Begin(lsn, time, xid), Message::Begin(begin)) => {
            let expected = Begin {
                final_lsn: Lsn(*lsn),
                commit_time_us: *time,
                xid: *xid,
            };
            assert_eq!(begin, expected);
        }
        (Sent::Commit(flags, commit_lsn, end_lsn, time), Message::Commit(commit)) => {
            let expected = Commit {
                flags: *flags,
                commit_lsn: Lsn(*commit_lsn),
                end_lsn: Lsn(*end_lsn),
                commit_time_us: *time,
            };
            assert_eq!(commit, expected);
        }
        (Sent::Origin(lsn, sent_name), Message::Origin { commit_lsn, name }) => {
            assert_eq!((commit_lsn, name), (Lsn(*lsn), sent_name.as_slice()));
        }
        (Sent::Relation(sent), Message::Relation(relation)) => {
            let mut expected = sent.clone();
            if expected.namespace.is_empty() {
                expected.namespace = "pg_catalog".into();
            }
            assert_eq!(relation, expected);
        }
        (Sent::Type(oid, namespace, name), Message::Type(type_name)) => {
            assert_eq!((type_name.oid, type_name.name), (*oid, name.as_str()));
            if namespace.is_empty() {
                assert_eq!(type_name.namespace, "pg_catalog");
            } else {
                assert_eq!(type_name.namespace, namespace);
            }
        }
        (Sent::Insert(id, cells), Message::Insert { relation_id, new }) => {
            assert_eq!(relation_id, *id);
            assert_cells(new, cells);
        }
        (
            Sent::Update(id, sent_old, sent_new),
            Message::Update {
                relation_id,
                old,
                new,
            },
        ) => {
            assert_eq!(relation_id, *id);
            assert_cells(new, sent_new);
            match (old, sent_old) {
                (Some(old), Some((full, sent))) => assert_old(old, *full, sent),
                (old, sent) => assert!(old.is_none() && sent.is_none()),
            }
        }
        (Sent::Delete(id, full, cells), Message::Delete { relation_id, old }) => {
            assert_eq!(relation_id, *id);
            assert_old(old, *full, cells);
        }
        (Sent::Truncate(ids, cascade, restart_identity), Message::Truncate(truncate)) => {
            assert_eq!(truncate.relation_ids.collect::<Vec<_>>(), *ids);
            assert_eq!(truncate.cascade, *cascade);
            assert_eq!(truncate.restart_identity, *restart_identity);
        }
        (
            Sent::LogicalMessage(transactional, lsn, prefix, content),
            Message::LogicalMessage(message),
        ) => {
            let expected = LogicalMessage {
                transactional: *transactional,
                lsn: Lsn(*lsn),
                prefix,
                content,
            };
            assert_eq!(message, expected);
        }
        (sent, message) => panic!("{sent:?} became {message:?}"),
    }
}

fn cells() -> impl Strategy<Value = Vec<SentCell>> {
    let cell = prop_oneof![
        Just(SentCell::Null),
        Just(SentCell::UnchangedToast),
        vec(any::<u8>(), 0..40).prop_map(SentCell::Text),
        vec(any::<u8>(), 0..40).prop_map(SentCell::Binary),
    ];
    vec(cell, 0..12)
}

fn c_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=u8::MAX, 0..20)
}

fn name() -> impl Strategy<Value = String> {
    "[^\0]{0,20}"
}

fn relations() -> impl Strategy<Value = Relation> {
    let column = (name(), any::<u32>(), any::<i32>(), any::<bool>()).prop_map(
        |(name, type_oid, type_modifier, is_key)| Column {
            name,
            type_oid,
            type_modifier,
            is_key,
        },
    );
    let replica_identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    (
        any::<u32>(),
        name(),
        name(),
        replica_identity,
        vec(column, 0..8),
    )
        .prop_map(
            |(id, namespace, name, replica_identity, columns)| Relation {
                id,
                namespace,
                name,
                replica_identity,
                columns,
            },
        )
}

fn sent() -> impl Strategy<Value = Sent> {
    let id = any::<u32>;
    prop_oneof![
        any::<(u64, i64, u32)>().prop_map(|(a, b, c)| Sent::Begin(a, b, c)),
        any::<(u8, u64, u64, i64)>().prop_map(|(a, b, c, d)| Sent::Commit(a, b, c, d)),
        (any::<u64>(), c_bytes()).prop_map(|(lsn, name)| Sent::Origin(lsn, name)),
        relations().prop_map(Sent::Relation),
        (id(), name(), name()).prop_map(|(oid, space, name)| Sent::Type(oid, space, name)),
        (id(), cells()).prop_map(|(id, new)| Sent::Insert(id, new)),
        (
            id(),
            proptest::option::of((any::<bool>(), cells())),
            cells()
        )
            .prop_map(|(id, old, new)| Sent::Update(id, old, new)),
        (id(), any::<bool>(), cells()).prop_map(|(id, full, old)| Sent::Delete(id, full, old)),
        (vec(id(), 0..10), any::<bool>(), any::<bool>())
            .prop_map(|(ids, cascade, restart)| Sent::Truncate(ids, cascade, restart)),
        (
            any::<bool>(),
            any::<u64>(),
            c_bytes(),
            vec(any::<u8>(), 0..60)
        )
            .prop_map(|(transactional, lsn, prefix, content)| {
                Sent::LogicalMessage(transactional, lsn, prefix, content)
            }),
    ]
}

/// Reads every field that is decoded late.
fn exhaust(message: Message<'_>) {
    match message {
        Message::Insert { new, .. } | Message::Update { new, .. } => {
            drop(new.cells().collect::<Vec<_>>());
        }
        Message::Truncate(truncate) => drop(truncate.relation_ids.collect::<Vec<_>>()),
        _ => {}
    }
}

proptest! {
    #[test]
    fn a_valid_message_round_trips(sent in sent()) {
        assert_round_trip(&sent);
    }

    #[test]
    fn a_truncated_message_is_an_error(sent in sent()) {
        let bytes = encode(&sent);
        for end in 0..bytes.len() {
            let error = decode(&bytes[..end]).unwrap_err();
            prop_assert!(error.at <= end, "{error} of {end}");
        }
    }

    #[test]
    fn a_message_with_bytes_behind_it_is_an_error(sent in sent(), extra in any::<u8>()) {
        let mut bytes = encode(&sent);
        let end = bytes.len();
        bytes.push(extra);
        prop_assert_eq!(decode(&bytes).unwrap_err().at, end);
    }

    #[test]
    fn any_bytes_return(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = decode(&bytes) {
            exhaust(message);
        }
    }

    #[test]
    fn a_message_with_one_wrong_byte_returns(
        sent in sent(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encode(&sent);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(message) = decode(&bytes) {
            exhaust(message);
        }
    }

    #[test]
    fn the_cells_of_any_bytes_end(columns in any::<u16>(), bytes in vec(any::<u8>(), 0..200)) {
        let cells = TupleData::from_parts(columns, &bytes).cells().count();
        prop_assert!(cells <= bytes.len().min(usize::from(columns)));
    }
}

#[test]
fn an_error_says_what_was_expected_where() {
    let error = decode(b"I\0\0\0\x01N\0\x01x").unwrap_err();

    assert_eq!(
        error.to_string(),
        "pgoutput message is malformed: expected a cell tag, one of ntub at byte 8"
    );
}

#[test]
fn an_unknown_tag_is_an_error_at_byte_0() {
    assert_eq!(decode(b"S\0\0\0\x01").unwrap_err().at, 0);
    assert_eq!(decode(b"").unwrap_err().at, 0);
}

#[test]
fn a_relation_without_namespace_is_of_pg_catalog() {
    let Message::Relation(relation) = decode(b"R\0\0\0\x01\0t\0d\0\0").unwrap() else {
        panic!("not a relation");
    };

    assert_eq!(relation.namespace, "pg_catalog");
}

#[test]
fn a_table_without_columns_has_rows_without_cells() {
    let Message::Insert { new, .. } = decode(b"I\0\0\0\x01N\0\0").unwrap() else {
        panic!("not an insert");
    };

    assert_eq!(new.cells().count(), 0);
}

#[test]
fn a_length_beyond_the_message_is_an_error() {
    let error = decode(b"I\0\0\0\x01N\0\x01t\xFF\xFF\xFF\xFFabc").unwrap_err();

    assert_eq!(error.expected, "a cell's value");
}
