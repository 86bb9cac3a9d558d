//! Tells every task and thread of the process, once, that it is time to drain.
//!
//! In: SIGINT, SIGTERM or a request. Out: a handle that can be awaited or polled. What must hold: a trigger cannot be
//! missed or taken back, and an impatient operator (a second signal) always gets out.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// What asked the process to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// SIGINT, the terminal's Ctrl-C.
    Interrupt,
    /// SIGTERM, the service manager.
    Terminate,
    /// The program itself, for the reason given: `POST /shutdown`, or a task that ended.
    Request(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupt => formatter.write_str("SIGINT"),
            Self::Terminate => formatter.write_str("SIGTERM"),
            Self::Request(why) => formatter.write_str(why),
        }
    }
}

/// One handle for the whole process; clones are the same handle.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    triggered: AtomicBool,
    reason: watch::Sender<Option<Reason>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A handle that nothing triggers but [`Shutdown::trigger`].
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            triggered: AtomicBool::new(false),
            reason: watch::Sender::new(None),
        }))
    }

    /// A handle that SIGINT and SIGTERM trigger; the handlers stand when this returns. The second signal of either kind
    /// ends the process at once with 128 + its number (130, 143). Call it once, inside a tokio runtime.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let handle = shutdown.clone();
        tokio::spawn(async move {
            let mut signals_seen = 0_u32;
            loop {
                let (reason, exit_code) = tokio::select! {
                    _ = interrupt.recv() => (Reason::Interrupt, 130),
                    _ = terminate.recv() => (Reason::Terminate, 143),
                };
                signals_seen += 1;
                if signals_seen == 2 {
                    tracing::warn!(%reason, exit_code, "second signal, exit without draining");
                    std::process::exit(exit_code);
                }
                handle.trigger(reason);
            }
        });
        Ok(shutdown)
    }

    /// Starts the shutdown. The first reason stays; returns whether this was it.
    pub fn trigger(&self, reason: Reason) -> bool {
        self.0.reason.send_if_modified(|current| {
            if current.is_some() {
                return false;
            }
            tracing::info!(%reason, "shutting down");
            *current = Some(reason);
            self.0.triggered.store(true, Ordering::Release);
            true
        })
    }

    /// One atomic load: for threads without a runtime, as often as they like.
    pub fn is_triggered(&self) -> bool {
        self.0.triggered.load(Ordering::Acquire)
    }

    /// Why, once it was triggered.
    pub fn reason(&self) -> Option<Reason> {
        self.0.reason.borrow().clone()
    }

    /// Returns when the shutdown has begun, at once if it already has. Cancel safe.
    pub async fn wait(&self) -> Reason {
        let mut receiver = self.0.reason.subscribe();
        let reason = receiver.wait_for(Option::is_some).await;
        reason
            .expect("self holds the sender, so the channel is open")
            .clone()
            .expect("wait_for returns when there is a reason")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_waiter_hears_it_early_or_late() {
        let shutdown = Shutdown::new();
        let early = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait().await }
        });

        assert!(!shutdown.is_triggered());
        assert!(shutdown.trigger(Reason::Request("POST /shutdown".to_owned())));

        assert_eq!(early.await.unwrap().to_string(), "POST /shutdown");
        assert_eq!(shutdown.wait().await.to_string(), "POST /shutdown");
        assert!(shutdown.is_triggered());
    }

    #[tokio::test]
    async fn the_first_reason_stays() {
        let shutdown = Shutdown::new();

        assert!(shutdown.trigger(Reason::Terminate));
        assert!(!shutdown.trigger(Reason::Interrupt));

        assert_eq!(shutdown.reason(), Some(Reason::Terminate));
    }

    #[test]
    fn a_plain_thread_sees_it() {
        let shutdown = Shutdown::new();
        let thread = std::thread::spawn({
            let shutdown = shutdown.clone();
            move || {
                while !shutdown.is_triggered() {
                    std::thread::yield_now();
                }
            }
        });

        shutdown.trigger(Reason::Interrupt);

        thread.join().unwrap();
    }
}
