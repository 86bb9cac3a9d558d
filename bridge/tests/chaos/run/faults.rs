//! What breaks.
//!
//! In: dice. Out: one fault after another, some on top of each other. Must hold: every fault ends what it
//! began, so that after `heal` nothing is broken.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stack::{Direction, Relay, Signal};

use super::Plan;
use super::dice::Dice;
use super::world::{STREAM, World};

pub struct Faults<'a> {
    world: &'a World,
    dice: Dice,
    is_loud: bool,
    started: Instant,
    played: BTreeMap<String, u32>,
}

/// What a fault hits. No two at a time hit the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Bridge(usize),
    Nats(usize),
    Postgres,
    NatsRelay(usize),
    PostgresRelay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    /// PostgreSQL's immediate shutdown; the others have none.
    Quit,
    Stop,
    Pause,
    /// Paused for so long that PostgreSQL gives its slot to another.
    TakeOver,
    StepDown,
    Cut,
    StallToServer,
    StallToClient,
    Stall,
    Delay,
    /// The walsender ends, as an administrator may have it.
    Terminate,
}

impl<'a> Faults<'a> {
    pub fn new(world: &'a World, dice: Dice, plan: &Plan) -> Self {
        Self {
            world,
            dice,
            is_loud: plan.is_loud,
            started: Instant::now(),
            played: BTreeMap::new(),
        }
    }

    pub fn count(&self) -> u32 {
        self.played.values().sum()
    }

    pub fn summary(&self) -> String {
        let all: Vec<_> = self
            .played
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        all.join(", ")
    }

    /// One fault, perhaps with others on top, and a while of peace.
    pub fn play(&mut self) {
        self.strike(&mut Vec::new());
        let peace = if self.dice.percent(50) {
            0..300
        } else {
            0..3_000
        };
        let peace = self.dice.millis(peace);
        std::thread::sleep(peace);
        for bridge in self.world.bridges() {
            bridge.must_run();
        }
    }

    /// Whatever is down or stands still comes back.
    pub fn heal(&self) {
        for node in self.world.nats_nodes() {
            node.resume();
            node.start_unready();
        }
        self.world.postgres().resume();
        self.world.postgres().start();
        for relay in &self.world.nats_relays {
            relay.heal();
        }
        self.world.postgres_relay.heal();
        for bridge in self.world.bridges() {
            bridge.resume();
            bridge.start();
        }
    }

    fn strike(&mut self, under: &mut Vec<Victim>) {
        let victim = self.victim();
        if under.contains(&victim) {
            return;
        }
        let mut fault = self.fault(victim);
        if victim == Victim::Postgres && fault == Fault::Stop && !under.is_empty() {
            // An orderly shutdown waits for a bridge that cannot hear of it.
            fault = Fault::Quit;
        }
        let nodes = self.world.nats_nodes().len();
        let kind = match victim {
            Victim::Bridge(_) => "bridge",
            Victim::Nats(_) => "nats",
            Victim::Postgres => "postgres",
            Victim::NatsRelay(_) => "road to nats",
            Victim::PostgresRelay => "road to postgres",
        };
        *self.played.entry(format!("{kind} {fault:?}")).or_default() += 1;
        // Sometimes longer than the bridge waits for an ack.
        let longest = match self.dice.within(0..100) {
            // Longer than a cluster waits before it elects another leader.
            0..20 if nodes > 1 && fault == Fault::Pause => 16_000,
            0..15 => 7_000,
            _ => 1_500,
        };
        let lasts = self.dice.millis(0..longest);
        if self.is_loud {
            eprintln!(
                "{:8.3} {victim:?} {fault:?} for {lasts:?}",
                self.started.elapsed().as_secs_f64()
            );
        }
        self.begin(victim, fault);
        std::thread::sleep(lasts / 2);
        if self.dice.percent(30) {
            under.push(victim);
            self.strike(under);
            under.pop();
        }
        std::thread::sleep(lasts / 2);
        self.end(victim, fault);
    }

    fn victim(&mut self) -> Victim {
        let bridges = self.world.bridges().len() as u64;
        let nodes = self.world.nats_nodes().len() as u64;
        match self.dice.within(0..100) {
            0..30 => Victim::Bridge(self.dice.within(0..bridges) as usize),
            // Mostly the leader, which is who matters.
            30..60 if nodes > 1 && self.dice.percent(75) => {
                let any = self.dice.within(0..nodes) as usize;
                Victim::Nats(self.world.leader().unwrap_or(any))
            }
            30..60 => Victim::Nats(self.dice.within(0..nodes) as usize),
            60..75 => Victim::Postgres,
            75..90 => Victim::NatsRelay(self.dice.within(0..nodes) as usize),
            _ => Victim::PostgresRelay,
        }
    }

