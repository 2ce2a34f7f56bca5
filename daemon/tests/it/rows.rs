//! `detect` and `forecast`: one line out for each row in, nothing known before it is seen.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Exit code, standard output and standard error, for this input.
fn ran(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tickscope"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// A leak of 0.1 a second from 100.
fn leak(len: u32) -> String {
    (0..len).map(|i| format!("{i},{}\n", 100.0 + 0.1 * f64::from(i))).collect()
}

#[test]
fn detect_scores_every_row_and_echoes_it() {
    let mut input = String::from("timestamp,value\n");
    for i in 0..600 {
        let value = if i == 500 { 90.0 } else { 10.0 + f64::from(i * 7 % 13) / 13.0 };
        input += &format!("2014-04-01 {:02}:{:02}:00,{value}\n", i / 60, i % 60);
    }
    let (code, out, error) = ran(&["detect"], &input);
    assert_eq!((code, error.as_str()), (0, ""));
    let out = lines(&out);
    assert_eq!((out.len(), out[0]), (601, "timestamp,value,anomaly_score"));
    for (out, input) in out.iter().zip(lines(&input)).skip(1) {
        let score: f64 =
            out.strip_prefix(input).and_then(|rest| rest.strip_prefix(',')).unwrap().parse().unwrap();
        assert!((0.0..=1.0).contains(&score), "{out}");
    }
    let score = |line: &str| line.rsplit(',').next().unwrap().parse::<f64>().unwrap();
    let greatest = (1..601).max_by(|a, b| score(out[*a]).total_cmp(&score(out[*b]))).unwrap();
    assert_eq!(greatest, 501);
}

#[test]
fn forecast_warns_of_a_leak() {
    let input = format!("# limit=200 direction=above horizon=600 step=1 breach=1000\nt,value\n{}", leak(950));
    let (code, out, error) = ran(&["forecast"], &input);
    assert_eq!((code, error.as_str()), (0, ""));
    let out = lines(&out);
    assert_eq!((out.len(), out[0]), (951, "t,score,alert,warn,p,eta_lo,eta,eta_hi"));
    assert_eq!(out[1], "0,0.000000,0,0,,,,");
    let cells = |t: usize| out[t + 1].split(',').map(str::to_owned).collect::<Vec<_>>();
    let number = |t: usize, cell: usize| cells(t)[cell].parse::<f64>().unwrap();
    assert!((number(799, 4) - 0.780_101).abs() < 1e-3 && (number(799, 6) - 209.058).abs() < 0.3);
    assert_eq!((cells(690)[3].as_str(), cells(710)[3].as_str()), ("0", "1"));

    // Flags say the same, the step is that of the rows, and 10 s a row is ten times slower.
    let (_, flags, _) = ran(&["forecast", "--limit", "200", "--horizon", "600s"], &leak(950));
    assert_eq!(lines(&flags), out);
    let slow: String = (0..950).map(|i| format!("{},{}\n", i * 10, 100.0 + 0.1 * f64::from(i))).collect();
    let (_, slow, _) = ran(&["forecast", "--limit", "200", "--horizon", "6000"], &slow);
    let eta: f64 = lines(&slow)[800].split(',').nth(6).unwrap().parse().unwrap();
    assert!((eta - 2090.58).abs() < 3.0, "{eta}");

    // Below is above, upside down.
    let down: String = (0..950).map(|i| format!("{i},{}\n", -100.0 - 0.1 * f64::from(i))).collect();
    let (_, down, _) =
        ran(&["forecast", "--limit", "-200", "--direction", "below", "--horizon", "600"], &down);
    let foreseen = |text: &str| text.split(',').skip(3).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(foreseen(lines(&down)[800]), foreseen(out[800]));
}

#[test]
fn a_prefix_has_the_prefix_of_the_output() {
    let whole = leak(900);
    let prefix = leak(400);
    for arguments in [&["detect"][..], &["forecast", "--limit", "200"]] {
        let (_, whole, _) = ran(arguments, &whole);
        let (_, prefix, _) = ran(arguments, &prefix);
        assert!(whole.starts_with(&prefix), "{arguments:?}");
    }
}

#[test]
fn gaps_are_rows_and_silence_is_no_forecast() {
    let mut input = leak(700);
    for t in 700..800 {
        input += &format!("{t},{}\n", if t % 2 == 0 { "" } else { "NaN" });
    }
    let (code, out, error) = ran(&["forecast", "--limit", "200", "--horizon", "600"], &input);
    assert_eq!((code, error.as_str()), (0, ""));
    let out = lines(&out);
    assert_eq!(out.len(), 801);
    let p = |t: usize| out[t + 1].split(',').nth(4).unwrap().to_owned();
    assert_eq!((p(730), p(759)), (p(699), p(699)), "the last one holds");
    assert_eq!((p(760), p(799)), (String::new(), String::new()), "a minute later nothing is known");
}

#[test]
fn malformed_lines_end_it_or_are_counted() {
    let input = "t,value\n0,1\n1,2\n2;3\n3,4\nx,5\n4,y\n5,6\n";
    for arguments in [&["detect"][..], &["forecast", "--limit", "9"]] {
        let (code, out, error) = ran(arguments, input);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains("line 4: not time,value"), "{error}");
        assert_eq!(lines(&out).len(), 3, "what came before is written");
        let skipping = [arguments, &["--skip-bad"]].concat();
        let (code, out, error) = ran(&skipping, input);
        assert_eq!((code, lines(&out).len()), (0, 5), "{out}");
        assert_eq!(error, "tickscope: 3 malformed lines skipped\n");
    }
    for (input, what) in
        [("0,1\n", "no limit"), ("# limit=much\n0,1\n", "line 1: \"much\""), ("# limit=1 step=0\n", "step")]
    {
        let (code, _, error) = ran(&["forecast"], input);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(what) || error.contains("not a time"), "{error}");
    }
    assert_eq!(ran(&["detect"], "").1, "timestamp,value,anomaly_score\n");
}

#[test]
fn json_has_an_object_for_each_row() {
    let (code, out, _) =
        ran(&["forecast", "--limit", "200", "--horizon", "600", "--format", "json"], &leak(800));
    assert_eq!(code, 0);
    let rows: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 800);
    assert_eq!((&rows[0]["p"], &rows[799]["warn"]), (&serde_json::Value::Null, &true.into()));
    let (_, out, _) = ran(&["detect", "--format", "json"], "0,1\n1,\n");
    assert_eq!(out.lines().nth(1).unwrap(), r#"{"anomaly_score":0.0,"timestamp":"1","value":null}"#);
}

#[test]
fn a_row_is_answered_before_the_next_one_comes() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tickscope"))
        .arg("detect")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    stdin.write_all(b"timestamp,value\n0,1\n").unwrap();
    assert_eq!(out.next().unwrap().unwrap(), "timestamp,value,anomaly_score");
    assert_eq!(out.next().unwrap().unwrap(), "0,1,0.000000");
    stdin.write_all(b"1,2\n").unwrap();
    assert!(out.next().unwrap().unwrap().starts_with("1,2,"));
    drop(stdin);
    assert!(child.wait().unwrap().success());
}
