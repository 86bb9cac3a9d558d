//! The cache of fetched binaries and prepared data directories, `target/stack/`.
//!
//! In: a function that fills a directory. Out: that directory, complete.
//! Must hold: a directory in the cache is either absent or complete, however many processes fetch
//! at once and whenever one of them is killed: filled elsewhere, renamed into place, under a lock.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Error, Problem};
use crate::home::{is_enterable_by_all, temporary_root};
use crate::workspace;

/// `target/stack`; for root in a private place, such as a clone under `/root`, a directory that
/// the unprivileged user PostgreSQL must run as can enter.
pub(crate) fn root() -> PathBuf {
    let target = workspace::target();
    if rustix::process::geteuid().is_root() && !is_enterable_by_all(&target) {
        temporary_root().join("stack-cache-root")
    } else {
        target.join("stack")
    }
}

/// Runs `fill` on an empty directory and renames that to `directory`, unless another process
/// has done so meanwhile.
pub(crate) fn place(
    directory: &Path,
    fill: impl FnOnce(&Path) -> Result<(), Problem>,
) -> Result<(), Problem> {
    locked(|| {
        if directory.exists() {
            return Ok(Ok(()));
        }
        let parent = directory
            .parent()
            .expect("a cached directory is inside the cache");
        let filling = tempfile::Builder::new()
            .prefix(".filling-")
            .tempdir_in(parent)?;
        fs::set_permissions(filling.path(), Permissions::from_mode(0o755))?;
        if let Err(problem) = fill(filling.path()) {
            return Ok(Err(problem));
        }
        fs::rename(filling.keep(), directory)?;
        Ok(Ok(()))
    })
    .map_err(Problem::Cache)?
}

/// Runs `work` while holding the cache's lock.
pub(crate) fn locked<T>(work: impl FnOnce() -> io::Result<T>) -> Result<T, Error> {
    let root = root();
    let hold = || {
        fs::create_dir_all(&root)?;
        // Someone else's directory at a guessable place under /tmp could hold anything.
        if fs::metadata(&root)?.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "owned by another user",
            ));
        }
        let lock = File::create(root.join(".lock"))?;
        lock.lock()?;
        work()
    };
    hold().map_err(|source| Error::Cache {
        path: root.clone(),
        source,
    })
}
