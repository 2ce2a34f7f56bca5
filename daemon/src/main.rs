//! The command line: words to calls, results to text and exit codes.

use std::fmt::Write as _;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use serde_json::json;
use tickscope::config::{self, Config};
use tickscope::csv::CsvError;
use tickscope::doctor;
use tickscope::exit::Exit;
use tickscope::exporter::json::Build;
use tickscope::gate;
use tickscope::rules;
use tickscope::run::{self, chain};
use tickscope::top::{self, Format};
use tickscope::{detect, forecast};
use tickscope_common::catalog::PROBES;

/// Measures where a trading engine's microseconds go, from inside the kernel.
#[derive(Parser)]
#[command(name = "tickscope", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 no data, 69 a service is unavailable, \
77 missing privilege, 78 bad configuration.";

#[derive(Subcommand)]
enum Command {
    /// Run the daemon
    Run(run::Flags),
    /// Show what a running daemon measures
    Top(top::Flags),
    /// Say what this kernel and these privileges allow, with the remedy
    Doctor {
        /// How it is printed
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Explain every probe: what it measures, where, and what it cannot see
    Probes {
        /// How it is printed
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Score a series from standard input: time,value in, time,value,anomaly_score out
    Detect(detect::Flags),
    /// Foresee when a series from standard input crosses a limit
    Forecast(forecast::Flags),
    /// Check and explain configurations
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Judge a canary against its baseline
    #[command(subcommand)]
    Gate(gate::Command),
    /// Print recording and alerting rules for the configured objectives
    Rules(rules::Flags),
    /// Say which build this is
    Version {
        /// How it is printed
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for every command
    Man {
        /// Where to write them
        directory: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration; exit code 78 if it is wrong
    Check {
        /// The file
        #[arg(env = "TICKSCOPE_CONFIG")]
        file: PathBuf,
    },
    /// Print the commented defaults
    Default,
    /// Print the JSON Schema, for editors
    Schema,
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    dispatch(command).into()
}

fn dispatch(command: Command) -> Exit {
    match command {
        Command::Run(flags) => match run::run(&flags) {
            Ok(()) => Exit::Done,
            Err(error) => fail(&error, error.exit()),
        },
        Command::Top(flags) => show(&flags),
        Command::Doctor { format } => {
            let checks = doctor::checks();
            let text = match format {
                Format::Text => doctor::table(&checks),
                Format::Json => format!("{:#}\n", json!(checks)),
            };
            match print(text.as_bytes()) {
                Exit::Done if !doctor::healthy(&checks) => Exit::Failed,
                exit => exit,
            }
        }
        Command::Probes { format } => print(probes(format).as_bytes()),
        Command::Detect(flags) => streamed(detect::run(&flags, io::stdin(), &mut io::stdout().lock())),
        Command::Forecast(flags) => streamed(forecast::run(&flags, io::stdin(), &mut io::stdout().lock())),
        Command::Config(ConfigCommand::Check { file }) => match Config::load(Some(&file)) {
            Ok(config) => {
                let targets: Vec<&str> = config.target.iter().map(|target| target.name.as_str()).collect();
                let slos = config.slo.iter().map(|slo| format!("slo {}: {}\n", slo.name, slo.promise()));
                let slos: String = slos.collect();
                print(format!("{}: good; targets: {}\n{slos}", file.display(), targets.join(", ")).as_bytes())
            }
            Err(error) => fail(&error, Exit::Config),
        },
        Command::Config(ConfigCommand::Default) => print(config::DEFAULT.as_bytes()),
        Command::Config(ConfigCommand::Schema) => print(format!("{:#}\n", Config::schema()).as_bytes()),
        Command::Gate(command) => match gate::run(&command, &mut BufWriter::new(io::stdout().lock())) {
            Ok(exit) => exit,
            Err(error) if error.exit() == Exit::Done => Exit::Done,
            Err(error) => fail(&error, error.exit()),
        },
        Command::Rules(flags) => match rules::rules(&flags) {
            Ok(text) => print(text.as_bytes()),
            Err(error) => fail(&error, Exit::Config),
        },
        Command::Version { format } => print(version(format).as_bytes()),
        Command::Completions { shell } => {
            // Through memory: the generator panics on a closed pipe.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tickscope", &mut script);
            print(&script)
        }
        Command::Man { directory } => man(directory),
    }
}

fn fail(error: &dyn std::error::Error, exit: Exit) -> Exit {
    eprintln!("tickscope: {}", chain(error));
    exit
}

/// How a stream of rows ended.
fn streamed(result: Result<u64, CsvError>) -> Exit {
    match result {
        Ok(0) => Exit::Done,
        Ok(skipped) => {
            eprintln!("tickscope: {skipped} malformed lines skipped");
            Exit::Done
        }
        Err(error) => match error.exit() {
            Exit::Done => Exit::Done,
            exit => fail(&error, exit),
        },
    }
}

/// Prints; a reader that has gone away is a clean end.
fn print(bytes: &[u8]) -> Exit {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => fail(&error, Exit::Failed),
    }
}

fn show(flags: &top::Flags) -> Exit {
    loop {
        let page = match top::page(flags) {
            Ok(page) => page,
            Err(error) => return fail(&error, Exit::Unavailable),
        };
        if flags.once {
            return print(page.as_bytes());
        }
        // Home and clear to the end: the page replaces the one before without flicker.
        let clear = if io::IsTerminal::is_terminal(&io::stdout()) { "\x1b[H\x1b[2J" } else { "" };
        match print(format!("{clear}{page}").as_bytes()) {
            Exit::Done => std::thread::sleep(Duration::from_secs(1)),
            exit => return exit,
        }
    }
}

fn probes(format: Format) -> String {
    if format == Format::Json {
        let all: Vec<_> = PROBES
            .iter()
            .map(|probe| {
                json!({
                    "name": probe.name,
                    "metric": format!("tickscope_{}_seconds", probe.name),
                    "measures": probe.measures,
                    "not_seen": probe.blind,
                    "programs": probe.hooks,
                    "label": probe.label.as_ref().map(|label| json!({ "name": label.name, "values": label.values })),
                    "since": probe.since,
                    "default": probe.default,
                })
            })
            .collect();
        return format!("{:#}\n", json!(all));
    }
    let mut text = String::new();
    for probe in PROBES {
        let on = if probe.default { "on by default" } else { "off by default" };
        let label = probe
            .label
            .as_ref()
            .map_or_else(String::new, |label| format!("\n    {}: {}", label.name, label.values.join(", ")));
        writeln!(
            text,
            "{} ({on}, Linux {} and newer)\n    {}{label}\n    not seen: {}\n    programs: {}\n",
            probe.name,
            probe.since,
            probe.measures,
            probe.blind,
            probe.hooks.join(", ")
        )
        .expect("a String takes everything");
    }
    text
}

fn version(format: Format) -> String {
    let build = Build::this();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    match format {
        Format::Json => format!("{:#}\n", json!({ "build": build, "kernel": kernel })),
        Format::Text => format!(
            "tickscope {} ({})\nkernel object {}\nrunning on Linux {kernel}\n",
            build.version, build.git_sha, build.object_sha256
        ),
    }
}

fn man(directory: Option<PathBuf>) -> Exit {
    let command = Arguments::command();
    let Some(directory) = directory else {
        let mut page = Vec::new();
        return match clap_mangen::Man::new(command).render(&mut page) {
            Ok(()) => print(&page),
            Err(error) => fail(&error, Exit::Failed),
        };
    };
    match clap_mangen::generate_to(command, &directory) {
        Ok(()) => Exit::Done,
        Err(error) => fail(&error, Exit::Failed),
    }
}
