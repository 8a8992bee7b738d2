//! A circuit breaker: when a service fails too often, its requests are answered at once for a while, so that it can recover
//! and clients need not wait. Clock and outcomes come from outside; time is counted from any fixed instant.

use std::time::Duration;

use crate::diagnostic::{Diagnostic, brief};
use crate::label::{Value, boolean, duration};

/// The window slides in steps of a tenth.
const STEPS: usize = 10;
const LONGEST: Duration = Duration::from_secs(3600);

/// When the circuit opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Of a hundred answers, so many failed.
    pub percent: u8,
    /// Fewer answers within the window say nothing.
    pub least: u32,
    pub window: Duration,
    pub pause: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker { percent: 50, least: 20, window: Duration::from_secs(10), pause: Duration::from_secs(15) }
    }
}

impl std::fmt::Display for Breaker {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}% of {} in {:?} for {:?}", self.percent, self.least, self.window, self.pause)
    }
}

/// `on`, `off`, `50%`, `50% of 20 in 10s for 15s`.
pub(super) fn read(value: &Value) -> Result<Option<Breaker>, Diagnostic> {
    let example =
        "write `on`, or it whole, like `50% of 20 in 10s for 15s`: it opens for 15 s when half of at least 20 answers in 10 s failed";
    let bad = |at: &Value, message: String| Diagnostic::error("bad-circuit", message).at(at.place()).help(example);
    if let Ok(on) = boolean(value) {
        return Ok(on.then(Breaker::default));
    }
    let words = value.list();
    let Some((first, rest)) = words.split_first() else { return Err(bad(value, "nothing is said".to_owned())) };
    let percent = first.text.strip_suffix('%').and_then(|number| number.parse::<u8>().ok()).filter(|share| (1..=100).contains(share));
    let Some(percent) = percent else { return Err(bad(first, format!("`{}` is not a share of 1% to 100%", brief(&first.text)))) };
    let mut breaker = Breaker { percent, ..Breaker::default() };
    for pair in rest.chunks(2) {
        let Some(second) = pair.get(1) else {
            return Err(bad(&pair[0], format!("something is missing behind `{}`", brief(&pair[0].text))));
        };
        let time = || match duration(second)? {
            time if time <= LONGEST => Ok(time),
            _ => Err(bad(second, "an hour is the longest".to_owned())),
        };
        match pair[0].text.as_str() {
            "of" => {
                let least = second.text.parse().ok().filter(|least| (1..=1_000_000).contains(least));
                breaker.least = least.ok_or_else(|| bad(second, format!("`{}` is not a number of answers", brief(&second.text))))?;
            }
            "in" => breaker.window = time()?,
            "for" => breaker.pause = time()?,
            word => return Err(bad(&pair[0], format!("`{}` means nothing here", brief(word)))),
        }
    }
    Ok(Some(breaker))
}

/// May a request pass?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    Pass,
    /// The one request by which an open circuit finds out whether the service has recovered.
    Trial,
    /// Not before this time is over.
    Refused(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Open {
        until: Duration,
    },
    /// The pause is over; one request is tried at a time.
    HalfOpen {
        trying: bool,
    },
}

/// How a circuit stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    Closed,
    Open,
    HalfOpen,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(match self {
            Standing::Closed => "closed",
            Standing::Open => "open",
            Standing::HalfOpen => "half-open",
        })
    }
}

/// One route's circuit.
#[derive(Clone, Debug)]
pub struct Circuit {
    breaker: Breaker,
    phase: Phase,
    /// Good and failed answers of each step; the step's number says whether it is still in the window.
    steps: [(u64, u32, u32); STEPS],
}

impl Circuit {
    pub fn new(breaker: Breaker) -> Circuit {
        Circuit { breaker, phase: Phase::Closed, steps: [(0, 0, 0); STEPS] }
    }

    /// Asks for one request. Whoever gets [`Passage::Trial`] must call [`Circuit::record`] or [`Circuit::give_up`] with it.
    pub fn admit(&mut self, now: Duration) -> Passage {
        if let Phase::Open { until } = self.phase
            && now >= until
        {
            self.phase = Phase::HalfOpen { trying: false };
        }
        match self.phase {
            Phase::Closed => Passage::Pass,
            Phase::Open { until } => Passage::Refused(until.saturating_sub(now)),
            Phase::HalfOpen { trying: true } => Passage::Refused(Duration::from_secs(1)),
            Phase::HalfOpen { trying: false } => {
                self.phase = Phase::HalfOpen { trying: true };
                Passage::Trial
            }
        }
    }

