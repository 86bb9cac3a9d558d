//! Starts processes so that they die with this one.
//!
//! In: a command. Out: its child.
//! Must hold: however this process ends, SIGKILL included, the child gets its death signal.
//! Linux only, through `setpriv` of util-linux; elsewhere drop is what stops a child.
//!
//! The kernel ties a death signal to the *thread* that started the child, and test threads come
//! and go. So one thread, which lives as long as the process, starts all of them.
//! Children inherit no descriptors: std opens everything close-on-exec.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};

type Request = (Command, SyncSender<io::Result<Child>>);

pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = sync_channel::<Request>(16);
        std::thread::Builder::new()
            .name("stack-spawner".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a test process can start one thread");
        requests
    });
    let (answer, outcome) = sync_channel(1);
    spawner
        .send((command, answer))
        .expect("the spawner thread never ends");
    outcome.recv().expect("the spawner answers each request")
}

/// A command for `program` that is sent `signal` (a name such as `KILL`) when this process dies.
pub(crate) fn command(program: &Path, signal: &str) -> Command {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    match SETPRIV.get_or_init(find_setpriv) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Its absolute path, so that a child given another PATH starts all the same. `None` if there is
/// none, or one that knows no death signals.
fn find_setpriv() -> Option<PathBuf> {
    let search = std::env::var_os("PATH")?;
    std::env::split_paths(&search)
        .map(|directory| directory.join("setpriv"))
        .find(|setpriv| {
            Command::new(setpriv)
                .args(["--pdeathsig", "KILL", "true"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
}
