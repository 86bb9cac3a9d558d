//! Signals, sent to a real child: each test starts this same test binary again, and there plays the child.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use daemon::shutdown::Shutdown;

const CHILD: &str = "SIGNALS_TEST_CHILD";

/// In the child: installs the handlers, says so on stdout and drains until it is killed or told to leave by `drain`.
fn child(drain: impl AsyncFnOnce(Shutdown)) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals().unwrap();
        say("ready");
        say(&shutdown.wait().await.to_string());
        drain(shutdown).await;
    });
    std::process::exit(0);
}

fn say(line: &str) {
    // Not `println!`: the test harness would keep it.
    let mut stdout = std::io::stdout();
    stdout.write_all(format!("\n{line}\n").as_bytes()).unwrap();
}

/// In the parent: the child, once its handlers stand.
fn start(test: &str) -> (Child, impl FnMut(&str)) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut expect = move |wanted: &str| {
        assert!(
            lines.any(|line| line.unwrap() == wanted),
            "the child ended without saying {wanted}"
        );
    };
    expect("ready");
    (child, expect)
}

fn send(signal: &str, child: &Child) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{signal} {}", child.id())])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_signal_starts_the_drain() {
    if std::env::var_os(CHILD).is_some() {
        child(async |_| {});
    }
    for (signal, name) in [("TERM", "SIGTERM"), ("INT", "SIGINT")] {
        let (mut child, mut expect) = start("a_signal_starts_the_drain");

        send(signal, &child);

        expect(name);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_second_signal_exits_at_once() {
    if std::env::var_os(CHILD).is_some() {
        child(async |_| std::future::pending().await);
    }
    for (second, exit_code) in [("INT", 130), ("TERM", 143)] {
        let (mut child, mut expect) = start("a_second_signal_exits_at_once");
        send("TERM", &child);
        expect("SIGTERM");

        send(second, &child);

        assert_eq!(child.wait().unwrap().code(), Some(exit_code));
    }
}
