//! Sends one row of any size through the bridge, and measures.
//!
//! In: its megabytes (default 600). Out: how long it took, and the memory it took at most and keeps.
//! Must hold: the object has the length and the digest its stub states; rows of other tables follow.
//!
//! Not a test: half a gigabyte is more than a suite may ask for. `cargo run --release -p bridge --example oversize`

#[path = "../tests/modes/rig.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod rig;

use std::fmt::Write as _;
use std::time::Instant;

use rig::{Bridge, Rig};
use sha2::{Digest as _, Sha256};
use stack::Options;
use tokio::io::AsyncReadExt as _;

fn main() {
    let argument = std::env::args().nth(1);
    let megabytes: usize = argument.map_or(600, |text| text.parse().expect("megabytes"));
    let rig = Rig::new(Options::default());
    rig.stack
        .postgres()
        .sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text); ALTER PUBLICATION cdc_pub ADD TABLE docs");
    let bridge = rig.bridge("s1", &["--durability", "acked"]);
    println!("before: {} MB resident", memory(&bridge, "VmRSS"));
    let started = Instant::now();
    rig.stack.postgres().sql(&format!(
        "INSERT INTO docs VALUES (1, repeat('0123456789', {megabytes} * 100000))"
    ));
    println!("PostgreSQL had it after {:?}", started.elapsed());
    rig.insert("a", 1..=10);
    rig.wait_last("a", 10);
    println!("the stream had all of it after {:?}", started.elapsed());
    println!(
        "{} MB resident at most, {} MB now",
        memory(&bridge, "VmHWM"),
        memory(&bridge, "VmRSS")
    );
    let stored = rig.read("cdc.docs.*");
    let stub = stored[0].event.oversize.as_ref().expect("it is a stub");
    let (bytes, sha256) = rig.runtime.block_on(async {
        let store = rig.jetstream().await.get_object_store("oversize").await;
        let object = store.expect("there is a bucket").get(&stub.object).await;
        let mut object = object.expect("there is the object");
        let (mut chunk, mut bytes, mut digest) = (vec![0; 1 << 20], 0, Sha256::new());
        loop {
            let read = object.read(&mut chunk).await.expect("it can be read");
            if read == 0 {
                return (bytes, digest.finalize());
            }
            bytes += read as u64;
            digest.update(&chunk[..read]);
        }
    });
    let sha256 = sha256.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    assert_eq!((bytes, sha256), (stub.bytes, stub.sha256.clone()));
    println!("the object has {bytes} bytes and its digest");
    bridge.drain();
}

/// A figure of `/proc/<pid>/status`, in MB.
fn memory(bridge: &Bridge, name: &str) -> usize {
    let path = format!("/proc/{}/status", bridge.pid());
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.map(|kib: usize| kib / 1000)
        .expect("it is a number of kB")
}
