//! Waiting for a condition with a deadline, instead of sleeping and hoping.
//!
//! In: a probe that looks at the world. Out: what it found.
//! Must hold: when the deadline passes, the panic says what was awaited and what was seen last.

use std::fmt::Display;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// What a probe may return: `Option`, `bool`, or `Result` whose error describes the last state.
pub trait Outcome {
    type Value;
    /// The value waited for, or the state seen instead.
    fn settle(self) -> Result<Self::Value, String>;
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl Outcome for bool {
    type Value = ();
    fn settle(self) -> Result<(), String> {
        if self {
            Ok(())
        } else {
            Err("false".to_owned())
        }
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;
    fn settle(self) -> Result<T, String> {
        self.map_err(|state| state.to_string())
    }
}

/// Probes until there is a value. Panics after `deadline`, naming `what` and the last state.
#[track_caller]
pub fn eventually<O: Outcome>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> O,
) -> O::Value {
    match within(deadline, &mut probe) {
        Ok(value) => value,
        Err(state) => panic!("not within {deadline:?}: {what}; last seen: {state}"),
    }
}

/// [`eventually`] for async probes; needs a tokio runtime with time enabled.
pub async fn eventually_async<O: Outcome>(
    deadline: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> O,
) -> O::Value {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let state = match probe().await.settle() {
            Ok(value) => return value,
            Err(state) => state,
        };
        assert!(
            started.elapsed() < deadline,
            "not within {deadline:?}: {what}; last seen: {state}"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// [`eventually`] that hands back the last state instead of panicking.
pub(crate) fn within<O: Outcome>(
    deadline: Duration,
    mut probe: impl FnMut() -> O,
) -> Result<O::Value, String> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let state = match probe().settle() {
            Ok(value) => return Ok(value),
            Err(state) => state,
        };
        if deadline <= started.elapsed() {
            return Err(state);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_repeated_until_it_finds_something() {
        let mut count = 0;

        let found = eventually(Duration::from_secs(5), "three probes", || {
            count += 1;
            (count == 3).then_some(count)
        });

        assert_eq!(found, 3);
    }

    #[test]
    fn the_last_state_is_in_the_panic() {
        let panic = std::panic::catch_unwind(|| {
            eventually(Duration::ZERO, "ten rows", || Err::<(), _>("nine rows"));
        })
        .unwrap_err();

        let message = panic.downcast_ref::<String>().unwrap();
        assert_eq!(message, "not within 0ns: ten rows; last seen: nine rows");
    }
}
