//! One running process and what it has said so far.
//!
//! In: signals. Out: its output and, once it ended, its exit status.
//! Must hold: a signal is only sent while the process is not yet reaped, so that it never hits
//! another process with a recycled id; drop kills it and everything below it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use crate::eventually::within;
use crate::signal;

const TAIL_LINES: usize = 30;

/// Started by [`Program::start`](crate::Program::start). All methods take `&self`, so that one
/// thread may wait for it while another breaks it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    stdout: Log,
    stderr: Log,
}

/// The part of a log file that belongs to one run.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    /// Length of the file when the run began.
    pub(crate) from: u64,
}

impl Log {
    fn text(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.path)
            && file.seek(SeekFrom::Start(self.from)).is_ok()
        {
            // A read that fails shows what there was before it.
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn tail(&self, name: &str, stream: &str) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        last.iter()
            .flat_map(|line| [name, " ", stream, "| ", line, "\n"])
            .collect()
    }
}

impl Process {
    pub(crate) fn new(name: String, child: Child, stdout: Log, stderr: Log) -> Self {
        Self {
            name,
            pid: child.id(),
            child: Mutex::new(child),
            stdout,
            stderr,
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What this run has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What this run has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The file behind [`stdout`](Self::stdout); earlier runs of the program wrote to it too.
    pub fn stdout_path(&self) -> &Path {
        &self.stdout.path
    }

    /// The file behind [`stderr`](Self::stderr); earlier runs of the program wrote to it too.
    pub fn stderr_path(&self) -> &Path {
        &self.stderr.path
    }

    /// The last lines of standard output and standard error, for people.
    pub fn log_tail(&self) -> String {
        self.stdout.tail(&self.name, "stdout") + &self.stderr.tail(&self.name, "stderr")
    }

    /// `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child()
            .try_wait()
            .expect("a child of ours can be waited for")
    }

    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// The first complete line of either stream that contains `text`. Panics after `deadline` and
    /// when the process ends without having said it.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str, deadline: Duration) -> String {
        let outcome = within(deadline, || {
            // Asked before reading: what an ended process said is then all in the file.
            let ended = self.exit_status();
            for stream in [self.stdout(), self.stderr()] {
                let complete = stream.rsplit_once('\n').map_or("", |(lines, _)| lines);
                if let Some(line) = complete.lines().find(|line| line.contains(text)) {
                    return Ok(Ok(line.to_owned()));
                }
            }
            // An end is an answer too: waiting longer would not change it.
            ended.map(Err).ok_or("it still runs")
        });
        match outcome {
            Ok(Ok(line)) => line,
            Ok(Err(status)) => {
                panic!(
                    "{} ended ({status}) without saying {text:?}\n{}",
                    self.name,
                    self.log_tail()
                )
            }
            Err(state) => panic!(
                "{} did not say {text:?} within {deadline:?}: {state}\n{}",
                self.name,
                self.log_tail()
            ),
        }
    }

    /// Waits for it to end by itself. Panics after `deadline`.
    #[track_caller]
    pub fn wait(&self, deadline: Duration) -> ExitStatus {
        self.wait_within(deadline).unwrap_or_else(|| {
            panic!(
                "{} still runs after {deadline:?}\n{}",
                self.name,
                self.log_tail()
            )
        })
    }

    pub(crate) fn wait_within(&self, deadline: Duration) -> Option<ExitStatus> {
        within(deadline, || self.exit_status()).ok()
    }

    /// SIGTERM, then [`wait`](Self::wait).
    #[track_caller]
    pub fn terminate(&self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(deadline)
    }

    /// To the process alone; nothing happens when it has ended.
    pub fn signal(&self, what: Signal) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(None)) {
            signal::send(self.pid, what);
        }
    }

    /// SIGKILL to it and to everything below it; returns when all of them are gone.
    pub fn kill(&self) -> ExitStatus {
        let tree = self.signal_tree(Signal::KILL);
        let _ = within(signal::KERNEL_DEADLINE, || {
            tree.iter().all(|pid| signal::is_gone(*pid))
        });
        self.child()
            .wait()
            .expect("a child of ours can be waited for")
    }

    /// SIGSTOP to it and to everything below it; returns when all of them stand still.
    #[track_caller]
    pub fn pause(&self) {
        signal::wait_stopped(&self.signal_tree(Signal::STOP), &self.name);
    }

    /// SIGCONT to it and to everything below it.
    pub fn resume(&self) {
        self.signal_tree(Signal::CONT);
    }

    /// Children may start children while the tree is read, so it is read until nothing is new.
    fn signal_tree(&self, what: Signal) -> Vec<u32> {
        let mut child = self.child();
        let mut reached = Vec::new();
        while matches!(child.try_wait(), Ok(None)) {
            let mut tree = signal::tree(self.pid);
            tree.retain(|pid| !reached.contains(pid));
            if tree.is_empty() {
                break;
            }
            for pid in &tree {
                signal::send(*pid, what);
            }
            reached.extend(tree);
        }
        reached
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprint!("{}", self.log_tail());
        }
    }
}
