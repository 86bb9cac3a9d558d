//! Boots one of everything, prints where it is, and stops at Ctrl-C.
//!
//! In: nothing. Out: URLs on stdout.
//! Must hold: Ctrl-C leaves no process and no directory behind.

use stack::{Options, Stack};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let stack = Stack::up(Options::default().schema(true).redis(true))?;
    let (postgres, nats) = (stack.postgres(), stack.nats());
    println!("PostgreSQL {:10} {}", postgres.version(), postgres.url());
    println!("nats-server {:9} {}", nats.version(), nats.url());
    println!("  monitoring          http://{}", nats.monitoring_addr());
    println!("redis-server          {}", stack.redis().url());
    println!("logs and data         {}", stack.dir().display());
    println!("Ctrl-C stops everything.");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        Ok::<(), std::io::Error>(())
    })?;
    Ok(())
}
