//! Directories of servers, set aside and put back.

use std::path::Path;
use std::process::Command;

/// Copies a file, or everything in a directory, to this name, with owners and modes (PostgreSQL insists on them). Panics
/// when it cannot.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-aT").args([from, to]).status();
    let is_copied = status.is_ok_and(|status| status.success());
    assert!(is_copied, "cp -aT {} {}", from.display(), to.display());
}