    /// Would a request be refused? Asks without taking the trial.
    pub fn refuses(&self, now: Duration) -> Option<Duration> {
        match self.phase {
            Phase::Open { until } if now < until => Some(until.saturating_sub(now)),
            Phase::HalfOpen { trying: true } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// How a request ended. One that began before the circuit opened says nothing of a recovery.
    pub fn record(&mut self, now: Duration, trial: bool, failed: bool) {
        match (self.phase, trial) {
            (Phase::Closed, _) => {
                self.count(now, failed);
                if self.is_failing(now) {
                    self.open(now);
                }
            }
            (Phase::HalfOpen { .. }, true) if failed => self.open(now),
            (Phase::HalfOpen { .. }, true) => {
                self.phase = Phase::Closed;
                self.steps = [(0, 0, 0); STEPS];
            }
            _ => {}
        }
    }

    /// The trial ended without an answer of the service, as when its client left: the next request is the trial.
    pub fn give_up(&mut self) {
        if self.phase == (Phase::HalfOpen { trying: true }) {
            self.phase = Phase::HalfOpen { trying: false };
        }
    }

    pub fn standing(&self, now: Duration) -> Standing {
        match self.phase {
            Phase::Closed => Standing::Closed,
            Phase::Open { until } if now < until => Standing::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => Standing::HalfOpen,
        }
    }

    fn open(&mut self, now: Duration) {
        self.phase = Phase::Open { until: now + self.breaker.pause };
        self.steps = [(0, 0, 0); STEPS];
    }

    fn step(&self, now: Duration) -> u64 {
        let length = (self.breaker.window.as_micros() / STEPS as u128).max(1);
        // From 1, so that the zeros of the beginning belong to no step; a process does not live for 2^64 of them.
        u64::try_from(now.as_micros() / length).unwrap_or(u64::MAX - 1) + 1
    }

    fn count(&mut self, now: Duration, failed: bool) {
        let number = self.step(now);
        let step = &mut self.steps[(number % STEPS as u64) as usize];
        if step.0 != number {
            *step = (number, 0, 0);
        }
        let counter = if failed { &mut step.2 } else { &mut step.1 };
        *counter = counter.saturating_add(1);
    }

    fn is_failing(&self, now: Duration) -> bool {
        let last = self.step(now);
        let within = self.steps.iter().filter(|(number, ..)| *number > 0 && number + STEPS as u64 > last);
        let (good, failed) = within.fold((0_u64, 0_u64), |(good, failed), step| (good + u64::from(step.1), failed + u64::from(step.2)));
        let all = good + failed;
        all >= u64::from(self.breaker.least) && failed * 100 >= all * u64::from(self.breaker.percent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn typed(text: &str) -> Result<Option<Breaker>, String> {
        read(&Value::new("skep.circuit", text).expect("not blank")).map_err(|finding| finding.code)
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn breakers_are_typed() {
        let whole = Breaker { percent: 25, least: 5, window: s(30), pause: s(60) };
        for (text, wanted) in [
            ("on", Some(Breaker::default())),
            ("off", None),
            ("50%", Some(Breaker::default())),
            ("25% of 5 in 30s for 1m", Some(whole)),
            ("25% for 60s of 5 in 30s", Some(whole)),
        ] {
            assert_eq!(typed(text), Ok(wanted), "{text}");
        }
        assert_eq!(typed(&Breaker::default().to_string()), Ok(Some(Breaker::default())));
        for text in ["0%", "101%", "50", "50% of", "50% of 0", "50% of many", "50% after 5s", "50% in 2h", ","] {
            assert_eq!(typed(text), Err("bad-circuit".to_owned()), "{text}");
        }
        assert_eq!(typed("50% in 5"), Err("bad-duration".to_owned()));
    }

    const BREAKER: Breaker = Breaker { percent: 50, least: 4, window: s(10), pause: s(5) };

    /// Opened at second 1.
    fn opened() -> Circuit {
        let mut circuit = Circuit::new(BREAKER);
        for failed in [false, true, false, true] {
            assert_eq!(circuit.admit(s(1)), Passage::Pass);
            circuit.record(s(1), false, failed);
        }
        circuit
    }

    #[test]
    fn half_of_the_answers_failing_opens_it_and_one_good_trial_closes_it() {
        let mut circuit = opened();
        assert_eq!((circuit.admit(s(2)), circuit.standing(s(2))), (Passage::Refused(s(4)), Standing::Open));
        assert_eq!(circuit.standing(s(6)), Standing::HalfOpen);
        assert_eq!((circuit.admit(s(6)), circuit.admit(s(6))), (Passage::Trial, Passage::Refused(s(1))));
        circuit.record(s(7), true, false);
        assert_eq!((circuit.admit(s(7)), circuit.standing(s(7))), (Passage::Pass, Standing::Closed));
        circuit.record(s(7), false, true);
        assert_eq!(circuit.standing(s(7)), Standing::Closed, "the count begins anew");
    }

    #[test]
    fn a_failed_trial_opens_it_again_and_a_lost_one_is_repeated() {
        let mut circuit = opened();
        assert_eq!(circuit.admit(s(6)), Passage::Trial);
        circuit.give_up();
        assert_eq!((circuit.refuses(s(6)), circuit.admit(s(6))), (None, Passage::Trial));
        circuit.record(s(6), true, true);
        assert_eq!((circuit.admit(s(10)), circuit.refuses(s(10))), (Passage::Refused(s(1)), Some(s(1))));
    }

    #[test]
    fn requests_of_before_say_nothing_of_a_recovery() {
        let mut circuit = opened();
        circuit.record(s(2), false, false);
        assert_eq!(circuit.standing(s(2)), Standing::Open);
        circuit.admit(s(6));
        circuit.record(s(6), false, false);
        assert_eq!(circuit.standing(s(6)), Standing::HalfOpen);
    }

    #[test]
    fn few_or_old_failures_open_nothing() {
        let mut circuit = Circuit::new(BREAKER);
        (0..3).for_each(|_| circuit.record(s(1), false, true));
        circuit.record(s(12), false, true);
        assert_eq!(circuit.standing(s(12)), Standing::Closed);
    }

    proptest! {
        #[test]
        fn it_never_stays_open_for_longer_than_its_pause(outcomes in prop::collection::vec((0_u64..30, any::<bool>()), 1..200)) {
            let mut circuit = Circuit::new(BREAKER);
            let mut now = Duration::ZERO;
            for (gap, failed) in outcomes {
                now += Duration::from_millis(gap * 100);
                match circuit.admit(now) {
                    Passage::Refused(wait) => {
                        prop_assert!(wait <= BREAKER.pause);
                        prop_assert!(circuit.refuses(now + wait).is_none());
                    }
                    passage => circuit.record(now, passage == Passage::Trial, failed),
                }
            }
        }
    }
}
