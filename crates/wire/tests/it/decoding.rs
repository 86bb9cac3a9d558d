//! Anyone may publish anything: decoding returns, whatever the bytes.

use proptest::prelude::*;
use wire::checkpoint::Checkpoint;
use wire::command::{OperationStatus, WriteCommand};
use wire::event::Tail;
use wire::gap::Gap;
use wire::schema::{Schema, SchemaChanged};
use wire::snapshot::{self, Chunk, Meta, Progress, Start};
use wire::snapshot_request::{Options, Reply};
use wire::sync::{UserDocument, VersionRecord};
use wire::{Column, DecodeError, Event, Lsn, Message, Operation, Row, Value};

use crate::samples;

fn decode_as_everything(payload: &[u8]) {
    let _ = Event::decode(payload);
    let _ = Tail::decode(payload);
    let _ = Gap::decode(payload);
    let _ = Checkpoint::decode(payload);
    let _ = Schema::decode(payload);
    let _ = SchemaChanged::decode(payload);
    let _ = Start::decode(payload);
    let _ = Chunk::decode(payload);
    let _ = Meta::decode(payload);
    let _ = Progress::decode(payload);
    let _ = snapshot::Error::decode(payload);
    let _ = Options::decode(payload);
    let _ = Reply::decode(payload);
    let _ = WriteCommand::decode(payload);
    let _ = OperationStatus::decode(payload);
    let _ = UserDocument::decode(payload);
    let _ = VersionRecord::decode(payload);
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Float),
        any::<String>().prop_map(Value::Text),
        any::<Vec<u8>>().prop_map(Value::Bytes),
    ]
}

fn columns() -> impl Strategy<Value = Vec<Column>> {
    let column = (any::<String>(), values()).prop_map(|(name, value)| Column { name, value });
    prop::collection::vec(column, 0..18)
}

prop_compose! {
    fn events()(
        table: String, operation in 0..4_usize, relation_id: u32, commit_lsn: u64, seq: u32,
        xid: u64, commit_time: i64, last: bool, columns in columns(), old in columns(),
        unchanged: Vec<String>,
    ) -> Event {
        Event {
            table, operation: Operation::ALL[operation], relation_id, commit_lsn: Lsn(commit_lsn),
            seq, xid, commit_time, last, columns, old, unchanged, ..samples::insert()
        }
    }
}

proptest! {
    #[test]
    fn an_event_survives_msgpack(event in events()) {
        prop_assert_eq!(Event::decode(&event.to_msgpack()).unwrap(), event);
    }

    #[test]
    fn an_event_survives_json_but_for_the_kinds_json_lacks(event in events()) {
        let json = event.to_json();
        prop_assert_eq!(Event::decode(json.as_bytes()).unwrap().to_json(), json);
    }

    #[test]
    fn the_tail_of_an_event_is_its_position(event in events()) {
        let tail = Tail::decode(&event.to_msgpack()).unwrap();

        prop_assert_eq!((tail.commit_lsn, tail.seq), (event.commit_lsn, event.seq));
    }

    #[test]
    fn a_row_keeps_the_order_of_its_columns(columns in columns()) {
        let row = Row(columns);
        let bytes = rmp_serde::to_vec_named(&row).unwrap();

        prop_assert_eq!(rmp_serde::from_slice::<Row>(&bytes).unwrap(), row);
    }

    #[test]
    fn any_bytes_are_decoded_without_panic(payload: Vec<u8>) {
        decode_as_everything(&payload);
    }

    #[test]
    fn a_damaged_message_is_decoded_without_panic(
        kind: prop::sample::Index, at: prop::sample::Index, byte: u8, is_cut: bool, is_json: bool,
    ) {
        let sample = kind.get(samples::all_once()).clone();
        let mut payload = if is_json { sample.1 } else { sample.0 };
        let at = at.index(payload.len());
        payload[at] = byte;
        if is_cut {
            payload.truncate(at);
        }

        decode_as_everything(&payload);
    }
}

#[test]
fn a_message_cut_short_or_followed_by_more_is_an_error() {
    let mut bytes = samples::insert().to_msgpack();
    assert!(Event::decode(&bytes[..bytes.len() - 1]).is_err());

    bytes.push(0xC0);
    assert!(matches!(
        Event::decode(&bytes),
        Err(DecodeError::Trailing { bytes: 1 })
    ));
}

#[test]
fn nesting_without_end_is_an_error() {
    // {"x": [[[[...
    let mut msgpack = vec![0x81, 0xA1, b'x'];
    msgpack.extend(vec![0x91; 1_000_000]);
    let json = "{\"x\":".to_owned() + &"[".repeat(1_000_000);

    assert!(Event::decode(&msgpack).is_err());
    assert!(Event::decode(json.as_bytes()).is_err());
    decode_as_everything(&msgpack);
    decode_as_everything(json.as_bytes());
}

#[test]
fn a_length_that_lies_is_an_error_and_takes_no_memory() {
    // {"columns": an array, a string or bytes of 4 GiB that are not there.
    for marker in [0xDD, 0xDB, 0xC6, 0xDF] {
        let mut payload = vec![0x81, 0xA7];
        payload.extend(b"columns");
        payload.extend([marker, 0xFF, 0xFF, 0xFF, 0xFF]);

        decode_as_everything(&payload);
        assert!(Event::decode(&payload).is_err());
    }
}
