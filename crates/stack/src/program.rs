//! A program to start: the bridge, a service, or one of the servers.
//!
//! In: path, arguments and environment. Out: a running [`Process`].
//! Must hold: a program can be started again with the same words; output of all runs is appended
//! to the same two files, and each run sees only its own part.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;

use crate::process::{Log, Process};
use crate::spawner;

/// Like [`std::process::Command`], but its children are captured, observed and never left behind.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    directory: PathBuf,
    name: String,
    args: Vec<OsString>,
    /// `None` removes the variable.
    env: Vec<(OsString, Option<OsString>)>,
    user: Option<User>,
    death_signal: &'static str,
}

/// Whom a process runs as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Program {
    /// `directory` receives `{name}.stdout` and `{name}.stderr`; the name is the file name of
    /// `path` unless [`named`](Self::named).
    pub fn new(path: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Self {
            path,
            directory: directory.into(),
            name,
            args: Vec::new(),
            env: Vec::new(),
            user: None,
            death_signal: "KILL",
        }
    }

    /// Two programs in one directory need two names.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    #[must_use]
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.env.push((name.into(), None));
        self
    }

    #[must_use]
    pub(crate) fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// Sent to the process when this one dies; `KILL` unless the program must clean up.
    #[must_use]
    pub(crate) fn death_signal(mut self, signal: &'static str) -> Self {
        self.death_signal = signal;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last lines all its runs have written, for people.
    pub fn log_tail(&self) -> String {
        let mut tail = String::new();
        for stream in ["stdout", "stderr"] {
            let path = self.log_path(stream);
            tail.push_str(&Log { path, from: 0 }.tail(&self.name, stream));
        }
        tail
    }

    /// Panics with the reason when the program cannot be started.
    pub fn start(&self) -> Process {
        self.try_start()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.path.display()))
    }

    pub fn try_start(&self) -> io::Result<Process> {
        // Checked here because `setpriv` would report it on its own standard error.
        std::fs::metadata(&self.path)?;
        let (stdout, stdout_file) = self.log("stdout")?;
        let (stderr, stderr_file) = self.log("stderr")?;
        let mut command = spawner::command(&self.path, self.death_signal);
        command
            .args(&self.args)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(stdout_file)
            .stderr(stderr_file)
            // A group of its own: Ctrl-C in the terminal reaches us, and we stop the child.
            .process_group(0);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        let child = spawner::spawn(command)?;
        Ok(Process::new(self.name.clone(), child, stdout, stderr))
    }

    fn log(&self, stream: &str) -> io::Result<(Log, File)> {
        let path = self.log_path(stream);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let from = file.metadata()?.len();
        Ok((Log { path, from }, file))
    }

    fn log_path(&self, stream: &str) -> PathBuf {
        self.directory.join(format!("{}.{stream}", self.name))
    }
}
