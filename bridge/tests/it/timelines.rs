//! PostgreSQL promoted, or restored to an earlier point.
//!
//! In: a data directory that is copied, put back and promoted. Out: the stream goes on, or an explanation.
//! Must hold: events of another history are never appended behind those in the stream.

use std::path::PathBuf;

use stack::{Options, PostgresVersion, copy, eventually};

use crate::rig::{DEADLINE, Rig};
use crate::stream;

/// A copy of the data directory of a server that is stopped.
fn set_aside(rig: &Rig) -> PathBuf {
    let aside = rig.postgres().data_dir().with_extension("aside");
    copy(rig.postgres().data_dir(), &aside);
    aside
}

fn put_back(rig: &Rig, aside: &std::path::Path) {
    let data = rig.postgres().data_dir();
    std::fs::remove_dir_all(data).expect("it can be removed");
    std::fs::rename(aside, data).expect("it can be renamed");
}

/// Starts the stopped server as a standby of nobody, and makes it a primary on a new timeline.
fn promote(rig: &Rig) {
    let data = rig.postgres().data_dir();
    let signal = data.join("standby.signal");
    // A copy of a file that has the right owner.
    copy(&data.join("PG_VERSION"), &signal);
    rig.postgres().start();
    assert_eq!(rig.value("SELECT pg_promote()"), "t");
    eventually(DEADLINE, "it is a primary", || {
        rig.value("SELECT pg_is_in_recovery()") == "f"
    });
}

#[test]
fn a_promoted_server_that_has_everything_goes_on() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    let bridge = rig.bridge(&[]);
    rig.write_numbers(100);
    rig.wait_until_stored(100);

    rig.postgres().stop();
    promote(&rig);
    rig.write_numbers(100);

    rig.assert_drains_to_numbers(&bridge, 200);
    // A later run knows the new timeline.
    let bridge = rig.bridge(&[]);
    rig.write_numbers(100);
    rig.assert_drains_to_numbers(&bridge, 300);
}

#[test]
fn a_restore_to_an_earlier_point_is_refused_also_when_it_has_gone_on_beyond_the_stream() {
    let rig = Rig::alone(Options::default());
    rig.create_numbers();
    rig.bridge(&[]).drain();
    rig.postgres().stop();
    let aside = set_aside(&rig);
    rig.postgres().start();
    let bridge = rig.bridge(&[]);
    rig.write_numbers(100);
    rig.wait_until_stored(100);
    let last = stream::last_of(rig.nats(), "cdc.numbers.insert").expect("there is one");
    bridge.kill();

    rig.postgres().stop();
    put_back(&rig, &aside);
    promote(&rig);
    eventually(DEADLINE, "the other history is longer", || {
        rig.sql("SELECT pg_switch_wal()");
        rig.write_numbers(10);
        rig.current_wal_lsn() > last.commit_lsn
    });
    let (code, said) = rig.refused(&[]);

    assert_eq!(code, 16, "{said}");
    assert!(said.contains("which left timeline 1"), "{said}");
    assert_eq!(stream::last_sequence(rig.nats()), 100);
}

#[test]
fn slots_are_kept_on_standbys_where_postgresql_can() {
    for version in [PostgresVersion::V17, PostgresVersion::V18] {
        let rig = Rig::alone(Options::default().postgres(version));
        rig.create_numbers();
        rig.bridge(&[]).drain();

        assert_eq!(rig.value("SELECT failover FROM pg_replication_slots"), "t");
    }
}
