//! Messages by the batch.
//!
//! In: a source that is asked for messages. Out: batches of them, in order.
//! Invariant: no message waits behind silence; under load a batch is asked for [`PACE`] after the one before, or at once
//! when that one was full. What was asked for and did not come yet is in here, so a wait may be given up.
//!
//! A transaction has a price however few rows are in it, and so has every message that wakes two processes: under load
//! nothing is asked for until a batch is due, and then all that is there. Of 17,000 writes a second over HTTP this saves
//! nats-server and this process 3 us each, beside a request for many messages that were delivered one by one as they came
//! (cargo bench-services, 2 cores).

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

/// Between two batches when there are many writers. 25 ms would save another 2 us a write.
const PACE: Duration = Duration::from_millis(10);
/// So many messages in one batch come from several writers; one that waits for each of its writes is not held up.
const MANY: usize = 8;

/// Where messages come from.
pub trait Source {
    /// A message.
    type Message;
    /// It cannot be asked.
    type Error;

    /// Asks for messages. Asks nothing when it is dropped before it is ready.
    fn ask(&mut self, ask: Ask) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// What comes next of what was asked for last. Loses nothing when it is dropped before it is ready.
    fn next(&mut self) -> impl Future<Output = Result<Next<Self::Message>, Self::Error>> + Send;
}

/// What to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// At most so many that are there now.
    Present(usize),
    /// At most so many, as they come.
    Coming(usize),
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<M> {
    /// A message.
    Message(M),
    /// No more messages for this ask: there are none, or it is too old.
    End,
    /// No more messages for this ask: they are too large together.
    Full,
}

/// See the module.
#[derive(Debug)]
pub struct Batches<S: Source> {
    source: S,
    batch_max: usize,
    gathered: Vec<S::Message>,
    /// What was asked for, less what came of it.
    asked: Option<Ask>,
    is_full: bool,
    /// Whether messages are expected to be there.
    is_loaded: bool,
    /// No batch that could still grow before this.
    not_before: Instant,
}

impl Ask {
    fn less_one(self) -> Option<Self> {
        match self {
            Self::Present(0 | 1) | Self::Coming(0 | 1) => None,
            Self::Present(left) => Some(Self::Present(left - 1)),
            Self::Coming(left) => Some(Self::Coming(left - 1)),
        }
    }
}

impl<S: Source> Batches<S> {
    /// Batches of at most `batch_max` messages, not 0.
    pub fn new(source: S, batch_max: usize) -> Self {
        Self {
            source,
            batch_max,
            gathered: Vec::new(),
            asked: None,
            is_full: false,
            is_loaded: true,
            not_before: Instant::now(),
        }
    }

    /// The next batch; it is not empty. Loses nothing when it is dropped before it is ready.
    pub async fn next(&mut self) -> Result<Vec<S::Message>, S::Error> {
        loop {
            if self.is_full {
                // The next one is on its way while this one is applied.
                self.ask(Ask::Present(self.batch_max)).await?;
                self.is_full = false;
                return Ok(self.batch());
            }
            let next = match self.asked {
                None if self.is_loaded => {
                    tokio::time::sleep_until(self.not_before).await;
                    self.ask(Ask::Present(self.batch_max)).await?;
                    continue;
                }
                None => {
                    self.ask(Ask::Coming(MANY.min(self.batch_max))).await?;
                    continue;
                }
                Some(Ask::Coming(_)) if !self.gathered.is_empty() => {
                    match self.source.next().now_or_never() {
                        Some(next) => next?,
                        None => return Ok(self.batch()),
                    }
                }
                Some(_) => self.source.next().await?,
            };
            if self.take(next) {
                return Ok(self.batch());
            }
        }
    }

    /// Takes in what came; whether a batch is ready, unless [`Self::is_full`] says so.
    fn take(&mut self, next: Next<S::Message>) -> bool {
        match (next, self.asked) {
            (Next::Message(message), asked) => {
                self.gathered.push(message);
                self.asked = asked.and_then(Ask::less_one);
                let has_all = self.asked.is_none();
                self.is_loaded |= has_all;
                self.is_full = has_all && matches!(asked, Some(Ask::Present(_)));
                has_all && !self.is_full
            }
            (Next::Full, _) if !self.gathered.is_empty() => {
                self.asked = None;
                self.is_full = true;
                false
            }
            // One that is too large even alone comes when it is asked for with no limit.
            (Next::End | Next::Full, _) => {
                self.asked = None;
                self.is_loaded = MANY <= self.gathered.len();
                !self.gathered.is_empty()
            }
        }
    }

    async fn ask(&mut self, ask: Ask) -> Result<(), S::Error> {
        self.source.ask(ask).await?;
        self.asked = Some(ask);
        Ok(())
    }

