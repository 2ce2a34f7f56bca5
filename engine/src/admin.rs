//! The admin socket: a Unix socket on which each line is a command, and each command gets one line.
//!
//! ```text
//! > {"command":"weight","weight":1.0,"ttl_seconds":5}
//! < {"ok":{...}}
//! > {"command":"dance"}
//! < {"error":"unknown variant `dance`, expected ..."}
//! ```
//!
//! Commands are carried out by the process's own loop, where it asks for them, so nothing is locked.
//! Only the user who started the process may connect. Bounded: [`MAX_CONNECTIONS`] connections,
//! [`MAX_LINE`] bytes a line.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::marker::PhantomData;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::fs::Mode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::report::print_text;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 8;

/// Longest line, in bytes.
const MAX_LINE: u64 = 4096;

/// Commands that wait to be carried out.
const QUEUE: usize = 16;

/// How long a command may take to be carried out, and a peer to read its answer.
const PATIENCE: Duration = Duration::from_secs(5);

type Call = (Value, SyncSender<Value>);

/// The commands of type `C` that come in; the socket is removed when this is dropped.
#[derive(Debug)]
pub struct Admin<C> {
    path: PathBuf,
    calls: Receiver<Call>,
    command: PhantomData<fn() -> C>,
}

impl<C: DeserializeOwned> Admin<C> {
    /// Listens at `path`. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// When somebody else listens there, or the path cannot be used.
    pub fn listen(path: &Path) -> Result<Self, Error> {
        let attempt = || format!("cannot listen for commands on {}", path.display());
        if UnixStream::connect(path).is_ok() {
            return Err(Error::unavailable(attempt())(ErrorKind::AddrInUse.into()));
        }
        let left = std::fs::symlink_metadata(path)
            .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()));
        if left {
            std::fs::remove_file(path).map_err(Error::unavailable(attempt()))?;
        }
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener.map_err(Error::unavailable(attempt()))?;
        let (calling, calls) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || accept(&listener, &calling))
            .map_err(Error::io(attempt()))?;
        Ok(Self { path: path.to_owned(), calls, command: PhantomData })
    }

    /// Carries out what has come in since the last time; never waits.
    pub fn serve(&self, mut handle: impl FnMut(C) -> Result<Value, String>) {
        while let Ok((call, answer)) = self.calls.try_recv() {
            let result =
                serde_json::from_value(call).map_err(|error| error.to_string()).and_then(&mut handle);
            // Fails when the caller no longer waits.
            let _ = answer.try_send(match result {
                Ok(value) => json!({ "ok": value }),
                Err(error) => json!({ "error": error }),
            });
        }
    }
}

impl<C> Drop for Admin<C> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, calls: &SyncSender<Call>) {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming().flatten() {
        if connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (calls, open) = (calls.clone(), Arc::clone(&connections));
        let started = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            // A peer that goes away ends its own connection only.
            let _ = converse(&stream, &calls);
            open.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn converse(mut stream: &UnixStream, calls: &SyncSender<Call>) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if (&mut lines).take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line) {
            _ if line.len() as u64 == MAX_LINE => json!({ "error": "the line is too long" }),
            Ok(call) => ask(call, calls),
            Err(error) => json!({ "error": format!("not JSON: {error}") }),
        };
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
}

fn ask(call: Value, calls: &SyncSender<Call>) -> Value {
    let (answer, answered) = sync_channel(1);
    let sent = calls.try_send((call, answer)).is_ok();
    match answered.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Disconnected) if !sent => json!({ "error": "too many commands wait" }),
        Err(_) => json!({ "error": "the process does not answer" }),
    }
}

/// Send one command to the admin socket of a process, and print its answer.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Its admin socket
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// What to do, such as status
    #[arg(value_name = "COMMAND")]
    pub command: String,
    /// With what: numbers, true and false are taken as such, the rest as text
    #[arg(value_name = "KEY=VALUE", value_parser = parse_word)]
    pub words: Vec<(String, Value)>,
}

