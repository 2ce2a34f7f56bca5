//! `paper-engine`: market data publisher, trading engine, router and paper exchange in one binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use paper_engine::error::Error;
use paper_engine::process::{Stop, die_with_parent};
use paper_engine::{admin, demo, engine, exchange, publisher, router};

/// A paper-trading venue and engine, real enough to be worth observing.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Started by this process: die with it, and announce on stdout when ready
    #[arg(long, global = true, hide = true)]
    parent: Option<i32>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Publish(publisher::Arguments),
    Exchange(exchange::Arguments),
    Engine(engine::Arguments),
    Router(router::Arguments),
    Control(admin::Arguments),
    Demo(demo::Arguments),
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("paper-engine: {}", chain(&error));
            error.exit_code()
        }
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    let stop = Stop::on_signals()?;
    if let Some(parent) = cli.parent {
        die_with_parent(parent)?;
    }
    let announce = cli.parent.is_some();
    match &cli.command {
        Command::Publish(arguments) => publisher::run(arguments, &stop),
        Command::Exchange(arguments) => exchange::run(arguments, announce, &stop),
        Command::Engine(arguments) => engine::run(arguments, announce, &stop),
        Command::Router(arguments) => router::run(arguments, announce, &stop),
        Command::Control(arguments) => admin::run(arguments),
        Command::Demo(arguments) => demo::run(arguments, &stop),
    }
}

/// The error and what caused it, on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