    fn fault(&mut self, victim: Victim) -> Fault {
        let relay = [
            Fault::Cut,
            Fault::Cut,
            Fault::StallToServer,
            Fault::StallToClient,
            Fault::Stall,
            Fault::Delay,
        ];
        match victim {
            Victim::Bridge(_) if self.world.bridges().len() > 1 => {
                self.dice
                    .pick(&[Fault::Kill, Fault::Stop, Fault::Pause, Fault::TakeOver])
            }
            Victim::Bridge(_) => {
                self.dice
                    .pick(&[Fault::Kill, Fault::Kill, Fault::Stop, Fault::Pause])
            }
            Victim::Nats(_) if self.world.nats_nodes().len() > 1 => self.dice.pick(&[
                Fault::Kill,
                Fault::Kill,
                Fault::Stop,
                Fault::Pause,
                Fault::StepDown,
            ]),
            Victim::Nats(_) => self.dice.pick(&[Fault::Kill, Fault::Stop, Fault::Pause]),
            Victim::Postgres => self.dice.pick(&[
                Fault::Kill,
                Fault::Quit,
                Fault::Stop,
                Fault::Pause,
                Fault::Terminate,
            ]),
            Victim::NatsRelay(_) | Victim::PostgresRelay => self.dice.pick(&relay),
        }
    }

    fn begin(&mut self, victim: Victim, fault: Fault) {
        let delay = self.dice.millis(1..60);
        match victim {
            Victim::Bridge(index) => {
                let bridge = self.world.bridge(index);
                match fault {
                    Fault::Kill => bridge.kill(),
                    Fault::Stop => bridge.stop(),
                    Fault::TakeOver => {
                        bridge.pause();
                        self.terminate(bridge.slot);
                    }
                    _ => bridge.pause(),
                }
            }
            Victim::Nats(index) => {
                let node = &self.world.nats_nodes()[index];
                match fault {
                    Fault::Kill => node.kill(),
                    Fault::Stop => node.stop(),
                    Fault::StepDown => self.world.api(&format!("STREAM.LEADER.STEPDOWN.{STREAM}")),
                    _ => node.pause(),
                }
            }
            Victim::Postgres => {
                let postgres = self.world.postgres();
                match fault {
                    Fault::Kill => postgres.kill(),
                    Fault::Quit => postgres.quit(Signal::QUIT),
                    Fault::Stop => postgres.stop(),
                    Fault::Terminate => self.terminate(self.world.bridge(0).slot),
                    _ => postgres.pause(),
                }
            }
            Victim::NatsRelay(index) => begin(&self.world.nats_relays[index], fault, delay),
            Victim::PostgresRelay => begin(&self.world.postgres_relay, fault, delay),
        }
    }

    fn end(&self, victim: Victim, fault: Fault) {
        match victim {
            Victim::Bridge(index) => match fault {
                Fault::Kill | Fault::Stop => self.world.bridge(index).start(),
                _ => self.world.bridge(index).resume(),
            },
            Victim::Nats(index) => {
                let node = &self.world.nats_nodes()[index];
                match fault {
                    Fault::Kill | Fault::Stop => node.start_unready(),
                    Fault::StepDown => {}
                    _ => node.resume(),
                }
            }
            Victim::Postgres => match fault {
                Fault::Kill | Fault::Quit | Fault::Stop => self.world.postgres().start(),
                Fault::Terminate => {}
                _ => self.world.postgres().resume(),
            },
            Victim::NatsRelay(index) => self.world.nats_relays[index].heal(),
            Victim::PostgresRelay => self.world.postgres_relay.heal(),
        }
    }

    fn terminate(&self, slot: &str) {
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        self.world.try_sql(&sql);
    }
}

fn begin(relay: &Relay, fault: Fault, delay: Duration) {
    match fault {
        Fault::Cut => relay.cut(),
        Fault::StallToServer => relay.stall(Direction::ToServer),
        Fault::StallToClient => relay.stall(Direction::ToClient),
        Fault::Delay => relay.delay(delay),
        _ => relay.stall(Direction::Both),
    }
}
