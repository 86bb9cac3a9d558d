use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use wire::{Column, Event, Lsn, Message as _, Operation, SubjectPattern, Value};

use super::*;
use crate::event::{Row, Table, Transaction};
use crate::pgoutput::{self, OldTuple, Relation, ReplicaIdentity};

/// A cell, its type, and what it must become.
#[derive(Debug, Clone)]
struct Sample {
    type_oid: u32,
    text: Option<Vec<u8>>,
    value: Value,
    is_key: bool,
}

fn sample() -> impl Strategy<Value = Sample> {
    let typed = prop_oneof![
        any::<i64>().prop_map(|value| (20, value.to_string().into_bytes(), Value::Int(value))),
        any::<i16>().prop_map(|value| (
            21,
            value.to_string().into_bytes(),
            Value::Int(value.into())
        )),
        any::<u32>().prop_map(|value| (
            26,
            value.to_string().into_bytes(),
            Value::Int(value.into())
        )),
        any::<bool>().prop_map(|value| {
            (
                16,
                if value { b"t".to_vec() } else { b"f".to_vec() },
                Value::Bool(value),
            )
        }),
        any::<f64>().prop_map(|value| (
            701,
            format!("{value:?}").into_bytes(),
            Value::Float(value)
        )),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| {
            let mut hex = String::from("\\x");
            for byte in &bytes {
                write!(hex, "{byte:02x}").unwrap();
            }
            (17, hex.into_bytes(), Value::Bytes(bytes))
        }),
        ".{0,300}".prop_map(|text: String| (25, text.clone().into_bytes(), Value::Text(text))),
        Just((20, b"9223372036854775807".to_vec(), Value::Int(i64::MAX))),
        Just((20, b"-9223372036854775808".to_vec(), Value::Int(i64::MIN))),
        Just((701, b"NaN".to_vec(), Value::Float(f64::NAN))),
        Just((701, b"-Infinity".to_vec(), Value::Float(f64::NEG_INFINITY))),
        Just((701, b"-0".to_vec(), Value::Float(-0.0))),
        Just((700, b"1.1".to_vec(), Value::Float(1.1))),
        Just((25, vec![0xff, b'a'], Value::Bytes(vec![0xff, b'a']))),
        Just((23, b"1.5".to_vec(), Value::Text("1.5".into()))),
        Just((17, b"\\xzz".to_vec(), Value::Text("\\xzz".into()))),
    ];
    (typed, prop::bool::weighted(0.1), any::<bool>()).prop_map(
        |((type_oid, text, value), is_null, is_key)| Sample {
            type_oid,
            value: if is_null { Value::Null } else { value },
            text: (!is_null).then_some(text),
            is_key,
        },
    )
}

/// The cells of a tuple as they stand in a pgoutput message.
fn cells(samples: &[Sample], skip: impl Fn(usize, &Sample) -> Option<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, sample) in samples.iter().enumerate() {
        match (skip(index, sample), &sample.text) {
            (Some(tag), _) => bytes.push(tag),
            (None, None) => bytes.push(b'n'),
            (None, Some(text)) => {
                bytes.push(b't');
                bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
                bytes.extend_from_slice(text);
            }
        }
    }
    bytes
}

fn columns(samples: &[Sample], keep: impl Fn(usize, &Sample) -> bool) -> Vec<Column> {
    let kept = samples
        .iter()
        .enumerate()
        .filter(|(index, sample)| keep(*index, sample));
    kept.map(|(index, sample)| Column::new(format!("c{index}"), sample.value.clone()))
        .collect()
}

fn table(samples: &[Sample], schema_version: u32) -> Arc<Table> {
    let relation = Relation {
        id: 16_384,
        namespace: "sales".into(),
        name: "a table".into(),
        replica_identity: ReplicaIdentity::Default,
        columns: samples
            .iter()
            .enumerate()
            .map(|(index, sample)| pgoutput::Column {
                name: format!("c{index}"),
                type_oid: sample.type_oid,
                type_modifier: -1,
                is_key: sample.is_key,
            })
            .collect(),
    };
    let layout = Layout::new(&relation, schema_version, |oid| oid);
    Arc::new(Table {
        subjects: SubjectPattern::default().subjects("sales", "a table"),
        relation,
        layout: OnceLock::from(layout),
    })
}

const TRANSACTION: Transaction = Transaction {
    commit_lsn: Lsn(0x1_25CB_3C80),
    end_lsn: Lsn(0x1_25CB_3CB0),
    xid: 0x1_0000_0003,
    commit_time_us: 1_765_201_228_000_001,
};

fn encoded(table: &Arc<Table>, row: &Row<'_>, last: bool) -> Vec<u8> {
    let mut slab = Slab::default();
    slab.push(table, &TRANSACTION, 7, Lsn(0x025C_B3C8), row);
    if last {
        slab.commit(TRANSACTION.commit_lsn, TRANSACTION.end_lsn);
    }
    let mut out = Vec::new();
    event(
        &slab,
        &slab.events()[0],
        table.layout.get().unwrap(),
        &mut out,
    );
    out
}

