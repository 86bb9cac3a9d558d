//! Where the workspace is, and the binaries it builds.
//!
//! In: this crate's place at build time, the current directory, `CARGO_TARGET_DIR`. Out: paths.
//! Must hold: paths are absolute, so that a process started elsewhere finds them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory that holds `schema/` and the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    let current = std::env::current_dir().unwrap_or_default();
    built_in
        .ancestors()
        .chain(current.ancestors())
        .find(|directory| directory.join("Cargo.lock").is_file())
        .map_or_else(|| current.clone(), Path::to_path_buf)
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => root().join(target),
        None => root().join("target"),
    }
}

/// The `bridge` binary, as [`binary`] finds it.
pub fn bridge_binary() -> io::Result<PathBuf> {
    binary("bridge")
}

/// The binary of a package of that name, of the profile this program was built with: beside the
/// running executable if it is there, else built now. It may be older than the sources;
/// [`build_binary`] is not.
pub fn binary(package: &str) -> io::Result<PathBuf> {
    let beside = profile_directory()?.join(package);
    if beside.is_file() {
        Ok(beside)
    } else {
        build_binary(package, package)
    }
}

/// `cargo build` of one binary in the profile this program was built with; its progress goes to
/// stderr.
pub fn build_binary(package: &str, binary: &str) -> io::Result<PathBuf> {
    build(&[package], &[binary])?;
    Ok(profile_directory()?.join(binary))
}

/// The same for several packages whose binaries have their names, in one go.
pub fn build_binaries(packages: &[&str]) -> io::Result<Vec<PathBuf>> {
    build(packages, packages)?;
    let directory = profile_directory()?;
    Ok(packages.iter().map(|name| directory.join(name)).collect())
}

fn build(packages: &[&str], binaries: &[&str]) -> io::Result<()> {
    let directory = profile_directory()?;
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        // Set for this process by .cargo/config.toml. A cargo that finds it set takes that for a change, and the two would
        // compile ring, zstd and all above them in turn for ever.
        .env_remove("CFLAGS")
        .args(["build", "--profile", profile])
        .args(packages.iter().flat_map(|name| ["--package", name]))
        .args(binaries.iter().flat_map(|name| ["--bin", name]))
        .current_dir(root())
        .status()?;
    if status.success() {
        return Ok(());
    }
    let packages = packages.join(", ");
    Err(io::Error::other(format!(
        "cargo build of {packages} failed ({status})"
    )))
}

/// `target/debug` for `target/debug/demo` and for `target/debug/deps/it-0123` alike.
fn profile_directory() -> io::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let directory = executable.parent().unwrap_or(Path::new("/"));
    let inner = ["deps", "examples"]
        .iter()
        .any(|inner| directory.ends_with(inner));
    let directory = if inner {
        directory.parent().unwrap_or(directory)
    } else {
        directory
    };
    Ok(directory.to_path_buf())
}
