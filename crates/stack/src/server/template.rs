//! Data directories without waiting for `initdb`.
//!
//! In: an installation. Out: a fresh data directory, copied from one made once per version.
//! Must hold: a copy is never started from a template that a server has touched.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Error;
use crate::install::{self, Installation};
use crate::program::User;

/// Copies the template to `data`, making the template first if there is none. Copies share their
/// system identifier.
pub(crate) fn copy(
    installation: &Installation,
    user: Option<User>,
    data: &Path,
) -> Result<(), Error> {
    // Readable by the server's user alone, so each user has a template of their own.
    let owner = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    let templates = install::cache_root().join("templates");
    let template = templates.join(format!("data-{}-user-{owner}", installation.version));
    let problem = |source| Error::Prepare {
        path: template.clone(),
        source,
    };
    if !template.exists() {
        install::locked(|| {
            if template.exists() {
                return Ok(());
            }
            fs::create_dir_all(&templates)?;
            let making = tempfile::Builder::new()
                .prefix(".making-")
                .tempdir_in(&templates)?;
            give_to(making.path(), user)?;
            initdb(installation, user, &making.path().join("data"))?;
            fs::rename(making.path().join("data"), &template)
        })?;
    }
    let status = Command::new("cp")
        .arg("-a")
        .arg(&template)
        .arg(data)
        .status()
        .map_err(problem)?;
    if status.success() {
        Ok(())
    } else {
        Err(problem(io::Error::other("cp -a failed")))
    }
}

/// A new cluster with a system identifier of its own; takes about a second.
pub(crate) fn initdb(
    installation: &Installation,
    user: Option<User>,
    data: &Path,
) -> io::Result<()> {
    let password = tempfile::NamedTempFile::new()?;
    fs::write(password.path(), "postgres")?;
    give_to(password.path(), user)?;
    let mut command = Command::new(installation.program("initdb"));
    command
        .arg("-D")
        .arg(data)
        .args([
            "--username=postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
        ])
        .arg("--no-sync")
        .arg("--pwfile")
        .arg(password.path())
        .env("LD_LIBRARY_PATH", &installation.libraries)
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "initdb: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

fn give_to(path: &Path, user: Option<User>) -> io::Result<()> {
    match user {
        Some(user) => chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}
