//! The control socket: calls that change something, for whoever may open the file.
//!
//! A Unix socket, because its owner and mode already say who that is. `POST
//! /api/v1/gates/NAME/start` begins a new step, `…/stop` ends it. Bounded like the read-only side.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path as Segment, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;
use serde::{Deserialize, Serialize};
use tickscope_core::gate::Builds;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::http;
use crate::measure::{GateChange, Gates};

/// Connections at one time; more wait.
const CONNECTIONS: usize = 8;
/// A daemon that does not answer within this is not well.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer is not longer.
const ANSWER_BYTES: u64 = 64 * 1024;

/// Body of `start`; all of it may be left out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Start {
    /// The tested build, as `?canary=` will call it.
    pub canary: Option<String>,
    /// The reference, as `?stable=` will call it.
    pub stable: Option<String>,
    /// Whether the canary mends what burns the error budget.
    pub hotfix: bool,
    /// Share of the traffic that the canary should have, 0..1.
    pub share: Option<f64>,
}

/// Opens the socket for its owner only. One that a daemon left behind is replaced, one that a
/// daemon listens on is not.
///
/// # Errors
/// When it cannot, or another daemon has it.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon listens on it"));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stopped` says so, then removes the socket.
pub async fn serve(listener: UnixListener, path: PathBuf, gates: Gates, mut stopped: watch::Receiver<bool>) {
    let app = Router::new()
        .route("/api/v1/gates/{name}/start", post(start))
        .route("/api/v1/gates/{name}/stop", post(stop))
        .fallback(async || (StatusCode::NOT_FOUND, "no such call\n"))
        .with_state(gates);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => match accepted {
                (Ok((stream, _)), place) => {
                    let (app, stopped) = (app.clone(), stopped.clone());
                    connections.spawn(async move {
                        http::connection(stream, app, stopped).await;
                        drop(place);
                    });
                }
                (Err(error), _) => {
                    warn!(%error, "cannot accept a connection on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = http::until(&mut stopped) => break,
        }
    }
    while connections.join_next().await.is_some() {}
    drop(fs::remove_file(path));
}

async fn start(State(gates): State<Gates>, Segment(name): Segment<String>, body: String) -> Response {
    let start: Start = match serde_json::from_str(if body.trim().is_empty() { "{}" } else { &body }) {
        Ok(start) => start,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    if start.share.is_some_and(|share| !(share > 0.0 && share < 1.0)) {
        return (StatusCode::BAD_REQUEST, "share is between 0 and 1\n").into_response();
    }
    let builds = Builds { canary: start.canary, stable: start.stable, hotfix: start.hotfix };
    change(&gates, name, GateChange::Start { builds, share: start.share }).await
}

async fn stop(State(gates): State<Gates>, Segment(name): Segment<String>) -> Response {
    change(&gates, name, GateChange::Stop).await
}

async fn change(gates: &Gates, name: String, change: GateChange) -> Response {
    match gates.change(name.clone(), change).await {
        Ok(true) => Json(serde_json::json!({ "gate": name })).into_response(),
        Ok(false) => (StatusCode::NOT_FOUND, format!("no gate is called {name:?}\n")).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answers.
    #[error("cannot reach the daemon's control socket {path}: is there a gate in its configuration?")]
    Unreachable {
        /// The socket.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The daemon says no.
    #[error("the daemon refuses: {0}")]
    Refused(String),
}

/// One call, from the other side.
///
/// # Errors
/// When nobody answers, or the answer is no.
pub fn call(socket: &Path, path: &str, body: &str) -> Result<(), CallError> {
    let exchange = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: tickscope\r\nConnection: close\r\nContent-Length: {length}"
        );
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes())?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer =
        exchange().map_err(|source| CallError::Unreachable { path: socket.display().to_string(), source })?;
    let (head, said) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        Ok(())
    } else {
        Err(CallError::Refused(said.trim().to_owned()))
    }
}
