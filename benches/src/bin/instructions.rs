//! Instructions per event of each step of the hot path, under callgrind: the same on a busy machine
//! as on an idle one.
//!
//! In: nothing, or the names of steps. Out: one line per step.
//! Must hold: start-up and the first, allocating call are not counted: each step is run twice with
//! different counts and the difference is divided.
//!
//! A harness of its own rather than a crate, because those need a runner of exactly their version
//! installed beside them, and this is all we ask of one.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

/// Repeats of the two runs.
const FEW: u64 = 100;
const MANY: u64 = 1100;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [flag, name, repeats] = arguments.as_slice()
        && flag == "--run"
    {
        run(name, repeats.parse().context("repeats")?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<28}{:>14}", "step", "instructions");
    for step in benches::steps::all() {
        if !arguments.is_empty() && !arguments.iter().any(|name| step.name.contains(name)) {
            continue;
        }
        let events = (MANY - FEW) * step.events;
        let counted = counted(step.name, MANY)? - counted(step.name, FEW)?;
        println!("{:<28}{:>14.1}", step.name, counted as f64 / events as f64);
    }
    Ok(ExitCode::SUCCESS)
}

fn run(name: &str, repeats: u64) {
    for mut step in benches::steps::all() {
        if step.name == name {
            for _ in 0..repeats {
                (step.run)();
            }
        }
    }
}

/// Instructions of this program when it does a step so often.
fn counted(name: &str, repeats: u64) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--run", name, &repeats.to_string()])
        .output()
        .context("valgrind is missing; type: sudo apt-get install -y valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind failed: {text}");
    }
    let collected = text
        .lines()
        .find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    collected.with_context(|| format!("no instruction count in: {text}"))
}
