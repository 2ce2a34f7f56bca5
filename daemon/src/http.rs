//! The HTTP side: bounded in connections, header and body size, and time. It only reads.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{Request, StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use tickscope_common::catalog::PROBES;
use tickscope_core::ProbeState;
use tickscope_core::gate::{Builds, Verdict};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::exporter::{Input, gate, json, prometheus};
use crate::measure::View;
use crate::run::Reloaded;

/// Connections at one time; one more is told 503.
const CONNECTIONS: usize = 64;
/// Time for a request's head to arrive, and for all of a request.
const HEAD_TIME: Duration = Duration::from_secs(5);
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request's head (hyper allows no less), and of its body.
const HEAD_BYTES: usize = 8192;
const BODY_BYTES: u64 = 64 * 1024;
/// Renderings of `/metrics` at one time; one more is told 503.
const RENDERINGS: usize = 4;

/// Somebody asks for a reload and waits for the answer.
pub type ReloadRequest = oneshot::Sender<Result<(), String>>;

/// What handlers see.
#[derive(Clone)]
pub struct Shared {
    /// The latest snapshot.
    pub views: watch::Receiver<View>,
    /// How the latest reload went.
    pub reloaded: watch::Receiver<Reloaded>,
    /// Whom to ask for a reload; `None`: not over HTTP.
    pub reload: Option<mpsc::Sender<ReloadRequest>>,
}

impl Shared {
    fn input(&self) -> Input {
        let View { snapshot, facts, gates } = self.views.borrow().clone();
        Input { snapshot, facts, reloaded: *self.reloaded.borrow(), gates }
    }
}

#[derive(Clone)]
struct App {
    shared: Shared,
    renderings: Arc<Semaphore>,
}

/// Serves until `stopped` says so, and then what is under way.
pub async fn serve(listener: TcpListener, shared: Shared, mut stopped: watch::Receiver<bool>) {
    let app = router(shared);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: give others time to close theirs.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = until(&mut stopped) => break,
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let app = app.clone();
                let stopped = stopped.clone();
                connections.spawn(async move {
                    connection(stream, app, stopped).await;
                    drop(place);
                });
            }
            Err(_) => refuse(stream).await,
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Until it says stop, or nobody is left to say it.
pub(crate) async fn until(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stop| *stop).await);
}

async fn refuse(mut stream: TcpStream) {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    // Best effort: who does not read it is told by the close.
    let written = tokio::time::timeout(Duration::from_millis(100), stream.write_all(answer)).await;
    debug!(ok = written.is_ok(), "too many connections: one refused");
}

/// One connection, until it ends or `stopped` says so.
pub(crate) async fn connection<S>(stream: S, app: Router, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let app = app.clone();
        async move {
            let answer = app.oneshot(request.map(Body::new));
            let answer = tokio::time::timeout(REQUEST_TIME, answer).await;
            Ok::<_, Infallible>(match answer {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => (StatusCode::REQUEST_TIMEOUT, "took too long\n").into_response(),
            })
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        // Without a timer hyper's header timeout does nothing.
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = until(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "connection ended");
    }
}

fn router(shared: Shared) -> Router {
    let app = App { shared, renderings: Arc::new(Semaphore::new(RENDERINGS)) };
    Router::new()
        .route("/", get(landing))
        .route("/metrics", get(metrics))
        .route("/-/healthy", get(async || "ok\n"))
        .route("/-/ready", get(ready))
        .route("/-/reload", post(reload))
        .route("/api/v1/status", get(async |State(app): State<App>| Json(json::status(&app.shared.input()))))
        .route(
            "/api/v1/snapshot",
            get(async |State(app): State<App>| Json(json::snapshot(&app.shared.input()))),
        )
        .route(
            "/api/v1/outliers",
            get(async |State(app): State<App>| Json(json::outliers(&app.shared.input()))),
        )
        .route("/api/v1/slos", get(async |State(app): State<App>| Json(json::slos(&app.shared.input()))))
        .route(
            "/api/v1/forecasts",
            get(async |State(app): State<App>| Json(json::forecast::forecasts(&app.shared.input()))),
        )
        .route("/api/v1/gates", get(gates))
        .route("/api/v1/gates/{name}", get(gate))
        .route("/api/v1/gates/{name}/flagger", post(flagger))
        .fallback(async || (StatusCode::NOT_FOUND, "no such page; / lists them\n"))
        .layer(axum::middleware::from_fn(limit_body))
        .with_state(app)
}

