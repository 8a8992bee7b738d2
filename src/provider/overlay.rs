//! What the engine's events said of containers and its listings do not know yet.
//! A task that got a stop signal leaves the pool before it dies, and a listing that began before the signal cannot bring it back.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::snapshot::{Condition, Snapshot};

/// Signals by which containers are asked or made to stop: INT, QUIT, KILL, TERM, WINCH (the web server of Apache) and
/// RTMIN+3 (systemd). Others, such as HUP and USR1, mean "read your files again" to most programs.
const STOP_SIGNALS: [&str; 12] = ["2", "3", "9", "15", "28", "37", "INT", "QUIT", "KILL", "TERM", "WINCH", "RTMIN+3"];
/// A container that still runs so long after its stop signal took it for something else.
const STOPPING: Duration = Duration::from_secs(120);
/// A full listing tells of health and death much sooner than this.
const UNTIL_LISTED: Duration = Duration::from_secs(30);
/// The kernel may have killed a child of the container's process only; its death is told by another event.
const OUT_OF_MEMORY: Duration = Duration::from_secs(2);
/// Bound of the marks; an engine runs far fewer containers.
const MOST: usize = 20_000;

/// Marks on containers, newest word first.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    marks: HashMap<String, Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    condition: Condition,
    message: &'static str,
    made: Instant,
    expires: Instant,
}

impl Overlay {
    /// Takes in an event of a container: its `action` (`kill`, `health_status: healthy`) and the `signal` of a kill.
    /// True when conditions may have changed, so that the snapshot should be marked and published at once.
    pub fn on(&mut self, action: &str, container: &str, signal: Option<&str>, now: Instant) -> bool {
        let (condition, message, lasts) = match action {
            "kill" if signal.is_some_and(is_stop) => (Condition::Stopping, "got a stop signal", STOPPING),
            "die" | "stop" => (Condition::Down, "stopped", UNTIL_LISTED),
            "oom" => (Condition::Unhealthy, "out of memory", OUT_OF_MEMORY),
            "pause" => (Condition::Unhealthy, "paused", UNTIL_LISTED),
            "health_status: unhealthy" => (Condition::Unhealthy, "its health check fails", UNTIL_LISTED),
            "health_status: healthy" => (Condition::Healthy, "", UNTIL_LISTED),
            "start" | "unpause" | "destroy" => {
                self.marks.remove(container);
                return false;
            }
            _ => return false,
        };
        let leaving = |mark: &Mark| matches!(mark.condition, Condition::Stopping | Condition::Down) && mark.expires > now;
        let is_health = matches!(condition, Condition::Healthy | Condition::Unhealthy);
        if is_health && self.marks.get(container).is_some_and(leaving) {
            return false;
        }
        if self.marks.len() >= MOST && !self.marks.contains_key(container) {
            self.forget_oldest();
        }
        self.marks.insert(container.to_owned(), Mark { condition, message, made: now, expires: now + lasts });
        true
    }

    /// Puts the marks over a snapshot. True when that changed something.
    pub fn apply(&self, snapshot: &mut Snapshot, now: Instant) -> bool {
        let mut changed = false;
        for task in snapshot.services.iter_mut().flat_map(|service| &mut service.tasks) {
            let mark = task.container.as_ref().and_then(|id| self.marks.get(id)).filter(|mark| mark.expires > now);
            let Some(mark) = mark else { continue };
            let applies = match mark.condition {
                Condition::Healthy => matches!(task.condition, Condition::Starting | Condition::Unhealthy),
                Condition::Unhealthy => task.condition == Condition::Healthy,
                Condition::Stopping => task.condition != Condition::Down,
                _ => true,
            };
            if applies && task.condition != mark.condition {
                task.condition = mark.condition;
                mark.message.clone_into(&mut task.message);
                changed = true;
            }
        }
        changed
    }

    /// A full listing that began at `began` succeeded: it knows of health whatever was told before it began.
    /// Stop signals stay: no listing shows them.
    pub fn settle(&mut self, began: Instant, now: Instant) {
        self.marks.retain(|_, mark| {
            let health = matches!(mark.condition, Condition::Healthy | Condition::Unhealthy);
            mark.expires > now && !(health && mark.made < began)
        });
    }

    fn forget_oldest(&mut self) {
        let oldest = self.marks.iter().min_by_key(|(_, mark)| mark.made).map(|(id, _)| id.clone());
        if let Some(id) = oldest {
            self.marks.remove(&id);
        }
    }
}