    fn batch(&mut self) -> Vec<S::Message> {
        if MANY <= self.gathered.len() {
            self.not_before = Instant::now() + PACE;
        }
        std::mem::take(&mut self.gathered)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use tokio::sync::Notify;

    use super::*;

    /// A queue of numbers, each of as many bytes as it says, that an ask may have 1 MiB of.
    #[derive(Debug, Default)]
    struct Queue {
        numbers: Mutex<VecDeque<u32>>,
        changed: Notify,
        asks: Mutex<Vec<Ask>>,
    }

    struct Consumer {
        queue: Arc<Queue>,
        asked: Option<(Ask, u32)>,
    }

    impl Source for Consumer {
        type Message = u32;
        type Error = Infallible;

        async fn ask(&mut self, ask: Ask) -> Result<(), Infallible> {
            self.queue.asks.lock().unwrap().push(ask);
            self.asked = Some((ask, 1 << 20));
            Ok(())
        }

        async fn next(&mut self) -> Result<Next<u32>, Infallible> {
            loop {
                let (ask, bytes) = self.asked.expect("asked");
                let number = self.queue.numbers.lock().unwrap().front().copied();
                match (number, ask) {
                    (Some(number), Ask::Present(_)) if bytes < number => return Ok(Next::Full),
                    (Some(number), _) => {
                        self.queue.numbers.lock().unwrap().pop_front();
                        let bytes = bytes.saturating_sub(number);
                        self.asked = ask.less_one().map(|ask| (ask, bytes));
                        return Ok(Next::Message(number));
                    }
                    (None, Ask::Present(_)) => return Ok(Next::End),
                    (None, Ask::Coming(_)) => self.queue.changed.notified().await,
                }
            }
        }
    }

    fn queue() -> (Arc<Queue>, Batches<Consumer>) {
        let queue = Arc::new(Queue::default());
        let consumer = Consumer {
            queue: queue.clone(),
            asked: None,
        };
        (queue, Batches::new(consumer, 500))
    }

    fn send(queue: &Queue, numbers: std::ops::Range<u32>) {
        queue.numbers.lock().unwrap().extend(numbers);
        queue.changed.notify_one();
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_who_waits_for_each_write_is_not_held_up() {
        let (queue, mut batches) = queue();
        let began = Instant::now();

        for number in 0..100 {
            send(&queue, number..number + 1);
            assert_eq!(batches.next().await.unwrap(), [number]);
        }

        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn behind_many_messages_the_next_batch_is_asked_for_when_it_is_due() {
        let (queue, mut batches) = queue();
        let began = Instant::now();
        send(&queue, 0..20);
        assert_eq!(batches.next().await.unwrap().len(), 20);
        assert_eq!(began.elapsed(), Duration::ZERO);

        let feed = async {
            for millisecond in 1..40 {
                send(&queue, millisecond * 20..millisecond * 20 + 20);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let (batch, ()) = tokio::join!(batches.next(), feed);

        let batch = batch.unwrap();
        assert!((180..=220).contains(&batch.len()), "{}", batch.len());
        assert!(batch.is_sorted());
        let asks = queue.asks.lock().unwrap();
        assert_eq!(*asks, [Ask::Present(500), Ask::Present(500)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_is_followed_by_the_next_at_once() {
        let (queue, mut batches) = queue();
        send(&queue, 0..1700);
        let began = Instant::now();

        for _ in 0..3 {
            assert_eq!(batches.next().await.unwrap().len(), 500);
        }

        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(batches.next().await.unwrap().len(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn large_messages_make_small_batches_and_too_large_ones_come_alone() {
        let (queue, mut batches) = queue();
        let (small, large, too_large) = (1000, 1 << 19, 1 << 21);
        let numbers = [small, large, large, small, too_large];
        queue.numbers.lock().unwrap().extend(numbers);

        assert_eq!(batches.next().await.unwrap(), [small, large]);
        assert_eq!(batches.next().await.unwrap(), [large, small]);
        assert_eq!(batches.next().await.unwrap(), [too_large]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_writers_end_the_wait_for_single_messages() {
        let (queue, mut batches) = queue();
        send(&queue, 0..1);
        assert_eq!(batches.next().await.unwrap(), [0]);

        send(&queue, 1..30);
        let first = batches.next().await.unwrap();
        assert_eq!(first, (1..9).collect::<Vec<_>>());
        assert_eq!(batches.next().await.unwrap(), (9..30).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_survives_a_wait_that_is_given_up() {
        let (queue, mut batches) = queue();
        send(&queue, 0..20);
        batches.next().await.unwrap();
        send(&queue, 20..25);

        let given_up = tokio::time::timeout(PACE / 2, batches.next()).await;
        assert!(given_up.is_err());

        assert_eq!(batches.next().await.unwrap(), [20, 21, 22, 23, 24]);
    }
}
