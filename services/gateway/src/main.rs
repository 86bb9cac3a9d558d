//! `gateway`: see `gateway --help`.

use clap::Parser;
use daemon::shutdown::Shutdown;
use daemon::telemetry;
use gateway::Server;
use gateway::config::Config;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    telemetry::init(config.log_format, "info");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads())
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        let server = Server::bind(&config, shutdown).await?;
        tracing::info!(address = %server.local_addr()?, nats = %config.nats.options()?, "listening");
        server.run().await;
        Ok(())
    })
}
