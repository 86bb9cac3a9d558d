//! `processor`: see `processor --help`.

use clap::Parser;
use daemon::shutdown::Shutdown;
use daemon::telemetry;
use processor::config::{Command, Config};
use processor::dlq;
use processor::supervisor::Processor;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    telemetry::init(config.log_format, "info");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        if let Some(Command::Dlq { action }) = &config.command {
            return dlq::run(action, &config.connections, &mut std::io::stdout()).await;
        }
        let shutdown = Shutdown::on_signals()?;
        let processor = Processor::bind(config, shutdown).await?;
        tracing::info!(address = %processor.local_addr()?, "listening");
        Ok(processor.run().await?)
    })
}
