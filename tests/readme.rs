//! The README is a promise: what it names must exist and work.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

const README: &str = include_str!("../README.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_link_leads_somewhere() {
    let targets: Vec<&str> =
        README.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|target| !target.contains("://")).collect();
    assert!(targets.len() > 4);
    for target in targets {
        assert!(root().join(target).exists(), "{target}");
    }
}

#[test]
fn every_chore_is_one_of_dev() {
    let help = Command::new(root().join("dev")).arg("help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let chores: Vec<&str> = README.split("./dev ").skip(1).map(|rest| rest.split([' ', '\n', '`']).next().unwrap()).collect();
    assert!(chores.len() > 3);
    for chore in chores {
        assert!(help.lines().any(|line| line.trim_start().starts_with(chore)), "./dev {chore}");
    }
}

/// What reads the load generators and writes the tables of `./dev bench versus`. Returns early where there is no Python;
/// `./dev test` sees to it that there is.
#[test]
fn the_comparison_counts_right() {
    let script = root().join("benches/versus/versus.py");
    let output = match Command::new("python3").arg(script).arg("--self-test").output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_command_is_one_of_skep() {
    let commands: Vec<&str> = README
        .split("skep ")
        .skip(1)
        .filter_map(|rest| rest.split([' ', '\n', '`', ',']).next())
        .filter(|word| ["run", "check", "routes", "explain", "labels", "snapshot", "health"].contains(word))
        .collect();
    assert!(commands.len() > 5);
    for command in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_skep")).args([command, "--help"]).output().unwrap();
        assert!(output.status.success(), "skep {command}");
    }
}

#[test]
fn every_label_is_a_key() {
    let keys = skep::state::keys();
    let labels = README.lines().filter_map(|line| line.strip_prefix("| `skep.")).filter_map(|rest| rest.split('`').next());
    let mut count = 0;
    for label in labels {
        count += 1;
        assert!(keys.iter().any(|key| key.name == label), "skep.{label}");
    }
    assert!(count > 5);
}

/// The stack of "Label a service" and the mistake of "skep check", as they stand.
#[test]
fn the_examples_do_what_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let begin = README.find("    services:\n").unwrap();
    let stack: String =
        README[begin..].lines().take_while(|line| line.starts_with("    ")).map(|line| format!("{}\n", &line[4..])).collect();
    let check = |text: &str| {
        let file = directory.path().join("stack.yml");
        std::fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_skep")).arg("check").arg(&file).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = check(&stack);
    assert!(code == Some(0) && text.contains("shop.example.com"), "{code:?}: {text}");
    let (code, text) = check(&stack.replace("skep.host", "skep.hosst"));
    assert!(code == Some(1) && text.contains("did you mean `skep.host`?"), "{code:?}: {text}");
}

/// `./dev demo` builds and then runs this; the first curl line of the README must answer.
#[test]
fn the_demo_answers_on_the_port_that_it_prints() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_skep")).arg("demo").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines().map_while(Result::ok);
    let port = lines
        .filter_map(|line| line.split_once("http://hello.localhost:").map(|(_, rest)| rest.split('/').next().unwrap().to_owned()))
        .next()
        .expect("the demo prints its address");
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap())).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello, ") && answer.contains("x-forwarded-for: 127.0.0.1"), "{answer}");
}