fn is_stop(signal: &str) -> bool {
    STOP_SIGNALS.contains(&signal.trim_start_matches("SIG"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Service, Task};

    fn snapshot(condition: Condition) -> Snapshot {
        let task = |id: &str| Task { container: Some(id.to_owned()), condition, ..Task::default() };
        Snapshot { services: vec![Service { tasks: vec![task("a"), task("b")], ..Service::default() }], ..Snapshot::default() }
    }

    /// The condition of container `a` in a listing that says `listed`, after these events one second apart.
    fn after(events: &[(&str, Option<&str>)], listed: Condition, later: u64) -> Condition {
        let now = Instant::now();
        let mut overlay = Overlay::default();
        for (index, (action, signal)) in events.iter().enumerate() {
            overlay.on(action, "a", *signal, now + Duration::from_secs(index as u64));
        }
        let mut snapshot = snapshot(listed);
        overlay.apply(&mut snapshot, now + Duration::from_secs(events.len() as u64 - 1 + later));
        assert_eq!(snapshot.services[0].tasks[1].condition, listed, "the neighbour is untouched");
        snapshot.services[0].tasks[0].condition
    }

    #[test]
    fn events_say_more_than_listings() {
        use Condition::{Down, Healthy, Starting, Stopping, Unhealthy};
        for (events, listed, expected) in [
            (&[("kill", Some("15"))][..], Healthy, Stopping),
            (&[("kill", Some("9"))], Unhealthy, Stopping),
            (&[("kill", Some("SIGTERM"))], Healthy, Stopping),
            (&[("kill", Some("28"))], Healthy, Stopping),
            (&[("kill", Some("1"))], Healthy, Healthy),
            (&[("kill", Some("10"))], Healthy, Healthy),
            (&[("kill", None)], Healthy, Healthy),
            (&[("kill", Some("15"))], Down, Down),
            (&[("kill", Some("15")), ("die", None)], Healthy, Down),
            (&[("kill", Some("15")), ("die", None), ("stop", None), ("start", None)], Healthy, Healthy),
            (&[("kill", Some("15")), ("health_status: healthy", None)], Healthy, Stopping),
            (&[("oom", None)], Healthy, Unhealthy),
            (&[("pause", None)], Healthy, Unhealthy),
            (&[("pause", None), ("unpause", None)], Healthy, Healthy),
            (&[("health_status: unhealthy", None)], Healthy, Unhealthy),
            (&[("health_status: unhealthy", None), ("health_status: healthy", None)], Unhealthy, Healthy),
            (&[("health_status: healthy", None)], Starting, Healthy),
            (&[("health_status: healthy", None)], Down, Down),
            (&[("health_status: unhealthy", None)], Starting, Starting),
            (&[("rename", None)], Healthy, Healthy),
        ] {
            assert_eq!(after(events, listed, 0), expected, "{events:?} over {listed:?}");
        }
    }

    #[test]
    fn marks_expire() {
        let term = [("kill", Some("15"))];
        assert_eq!(after(&term, Condition::Healthy, 119), Condition::Stopping);
        assert_eq!(after(&term, Condition::Healthy, 120), Condition::Healthy);
        assert_eq!(after(&[("oom", None)], Condition::Healthy, 2), Condition::Healthy);
        assert_eq!(after(&[("die", None)], Condition::Healthy, 30), Condition::Healthy);
    }

    #[test]
    fn a_listing_settles_what_was_told_before_it_began_but_never_a_stop() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for (action, signal, began, expected) in [
            ("health_status: unhealthy", None, now + second, Condition::Healthy),
            ("health_status: unhealthy", None, now, Condition::Unhealthy),
            ("kill", Some("15"), now + second, Condition::Stopping),
            ("die", None, now + second, Condition::Down),
        ] {
            let mut overlay = Overlay::default();
            overlay.on(action, "a", signal, now);
            overlay.settle(began, now + second);
            let mut snapshot = snapshot(Condition::Healthy);
            overlay.apply(&mut snapshot, now + second);
            assert_eq!(snapshot.services[0].tasks[0].condition, expected, "{action}");
        }
    }

    #[test]
    fn the_number_of_marks_is_bounded() {
        let now = Instant::now();
        let mut overlay = Overlay::default();
        for number in 0..MOST as u64 + 10 {
            overlay.on("die", &number.to_string(), None, now + Duration::from_nanos(number));
        }
        assert_eq!(overlay.marks.len(), MOST);
        assert!(!overlay.marks.contains_key("9") && overlay.marks.contains_key("10"));
    }
}
