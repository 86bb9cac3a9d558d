//! What processes and threads have used, as the kernel counts it.
//!
//! In: ids. Out: CPU time (user and system) and memory.
//! Must hold: a process that is gone reads as `None`, not as zero. CPU time is counted in ticks of
//! 10 ms, so runs shorter than a second say little.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// CPU time of a process, all its threads together.
pub fn cpu(pid: u32) -> Option<Duration> {
    cpu_of(Path::new(&format!("/proc/{pid}/stat")))
}

/// CPU time of a process and of those of its children that still run, such as PostgreSQL's sessions.
pub fn cpu_with_children(pid: u32) -> Duration {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let children = entries.filter_map(|entry| {
        let child: u32 = entry.file_name().to_str()?.parse().ok()?;
        let text = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = text.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        (parent.parse() == Ok(pid)).then(|| cpu(child)).flatten()
    });
    children.sum::<Duration>() + cpu(pid).unwrap_or_default()
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    cpu_of(Path::new("/proc/thread-self/stat")).unwrap_or_default()
}

/// CPU time by thread name; threads of one name are added up.
pub fn cpu_by_thread(pid: u32) -> Vec<(String, Duration)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut threads: Vec<(String, Duration)> = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let (Ok(name), Some(cpu)) = (
            fs::read_to_string(path.join("comm")),
            cpu_of(&path.join("stat")),
        ) else {
            continue;
        };
        match threads.iter_mut().find(|(known, _)| known == name.trim()) {
            Some((_, total)) => *total += cpu,
            None => threads.push((name.trim().to_owned(), cpu)),
        }
    }
    threads
}

/// Microseconds of CPU time that each of `count` events took.
pub fn us_each(cpu: Duration, count: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / count as f64
}

/// Highest resident memory so far, in bytes.
pub fn peak_rss(pid: u32) -> Option<u64> {
    status(pid, "VmHWM:")
}

/// Resident memory now, in bytes.
pub fn rss(pid: u32) -> Option<u64> {
    status(pid, "VmRSS:")
}

fn status(pid: u32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Fields 14 and 15 of `stat`; the name in parentheses before them may hold any text.
fn cpu_of(path: &Path) -> Option<Duration> {
    let text = fs::read_to_string(path).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_secs_f64(
        (user + system) as f64 / ticks_per_second as f64,
    ))
}

/// The CPU time of a process between two looks; the last one counts when it is gone.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    start: Duration,
    last: Duration,
}

impl Meter {
    pub fn start(pid: u32) -> Self {
        let now = cpu(pid).unwrap_or_default();
        Self {
            pid,
            start: now,
            last: now,
        }
    }

    /// What it had used before.
    pub fn at_start(&self) -> Duration {
        self.start
    }

    /// Since the start. Called now and then while the process may end at any time.
    pub fn read(&mut self) -> Duration {
        self.last = cpu(self.pid).unwrap_or(self.last);
        self.last.saturating_sub(self.start)
    }
}
