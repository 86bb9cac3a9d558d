//! The temporary directory a stack lives in.
//!
//! In: nothing. Out: a directory an unprivileged PostgreSQL can enter.
//! Must hold: it is removed on drop, except while a test is failing; then its path is printed. The
//! directory of a process that was killed is removed by the next one that makes a stack.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::Error;

const PREFIX: &str = "stack-";
/// Locked while its process lives; absent in a directory that is to be kept.
const LOCK: &str = ".lock";

#[derive(Debug)]
pub(crate) struct Home {
    /// `None` only in `drop`.
    directory: Option<tempfile::TempDir>,
    _lock: File,
}

impl Home {
    pub(crate) fn create() -> Result<Self, Error> {
        let parent = temporary_root();
        sweep(&parent);
        let prepare = |source| Error::Prepare {
            path: parent.clone(),
            source,
        };
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&parent)
            .map_err(prepare)?;
        let lock = lock(directory.path()).map_err(prepare)?;
        // PostgreSQL may run as another user and must be able to pass through.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).map_err(prepare)?;
        Ok(Self {
            directory: Some(directory),
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory
            .as_ref()
            .expect("only drop takes the directory")
            .path()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take()
            && std::thread::panicking()
        {
            let _ = fs::remove_file(directory.path().join(LOCK));
            eprintln!("stack: kept {}", directory.keep().display());
        }
    }
}

/// Appears under its name only once it is locked, so that no sweep can be faster.
fn lock(directory: &Path) -> io::Result<File> {
    let unlocked = directory.join(".unlocked");
    let lock = File::create(&unlocked)?;
    lock.lock()?;
    fs::rename(unlocked, directory.join(LOCK))?;
    Ok(lock)
}

/// Removes what processes of this user that were killed have left. Errors are not of interest:
/// another process may sweep at the same time.
fn sweep(parent: &Path) {
    let user = rustix::process::geteuid().as_raw();
    for entry in parent
        .read_dir()
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        let is_named_so = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let is_ours = entry
            .metadata()
            .is_ok_and(|found| found.is_dir() && found.uid() == user);
        if is_named_so
            && is_ours
            && let Ok(lock) = File::open(entry.path().join(LOCK))
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The system's temporary directory, or `/tmp` when others cannot enter that one.
pub(crate) fn temporary_root() -> PathBuf {
    let preferred = std::env::temp_dir();
    if is_enterable_by_all(&preferred) {
        preferred
    } else {
        PathBuf::from("/tmp")
    }
}

/// Whether every directory on the way lets any user through.
pub(crate) fn is_enterable_by_all(path: &Path) -> bool {
    path.ancestors()
        .filter(|ancestor| ancestor.exists())
        .all(|ancestor| {
            fs::metadata(ancestor).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
        })
}
