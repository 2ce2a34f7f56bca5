//! `tickscope gate` as a release pipeline meets it: files and pipes in, exit codes and lines out.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Ten observations in each of fifty buckets a second, the baseline alone for a minute, then both
/// arms; the canary is `shift` buckets higher and fails `bad` of 500 requests.
fn recording(shift: i32, bad: u32, to: u32) -> String {
    let mut text = String::new();
    for t in 1..=to {
        for (arm, shift, bad) in [("baseline", 0, 0), ("canary", shift, bad)] {
            if arm == "canary" && t <= 60 {
                continue;
            }
            let bound = |index: i32| (f64::from(index + shift) / 16.0).exp2();
            let buckets: Vec<String> = (-260..=-211).map(|index| format!("[{},10]", bound(index))).collect();
            let buckets = buckets.join(",");
            writeln!(text, r#"{{"t":{t}.0,"arm":"{arm}","kpi":"latency","unit":"s","buckets":[{buckets}]}}"#)
                .unwrap();
            writeln!(text, r#"{{"t":{t}.0,"arm":"{arm}","kpi":"errors","total":500,"bad":{bad}}}"#).unwrap();
        }
    }
    text
}

/// Exit code, lines of standard output, standard error.
fn replayed(text: &str, arguments: &[&str]) -> (i32, Vec<Value>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tickscope"))
        .args(["gate", "replay", "-"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A reader that has seen enough may be gone.
    drop(child.stdin.take().unwrap().write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_last_line_has_the_verdict_and_the_exit_code_says_the_same() {
    for (shift, bad, to, code, verdict, action, t, kpi, quantile) in [
        (0, 0, 360, 0, "pass", "promote", 116.0, "latency", Some(0.5)),
        (-16, 0, 360, 0, "pass", "promote", 90.0, "latency", Some(0.5)),
        (0, 0, 89, 3, "inconclusive", "hold", 89.0, "latency", Some(0.5)),
        (1, 0, 360, 3, "inconclusive", "hold", 360.0, "latency", Some(0.5)),
        (2, 0, 360, 1, "fail", "rollback", 73.0, "latency", Some(0.99)),
        (3, 0, 360, 1, "fail", "rollback", 72.0, "latency", Some(0.99)),
        (0, 10, 360, 1, "fail", "rollback", 64.0, "errors", None),
        (0, 0, 60, 3, "nodata", "hold", 60.0, "", None),
    ] {
        let (exit, lines, error) = replayed(&recording(shift, bad, to), &[]);
        let last = lines.last().unwrap();
        assert_eq!((exit, error.as_str()), (code, ""), "{last}");
        assert_eq!((&last["verdict"], &last["action"]), (&verdict.into(), &action.into()), "{last}");
        assert_eq!(last["t"], t, "{last}");
        // A faster canary is certified in all at the same moment: any of them may be the last.
        if verdict != "nodata" && shift != -16 {
            assert_eq!((&last["kpi"], last["quantile"].as_f64()), (&kpi.into(), quantile), "{last}");
        }
        assert!(last["reason"].as_str().unwrap().len() > 20);
        assert!(lines[..lines.len() - 1].iter().all(|line| line["verdict"].is_null() && line["t"].is_f64()));
    }
}

#[test]
fn the_same_file_gives_the_same_bytes_from_a_file_and_a_pipe() {
    let text = recording(2, 1, 100);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tickscope"))
        .args(["gate", "replay"])
        .arg(file.path())
        .output()
        .unwrap();
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines, replayed(&text, &[]).1);
}

#[test]
fn alpha_decides_how_sure_it_has_to_be() {
    let at =
        |alpha| replayed(&recording(2, 0, 360), &["--alpha", alpha]).1.last().unwrap()["t"].as_f64().unwrap();
    assert!(at("0.0001") > at("0.01") && at("0.01") > at("0.2"));
}

#[test]
fn what_is_wrong_is_usage_and_says_where() {
    let (code, lines, error) = replayed("{\"t\":1}\n", &[]);
    assert_eq!((code, lines.len()), (2, 0));
    assert!(error.starts_with("tickscope: -, line 1: column 7: missing field `arm`"), "{error}");
    let (code, _, error) = replayed("", &["--alpha", "2"]);
    assert_eq!(code, 2);
    assert!(error.contains("between 0 and 1"), "{error}");
    let output =
        Command::new(env!("CARGO_BIN_EXE_tickscope")).args(["gate", "replay", "/no/such"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read /no/such: No such file"));
}

fn ran(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tickscope")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn without_a_daemon_there_is_no_verdict() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    for arguments in [
        &["gate", "check", "engine", "--url", &url][..],
        &["gate", "watch", "engine", "--url", &url, "--for", "1s"],
        &["gate", "watch", "--from", &url, "--baseline", "a", "--canary", "b", "--kpi", "runqueue"],
    ] {
        let (code, out, error) = ran(arguments);
        assert_eq!((code, out.as_str()), (69, ""), "{arguments:?} {error}");
        assert!(error.contains("start one with `tickscope run`"), "{error}");
    }
    for arguments in [&["gate", "start", "engine"][..], &["gate", "stop", "engine"]] {
        let (code, _, error) = ran(&[arguments, &["--control", "/no/such/socket"]].concat());
        assert_eq!(code, 69, "{error}");
        assert!(error.contains("/no/such/socket") && error.contains("No such file"), "{error}");
    }
    let (code, _, error) = ran(&["gate", "watch"]);
    assert_eq!(code, 2, "{error}");
    let (code, _, error) = ran(&["gate", "watch", "--from", &url]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("--baseline"), "{error}");
}
