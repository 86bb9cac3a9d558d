//! Processors that are killed.

use stack::eventually;

use crate::harness::{DEADLINE, World, newcomer};

#[tokio::test(flavor = "multi_thread")]
async fn under_kill_9_every_write_is_applied_exactly_once() {
    let world = World::up().await;
    let mut total = 0;
    for round in 0..10 {
        let processor = world.processor(&format!("processor-{round}"), &["--batch-max", "10"]);
        for number in 0..60 {
            total += 1;
            world.send(&newcomer(total, 1000 + total)).await;
            if number == 30 {
                // In the middle of its work, wherever that is.
                eventually(DEADLINE, "some progress", || {
                    let count: u128 = world.value("SELECT count(*) FROM applied").parse().unwrap();
                    count + 45 > total
                });
            }
        }
        processor.kill();
    }
    let _last = world.processor("last", &[]);
    world.settle(600).await;

    assert_eq!(world.value("SELECT count(*) FROM people"), "600");
    assert_eq!(world.value("SELECT count(*) FROM applied"), "600");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_asked_to_stop_finishes_its_batch_and_leaves_the_rest() {
    let world = World::up().await;
    for number in 1..=500 {
        world.send(&newcomer(number, 1000 + number)).await;
    }
    let processor = world.processor("processor", &["--batch-max", "10"]);
    processor.wait_for_line("active", DEADLINE);

    let status = processor.terminate(DEADLINE);

    assert!(status.success(), "{status}");
    let applied = world.value("SELECT count(*) FROM applied");
    assert_eq!(
        applied,
        world.value("SELECT count(*) FROM write_operations")
    );
    let _next = world.processor("next", &[]);
    world.settle(500).await;
    assert_eq!(world.value("SELECT count(*) FROM applied"), "500");
}
