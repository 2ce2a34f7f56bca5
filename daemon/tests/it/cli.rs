//! The command line as a user meets it: text, errors with their remedy, exit codes.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use tickscope::config;
use tickscope_common::catalog::PROBES;

/// Runs the binary without the environment that would change it.
fn tickscope(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tickscope"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TICKSCOPE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).env("COLUMNS", "100").stdin(Stdio::null());
    command
}

/// Exit code, standard output and standard error.
fn ran(arguments: &[&str]) -> (i32, String, String) {
    let output = tickscope(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it was not killed"), text(&output.stdout), text(&output.stderr))
}

fn checked(text: &[u8]) -> (i32, String) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let (code, _, error) = ran(&["config", "check", &path]);
    (code, error.replace(&path, "FILE"))
}

#[test]
fn help_says_what_there_is() {
    let (code, out, _) = ran(&["--help"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!(out, @r"
    Measures where a trading engine's microseconds go, from inside the kernel

    Usage: tickscope <COMMAND>

    Commands:
      run          Run the daemon
      top          Show what a running daemon measures
      doctor       Say what this kernel and these privileges allow, with the remedy
      probes       Explain every probe: what it measures, where, and what it cannot see
      detect       Score a series from standard input: time,value in, time,value,anomaly_score out
      forecast     Foresee when a series from standard input crosses a limit
      config       Check and explain configurations
      gate         Judge a canary against its baseline
      rules        Print recording and alerting rules for the configured objectives
      version      Say which build this is
      completions  Print a completion script for a shell
      man          Print the manual page, or write one for every command
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help
      -V, --version  Print version

    Exit codes: 0 done, 1 failed, 2 usage, 3 no data, 69 a service is unavailable, 77 missing privilege,
    78 bad configuration.
    ");
    for command in [
        "run",
        "top",
        "doctor",
        "probes",
        "detect",
        "forecast",
        "config",
        "rules",
        "version",
        "completions",
        "man",
    ] {
        let (code, out, error) = ran(&[command, "--help"]);
        assert_eq!((code, error.as_str()), (0, ""), "{command}");
        assert!(out.starts_with(|c: char| c.is_uppercase()), "{command}: {out}");
    }
}

#[test]
fn a_wrong_command_line_is_usage() {
    for arguments in
        [&[][..], &["rum"], &["top", "--window", "2m"], &["config"], &["run", "--listen", "here"]]
    {
        let (code, out, error) = ran(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(error.contains("Usage") || error.contains("--help"), "{error}");
    }
    let (_, _, error) = ran(&["rum"]);
    assert!(error.contains("'run'"), "{error}");
}

#[test]
fn probes_explains_every_probe() {
    let (code, out, _) = ran(&["probes"]);
    assert_eq!(code, 0);
    let (_, json, _) = ran(&["probes", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), PROBES.len());
    for (entry, probe) in json.as_array().unwrap().iter().zip(PROBES) {
        assert_eq!(entry["name"], probe.name);
        assert_eq!(entry["metric"], format!("tickscope_{}_seconds", probe.name));
        assert!(out.contains(probe.name) && out.contains(probe.measures) && out.contains(probe.blind));
    }
}

#[test]
fn version_has_what_a_report_needs() {
    let (code, out, _) = ran(&["version", "--format", "json"]);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["build"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["build"]["object_sha256"].as_str().unwrap().len(), 64);
    assert!(!json["kernel"].as_str().unwrap().is_empty());
    assert!(!json["build"]["git_sha"].as_str().unwrap().is_empty());
}

#[test]
fn the_default_configuration_checks_and_the_schema_is_json() {
    let (code, out, _) = ran(&["config", "default"]);
    assert_eq!((code, out.as_str()), (0, config::DEFAULT));
    assert_eq!(checked(out.as_bytes()), (0, String::new()));
    let (code, out, _) = ran(&["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &schema["type"]), (0, &"object".into()));
}

#[test]
fn bad_configurations_are_told_with_line_and_column() {
    assert_eq!(checked(b""), (0, String::new()), "an empty file is the default");
    let (code, error) = checked(b"interval = \"1s\"\n[probes.runqueu]\n");
    assert_eq!(code, 78);
    insta::assert_snapshot!(error, @r#"
    tickscope: FILE: TOML parse error at line 2, column 9
      |
    2 | [probes.runqueu]
      |         ^^^^^^^
    there is no probe "runqueu" (did you mean "runqueue"?): it is one of runqueue, preempted, offcpu, interrupt, syscall, page_fault
    "#);
    for (text, what) in [
        (&b"interval = \xff\xfe"[..], "line 1 is not UTF-8"),
        (b"\x00\x01\x02", "line 1, column 4"),
        (b"[[target]]\n", "line 1, column 1"),
        (b"interval = ", "line 1, column 12"),
        (b"[listen]\nhttp = \"localhost\"\n", "line 2, column 8"),
    ] {
        let (code, error) = checked(text);
        assert_eq!(code, 78, "{error}");
        assert!(error.contains(what), "{error}");
    }
    let (code, error) = checked(&vec![b'#'; 2 << 20]);
    assert_eq!(code, 78);
    assert!(error.contains("more than 1048576 bytes"), "{error}");
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() {
    for (path, what) in [("/no/such/file", "No such file"), ("/", "directory"), ("/dev/zero", "more than")] {
        let (code, _, error) = ran(&["config", "check", path]);
        assert_eq!(code, 78, "{error}");
        assert!(error.contains(path) && error.contains(what), "{error}");
        let (code, _, error) = ran(&["run", "--config", path]);
        assert_eq!(code, 78, "{error}");
    }
}

#[test]
fn top_without_a_daemon_says_what_to_do() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (code, out, error) = ran(&["top", "--once", "--url", &format!("http://127.0.0.1:{port}")]);
    assert_eq!((code, out.as_str()), (69, ""));
    assert!(error.contains("start one with `tickscope run`"), "{error}");
}

#[test]
fn top_of_something_else_is_told_apart() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", other.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    });
    let (code, _, error) = ran(&["top", "--once", "--url", &url]);
    server.join().unwrap();
    assert_eq!(code, 69);
    assert!(error.contains("expected value"), "{error}");
}

#[test]
fn a_port_in_use_is_said_before_anything_is_measured() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, error) = ran(&["run", "--listen", &address]);
    assert_eq!(code, 69);
    assert!(error.contains(&address) && error.contains("--listen"), "{error}");
    assert!(error.contains("in use"), "{error}");
}

#[test]
fn a_wrong_log_level_is_usage() {
    let (code, _, error) = ran(&["run", "--log-level", "tickscope=loud"]);
    assert_eq!(code, 2);
    assert!(error.contains("info"), "{error}");
}

#[test]
fn without_privilege_it_says_which_one_is_missing() {
    let mut command = command(&["run", "--listen", "127.0.0.1:0"]);
    // As nobody, unless this test already runs as somebody else than root. The binary may lie where
    // nobody cannot reach it, so it is copied.
    let directory = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        use std::os::unix::fs::PermissionsExt;
        let copy = directory.path().join("tickscope");
        fs::copy(env!("CARGO_BIN_EXE_tickscope"), &copy).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        command.args(["run", "--listen", "127.0.0.1:0"]).uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{error}");
    assert!(error.contains("CAP_BPF") && error.contains("CAP_PERFMON"), "{error}");
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, _) = ran(&["completions", shell]);
        assert_eq!(code, 0, "{shell}");
        assert!(out.contains("doctor") && out.contains("completions"), "{shell}");
    }
    let (code, out, _) = ran(&["man"]);
    assert_eq!(code, 0);
    assert!(out.contains(".TH tickscope"), "{out}");
    let directory = tempfile::tempdir().unwrap();
    let (code, _, error) = ran(&["man", directory.path().to_str().unwrap()]);
    assert_eq!(code, 0, "{error}");
    assert!(fs::read_dir(directory.path()).unwrap().count() > 8);
}

#[test]
fn a_closed_pipe_is_a_clean_end() {
    for arguments in [&["probes"][..], &["config", "default"], &["completions", "bash"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), error.as_ref()), (Some(0), ""), "{arguments:?}");
    }
}
