//! Many kinds of traffic through the real program for minutes, while its stack file changes every second: does a request fail
//! that a healthy upstream did not fail, and does anything grow? `./dev soak [MINUTES]` builds and runs it.

mod edge;
mod stack;
mod tally;
mod traffic;
mod upstreams;
mod wire;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::edge::{Edge, Sample};
use self::stack::Stack;
use self::tally::Tally;
use self::traffic::Traffic;

/// Between two lines of progress, in seconds.
const EVERY: u64 = 10;
/// After the last client has left, the edge may take so long to notice.
const REST: Duration = Duration::from_secs(10);

/// Nothing of the machine's own settings: TLS would want port 443.
const CONFIG: &str = "[https]\nlisten = []\n[state]\ndirectory = \"off\"\n[log]\nfilter = \"warn\"\n";

fn main() -> ExitCode {
    let minutes = match std::env::args().nth(1).map_or(Ok(10.0), |word| word.parse::<f64>()) {
        Ok(minutes) if minutes > 0.0 => minutes,
        _ => {
            eprintln!("usage: soak [MINUTES]");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(soak(Duration::from_secs_f64(minutes * 60.0)))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the soak could not be run to its end: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The program beside this one, or the one that SKEP_BIN names.
fn program() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKEP_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own.parent().and_then(|examples| examples.parent()).map(|directory| directory.join("skep"));
    beside.filter(|path| path.is_file()).ok_or_else(|| io::Error::other("no skep beside this program: build it, or set SKEP_BIN"))
}

/// The whole run; true where nothing was found.
async fn soak(length: Duration) -> io::Result<bool> {
    let directory = tempfile::tempdir()?;
    let (config, file) = (directory.path().join("skep.toml"), directory.path().join("stack.yml"));
    std::fs::write(&config, CONFIG)?;
    let mut stack = Stack::start(file.clone()).await?;
    let program = program()?;
    println!("{} under mixed traffic for {} s; its table changes every second", program.display(), length.as_secs());
    let edge = Edge::start(&program, &config, &file).await?;
    let tally = Arc::new(Tally::default());
    let traffic = Traffic::new(edge.http, tally.clone());
    let mut clients = tokio::task::JoinSet::new();
    traffic.start(&mut clients);

    let (began, mut samples, mut told, mut before) = (Instant::now(), Vec::new(), 0, edge.sample().await?);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for second in 0.. {
        ticks.tick().await;
        if began.elapsed() >= length {
            break;
        }
        stack.step(second, &traffic.hosts).await?;
        let sample = edge.sample().await?;
        samples.push(sample);
        if second > 0 && second.is_multiple_of(EVERY) {
            println!("{}", tally::progress(began.elapsed(), &tally, &edge.log, &before, &sample, EVERY as f64));
            before = sample;
            for failure in tally.told(told, &edge.log) {
                println!("  FAILED {failure}");
                told += 1;
            }
        }
    }
    traffic.stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended.map_err(io::Error::other)?;
    }
    tally.told(told, &edge.log).iter().for_each(|failure| println!("  FAILED {failure}"));
    let left = rest(&edge).await?;
    let (faults, (all, failed)) = (edge.log.faults(), tally.sums());
    edge.stop().await?;

    let (text, flat) = tally::growth(&samples, 60);
    println!("\n{}\n{text}", tally.line());
    let idle = left.connections == 0.0 && left.in_flight == 0.0;
    if !idle {
        println!("after the last client left: {} connections and {} requests are still there", left.connections, left.in_flight);
    }
    let good = failed == 0 && faults == 0 && flat && idle && all > 0;
    let verdict = if good { "GOOD" } else { "BAD" };
    println!("{verdict}: {all} requests, {failed} failed, {faults} answered 5xx, {} tables", samples.last().map_or(0.0, |last| last.swaps));
    Ok(good)
}

/// Waits until nobody is connected any more, and says what is left.
async fn rest(edge: &Edge) -> io::Result<Sample> {
    let began = Instant::now();
    loop {
        let sample = edge.sample().await?;
        if (sample.connections == 0.0 && sample.in_flight == 0.0) || began.elapsed() > REST {
            return Ok(sample);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
