//! How messages are published: each mode, and several bridges on one stream.
//!
//! In: numbered rows while something breaks. Out: what stream CDC holds.
//! Must hold: the suite relies on the nats-server of the system alone (2.9 on Debian 12); what newer ones
//! offer is tried by `cargo run -p bridge --example modes`.

mod rig;

use rig::{DEADLINE, Rig, numbers};
use stack::{Options, eventually};

#[test]
fn auto_chains_on_a_server_without_fast_batches_and_says_so() {
    let rig = Rig::new(Options::default());
    let bridge = rig.bridge("s1", &["--table", "a"]);
    rig.insert("a", 1..=100);
    rig.wait_stored("a", 100);

    let status = bridge.status();
    assert_eq!(status["publish_mode"], "chain");
    let reason = status["publish_mode_reason"].as_str().unwrap();
    assert!(reason.contains("older than 2.14.0"), "{reason}");
    let said = bridge.said();
    assert_eq!(
        said.matches("how messages are published").count(),
        1,
        "{said}"
    );
    bridge.drain();
}

#[test]
fn what_cannot_be_had_gives_way_to_the_chain() {
    let rig = Rig::new(Options::default());
    let bridge = rig.bridge("s1", &["--table", "a", "--publish-mode", "fast"]);
    rig.insert("a", 1..=100);
    rig.wait_stored("a", 100);

    assert_eq!(bridge.status()["publish_mode"], "chain");
    bridge.drain();
}

#[test]
fn message_ids_keep_kills_within_the_window_from_repeating() {
    let rig = Rig::new(Options::default());
    let arguments = [
        "--table",
        "a",
        "--publish-mode",
        "msg-id",
        "--durability",
        "acked",
    ];
    rig.bridge("s1", &arguments).drain();
    rig.insert("a", 1..=20_000);

    for stored in [1, 3_000, 3_001, 12_000] {
        let bridge = rig.launch("s1", &arguments);
        rig.wait_stored("a", stored);
        bridge.kill();
    }
    let bridge = rig.bridge("s1", &arguments);
    rig.wait_last("a", 20_000);
    bridge.drain();

    assert_eq!(
        numbers(&rig.read("cdc.a.*")),
        (1..=20_000).collect::<Vec<_>>()
    );
}

#[test]
fn every_mode_can_write_message_ids() {
    let rig = Rig::new(Options::default());
    let bridge = rig.bridge("s1", &["--table", "a", "--msg-id"]);
    rig.insert("a", 1..=10);
    rig.wait_stored("a", 10);
    bridge.drain();

    for message in rig.read("cdc.a.*") {
        let id = message.msg_id.expect("each has one");
        assert_eq!(wire::message_id::position(&id), message.event.position());
    }
}

#[test]
fn a_second_bridge_on_the_stream_makes_both_share_it() {
    let rig = Rig::new(Options::default());
    let first = rig.bridge("s1", &["--table", "a"]);
    rig.insert("a", 1..=1_000);
    let writer = rig.keep_writing("a", 1_001..=30_000);
    let second = rig.bridge("s2", &["--table", "b"]);
    rig.insert("b", 1..=5_000);
    writer.join().expect("PostgreSQL takes the rows");
    rig.wait_last("a", 30_000);
    rig.wait_last("b", 5_000);

    for bridge in [first, second] {
        assert_eq!(bridge.status()["publish_mode"], "msg-id");
        bridge.drain();
    }
    assert_eq!(
        numbers(&rig.read("cdc.a.*")),
        (1..=30_000).collect::<Vec<_>>()
    );
    assert_eq!(
        numbers(&rig.read("cdc.b.*")),
        (1..=5_000).collect::<Vec<_>>()
    );
}

#[test]
fn bridges_whose_tables_overlap_do_not_share_a_stream() {
    let rig = Rig::new(Options::default());
    let first = rig.bridge("s1", &["--table", "a"]);

    for tables in [&["--table", "b,a"][..], &[]] {
        let second = rig.launch("s2", tables);
        let status = second.wait(DEADLINE);
        assert_eq!(status.code(), Some(2));
        let said = second.said();
        assert!(
            said.contains("slot s1 publishes cdc.a.* into stream CDC already"),
            "{said}"
        );
    }
    assert!(first.is_running());
    let said = first.said();
    assert!(!said.contains("into the same stream"), "{said}");
    first.drain();
}

/// The claim of a bridge that is cut off for long is forgotten; here it goes at once.
#[test]
fn bridges_that_come_to_overlap_while_they_run_say_so_until_one_ends() {
    let rig = Rig::new(Options::default());
    let first = rig.bridge("s1", &["--table", "a"]);
    first.pause();
    rig.forget_claims();
    let second = rig.bridge("s2", &["--table", "b,a"]);
    first.resume();

    for (bridge, other) in [(&first, "s2"), (&second, "s1")] {
        eventually(DEADLINE, "the bridge is not ready", || {
            let (is_ready, said) = bridge.ready();
            (!is_ready && said.contains(&format!("slot {other} publishes")))
                .then_some(())
                .ok_or(said)
        });
        assert!(
            bridge
                .metrics()
                .contains("\nbridge_overlapping_bridges 1\n")
        );
        let said = bridge.said();
        let alarm = format!("slot {other} publishes cdc.a.* into the same stream");
        assert_eq!(said.matches(&alarm).count(), 1, "{said}");
        assert!(said.contains("bridge snapshot TABLE"), "{said}");
    }
    second.drain();
    eventually(DEADLINE, "the bridge is ready", || {
        let (is_ready, said) = first.ready();
        is_ready.then_some(()).ok_or(said)
    });
    assert!(first.metrics().contains("\nbridge_overlapping_bridges 0\n"));
    assert_eq!(first.said().matches("slot s2 publishes").count(), 1);
    first.drain();
}

/// On 2.9 nothing can keep the first foreign message from taking an event's place: see `publish::mode`.
#[test]
fn who_else_writes_to_the_stream_is_heard_and_what_it_cost_is_told() {
    let rig = Rig::new(Options::default());
    let bridge = rig.bridge("s1", &["--table", "a"]);

    let writer = rig.keep_writing("a", 1..=30_000);
    while !writer.is_finished() {
        rig.publish("cdc.foreign.insert");
    }
    writer.join().expect("PostgreSQL takes the rows");
    rig.wait_last("a", 30_000);

    eventually(DEADLINE, "the bridge has left the chain", || {
        bridge.status()["publish_mode"] == "msg-id"
    });
    let found = numbers(&rig.read("cdc.a.*"));
    let is_whole = found.iter().copied().eq(1..=30_000);
    assert_eq!(is_whole, !rig.holds("cdc.gap"), "{}", bridge.said());
    bridge.drain();
}
