//! The HTTP side: its pages, and that nobody can make it grow or wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tickscope::http::{self, ReloadRequest, Shared};
use tickscope::measure::View;
use tickscope::run::Reloaded;
use tickscope_core::{Now, Snapshot, State, gate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

struct Server {
    address: std::net::SocketAddr,
    views: watch::Sender<View>,
    stop: watch::Sender<bool>,
    asked: mpsc::Receiver<ReloadRequest>,
    _reloaded: watch::Sender<Reloaded>,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(reload: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (views, seen) =
            watch::channel(View { snapshot: Arc::default(), facts: Arc::default(), gates: Arc::default() });
        let (stop, stopped) = watch::channel(false);
        let (ask, asked) = mpsc::channel(1);
        let (tell_reloaded, reloaded) = watch::channel(Reloaded { successful: true, at_seconds: 1.0 });
        let shared = Shared { views: seen, reloaded, reload: reload.then_some(ask) };
        let serving = tokio::spawn(http::serve(listener, shared, stopped));
        Self { address, views, stop, asked, _reloaded: tell_reloaded, serving }
    }

    fn publish(&self, snapshot: Snapshot) {
        self.views.send_modify(|view| view.snapshot = Arc::new(snapshot));
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Status and body.
    async fn ask(&self, head: &str) -> (u16, String) {
        let mut stream = self.connect().await;
        let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        answer(&mut stream).await
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1")).await
    }
}

async fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    // A reset after the answer is the server's right.
    drop(stream.read_to_end(&mut bytes).await);
    let text = String::from_utf8(bytes).unwrap();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// A snapshot after one reading without any data.
fn one_reading() -> Snapshot {
    let mut state = State::new(&["engine".to_owned()], 1_000_000_000);
    state.step(&tickscope_core::Measurements::default(), Now { monotonic_ns: 1_000_000_000, wall_ns: 1 })
}

#[tokio::test]
async fn every_page_answers() {
    let server = Server::start(false).await;
    assert_eq!(server.get("/-/healthy").await, (200, "ok\n".into()));
    for path in [
        "/api/v1/status",
        "/api/v1/snapshot",
        "/api/v1/outliers",
        "/api/v1/slos",
        "/api/v1/forecasts",
        "/api/v1/gates",
    ] {
        let (status, body) = server.get(path).await;
        assert_eq!(status, 200, "{path}");
        serde_json::from_str::<serde_json::Value>(&body).expect(path);
    }
    let (status, body) = server.get("/").await;
    assert_eq!(status, 200);
    for path in [
        "/metrics",
        "/api/v1/status",
        "/api/v1/snapshot",
        "/api/v1/outliers",
        "/api/v1/slos",
        "/api/v1/forecasts",
    ] {
        assert!(body.contains(path), "the landing page links {path}");
    }
    assert_eq!(server.get("/nothing").await.0, 404);
    assert_eq!(server.ask("POST /metrics HTTP/1.1").await.0, 405);
    let (status, body) = server.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(body.contains("tickscope_build_info{"), "{body}");
}

#[tokio::test]
async fn no_data_is_not_ready() {
    let server = Server::start(false).await;
    assert_eq!(server.get("/-/ready").await, (503, "nothing read yet\n".into()));
    server.publish(one_reading());
    let (status, body) = server.get("/-/ready").await;
    assert_eq!(status, 503);
    assert!(body.starts_with("no probe measures"), "{body}");
}

#[tokio::test]
async fn reload_over_http_is_off_unless_turned_on() {
    let server = Server::start(false).await;
    let (status, body) = server.ask("POST /-/reload HTTP/1.1").await;
    assert_eq!(status, 403);
    assert!(body.contains("SIGHUP"), "{body}");

    let mut server = Server::start(true).await;
    assert_eq!(server.get("/-/reload").await.0, 405, "a crawler must not reload");
    let mut stream = server.connect().await;
    let request = b"POST /-/reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let asked = server.asked.recv().await.unwrap();
    asked.send(Err("line 3".into())).unwrap();
    assert_eq!(answer(&mut stream).await, (400, "line 3\n".into()));
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server = Server::start(false).await;
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(server.connect().await);
    }
    let (status, _) = answer(&mut server.connect().await).await;
    assert_eq!(status, 503);
    // Room again as soon as somebody leaves.
    drop(idle);
    let end = Instant::now() + Duration::from_secs(5);
    while server.get("/-/healthy").await.0 != 200 {
        assert!(Instant::now() < end, "no room after all have left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_or_a_body_is_refused() {
    let server = Server::start(false).await;
    let (status, _) = server.ask(&format!("GET /metrics HTTP/1.1\r\nX: {}", "y".repeat(20_000))).await;
    assert!(status == 431 || status == 414, "{status}");
    let (status, body) = server.ask("POST /-/reload HTTP/1.1\r\nContent-Length: 1000000").await;
    assert_eq!((status, body.as_str()), (413, "the body is too large\n"));
    let (status, _) = server.ask("\0\0garbage").await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn who_sends_slowly_is_cut_off() {
    let server = Server::start(false).await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost:").await.unwrap();
    let began = Instant::now();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(9), slow.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "still open after 9 s");
    assert!(began.elapsed() > Duration::from_secs(4), "it was given its time");
}

#[tokio::test]
async fn stopping_does_not_wait_for_idle_connections() {
    let server = Server::start(false).await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(server.connect().await);
    }
    assert_eq!(server.get("/-/healthy").await.0, 200);
    server.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(2), server.serving).await.expect("it ends").unwrap();
}

/// Blocks of a canary that is as it should be, then of one that is not.
fn statuses(slow: u64) -> Vec<gate::Status> {
    let watched = gate::Watched {
        name: "runqueue".into(),
        probe: 0,
        label: None,
        quantiles: vec![(0, None), (1, None)],
    };
    let mut watch = gate::Watch::new(vec![gate::Spec {
        name: "engine".into(),
        baseline: 0,
        canary: 1,
        kpis: vec![watched],
        policy: gate::Policy::default(),
        seconds: 0.2,
    }]);
    let wall_ns = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let builds = gate::Builds { canary: Some("b2".into()), stable: Some("b1".into()), hotfix: false };
    watch.start("engine", builds, None, Now { monotonic_ns: 0, wall_ns: wall_ns() });
    for block in 0..500u64 {
        let row = |target, slow: u64| {
            let mut histogram = tickscope_core::Histogram::default();
            (0..200u64).for_each(|i| histogram.observe(slow * (10_000 + 50 * (i * 37 % 200))));
            tickscope_core::RowReading { probe: 0, target, label: 0, histogram }
        };
        let mut reading = tickscope_core::Measurements { elapsed_ns: 200_000_000, ..Default::default() };
        reading.rows = vec![row(0, 1)];
        if block > 150 {
            reading.rows.push(row(1, slow));
        }
        reading.probes = vec![tickscope_core::ProbeReading {
            state: tickscope_core::ProbeState::Healthy,
            reason: String::new(),
            accounting: tickscope_core::Accounting::default(),
            runs: 0,
            timed: 0,
            timed_ns: 0,
        }];
        watch.step(&reading, Now { monotonic_ns: block * 200_000_000, wall_ns: wall_ns() });
    }
    watch.statuses()
}

#[tokio::test]
async fn every_verdict_is_200_with_json() {
    let server = Server::start(false).await;
    let json = async |path: &str| {
        let (status, body) = server.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<serde_json::Value>(&body).expect(path)
    };
    for path in ["/api/v1/gates/engine", "/api/v1/gates/engine?canary=b2&x=%zz&=&&"] {
        let gate = json(path).await;
        assert_eq!((&gate["verdict"], &gate["action"]), (&"nodata".into(), &"hold".into()), "{gate}");
    }
    for (slow, verdict, action, flagger, turned) in
        [(1, "pass", "promote", 200, 409), (2, "fail", "rollback", 409, 200)]
    {
        server.views.send_modify(|view| view.gates = Arc::new(statuses(slow)));
        let gate = json("/api/v1/gates/engine?canary=b2&stable=b1&interval=15s").await;
        assert_eq!(
            (&gate["gate"], &gate["verdict"], &gate["action"]),
            (&"engine".into(), &verdict.into(), &action.into())
        );
        assert!(
            gate["since"].as_f64().unwrap() > 1e9 && gate["age_seconds"].as_f64().unwrap() < 5.0,
            "{gate}"
        );
        let row = &gate["kpis"][1];
        assert_eq!((&row["kpi"], &row["quantile"]), (&"runqueue".into(), &0.99.into()));
        for key in ["baseline", "canary", "ratio", "ratio_low", "margin", "evidence", "alpha"] {
            assert!(row[key].is_f64(), "{key} of {row}");
        }
        assert!(row["baseline_count"].as_u64() > Some(1000) && row["canary_count"].as_u64() > Some(1000));
        assert_eq!(json("/api/v1/gates/engine?canary=b3").await["verdict"], "nodata");
        assert_eq!(json("/api/v1/gates").await["gates"][0]["verdict"], verdict);
        assert_eq!(server.ask("POST /api/v1/gates/engine/flagger HTTP/1.1").await.0, flagger);
        assert_eq!(server.ask("POST /api/v1/gates/engine/flagger?when=fail HTTP/1.1").await.0, turned);
        assert_eq!(server.ask("POST /api/v1/gates/other/flagger HTTP/1.1").await.0, 409);
        let (_, metrics) = server.get("/metrics").await;
        let value = if verdict == "pass" { "1" } else { "-1" };
        assert!(
            metrics.contains(&format!("tickscope_gate_verdict{{gate=\"engine\"}} {value}\n")),
            "{metrics}"
        );
        for state in gate::Verdict::ALL.map(gate::Verdict::name) {
            let is = u8::from(state == verdict);
            let line = format!("tickscope_gate_state{{gate=\"engine\",verdict=\"{state}\"}} {is}\n");
            assert!(metrics.contains(&line), "{line}");
        }
    }
    server.views.send_modify(|view| view.gates = Arc::new(gate::Watch::new(Vec::new()).statuses()));
    assert!(!server.get("/metrics").await.1.contains("tickscope_gate_verdict{"), "no data, no sample");
}

#[tokio::test]
async fn what_is_foreseen_is_a_page_and_metrics() {
    use tickscope_core::{Direction, Limit, Measurements, Rule, Subject, TargetReading};
    const SECOND: u64 = 1_000_000_000;
    let server = Server::start(false).await;
    let (_, body) = server.get("/api/v1/forecasts").await;
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&json["limits"], &json["record"]["coverage"]), (&0.into(), &serde_json::Value::Null));

    let mut state = State::new(&["engine".to_owned()], SECOND);
    state.watch().set_limits(vec![Rule {
        series: "engine/memory".into(),
        subject: Subject::Memory { target: 0 },
        limit: Limit {
            value: 1e9,
            direction: Direction::Above,
            horizon_s: 1800.0,
            step_s: 1.0,
            period_s: None,
        },
    }]);
    let step = |state: &mut State, second: u64| {
        let resident_bytes = Some(200_000_000 + 500_000 * second);
        let target = TargetReading { processes: 1, resident_bytes, ..TargetReading::default() };
        let reading = Measurements { elapsed_ns: SECOND, targets: vec![target], ..Measurements::default() };
        state.step(&reading, Now { monotonic_ns: second * SECOND, wall_ns: second * SECOND })
    };
    server.publish(step(&mut state, 1));
    let (_, body) = server.get("/api/v1/forecasts").await;
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["forecasts"][0]["state"], "unknown");
    let (_, metrics) = server.get("/metrics").await;
    assert!(!metrics.contains("tickscope_forecast_warning{"), "not known is no sample");

    let warned = (2..1600)
        .map(|second| step(&mut state, second))
        .find(|snapshot| snapshot.limits[0].forecast.is_some_and(|forecast| forecast.warn));
    server.publish(warned.expect("it warns before the breach at 1600 s"));
    let (_, body) = server.get("/api/v1/forecasts").await;
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    let forecast = &json["forecasts"][0];
    assert_eq!((&forecast["state"], &forecast["unit"]), (&"warning".into(), &"bytes".into()));
    assert!(forecast["text"].as_str().unwrap().starts_with("engine/memory crosses "), "{forecast}");
    let (_, metrics) = server.get("/metrics").await;
    for line in [
        "tickscope_forecast_warning{direction=\"above\",series=\"engine/memory\"} 1",
        "tickscope_limit_breached{direction=\"above\",series=\"engine/memory\"} 0",
        "tickscope_forecast_breach_seconds{bound=\"low\",direction=\"above\",series=\"engine/memory\"}",
        "tickscope_forecast_widening_ratio 1",
    ] {
        let reordered = metrics.lines().any(|found| same_metric(found, line));
        assert!(reordered, "{line} is not in\n{metrics}");
    }
}

/// Whether a line has this name, these labels in any order and this value, if one is given.
fn same_metric(found: &str, wanted: &str) -> bool {
    let parts = |line: &str| {
        let (name, rest) = line.split_once('{').or_else(|| line.split_once(' ')).unwrap_or((line, ""));
        let (labels, value) = rest.split_once('}').unwrap_or(("", rest));
        let mut labels: Vec<String> = labels.split(',').map(str::to_owned).collect();
        labels.sort();
        (name.to_owned(), labels, value.trim().to_owned())
    };
    let (found, wanted) = (parts(found), parts(wanted));
    found.0 == wanted.0 && found.1 == wanted.1 && (wanted.2.is_empty() || found.2 == wanted.2)
}
