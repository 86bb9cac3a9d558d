//! What all servers have in common: they can be broken and brought back.
//!
//! In: a program and a test of readiness. Out: a server that answers, on the same data and port
//! after every restart.
//! Must hold: `start` returns only when the server answers, `kill` and `stop` only when it is gone.

pub(crate) mod nats;
pub(crate) mod nginx;
pub(crate) mod postgres;
pub(crate) mod redis;
mod template;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use crate::eventually::within;
use crate::process::Process;
use crate::program::Program;

/// From process start to the first answer; recovery after `kill` is included.
const START_DEADLINE: Duration = Duration::from_mins(1);
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// Controls that PostgreSQL, NATS and Redis share. They panic with the server's log when the
/// server does not do as it is told.
pub struct Server {
    program: Program,
    /// Asks for an orderly end that waits for no client.
    stop_signal: Signal,
    /// Asks for a quick end when nobody needs the data any more.
    drop_signal: Signal,
    /// `Err` says what is still missing.
    ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// `None` while stopped.
    running: Mutex<Option<Process>>,
}

/// A server that did not come up.
#[derive(Debug, thiserror::Error)]
#[error("{name} did not start: {reason}\n{log_tail}")]
pub struct StartError {
    name: String,
    reason: String,
    log_tail: String,
}

impl Server {
    pub(crate) fn new(
        program: Program,
        stop_signal: Signal,
        drop_signal: Signal,
        ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            program,
            stop_signal,
            drop_signal,
            ready: Box::new(ready),
            running: Mutex::new(None),
        }
    }

    /// Starts it on its data and port, and waits until it answers. Nothing to do when it runs.
    #[track_caller]
    pub fn start(&self) {
        if let Err(error) = self.try_start() {
            panic!("{error}");
        }
    }

    /// Starts it and returns at once: for a cluster node, which is ready only among a majority.
    #[track_caller]
    pub fn start_unready(&self) {
        if let Err(error) = self.launch() {
            panic!("{error}");
        }
    }

    pub(crate) fn try_start(&self) -> Result<(), StartError> {
        self.launch()?;
        self.wait_ready()
    }

    pub(crate) fn launch(&self) -> Result<(), StartError> {
        let mut running = self.running();
        if running.as_ref().is_some_and(Process::is_running) {
            return Ok(());
        }
        let process = self.program.try_start();
        *running = Some(process.map_err(|error| self.start_error(error.to_string()))?);
        Ok(())
    }

    pub(crate) fn wait_ready(&self) -> Result<(), StartError> {
        let running = self.running();
        let process = running
            .as_ref()
            .ok_or_else(|| self.start_error("stopped".to_owned()))?;
        let outcome = within(START_DEADLINE, || {
            // An ended process will not become ready: that is an answer, not a state.
            if let Some(status) = process.exit_status() {
                return Ok(Some(status));
            }
            (self.ready)().map(|()| None)
        });
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.start_error(format!("it ended ({status})"))),
            Err(state) => Err(self.start_error(format!("not within {START_DEADLINE:?}: {state}"))),
        }
    }

    fn start_error(&self, reason: String) -> StartError {
        let name = self.program.name().to_owned();
        StartError {
            name,
            reason,
            log_tail: self.log_tail(),
        }
    }

    /// SIGKILL to all its processes: a crash. Returns when they are gone.
    pub fn kill(&self) {
        if let Some(process) = self.running().take() {
            process.kill();
        }
    }

    /// SIGSTOP to all its processes: connections stay open and nobody answers.
    #[track_caller]
    pub fn pause(&self) {
        if let Some(process) = self.running().as_ref() {
            process.pause();
        }
    }

    /// SIGCONT after [`pause`](Self::pause).
    pub fn resume(&self) {
        if let Some(process) = self.running().as_ref() {
            process.resume();
        }
    }

    /// An orderly shutdown; returns when it is gone.
    #[track_caller]
    pub fn stop(&self) {
        self.quit(self.stop_signal);
    }

    /// Another signal than [`stop`](Self::stop) sends, such as that of PostgreSQL's immediate shutdown; returns when it
    /// is gone.
    #[track_caller]
    pub fn quit(&self, signal: Signal) {
        if let Some(process) = self.running().take() {
            process.resume();
            process.signal(signal);
            process.wait(STOP_DEADLINE);
        }
    }

    #[track_caller]
    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// `None` while stopped.
    pub fn pid(&self) -> Option<u32> {
        self.running().as_ref().map(Process::pid)
    }

    pub fn is_running(&self) -> bool {
        self.running().as_ref().is_some_and(Process::is_running)
    }

    /// The last lines of its log, for people.
    pub fn log_tail(&self) -> String {
        self.program.log_tail()
    }

    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = self.running().take() {
            process.resume();
            process.signal(self.drop_signal);
            // Dropping the process kills what did not end.
            process.wait_within(STOP_DEADLINE);
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.program.name())
            .finish_non_exhaustive()
    }
}