/// Nothing here reads a body, so one that is announced as too large is refused unread.
async fn limit_body(request: Request<Body>, next: axum::middleware::Next) -> Response {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > BODY_BYTES) {
        return (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n").into_response();
    }
    next.run(request).await
}

async fn landing() -> Html<&'static str> {
    Html(include_str!("landing.html"))
}

async fn metrics(State(app): State<App>) -> Response {
    let Ok(_rendering) = app.renderings.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many scrapes at once\n").into_response();
    };
    // Two scrapes of one snapshot are the same bytes; give way so that they can overlap.
    tokio::task::yield_now().await;
    match prometheus::text(&app.shared.input()) {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn gates(State(app): State<App>) -> Json<gate::Gates> {
    let now_ns = now_ns();
    let gates = app.shared.views.borrow().gates.clone();
    Json(gate::Gates { gates: gates.iter().map(|status| gate::Gate::new(status, now_ns)).collect() })
}

/// Always 200 with JSON: Argo takes any other success as a pass, and any failure as an error of
/// measuring. `?canary=…&stable=…` asks about these builds; other parameters are accepted.
async fn gate(State(app): State<App>, Path(name): Path<String>, query: RawQuery) -> Json<gate::Gate> {
    Json(asked(&app, &name, &query))
}

/// For Flagger's webhooks: 200 goes on, 409 does not. `?when=fail` turns it around, for a hook of
/// type `rollback`.
async fn flagger(State(app): State<App>, Path(name): Path<String>, query: RawQuery) -> Response {
    let gate = asked(&app, &name, &query);
    let wanted = match parameter(&query, "when").as_deref() {
        None | Some("pass") => Verdict::Pass,
        Some("fail") => Verdict::Fail,
        Some(_) => return (StatusCode::BAD_REQUEST, "when is pass or fail\n").into_response(),
    };
    let status = if gate.verdict == wanted { StatusCode::OK } else { StatusCode::CONFLICT };
    (status, Json(gate)).into_response()
}

fn asked(app: &App, name: &str, query: &RawQuery) -> gate::Gate {
    let gates = app.shared.views.borrow().gates.clone();
    let Some(status) = gates.iter().find(|status| status.name == name) else {
        return gate::Gate::unknown(name);
    };
    let builds =
        Builds { canary: parameter(query, "canary"), stable: parameter(query, "stable"), hotfix: false };
    gate::Gate::new(&status.clone().pinned(&builds), now_ns())
}

/// A parameter of the query that is not empty. Hashes of builds need no escapes, and what is
/// escaped anyway fits no build.
fn parameter(RawQuery(query): &RawQuery, name: &str) -> Option<String> {
    let pairs = query.as_deref()?.split('&').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(key, value)| *key == name && !value.is_empty());
    values.next().map(|(_, value)| value.to_owned())
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

async fn ready(State(app): State<App>) -> Response {
    let snapshot = app.shared.input().snapshot;
    if snapshot.readings == 0 {
        return (StatusCode::SERVICE_UNAVAILABLE, "nothing read yet\n").into_response();
    }
    let measures = |state| matches!(state, ProbeState::Healthy | ProbeState::Degraded);
    if snapshot.probes.iter().any(|probe| measures(probe.state)) {
        return "ready\n".into_response();
    }
    let reasons = PROBES.iter().zip(&snapshot.probes);
    let reasons: Vec<String> = reasons
        .map(|(entry, probe)| format!("{}: {} ({})\n", entry.name, probe.state.name(), probe.reason))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, format!("no probe measures\n{}", reasons.concat())).into_response()
}

async fn reload(State(app): State<App>) -> Response {
    let Some(ask) = &app.shared.reload else {
        let text = "reloading over HTTP is off: set listen.reload_endpoint = true, or send SIGHUP\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    };
    let (answer, answered) = oneshot::channel();
    if ask.try_send(answer).is_err() {
        return (StatusCode::CONFLICT, "a reload is under way\n").into_response();
    }
    match answered.await {
        Ok(Ok(())) => "reloaded\n".into_response(),
        Ok(Err(error)) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response(),
    }
}
