use stack::{Program, Signal};

use crate::DEADLINE;

fn shell(directory: &tempfile::TempDir, script: &str) -> Program {
    Program::new("/bin/sh", directory.path()).args(["-c", script])
}

#[test]
fn output_arguments_and_environment_are_the_programs_own() {
    let directory = tempfile::tempdir().unwrap();
    let program =
        shell(&directory, "echo \"out $GREETING\"; echo err >&2; exit 3").env("GREETING", "hello");

    let process = program.start();
    let status = process.wait(DEADLINE);

    assert_eq!(status.code(), Some(3));
    assert_eq!(process.stdout(), "out hello\n");
    assert_eq!(process.stderr(), "err\n");
}

#[test]
fn a_line_of_an_earlier_run_is_not_taken_for_one_of_this_run() {
    let directory = tempfile::tempdir().unwrap();
    let program = shell(&directory, "echo run $$; sleep 1000");
    let first = program.start();
    first.wait_for_line("run", DEADLINE);
    drop(first);

    let second = program.start();

    assert_eq!(
        second.wait_for_line("run", DEADLINE),
        format!("run {}", second.pid())
    );
}

#[test]
fn terminate_lets_the_program_say_goodbye() {
    let directory = tempfile::tempdir().unwrap();
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let process = shell(&directory, script).start();
    process.wait_for_line("ready", DEADLINE);

    let status = process.terminate(DEADLINE);

    assert!(status.success());
    assert_eq!(process.stdout(), "ready\nbye\n");
}

#[test]
fn kill_reaches_grandchildren_too() {
    let directory = tempfile::tempdir().unwrap();
    let process = shell(&directory, "setsid sleep 1000 & echo child $!; wait").start();
    let line = process.wait_for_line("child", DEADLINE);
    let child = line.strip_prefix("child ").unwrap().to_owned();

    process.kill();

    let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
}

#[test]
#[should_panic(expected = "without saying \"ready\"")]
fn waiting_for_a_line_ends_when_the_program_does() {
    let directory = tempfile::tempdir().unwrap();

    shell(&directory, "echo no")
        .start()
        .wait_for_line("ready", DEADLINE);
}

/// The process under test is a test process of its own: this binary, asked for one test.
#[test]
fn children_die_with_a_process_that_is_killed() {
    const ROLE: &str = "STACK_TEST_PARENT";
    let directory = tempfile::tempdir().unwrap();
    if std::env::var_os(ROLE).is_some() {
        let child = shell(&directory, "echo ready; sleep 1000").start();
        child.wait_for_line("ready", DEADLINE);
        println!("\nchild {} of a parent to be killed", child.pid());
        child.wait(DEADLINE * 2);
    }

    let parent = Program::new(std::env::current_exe().unwrap(), directory.path())
        .args([
            "--exact",
            "--nocapture",
            "program::children_die_with_a_process_that_is_killed",
        ])
        .env(ROLE, "1")
        .start();
    let line = parent.wait_for_line("of a parent to be killed", DEADLINE);
    let child = line.split(' ').nth(1).unwrap().to_owned();
    // SIGKILL to the parent alone: the child must hear of it from the kernel.
    parent.signal(Signal::KILL);
    parent.wait(DEADLINE);

    stack::eventually(DEADLINE, "the end of the child", || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}
