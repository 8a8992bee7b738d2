//! Private keys stay where they belong.

use crate::siege::Process;

const STACK: &str = "services:\n  one: {labels: {skep.host: one.test, skep.address: '127.0.0.1:9'}}\n";

#[test]
fn the_edge_leaves_no_core_dump() {
    let edge = Process::start(STACK, &[], None);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", edge.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    assert!(!edge.said().contains("core dumps cannot be switched off"), "{}", edge.said());
}
