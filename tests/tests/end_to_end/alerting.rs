//! From a stall to a page: daemon, rules, Prometheus, Alertmanager, webhook, and back again.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Daemon, free_port, get, wait_for};
use crate::dashboards::{CONFIG, hurry, repository, rules};
use crate::load::Load;
use crate::privileged;
use crate::prometheus::Prometheus;

/// Debian's Alertmanager with the configuration that is shipped; killed when dropped.
struct Alertmanager {
    child: Child,
    port: u16,
    _data: TempDir,
}

impl Alertmanager {
    /// Tells what it tells people to `webhook` instead, and waits for seconds where it would for minutes.
    fn start(webhook: u16) -> Self {
        let data = TempDir::new().expect("a temporary directory");
        let shipped = fs::read_to_string(repository("dashboards/alertmanager/alertmanager.yml"));
        let text = shipped.expect("it is there").replace("127.0.0.1:9099", &format!("127.0.0.1:{webhook}"));
        let text = text.replace("group_wait: 1m", "group_wait: 1s");
        let text = text.replace("group_interval: 30s", "group_interval: 1s");
        let config = data.path().join("alertmanager.yml");
        fs::write(&config, text).expect("it is written");
        let port = free_port();
        let child = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", data.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(fs::File::create(data.path().join("log")).expect("a file"))
            .spawn()
            .expect("prometheus-alertmanager is installed (./x setup --tests)");
        Self { child, port, _data: data }
    }

    /// `active`, `suppressed` or nothing, for an alert of an objective.
    fn state(&self, alert: &str, slo: &str) -> Option<String> {
        let alerts = get(&format!("http://127.0.0.1:{}/api/v2/alerts", self.port))?;
        let alerts: Value = serde_json::from_str(&alerts).ok()?;
        let mine = |found: &&Value| found["labels"]["alertname"] == alert && found["labels"]["slo"] == slo;
        let found = alerts.as_array()?.iter().find(mine)?;
        Some(found["status"]["state"].as_str()?.to_owned())
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One notification.
#[derive(Debug)]
struct Told {
    /// `/page` or `/ticket`
    path: String,
    body: Value,
}

/// Takes notifications and answers 200.
fn webhook() -> (u16, Receiver<Told>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    let port = listener.local_addr().expect("it is bound").port();
    let (tell, told) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tell = tell.clone();
            thread::spawn(move || listen(stream, &tell));
        }
    });
    (port, told)
}

fn listen(stream: std::net::TcpStream, tell: &Sender<Told>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).ok().filter(|bytes| *bytes > 0)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let path = first.split(' ').nth(1)?.to_owned();
        tell.send(Told { path, body: serde_json::from_slice(&body).ok()? }).ok()?;
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

/// The rules as printed, with seconds for hours: the shape stays, the wait does not.
fn hasten(rules: &str) -> String {
    let windows = [
        ("5m", "4s"),
        ("30m", "6s"),
        ("1h", "8s"),
        ("2h", "6s"),
        ("6h", "10s"),
        ("1d", "12s"),
        ("3d", "15s"),
    ];
    windows
        .iter()
        .fold(hurry(rules), |rules, (long, short)| rules.replace(&format!("[{long}]"), &format!("[{short}]")))
}

#[test]
fn a_stall_pages_and_its_end_resolves() {
    if !privileged() {
        return;
    }
    // Naps of 0.3 ms are well below the promised 20 ms, naps of 60 ms well above.
    let mut good = Load::start(&["sleep", "2", "300"]);
    let mut stall = Load::start(&["sleep", "1", "60000"]);
    let daemon = Daemon::start(CONFIG);
    let (port, told) = webhook();
    let alertmanager = Alertmanager::start(port);
    let data = TempDir::new().expect("a temporary directory");
    fs::write(data.path().join("slo.yml"), hasten(&rules(CONFIG))).expect("it is written");
    let more = format!(
        "rule_files: [slo.yml]\nalerting: {{ alertmanagers: [{{ static_configs: [{{ targets: ['127.0.0.1:{}'] }}] }}] }}\n",
        alertmanager.port
    );
    let prometheus = Prometheus::start(data, &daemon, &more);
    let burn = "slo:tickscope_slo_burn_rate:5m{slo=\"naps\"}";
    wait_for("the rules know that all is well", 30, || {
        good.go();
        prometheus.value(burn).filter(|rate| *rate < 1.0)
    });
    assert!(told.try_iter().all(|told| told.path != "/page"), "nobody is woken for nothing");

    let began = Instant::now();
    let page = |status: &'static str| {
        told.try_iter().find(|told| {
            told.path == "/page" && told.body["status"] == status && told.body["groupLabels"]["slo"] == "naps"
        })
    };
    let paged = wait_for("the stall pages", 30, || {
        stall.go();
        page("firing")
    });
    eprintln!("paged after {:.1} s", began.elapsed().as_secs_f64());
    let alert = &paged.body["alerts"][0];
    assert_eq!(alert["labels"]["alertname"], "TickscopeSloBurn");
    let text = |key: &str| alert["annotations"][key].as_str().unwrap_or_default().to_owned();
    assert!(text("summary").starts_with("naps burns its error budget"), "{alert}");
    assert!(text("description").contains("99% of offcpu sleep in t take at most 20ms"), "{alert}");
    let runbook = text("runbook_url");
    let (_, runbook) = runbook.split_once("tickscope.example/").expect("a place in docs/runbooks");
    assert!(repository(runbook).exists(), "{runbook}");
    // The page says all that the ticket would.
    wait_for("the ticket is held back", 20, || {
        stall.go();
        alertmanager.state("TickscopeSloBurnSlow", "naps").filter(|state| state == "suppressed")
    });
    // The daemon's own count of the week says the same as the rules.
    let bad = daemon.metric("tickscope_slo_bad_events_total{slo=\"naps\"}");
    assert!(bad > 10.0, "{bad}");

    let ended = Instant::now();
    wait_for("the end of the stall resolves", 60, || {
        good.go();
        page("resolved")
    });
    eprintln!("resolved after {:.1} s", ended.elapsed().as_secs_f64());
}
