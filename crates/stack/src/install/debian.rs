//! Unpacks Debian and Ubuntu packages without root and without installing them.
//!
//! In: a package name. Out: its files and those of the libraries the system lacks.
//! Must hold: nothing outside the given directory is written; where the system's package lists are
//! empty or outdated, lists of our own are fetched beside the packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Problem, run};

pub(crate) fn fetch(package: &str, into: &Path) -> Result<(), Problem> {
    let work = tempfile::tempdir().map_err(|error| Problem::Fetch(error.to_string()))?;
    if download(package, work.path(), &[]).is_err() {
        let options = private_lists(work.path())?;
        // Its status says little: one unreachable third-party list is an error to it.
        let _ = run(Command::new("apt-get").arg("update").args(&options));
        download(package, work.path(), &options)?;
    }
    let packages = work
        .path()
        .read_dir()
        .map_err(|error| Problem::Fetch(error.to_string()))?;
    for entry in packages.filter_map(Result::ok) {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            run(Command::new("dpkg").arg("-x").arg(entry.path()).arg(into))?;
        }
    }
    Ok(())
}

/// Downloads the package and whatever of its dependencies is not installed.
fn download(package: &str, into: &Path, options: &[String]) -> Result<(), Problem> {
    let mut plan = Command::new("apt-get");
    plan.args([
        "install",
        "--simulate",
        "--yes",
        "--no-install-recommends",
        package,
    ]);
    // Without a plan (held or broken packages elsewhere) the package alone may still run.
    let plan = run(plan.args(options)).unwrap_or_default();
    let mut packages: Vec<&str> = plan
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
        .collect();
    if !packages.contains(&package) {
        packages.push(package);
    }
    run(Command::new("apt-get")
        .args(["download", "--option", "Acquire::Retries=3"])
        .args(options)
        .args(packages)
        .current_dir(into))?;
    Ok(())
}

/// Options for lists under `work` in the place of the system's.
fn private_lists(work: &Path) -> Result<Vec<String>, Problem> {
    let lists = work.join("lists");
    let cache = work.join("cache");
    for directory in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(directory).map_err(|error| Problem::Fetch(error.to_string()))?;
    }
    Ok(vec![
        format!("--option=Dir::State::lists={}", lists.display()),
        format!("--option=Dir::Cache={}", cache.display()),
        // As root, apt would drop to a user that cannot write there.
        "--option=APT::Sandbox::User=root".to_owned(),
    ])
}
