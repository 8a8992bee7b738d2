//! Slow requests, told in the log of the edge itself with all timings. Everything may be slow at once, so lines are bounded
//! by the second and those that were held back are counted in the next one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{LONG, Record, SHORT, clip, milliseconds};

/// Lines in one second.
const LINES: u32 = 10;
/// An upgraded connection is not slow, it is long.
const SWITCHING_PROTOCOLS: u16 = 101;

/// Warns of requests whose answer's head took longer than a limit.
pub struct SlowLog {
    limit: Duration,
    started: Instant,
    bound: Mutex<Bound>,
}

/// How many lines this second had, and how many it was spared.
#[derive(Debug, Default)]
struct Bound {
    second: u64,
    lines: u32,
    suppressed: u64,
}

impl Bound {
    /// May a line be written in this second? Then with how many were held back before it.
    fn admit(&mut self, second: u64) -> Option<u64> {
        if second != self.second {
            (self.second, self.lines) = (second, 0);
        }
        if self.lines >= LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Did the answer's head take longer than `limit`?
fn is_slow(record: &Record<'_>, limit: Duration) -> bool {
    record.duration > limit && record.status != SWITCHING_PROTOCOLS && !record.is_connection() && record.to_head() > limit
}

impl SlowLog {
    /// Warns of all that takes longer than `limit`.
    pub fn new(limit: Duration) -> SlowLog {
        SlowLog { limit, started: Instant::now(), bound: Mutex::default() }
    }

    /// Tells of `record`, if it was slow.
    pub fn write(&self, record: &Record<'_>) {
        if !is_slow(record, self.limit) {
            return;
        }
        let admitted = self.bound.lock().unwrap_or_else(PoisonError::into_inner).admit(self.started.elapsed().as_secs());
        if let Some(suppressed) = admitted {
            warn(record, suppressed);
        }
    }
}

/// What strangers chose is quoted and escaped (`?`) and cut.
fn warn(record: &Record<'_>, suppressed: u64) {
    tracing::warn!(
        request_id = record.request_id,
        trace_id = record.trace.map(|trace| tracing::field::display(trace.id)),
        method = ?clip(record.method, SHORT),
        host = ?clip(&record.host(), SHORT),
        path = ?clip(record.path, LONG),
        status = record.status,
        route = record.route.map(|route| &**route),
        task = record.task,
        head_ms = milliseconds(record.to_head()),
        duration_ms = milliseconds(record.duration),
        tls_ms = record.tls.map(milliseconds),
        wait_ms = record.wait.map(milliseconds),
        connect_ms = record.connect.map(milliseconds),
        upstream_ms = record.upstream.map(milliseconds),
        reused = record.reused,
        retries = record.retries,
        bytes_in = record.bytes_in,
        bytes_out = record.bytes_out,
        suppressed,
        "slow request"
    );
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, LazyLock};

    use http::HeaderMap;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::telemetry::Trace;

    static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

    /// Answered after 4 s by a task that took 3 s of it.
    fn record() -> Record<'static> {
        Record {
            at: jiff::Timestamp::UNIX_EPOCH,
            request_id: "r1",
            trace: None,
            client: None,
            secure: false,
            user: None,
            method: "GET",
            host: "a.test",
            path: "/\u{1b}[2J\n",
            query: "",
            version: "HTTP/1.1",
            status: 200,
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::from_secs(4),
            tls: None,
            wait: Some(Duration::from_millis(1)),
            connect: Some(Duration::from_millis(2)),
            upstream: Some(Duration::from_secs(3)),
            reused: Some(false),
            nth: 1,
            route: None,
            service: None,
            task: Some("shop_web.2"),
            backend: None,
            retries: 0,
            headers: &NO_HEADERS,
            error: None,
        }
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Lines;

        fn make_writer(&'a self) -> Lines {
            self.clone()
        }
    }

    #[test]
    fn what_counts_is_the_time_to_the_head_and_upgrades_do_not() {
        let limit = Duration::from_secs(2);
        // status, time to the head, duration, slow
        let table =
            [(200, Some(3), 4, true), (200, Some(1), 900, false), (101, Some(3), 900, false), (503, None, 3, true), (503, None, 1, false)];
        for (status, upstream, duration, slow) in table {
            let (upstream, duration) = (upstream.map(Duration::from_secs), Duration::from_secs(duration));
            assert_eq!(is_slow(&Record { status, upstream, duration, ..record() }, limit), slow, "{status} {upstream:?} {duration:?}");
        }
    }

    #[test]
    fn lines_are_bounded_by_the_second_and_the_rest_is_counted() {
        let mut bound = Bound::default();
        let admitted: Vec<u64> = (0..25).filter_map(|_| bound.admit(7)).collect();
        assert_eq!(admitted, [0; 10]);
        assert_eq!((bound.admit(8), bound.admit(8)), (Some(15), Some(0)));
    }

    #[test]
    fn a_line_has_the_timings_and_nothing_that_drives_a_terminal() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
        let trace = Trace::begin(None, 1.0, 0xabc, 1);
        tracing::subscriber::with_default(subscriber, || {
            let log = SlowLog::new(Duration::from_secs(1));
            log.write(&Record { trace: Some(&trace), ..record() });
            log.write(&Record { duration: Duration::from_millis(5), ..record() });
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in ["WARN", "slow request", "request_id=\"r1\"", "head_ms=3003.0", "connect_ms=2.0", "reused=false", "task=\"shop_web.2\""]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("trace_id=00000000000000000000000000000abc") && !text.contains('\u{1b}'), "{text}");
    }
}
