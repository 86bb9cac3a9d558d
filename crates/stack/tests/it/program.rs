use stack::{Options, Program, Signal, Stack};

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
fn servers_die_with_a_process_that_is_killed_and_the_next_one_removes_its_directory() {
    const ROLE: &str = "STACK_TEST_PARENT";
    const TEST: &str =
        "program::servers_die_with_a_process_that_is_killed_and_the_next_one_removes_its_directory";
    if std::env::var_os(ROLE).is_some() {
        let stack = Stack::up(Options::default()).unwrap();
        let pids = [stack.postgres().pid(), stack.nats().pid()].map(Option::unwrap);
        println!(
            "\nservers {} {} {}",
            pids[0],
            pids[1],
            stack.dir().display()
        );
        // Until it is killed.
        stack
            .program("/bin/sleep")
            .arg("1000")
            .start()
            .wait(DEADLINE * 2);
    }
    let logs = tempfile::tempdir().unwrap();

    let parent = Program::new(std::env::current_exe().unwrap(), logs.path())
        .args(["--exact", "--nocapture", TEST])
        .env(ROLE, "1")
        .start();
    let line = parent.wait_for_line("servers ", DEADLINE);
    let words: Vec<&str> = line.split(' ').collect();
    // SIGKILL to the parent alone: its children must hear of it from the kernel.
    parent.signal(Signal::KILL);
    parent.wait(DEADLINE);

    for pid in &words[1..3] {
        stack::eventually(DEADLINE, "the end of a server", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        });
    }
    let _next = Stack::up(Options::default().without_postgres()).unwrap();
    assert!(!std::path::Path::new(words[3]).exists());
}
