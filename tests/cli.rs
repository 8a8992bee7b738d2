//! The command line as its users see it: exit codes and the lines that they look for, from the built binary on small files.
//! No Docker and no running edge is needed: the admin address that is given here belongs to nobody.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A port on which nothing listens, so that an edge on this machine does not mix in.
const NOBODY: &str = "127.0.0.1:1";

/// As the first users' stacks are.
const SEED: &str = r#"
version: "3.8"
services:
  docs:
    image: docs:1
    networks: [edge]
    volumes: ["data:/data"]
    deploy:
      placement:
        constraints: [node.labels.region == eu]
      labels:
        haproxy.virtual_host_secure: docs.example.com
        haproxy.http_redirect_from: www.docs.example.com
        haproxy.virtual_host_port: "8000"
        com.sismics.docker.auth: staff
        backup.enable: "true"
networks:
  edge: {external: true}
volumes:
  data:
    labels: {backup.enable: "true"}
"#;

/// What `skep run --file` would serve.
const SERVED: &str = r#"
services:
  shop: {labels: {skep.host: shop.test, skep.address: "127.0.0.1:8001, 127.0.0.1:8002"}}
  api: {labels: {skep.host: shop.test, skep.path: /api, skep.header: X-Beta=1, skep.address: "127.0.0.1:8003"}}
  old: {labels: {haproxy.virtual_host: old.test}}
