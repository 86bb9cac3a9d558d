//! `cargo demo` by itself, as somebody runs it who has just cloned this.

use std::path::Path;
use std::time::Duration;

use stack::{Process, Program, Signal};

/// Three servers and four processes start in it, and two hundred changes travel.
const DEADLINE: Duration = Duration::from_mins(2);

fn demo(directory: &tempfile::TempDir, arguments: &[&str]) -> Process {
    Program::new(env!("CARGO_BIN_EXE_demo"), directory.path())
        .args(arguments)
        // It would build the processes anew, over those that other tests are running.
        .env("CARGO", "true")
        .start()
}

#[test]
fn every_change_arrives_and_an_interrupt_leaves_nothing_behind() {
    for package in ["bridge", "gateway", "processor", "reader"] {
        stack::binary(package).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let demo = demo(&directory, &[]);
    let logs = demo.wait_for_line(" logs ", DEADLINE);
    let logs = Path::new(logs.trim_start().trim_start_matches("logs").trim());
    assert!(logs.is_dir(), "{}", logs.display());

    demo.signal(Signal::INT);

    let status = demo.wait(DEADLINE);
    assert!(status.success(), "{status}\n{}", demo.log_tail());
    let verdict = "every change arrived once, in commit order";
    let said = demo.stdout();
    assert!(
        said.lines().any(|line| line.trim() == verdict),
        "{}",
        demo.log_tail()
    );
    assert!(!logs.exists(), "{} is left", logs.display());
}

#[test]
fn an_argument_it_does_not_know_is_answered_with_those_it_knows() {
    let directory = tempfile::tempdir().unwrap();

    let demo = demo(&directory, &["--twice"]);

    assert_eq!(demo.wait(DEADLINE).code(), Some(2));
    assert!(
        demo.stderr().contains("cargo demo -- --once"),
        "{}",
        demo.log_tail()
    );
}