fn expected(operation: Operation, schema_version: u32, last: bool) -> Event {
    Event {
        table: "a table".into(),
        operation,
        relation_id: 16_384,
        lsn: Lsn(0x025C_B3C8),
        columns: Vec::new(),
        schema: "sales".into(),
        commit_lsn: TRANSACTION.commit_lsn,
        seq: 7,
        xid: TRANSACTION.xid,
        commit_time: TRANSACTION.commit_time_us,
        schema_version,
        last,
        old: Vec::new(),
        unchanged: Vec::new(),
        cascade: None,
        restart_identity: None,
        oversize: None,
    }
}

proptest! {
    #[test]
    fn an_insert_has_the_bytes_of_the_contract(
        samples in prop::collection::vec(sample(), 0..40), version: u32, last: bool,
    ) {
        let table = table(&samples, version);
        let bytes = cells(&samples, |_, _| None);
        let new = TupleData::from_parts(samples.len() as u16, &bytes);

        let out = encoded(&table, &Row::Insert(new), last);

        let mut event = expected(Operation::Insert, version, last);
        event.columns = columns(&samples, |_, _| true);
        prop_assert_eq!(out, event.to_msgpack());
    }

    #[test]
    fn an_update_omits_unchanged_toast_and_reads_only_the_key_of_a_key_tuple(
        samples in prop::collection::vec(sample(), 1..40), toast: u64,
    ) {
        let is_toast = |index: usize| toast >> (index % 64) & 1 == 1;
        let table = table(&samples, 1);
        let new_bytes = cells(&samples, |index, _| is_toast(index).then_some(b'u'));
        let old_bytes = cells(&samples, |_, sample| (!sample.is_key).then_some(b'n'));
        let new = TupleData::from_parts(samples.len() as u16, &new_bytes);
        let old = TupleData::from_parts(samples.len() as u16, &old_bytes);

        let out = encoded(&table, &Row::Update(Some(OldTuple::Key(old)), new), true);

        let mut event = expected(Operation::Update, 1, true);
        event.columns = columns(&samples, |index, _| !is_toast(index));
        event.old = columns(&samples, |_, sample| sample.is_key);
        event.unchanged = (0..samples.len()).filter(|&index| is_toast(index)).map(|index| format!("c{index}")).collect();
        prop_assert_eq!(out, event.to_msgpack());
    }

    #[test]
    fn a_full_old_row_fills_in_the_unchanged_toast(
        samples in prop::collection::vec(sample(), 1..40), toast: u64,
    ) {
        let table = table(&samples, 1);
        let new_bytes = cells(&samples, |index, _| (toast >> (index % 64) & 1 == 1).then_some(b'u'));
        let old_bytes = cells(&samples, |_, _| None);
        let new = TupleData::from_parts(samples.len() as u16, &new_bytes);
        let old = TupleData::from_parts(samples.len() as u16, &old_bytes);

        let out = encoded(&table, &Row::Update(Some(OldTuple::Full(old)), new), false);

        let mut event = expected(Operation::Update, 1, false);
        event.columns = columns(&samples, |_, _| true);
        event.old = columns(&samples, |_, _| true);
        prop_assert_eq!(out, event.to_msgpack());
    }

    #[test]
    fn a_delete_holds_what_postgres_sent(samples in prop::collection::vec(sample(), 0..40), full: bool) {
        let table = table(&samples, 1);
        let bytes = cells(&samples, |_, sample| (!full && !sample.is_key).then_some(b'n'));
        let tuple = TupleData::from_parts(samples.len() as u16, &bytes);
        let old = if full { OldTuple::Full(tuple) } else { OldTuple::Key(tuple) };

        let out = encoded(&table, &Row::Delete(old), true);

        let mut event = expected(Operation::Delete, 1, true);
        event.columns = columns(&samples, |_, sample| full || sample.is_key);
        prop_assert_eq!(out, event.to_msgpack());
    }

    #[test]
    fn any_bytes_are_encoded_without_panic(bytes: Vec<u8>, columns: u16, samples in prop::collection::vec(sample(), 0..5)) {
        let table = table(&samples, 1);
        let tuple = TupleData::from_parts(columns, &bytes);

        encoded(&table, &Row::Update(Some(OldTuple::Full(tuple)), tuple), true);
        encoded(&table, &Row::Update(None, tuple), true);
    }
}

#[test]
fn a_truncate_carries_its_flags() {
    let table = table(&[], 3);

    let out = encoded(
        &table,
        &Row::Truncate {
            cascade: true,
            restart_identity: false,
        },
        true,
    );

    let mut event = expected(Operation::Truncate, 3, true);
    event.cascade = Some(true);
    event.restart_identity = Some(false);
    assert_eq!(out, event.to_msgpack());
}

#[test]
fn a_tuple_wider_than_its_relation_is_cut() {
    let table = table(&[], 1);
    let new = TupleData::from_parts(2, b"uu");

    let out = encoded(&table, &Row::Update(None, new), true);

    assert_eq!(out, expected(Operation::Update, 1, true).to_msgpack());
}
