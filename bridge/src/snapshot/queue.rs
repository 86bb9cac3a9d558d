//! Decides which snapshot is made next, and which request shares which.
//!
//! In: requests, cancels, ends. Out: a job to start, and what each requester is told.
//! Invariant: at most `workers_max` run, at most one per table; equal requests share one snapshot;
//! at most `waiting_max` wait.

use std::collections::VecDeque;

use wire::snapshot_request::Options;

/// A snapshot to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub snapshot_id: String,
    pub schema: String,
    /// As the requester named it; not checked yet.
    pub table: String,
    pub options: Options,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A snapshot was put in the queue for it.
    Queued(String),
    /// An equal one waits or runs already.
    Shared(String),
    /// Too many wait.
    Full,
}

/// What a cancel has met.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// It had not begun, and will not.
    Waiting(Box<Job>),
    /// It runs; whoever runs it must stop it.
    Running,
    Unknown,
}

#[derive(Debug)]
pub struct Queue {
    workers_max: usize,
    waiting_max: usize,
    waiting: VecDeque<Job>,
    running: Vec<Job>,
}

impl Queue {
    pub fn new(workers_max: usize, waiting_max: usize) -> Self {
        Self {
            workers_max,
            waiting_max,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// `id` names the snapshot if a new one is needed.
    pub fn request(
        &mut self,
        schema: &str,
        table: &str,
        options: &Options,
        id: impl FnOnce() -> String,
    ) -> Answer {
        if let Some(id) = self.equal(schema, table, options) {
            return Answer::Shared(id.to_owned());
        }
        if self.waiting.len() >= self.waiting_max {
            return Answer::Full;
        }
        let snapshot_id = id();
        self.waiting.push_back(Job {
            snapshot_id: snapshot_id.clone(),
            schema: schema.to_owned(),
            table: table.to_owned(),
            options: options.clone(),
        });
        Answer::Queued(snapshot_id)
    }

    /// Id of the snapshot, waiting or running, that such a request would share.
    pub fn equal(&self, schema: &str, table: &str, options: &Options) -> Option<&str> {
        let mut all = self.running.iter().chain(&self.waiting);
        let equal =
            all.find(|job| job.schema == schema && job.table == table && job.options == *options);
        equal.map(|job| job.snapshot_id.as_str())
    }

    /// The next one to start, if a worker is free. Counts as running from now on.
    pub fn start(&mut self) -> Option<Job> {
        if self.running.len() >= self.workers_max {
            return None;
        }
        let running = &self.running;
        let is_free = |job: &Job| {
            !running
                .iter()
                .any(|other| other.schema == job.schema && other.table == job.table)
        };
        let index = self.waiting.iter().position(is_free)?;
        let job = self.waiting.remove(index)?;
        self.running.push(job.clone());
        Some(job)
    }

    /// A snapshot of this id is no longer running.
    pub fn ended(&mut self, snapshot_id: &str) {
        self.running.retain(|job| job.snapshot_id != snapshot_id);
    }

    pub fn cancel(&mut self, snapshot_id: &str) -> Cancelled {
        let index = self
            .waiting
            .iter()
            .position(|job| job.snapshot_id == snapshot_id);
        if let Some(job) = index.and_then(|index| self.waiting.remove(index)) {
            return Cancelled::Waiting(Box::new(job));
        }
        if self.runs(snapshot_id) {
            Cancelled::Running
        } else {
            Cancelled::Unknown
        }
    }

    /// Whether it waits or runs.
    pub fn knows(&self, snapshot_id: &str) -> bool {
        self.waiting
            .iter()
            .any(|job| job.snapshot_id == snapshot_id)
            || self.runs(snapshot_id)
    }

    /// Whether any snapshot of the table waits or runs.
    pub fn concerns(&self, schema: &str, table: &str) -> bool {
        let mut all = self.running.iter().chain(&self.waiting);
        all.any(|job| job.schema == schema && job.table == table)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    fn runs(&self, snapshot_id: &str) -> bool {
        self.running
            .iter()
            .any(|job| job.snapshot_id == snapshot_id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::snapshot_request::Values;

    use super::*;

    fn ask(queue: &mut Queue, table: &str, id: &str) -> Answer {
        queue.request("public", table, &Options::default(), || id.to_owned())
    }

    #[test]
    fn ten_thousand_requests_make_one_snapshot() {
        let mut queue = Queue::new(1, 64);
        assert_eq!(ask(&mut queue, "users", "a"), Answer::Queued("a".into()));
        queue.start().unwrap();

        for _ in 0..10_000 {
            assert_eq!(ask(&mut queue, "users", "b"), Answer::Shared("a".into()));
        }
        queue.ended("a");

        assert_eq!(queue.start(), None);
    }

    #[test]
    fn a_table_is_read_once_at_a_time_and_others_overtake() {
        let mut queue = Queue::new(2, 64);
        let typed = Options {
            values: Values::Typed,
            ..Options::default()
        };
        ask(&mut queue, "users", "a");
        queue.request("public", "users", &typed, || "b".to_owned());
        ask(&mut queue, "orders", "c");

        assert_eq!(queue.start().unwrap().snapshot_id, "a");
        assert_eq!(queue.start().unwrap().snapshot_id, "c");
        queue.ended("a");
        assert_eq!(queue.start().unwrap().snapshot_id, "b");
    }

    #[test]
    fn a_cancel_finds_what_waits_and_what_runs() {
        let mut queue = Queue::new(1, 64);
        ask(&mut queue, "users", "a");
        ask(&mut queue, "orders", "b");
        queue.start();

        assert!(matches!(queue.cancel("b"), Cancelled::Waiting(job) if job.table == "orders"));
        assert_eq!(queue.cancel("a"), Cancelled::Running);
        assert_eq!(queue.cancel("z"), Cancelled::Unknown);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut queue = Queue::new(1, 2);
        ask(&mut queue, "a", "1");
        ask(&mut queue, "b", "2");

        assert_eq!(ask(&mut queue, "c", "3"), Answer::Full);
        assert_eq!(ask(&mut queue, "a", "4"), Answer::Shared("1".into()));
    }

    proptest! {
        #[test]
        fn the_limits_hold_in_any_order(
            workers in 1_usize..4,
            steps in prop::collection::vec((0_u8..4, 0_u8..5), 0..200),
        ) {
            let mut queue = Queue::new(workers, 8);
            let mut running: Vec<Job> = Vec::new();
            for (index, (step, table)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        ask(&mut queue, &format!("t{table}"), &format!("s{index}"));
                    }
                    2 => running.extend(queue.start()),
                    _ => if let Some(job) = running.pop() { queue.ended(&job.snapshot_id) },
                }
                let mut tables: Vec<_> = running.iter().map(|job| &job.table).collect();
                tables.sort();
                tables.dedup();
                prop_assert_eq!(tables.len(), running.len(), "one per table");
                prop_assert!(running.len() <= workers);
                prop_assert!(queue.waiting() <= 8);
            }
        }
    }
}
