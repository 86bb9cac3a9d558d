//! `mirror`: see `mirror --help`.

use clap::Parser as _;
use daemon::shutdown::Shutdown;
use daemon::telemetry;
use mirror::config::Config;
use mirror::keeper::Keeper;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    telemetry::init(config.log_format, "info");
    // SQLite blocks this thread; the NATS client goes on in the other.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        tracing::info!(nats = %config.nats()?, db = %config.db.display(), "starting");
        let mut keeper = Keeper::open(config).await?;
        tokio::select! {
            biased;
            _ = shutdown.wait() => {}
            kept = keeper.run() => kept?,
        }
        Ok(())
    })
}
