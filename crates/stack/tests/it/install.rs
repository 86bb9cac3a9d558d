use std::path::Path;

use stack::{Options, Process, Program};

use crate::DEADLINE;

/// Boots a nats-server in a test process of its own, whose environment decides where it is found.
fn boot_elsewhere(directory: &Path, env: &[(&str, &Path)]) -> Process {
    let program = Program::new(std::env::current_exe().unwrap(), directory).args([
        "--exact",
        "--nocapture",
        "install::boot_nats_where_the_environment_says",
    ]);
    env.iter()
        .fold(program, |program, (name, value)| program.env(name, *value))
        .start()
}

#[test]
fn boot_nats_where_the_environment_says() {
    let stack = stack::Stack::up(Options::default().without_postgres());

    println!(
        "\noutcome: {}",
        stack.map_or_else(|error| error.to_string(), |_| "up".to_owned())
    );
}

#[test]
fn an_empty_cache_is_filled_once_by_processes_that_boot_at_the_same_time() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    // `/sbin` and such are searched whatever PATH says, so this also passes where it is installed.
    let both: Vec<Process> = ["a", "b"]
        .map(|name| {
            let logs = directory.path().join(name);
            std::fs::create_dir(&logs).unwrap();
            boot_elsewhere(&logs, &[("CARGO_TARGET_DIR", &target)])
        })
        .into();

    for process in &both {
        let line = process.wait_for_line("outcome:", DEADLINE * 4);
        assert_eq!(line, "outcome: up");
    }
    let fetches = both
        .iter()
        .filter(|process| process.stderr().contains("fetching"))
        .count();
    assert!(fetches <= 1, "each process fetched its own");
}

#[test]
fn a_variable_that_points_nowhere_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("nowhere");

    let process = boot_elsewhere(directory.path(), &[("STACK_NATS_SERVER", &nowhere)]);

    let line = process.wait_for_line("outcome:", DEADLINE);
    assert!(
        line.contains("STACK_NATS_SERVER=") && line.ends_with("no usable nats-server"),
        "{line}"
    );
}

#[test]
fn what_can_neither_be_found_nor_fetched_ends_in_a_line_to_type() {
    let directory = tempfile::tempdir().unwrap();
    let (target, nothing) = (
        directory.path().join("target"),
        directory.path().join("empty"),
    );
    // Without PATH there is no package tool either. A nats-server in a usual directory still wins.
    let env: [(&str, &Path); 2] = [("CARGO_TARGET_DIR", &target), ("PATH", &nothing)];

    let line = boot_elsewhere(directory.path(), &env).wait_for_line("outcome:", DEADLINE);

    let is_installed = line == "outcome: up";
    assert!(
        is_installed || line.ends_with("type: sudo apt-get install -y nats-server"),
        "{line}"
    );
}
