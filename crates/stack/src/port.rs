//! TCP ports for servers that are stopped and started again.
//!
//! In: nothing. Out: a port that stays ours between a server's death and its restart.
//! Must hold: never from the kernel's ephemeral range, where the retrying client of a dead server
//! could be given that very port (or connect to itself); never one that another stack holds.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::home::temporary_root;

const FIRST: u16 = 10_000;
const TRIES_MAX: u32 = 10_000;

/// A port on 127.0.0.1, claimed against other stacks of this user until dropped.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    path: PathBuf,
    /// Locked: processes that die give up their claims.
    _claim: File,
}

impl Port {
    pub(crate) fn claim() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let user = rustix::process::geteuid().as_raw();
        let claims = temporary_root().join(format!("stack-ports-{user}"));
        fs::create_dir_all(&claims)?;
        let span = u32::from(ephemeral_first() - FIRST);
        // Processes start their walk at different places, so that they rarely meet.
        let start = std::process::id().wrapping_mul(97);
        for _ in 0..TRIES_MAX {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = FIRST + (start.wrapping_add(step) % span) as u16;
            let path = claims.join(number.to_string());
            let claim = File::create(&path)?;
            let is_free = || TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok();
            if claim.try_lock().is_ok() && is_same_file(&claim, &path) && is_free() {
                return Ok(Self {
                    number,
                    path,
                    _claim: claim,
                });
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "no free TCP port below the ephemeral range",
        ))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Still locked: whoever opened the file before this locks a file that is no longer there,
        // and finds out by `is_same_file`.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(path)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    file.ino() == path.ino() && file.dev() == path.dev()
}

/// Where the kernel's own choices begin; 32768 where it does not say.
fn ephemeral_first() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|first| *first > FIRST + 1_000)
        .unwrap_or(32_768)
}