"#;

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Files {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Files(directory)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
        command.args(words).current_dir(self.0.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars() {
            if name.starts_with("SKEP_") || name.starts_with("DOCKER_") {
                command.env_remove(name);
            }
        }
        command.env("SKEP_CONFIG", self.0.path().join("skep.toml"));
        command
    }

    fn skep(&self, words: &[&str]) -> Said {
        std::fs::write(self.0.path().join("skep.toml"), format!("[admin]\nlisten = \"{NOBODY}\"\n[docker]\nendpoint = \"unix:///none\"\n"))
            .unwrap();
        let output = self.command(words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
}

#[test]
fn the_seed_stack_is_accepted_and_each_label_explained() {
    let files = Files::new(&[("stack.yml", SEED)]);
    let said = files.skep(&["check", "stack.yml"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{}", said.out);
    for (label, meaning) in [
        ("haproxy.virtual_host_secure: docs.example.com", "serves https://docs.example.com/; http leads there"),
        ("haproxy.http_redirect_from: www.docs.example.com", "redirects www.docs.example.com"),
        ("haproxy.virtual_host_port: 8000", "port 8000"),
        ("com.sismics.docker.auth: staff", "only the group `staff` may enter"),
        ("backup.enable: true", "the service's volumes are saved"),
        ("backup.enable: true", "the volume is saved"),
        ("placement node.labels.region == eu", "left to Swarm"),
    ] {
        assert!(said.out.lines().any(|line| line.contains(label) && line.contains(meaning)), "{label}: {}", said.out);
    }
    assert!(said.out.ends_with("adds 2 routes; 2 warnings, 1 note\n"), "{}", said.out);
    assert!(!said.out.contains('\u{1b}'), "no colour where nobody looks");
}

#[test]
fn a_mistake_is_one_error_with_its_fix() {
    // labels under deploy, what is said, exit code
    for (label, wanted, code) in [
        ("skep.hosst: a.test", "did you mean `skep.host`?", 1),
        ("skep.port: '80'", "no-host", 1),
        ("skep.host: a.test", "adds 1 route", 0),
        ("maintainer: me", "not a label of Skep: left alone", 0),
    ] {
        let files = Files::new(&[("stack.yml", &format!("services:\n  web:\n    deploy:\n      labels:\n        {label}\n"))]);
        let said = files.skep(&["check", "stack.yml"]);
        assert!(said.code == code && said.out.contains(wanted), "{label}: {} {}", said.code, said.out);
    }
    let files = Files::new(&[("stack.yml", "services:\n  web:\n    labels: {skep.host: a.test}\n    deploy: {replicas: 2}\n")]);
    let said = files.skep(&["check", "stack.yml", "--json"]);
    let codes: Vec<_> = said.json()["findings"].as_array().unwrap().iter().map(|finding| finding["code"].clone()).collect();
    assert_eq!((said.code, codes), (1, vec!["label-on-container".into()]));
}

#[test]
fn what_cannot_be_looked_at_is_two() {
    let files = Files::new(&[("broken.json", "{"), ("large.yml", &" ".repeat(2 << 20)), ("served.yml", SERVED)]);
    for words in [
        &["check", "absent.yml"][..],
        &["check", "large.yml"],
        &["check"],
        &["routes", "--file", "absent.yml"],
        &["routes", "--snapshot", "broken.json"],
        &["routes", "--admin", NOBODY],
        &["routes"],
        &["check", "--live"],
        &["explain", "--file", "served.yml", "ftp://a.test/"],
        &["explain", "--file", "served.yml", "-H", "nonsense", "http://a.test/"],
        &["routes", "--config", "absent.toml", "--file", "served.yml"],
        &["run", "--file", "absent.yml"],
        &["run", "--http", "everywhere"],
        &["nonsense"],
    ] {
        let said = files.skep(words);
        assert!(said.code == 2 && said.out.is_empty() && !said.err.is_empty(), "{words:?}: {} {} {}", said.code, said.out, said.err);
    }
    let said = files.skep(&["check", "served.yml", "absent.yml"]);
    assert_eq!(said.code, 2, "one of two is not enough");
}

#[test]
fn routes_are_a_table_and_json() {
    let files = Files::new(&[("stack.yml", SERVED)]);
    let said = files.skep(&["routes", "--file", "stack.yml"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let row = |id: &str| said.out.lines().find(|line| line.starts_with(id)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row("ROUTE"), ["ROUTE", "SERVICE", "DIALECT", "TASKS", "ACCESS", "ACTION", "MATCHES"]);
    assert_eq!(row("shop"), ["shop", "shop", "native", "2/2", "open", "p2c", "shop.test/"]);
    assert_eq!(row("old")[2..4], ["haproxy", "0/0"]);
    assert!(said.out.contains("3 routes; ") && said.err.contains("stack.yml"), "{}{}", said.out, said.err);
    let json = files.skep(&["routes", "--file", "stack.yml", "--json"]).json();
    assert_eq!(json["routes"].as_array().unwrap().len(), 3);
    assert_eq!(json["routes"][2]["action"]["services"][0]["tasks"][0]["address"], "http://127.0.0.1:8001");
}

#[test]
fn explain_names_every_candidate_and_where_the_request_goes() {
    let files = Files::new(&[("stack.yml", SERVED)]);
    // arguments, lines that are said, exit code
    let table: [(&[&str], &[&str], i32); 5] = [
        (&["http://shop.test/api"], &["lost  api", "wins  shop", "healthy", "one of 2 tasks"], 0),
        (&["-H", "X-Beta: 1", "shop.test/api/x"], &["wins  api", "goes first", "it goes to task 127.0.0.1:8003"], 0),
        (&["http://old.test/"], &["wins  old", "503: route `old` has no task"], 1),
        (&["http://shp.test/"], &["hosts near to it: shop.test", "404: no route names the host `shp.test`"], 1),
        (&["-X", "POST", "--client", "203.0.113.7", "http://SHOP.test.:8080/"], &["POST http://SHOP.test.:8080/", "wins  shop"], 0),
    ];
    for (words, wanted, code) in table {
        let said = files.skep(&[&["explain", "--file", "stack.yml"], words].concat());
        assert_eq!(said.code, code, "{words:?}: {}{}", said.out, said.err);
        for line in wanted {
            assert!(said.out.contains(line), "{words:?}: {line}: {}", said.out);
        }
    }
    let json = files.skep(&["explain", "--file", "stack.yml", "--json", "http://shop.test/api"]).json();
    assert_eq!((json["winner"]["id"].as_str(), json["tasks"].as_array().unwrap().len()), (Some("shop"), 2));
}

#[test]
fn a_snapshot_explains_itself_elsewhere() {
    let files = Files::new(&[("stack.yml", SERVED)]);
    let snapshot = files.skep(&["snapshot", "--file", "stack.yml"]);
    std::fs::write(files.0.path().join("bug.json"), &snapshot.out).unwrap();
    let table = |source: &str, file: &str| files.skep(&["routes", source, file]).out;
    assert_eq!(table("--snapshot", "bug.json"), table("--file", "stack.yml"));
}

#[test]
fn labels_are_a_reference_in_three_forms() {
    let files = Files::new(&[]);
    let text = files.skep(&["labels"]);
    let markdown = files.skep(&["labels", "--markdown"]);
    let json = files.skep(&["labels", "--json"]).json();
    for key in skep::state::keys() {
        let label = format!("skep.{}", key.name);
        assert!(text.out.contains(&format!("{label}: ")) && markdown.out.contains(&format!("| `{label}` |")), "{label}");
        assert!(json["native"].as_array().unwrap().iter().any(|entry| entry["label"] == label.as_str()), "{label}");
    }
    assert_eq!(json["haproxy"].as_array().unwrap().len(), skep::label::haproxy::LABELS.len());
}

#[test]
fn shells_get_completions_and_people_help() {
    let files = Files::new(&[]);
    for shell in ["bash", "zsh", "fish"] {
        let said = files.skep(&["completions", shell]);
        assert!(said.code == 0 && said.out.contains("explain"), "{shell}");
    }
    for command in ["run", "demo", "check", "routes", "explain", "labels", "snapshot", "user", "health", "upgrade", "completions"] {
        let said = files.skep(&[command, "--help"]);
        assert!(said.code == 0 && said.out.contains("Usage: skep"), "{command}");
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let files = Files::new(&[]);
    let mut child = files.command(&["labels"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

#[test]
fn the_demo_serves_and_the_other_commands_find_it() {
    let files = Files::new(&[]);
    let unwell = files.skep(&["health", "--admin", NOBODY]);
    assert!(unwell.code == 1 && unwell.out.contains("not healthy"), "{}", unwell.out);
    let mut child = files.command(&["demo", "--no-docker"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let demo = Ended(&mut child);
    let lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    let admin = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("--admin ")?.1.split(' ').next()?.to_owned())).unwrap();
    let said = files.skep(&["health", "--ready", "--admin", &admin]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(files.skep(&["health", "--json", "--admin", &admin]).json()["healthy"], true);
    let said = files.skep(&["explain", "--admin", &admin, "http://hello.localhost/"]);
    assert!(said.code == 0 && said.out.contains("0 in flight"), "{}{}", said.out, said.err);
    let stack = "services:\n  new:\n    deploy: {labels: {skep.host: shop.localhost, skep.priority: '5'}}\n";
    std::fs::write(files.0.path().join("stack.yml"), stack).unwrap();
    let said = files.skep(&["check", "stack.yml", "--admin", &admin]);
    assert!(said.code == 0 && said.out.contains("takes shop.localhost/ from service shop"), "{}{}", said.out, said.err);
    let said = files.skep(&["check", "--live", "--admin", &admin]);
    assert!(said.code == 1 && said.out.contains("did you mean `skep.host`?"), "the demo's own mistake: {}", said.out);
}

/// A child that does not outlive its test.
struct Ended<'a>(&'a mut std::process::Child);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The line of a label that was refused must not promise what the label wanted.
#[test]
fn a_refused_label_promises_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("stack.yml");
    std::fs::write(&file, "services:\n  web:\n    deploy:\n      labels:\n        skep.host: https://shop.example.com:443\n").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_skep")).arg("check").arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("error, see below: a host has no scheme") && !text.contains("serves"), "{text}");
}

/// `skep user` with a password on its standard input.
fn user(files: &Files, words: &[&str], password: &str) -> Said {
    let words = [&["user"], words, &["--password-stdin"]].concat();
    let mut command = files.command(&words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that refuses its arguments does not read.
    _ = child.stdin.take().unwrap().write_all(password.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn users_come_sign_in_and_go() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new(&[("skep.toml", "[auth]\nusers = \"users\"\n")]);
    let path = files.0.path().join("users");
    let text = || std::fs::read_to_string(&path).unwrap();
    let plain = |words: &[&str]| {
        let output = files.command(&[&["user"], words].concat()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    };
    let said = user(&files, &["add", "ada", "--group", "staff", "--group", "Human Resources", "--name", "Ada Lovelace"], "correct horse\n");
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{}", said.out);
    assert!(said.out.contains("which is new, in staff, Human Resources"), "{}", said.out);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(text().starts_with("ada:$argon2id$") && !text().contains("horse"), "{}", text());

    std::fs::write(&path, format!("# kept\n{}", text())).unwrap();
    let said = user(&files, &["add", "bob", "--email", "bob@example.com"], "short");
    assert!(said.code == 0 && said.err.contains("shorter than 8") && said.out.contains("in no group"), "{}{}", said.out, said.err);
    let said = plain(&["list"]);
    let row = |user: &str| said.out.lines().find(|line| line.starts_with(user)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row("bob"), ["bob", "-", "-", "bob@example.com"]);
    assert_eq!(row("ada")[1..], ["Human", "Resources,", "staff", "Ada", "Lovelace", "-"]);
    let json = plain(&["list", "--json"]).json();
    assert_eq!((json["users"][0]["user"].as_str(), json["users"].as_array().unwrap().len()), (Some("ada"), 2));

    for (name, password, code, wanted) in [
        ("Ada", "correct horse", 0, "the password is right: `ada`, in Human Resources, staff"),
        ("ada", "correct hors", 1, "the password is wrong"),
        ("ada", "", 1, "the password is wrong"),
        ("adda", "correct horse", 1, "did you mean `ada`?"),
    ] {
        let said = user(&files, &["check", name], password);
        assert!(said.code == code && said.out.contains(wanted), "{name} {password}: {} {}{}", said.code, said.out, said.err);
    }

    assert_eq!(user(&files, &["passwd", "ADA"], "new password\r\n").code, 0);
    assert_eq!(user(&files, &["check", "ada"], "new password").code, 0);
    assert_eq!(user(&files, &["check", "ada"], "correct horse").code, 1);
    assert_eq!(plain(&["remove", "ada"]).code, 0);
    assert!(text().starts_with("# kept\nbob:$argon2id$"), "{}", text());
}

#[test]
fn what_cannot_be_done_to_users_changes_nothing() {
    const HASH: &str = "$2y$04$TW1XwaGi59JVeDrAB0rc.u575ZQYyFeTWE2Qt2NLGqBb3bu.h4LvS";
    let before = format!("ada:{HASH}:staff\nbroken hunter2\neve:hunter2\n");
    let files = Files::new(&[("skep.toml", ""), ("users", &before)]);
    let named = |words: &[&'static str]| [words, &["--file", "users"]].concat();
    // arguments, password, exit code, what is said
    for (words, password, code, wanted) in [
        (vec!["add", "bob"], "a password", 2, "set `auth.users` in the settings"),
        (vec!["list"], "", 2, "unexpected argument"),
        (named(&["add", "ADA"]), "a password", 2, "there already, in line 1"),
        (named(&["add", "a:b"]), "a password", 2, "colon"),
        (named(&["add", "bob", "--group", "a,b"]), "a password", 2, "comma"),
        (named(&["add", "bob"]), "", 2, "is empty"),
        (named(&["add", "bob"]), "a\u{7}b", 2, "control characters"),
        (named(&["add", "bob", "--password", "secret"]), "", 2, "unexpected argument"),
        (named(&["passwd", "bob"]), "a password", 2, "there is no user `bob`"),
        (named(&["check", "eve"]), "hunter2", 1, "cannot sign in"),
        (vec!["add", "bob", "--file", "absent/users"], "a password", 2, "cannot be written"),
        (vec!["check", "bob", "--file", "absent"], "a password", 2, "cannot be read"),
    ] {
        let said = user(&files, &words, password);
        let all = said.out + &said.err;
        assert!(said.code == code && all.contains(wanted) && !all.contains("hunter2"), "{words:?}: {} {all}", said.code);
    }
    let output = files.command(&["user", "list", "--file", "users"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("no-hash") && said.contains("bad-hash"), "{said}");
    assert!(!said.contains("hunter2") && !said.contains(HASH), "{said}");
    assert_eq!(std::fs::read_to_string(files.0.path().join("users")).unwrap(), before);
    assert_eq!(std::fs::read_dir(files.0.path()).unwrap().count(), 2);
}
