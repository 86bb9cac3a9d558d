//! The daemon: flags in, exit code out.

use std::process::ExitCode;

use bridge::config::Config;
use bridge::{supervisor, tools};

fn main() -> ExitCode {
    let config = Config::from_process();
    daemon::telemetry::init(
        config.log_format,
        if config.tool.is_some() {
            "warn"
        } else {
            "info"
        },
    );
    // One thread for everything but the source and the snapshots: most of the work is system calls,
    // and a second runtime thread would cost memory and wake-ups.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    if let (Some(tool), Ok(runtime)) = (&config.tool, &runtime) {
        return ExitCode::from(runtime.block_on(tools::run(&config, tool)));
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        postgres = %config.postgres,
        nats = %config.nats,
        streams = %format_args!("{},{}", config.cdc_stream, config.init_stream),
        slot = config.slot,
        publications = ?config.publications,
        tables = ?config.tables.names(),
        port = config.port,
        "bridge"
    );
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(supervisor::run(config));
    // Not dropped: tasks still waiting for a server must not hold the exit up.
    runtime.shutdown_background();
    ExitCode::from(code)
}
