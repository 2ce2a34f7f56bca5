//! A running `tickscope-load`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::daemon::program;

/// At rest between calls of [`Load::go`]; killed when dropped.
pub struct Load {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Load {
    /// Starts it.
    pub fn start(work: &[&str]) -> Self {
        let mut child = Command::new(program("tickscope-load"))
            .args(work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut load = Self { child, input, output };
        load.line();
        load
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Begins to do the work once.
    pub fn begin(&mut self) {
        self.input.write_all(b"\n").expect("it listens");
    }

    /// Does the work once.
    pub fn go(&mut self) {
        self.begin();
        self.line();
    }

    fn line(&mut self) {
        let read = self.output.read_line(&mut String::new()).expect("it prints lines");
        assert!(read > 0, "it has ended");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