/// Sends the command and prints the answer as JSON.
///
/// # Errors
/// When nobody listens or answers there, or the command is refused.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let mut command = Map::new();
    command.insert("command".to_owned(), Value::from(arguments.command.as_str()));
    command.extend(arguments.words.iter().cloned());
    let answer = call(&arguments.socket, &Value::Object(command))?;
    print_text(&format!("{answer}\n"))
}

/// Sends a command to an admin socket and returns what it answers with.
///
/// # Errors
/// As [`run`].
pub fn call(socket: &Path, command: &Value) -> Result<Value, Error> {
    let attempt = || format!("cannot send a command to {}", socket.display());
    let exchange = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(2 * PATIENCE))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(Error::unavailable(attempt()))?;
    match serde_json::from_str::<Value>(&answer) {
        Ok(mut answer) if answer.get("ok").is_some() => Ok(answer["ok"].take()),
        Ok(answer) => {
            let error = answer["error"].as_str().unwrap_or("no reason given").to_owned();
            Err(Error::Failed(format!("{}: {error}", attempt())))
        }
        Err(error) => Err(Error::Failed(format!("{}: strange answer: {error}", attempt()))),
    }
}

fn parse_word(word: &str) -> Result<(String, Value), String> {
    let (key, value) = word.split_once('=').ok_or("expected KEY=VALUE")?;
    let value = match serde_json::from_str(value) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::from(value),
    };
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
    enum Command {
        Double { number: u64 },
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("paper-engine-{}-{name}.sock", std::process::id()))
    }

    /// Serves until `work` is done.
    fn serving(admin: &Admin<Command>, work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let work = scope.spawn(work);
            while !work.is_finished() {
                admin.serve(|Command::Double { number }| {
                    number.checked_mul(2).map(Value::from).ok_or_else(|| "too large".to_owned())
                });
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn commands_are_answered_or_refused_one_line_each() {
        let path = path("lines");
        let admin = Admin::listen(&path).unwrap();
        let refused = Admin::<Command>::listen(&path).unwrap_err();
        assert!(refused.to_string().contains("cannot listen"), "{refused}");
        serving(&admin, || {
            let stream = UnixStream::connect(&path).unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let long = "x".repeat(MAX_LINE as usize);
            for (line, says) in [
                (r#"{"command":"double","number":21}"#, r#"{"ok":42}"#),
                (r#"{"command":"double","number":18446744073709551615}"#, r#"{"error":"too large"}"#),
                (r#"{"command":"dance"}"#, "unknown variant `dance`, expected `double`"),
                (r#"{"command":"double","number":1,"more":2}"#, "unknown field `more`"),
                ("dance", "not JSON"),
                (long.as_str(), "too long"),
            ] {
                (&stream).write_all(format!("{line}\n").as_bytes()).unwrap();
                let answer = lines.next().unwrap().unwrap();
                assert!(answer.contains(says), "{line}: {answer}");
                if line.len() == long.len() {
                    assert!(lines.next().unwrap().unwrap().contains("not JSON"), "the rest of the line");
                }
            }
            let answer = call(&path, &json!({ "command": "double", "number": 4 })).unwrap();
            assert_eq!(answer, 8);
            assert!(call(&path, &json!({})).unwrap_err().to_string().contains("missing field"));
        });
        drop(admin);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
        let path = path("left");
        drop(UnixListener::bind(&path).unwrap());
        let admin = Admin::<Command>::listen(&path).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "for its user only");
        drop(admin);
        std::fs::write(&path, "precious").unwrap();
        assert!(Admin::<Command>::listen(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn words_become_json() {
        for (word, value) in
            [("n=1.5", json!(1.5)), ("on=true", json!(true)), ("t=5us", json!("5us")), ("s=", json!(""))]
        {
            assert_eq!(parse_word(word).unwrap().1, value);
        }
        assert!(parse_word("word").is_err());
    }
}
