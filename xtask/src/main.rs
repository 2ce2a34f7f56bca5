//! Set-up, checks and benchmarks of this repository. `./x` is its front door.

mod bench;
mod build;
mod dashboards;
mod demo;
mod process;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Builds, shows, tests and measures tickscope.
#[derive(Parser)]
#[command(name = "x", bin_name = "./x")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and watch a live engine's microseconds
    Demo {
        /// How long
        #[arg(long = "for", default_value = "20s", value_name = "TIME", value_parser = seconds)]
        time: Duration,
    },
    /// Run every check that CI runs
    Test {
        /// Leave out what takes long: end-to-end tests and the kernel matrix
        #[arg(long)]
        quick: bool,
    },
    /// Build everything
    Build {
        /// As it is shipped
        #[arg(long)]
        release: bool,
    },
    /// Run a benchmark: overhead, predict
    Bench {
        /// Its name
        name: String,
        /// What it is to be told: try --help
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Test every probe on Debian's kernels, each in a virtual machine
    Vm {
        /// Only this one
        #[arg(long, value_name = "NAME")]
        kernel: Option<String>,
        /// Tell which there are
        #[arg(long, conflicts_with = "kernel")]
        list: bool,
        /// Write the verified instructions of every program into tests/kernels.toml
        #[arg(long, conflicts_with_all = ["kernel", "list"])]
        record: bool,
    },
    /// Install what building needs; done by the others too
    Setup {
<<<<<<< HEAD
        /// And what testing needs: Prometheus, Alertmanager, libbpf-tools, bpftrace
=======
        /// And what testing needs: Prometheus, libbpf-tools, bpftrace, QEMU
>>>>>>> 16b557a (xtask: the kernel matrix: every probe on Debian 6.1, 6.12 and 6.12-rt, in virtual machines)
        #[arg(long)]
        tests: bool,
    },
    /// Write what dashboards/ and docs/fleet.md say of the catalog
    Dashboards,
    /// Run the repository's own checks
    Tidy,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<u64>() {
        Ok(seconds) if (3..=3600).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err("write 3s to 3600s".into()),
    }
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let result = match command {
        Command::Demo { time } => demo::run(time),
        Command::Test { quick } => test::run(quick),
        Command::Build { release } => setup::build_needs().and_then(|()| build::run(release)),
        Command::Bench { name, arguments } => bench::run(&name, &arguments),
        Command::Vm { list: true, .. } => vm::list(),
        Command::Vm { kernel, record, .. } => test::vm(kernel.as_deref(), record),
        Command::Setup { tests } => {
            setup::build_needs().and_then(|()| if tests { setup::test_needs() } else { Ok(()) })
        }
        Command::Dashboards => dashboards::run(),
        Command::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("x: {error:#}");
            let missing = error.downcast_ref::<setup::Missing>();
            ExitCode::from(missing.map_or(1, setup::Missing::exit))
        }
    }
}
