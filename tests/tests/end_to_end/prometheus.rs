//! A real Prometheus scrapes the daemon and has the kernel's numbers.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Daemon, free_port, get, target, wait_for};
use crate::load::Load;
use crate::privileged;

/// Debian's Prometheus; killed when dropped.
pub struct Prometheus {
    child: Child,
    port: u16,
    data: TempDir,
}

impl Prometheus {
    /// Scrapes one daemon every second.
    pub fn scrape(daemon: &Daemon) -> Self {
        Self::start(TempDir::new().expect("a temporary directory"), daemon, "")
    }

    /// The same, with more of a configuration, whose files are in `data`.
    pub fn start(data: TempDir, daemon: &Daemon, more: &str) -> Self {
        let address = daemon.url("");
        let address = address.trim_start_matches("http://");
        let config = data.path().join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nscrape_configs:\n- job_name: tickscope\n  static_configs: [{{ targets: ['{address}'] }}]\n{more}"
        );
        fs::write(&config, text).expect("it is written");
        let port = free_port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(data.path().join("log")).expect("a file"))
            .spawn()
            .expect("prometheus is installed (./x setup --tests)");
        Self { child, port, data }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.data.path().join("log")).expect("it is there")
    }

    /// The values of an instant query; `None` while it does not answer.
    pub fn values(&self, query: &str) -> Option<Vec<f64>> {
        let answer = ureq::get(format!("http://127.0.0.1:{}/api/v1/query", self.port))
            .query("query", query)
            .call()
            .ok()?;
        let answer: Value = serde_json::from_str(&answer.into_body().read_to_string().ok()?).ok()?;
        let result = answer["data"]["result"].as_array()?;
        result.iter().map(|series| series["value"][1].as_str()?.parse().ok()).collect()
    }

    /// The only sample of an instant query, when there is exactly one.
    pub fn value(&self, query: &str) -> Option<f64> {
        let values = self.values(query)?;
        let [only] = values.as_slice() else { return None };
        Some(*only)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_exposition_is_clean_and_prometheus_has_every_bucket() {
    if !privileged() {
        return;
    }
    let mut load = Load::start(&["sleep", "2000", "200"]);
    let daemon = Daemon::start(&target(&format!("pid = {}", load.pid())));
    load.go();
    // From here on the process waits for its input, and nothing of it changes.
    daemon.two_readings();
    // A nap whose timer fires before the thread has left its CPU does not block; that is rare.
    let count = daemon.series("offcpu", Some("sleep")).total.count;
    assert!((1990..=2000).contains(&count), "{count} of 2000");

    check(&daemon.page("/metrics"));

    let prometheus = Prometheus::scrape(&daemon);
    wait_for("prometheus scrapes", 30, || (prometheus.value("up")? > 0.5).then_some(()));
    for (probe, label) in [("runqueue", None), ("offcpu", Some("sleep"))] {
        let total = daemon.series(probe, label).total;
        let selector = label.map_or_else(String::new, |label| format!("{{cause=\"{label}\"}}"));
        let is = |suffix: &str, wanted: f64| {
            let query = format!("tickscope_{probe}_seconds_{suffix}{selector}");
            let value = wait_for(&query, 10, || prometheus.value(&query));
            assert!((value - wanted).abs() <= wanted * 1e-12, "{query}: {value}, not {wanted}");
        };
        is("count", total.count as f64);
        is("sum", total.sum_seconds);
        // The same histogram read two ways: the quantile lies inside its classic bucket, 58 % wide.
        let query = format!("histogram_quantile(0.5, tickscope_{probe}_seconds_bucket{selector})");
        let classic = wait_for(&query, 10, || prometheus.value(&query));
        let fine = daemon.series(probe, label).windows["1h"].p50.expect("there is data").value;
        assert!((0.6..1.7).contains(&(classic / fine)), "{probe}: {classic} against {fine}");
    }
    assert!((prometheus.value("tickscope_probe_state{probe=\"runqueue\",state=\"healthy\"}")).is_some());
    let state = "sum(tickscope_probe_state) == count(count by (probe) (tickscope_probe_state))";
    assert!(prometheus.value(state).is_some(), "every probe is in exactly one state");
}

/// `promtool check metrics` has nothing to say.
fn check(exposition: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (./x setup --tests)");
    promtool.stdin.take().expect("it is piped").write_all(exposition.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn prometheus_answers_while_a_scraper_dawdles() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::start(&target("pid = 1"));
    let address = daemon.url("").trim_start_matches("http://").to_owned();
    // Half a request each: they hold a place until the header's time is over.
    let mut half = Vec::new();
    for _ in 0..40 {
        let mut stream = std::net::TcpStream::connect(&address).expect("it accepts");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:").expect("it reads");
        half.push(stream);
    }
    assert!(get(&daemon.url("/metrics")).is_some_and(|text| text.contains("tickscope_build_info")));
}
