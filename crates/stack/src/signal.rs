//! Signals to a process and to everything it started.
//!
//! In: a process id and a signal. Out: the processes that were reached.
//! Must hold: PostgreSQL's children are reached too. Each of them leads a process group of its
//! own, so signalling the postmaster's group would miss them: parents are read from the system.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually::within;

/// How long the kernel may take to carry out a SIGKILL or SIGSTOP on a busy machine.
pub(crate) const KERNEL_DEADLINE: Duration = Duration::from_secs(10);

/// `root` and all processes below it, parents before children.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let parents = parents();
    let mut found = vec![root];
    let mut index = 0;
    while let Some(parent) = found.get(index).copied() {
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
        index += 1;
    }
    found
}

/// Errors are not of interest: a process that ended meanwhile needs no signal.
pub(crate) fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process is gone, counting one that merely waits to be reaped as gone.
pub(crate) fn is_gone(pid: u32) -> bool {
    match state(pid) {
        Some(state) => state == 'Z' || state == 'X',
        None => true,
    }
}

/// Returns when all of them have taken notice of SIGSTOP (or are gone).
#[track_caller]
pub(crate) fn wait_stopped(pids: &[u32], name: &str) {
    let stopped = within(KERNEL_DEADLINE, || pids.iter().all(|pid| is_stopped(*pid)));
    assert!(stopped.is_ok(), "{name} does not stop");
}

fn is_stopped(pid: u32) -> bool {
    state(pid).is_none_or(|state| matches!(state, 'T' | 'Z' | 'X'))
}

fn state(pid: u32) -> Option<char> {
    if cfg!(target_os = "linux") {
        stat(&pid.to_string()).map(|(state, _)| state)
    } else {
        let output = Command::new("ps")
            .args(["-o", "stat=", "-p", &pid.to_string()])
            .output()
            .ok()?;
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .chars()
            .next()
    }
}

/// (process, its parent) for all processes.
fn parents() -> Vec<(u32, u32)> {
    if let Ok(entries) = fs::read_dir("/proc") {
        return entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let pid = name.parse().ok()?;
                Some((pid, stat(&name)?.1))
            })
            .collect();
    }
    let Ok(output) = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        })
        .collect()
}

/// State and parent from `/proc/{pid}/stat`; the command in parentheses may itself hold any text.
fn stat(pid: &str) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
