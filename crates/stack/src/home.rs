//! The temporary directory a stack lives in.
//!
//! In: nothing. Out: a directory an unprivileged PostgreSQL can enter.
//! Must hold: it is removed on drop, except while a test is failing; then its path is printed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::Error;

#[derive(Debug)]
pub(crate) struct Home(Option<tempfile::TempDir>);

impl Home {
    pub(crate) fn create() -> Result<Self, Error> {
        let parent = temporary_root();
        let prepare = |source| Error::Prepare {
            path: parent.clone(),
            source,
        };
        let directory = tempfile::Builder::new()
            .prefix("stack-")
            .tempdir_in(&parent)
            .map_err(prepare)?;
        // PostgreSQL may run as another user and must be able to pass through.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).map_err(prepare)?;
        Ok(Self(Some(directory)))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0
            .as_ref()
            .expect("only drop takes the directory")
            .path()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(directory) = self.0.take()
            && std::thread::panicking()
        {
            eprintln!("stack: kept {}", directory.keep().display());
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
