//! `cargo demo`: the whole road on this machine, in one command.
//!
//! In: nothing but a checkout. Out: every step's SQL beside the events it caused, and a summary.
//! Must hold: the events are checked, not only shown (none missing, none twice, in order), and
//! however it ends no process and no directory is left behind.

mod circle;
mod event;
mod feed;
mod script;
mod summary;
mod value;
mod world;

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use feed::Feed;
use summary::Summary;
use world::World;

const HELP: &str = "\
Starts PostgreSQL, nats-server, Redis, the bridge and the services, writes rows, and shows each event they cause;
then one write over HTTP on its way through all of them.

    cargo demo             stays up afterwards, until Ctrl-C
    cargo demo -- --once   ends with the summary: exit status 0 if every event arrived, else 1
";

fn main() -> ExitCode {
    let arguments: Vec<_> = stack::arguments()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let stays_up = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => true,
        ["--once"] => false,
        ["--help" | "-h"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("unknown arguments: {arguments:?}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(stays_up)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every event arrived. Ends early, and orderly, at Ctrl-C.
async fn run(stays_up: bool) -> anyhow::Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    tokio::pin!(stop);

    let mut building = tokio::task::spawn_blocking(World::build);
    let world = tokio::select! {
        world = &mut building => world??,
        () = &mut stop => {
            println!("\nstopping as soon as the servers can be stopped");
            drop(building.await);
            return Ok(false);
        }
    };
    let is_complete = tokio::select! {
        shown = show(&world, stays_up) => shown,
        () = &mut stop => Ok(true),
    };
    // A process that ended is the better explanation of a feed that failed.
    world.stop()?;
    is_complete
}

async fn show(world: &World, stays_up: bool) -> anyhow::Result<bool> {
    let mut feed = Feed::open(world).await?;
    let (client, connection) =
        tokio_postgres::connect(&world.stack.postgres().url(), tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    let mut summary = Summary::default();
    script::play(&client, &mut feed, &mut summary).await?;
    drop(client);
    connection.await??;
    circle::show(world, &mut feed, &mut summary).await?;

    summary.stored = feed.stored().await?;
    print!("{summary}");
    if !stays_up {
        return Ok(summary.is_complete());
    }
    print!("{}", world.directions());
    // What the reader of the demo now writes with `psql`.
    loop {
        println!("{}", feed.next().await?);
    }
}
