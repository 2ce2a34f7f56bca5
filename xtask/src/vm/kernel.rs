//! Debian's kernels: which there are, and getting them without touching the host's packages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, root};

/// A kernel of `tests/kernels.toml`.
#[derive(Debug)]
pub struct Kernel {
    /// As the tables there call it.
    pub name: String,
    /// Debian's release that has it.
    suite: String,
    /// The package that depends on its newest build.
    package: String,
}

/// The file that says which kernels there are and what is expected on them.
const TABLES: &str = "tests/kernels.toml";
/// Its last table, which [`record`] writes.
const INSTRUCTIONS: &str = "[instructions]\n";

/// All of `tests/kernels.toml`.
///
/// # Errors
/// When the file is not what it should be.
pub fn all() -> Result<Vec<Kernel>> {
    let text = fs::read_to_string(root().join(TABLES)).context(TABLES)?;
    parse(&text).context(TABLES)
}

/// Verified instructions of each program, in the order of the catalog, on each kernel.
pub type Instructions = Vec<(String, Vec<(String, u32)>)>;

/// Writes the verified instructions into `tests/kernels.toml`.
///
/// # Errors
/// When the file cannot be read or written.
pub fn record(instructions: &Instructions) -> Result<()> {
    let path = root().join(TABLES);
    let text = fs::read_to_string(&path).context(TABLES)?;
    fs::write(&path, recorded(&text, instructions).context(TABLES)?).context(TABLES)
}

fn recorded(text: &str, instructions: &Instructions) -> Result<String> {
    let (before, _) = text.split_once(INSTRUCTIONS).context("has no table [instructions]")?;
    let rows = instructions.iter().map(|(program, kernels)| {
        let values: Vec<String> =
            kernels.iter().map(|(kernel, count)| format!("\"{kernel}\" = {count}")).collect();
        format!("{program} = {{ {} }}\n", values.join(", "))
    });
    Ok(format!("{before}{INSTRUCTIONS}{}", rows.collect::<String>()))
}

fn parse(text: &str) -> Result<Vec<Kernel>> {
    let file: toml::Table = text.parse()?;
    let table = file.get("kernel").and_then(toml::Value::as_table).context("has no table [kernel]")?;
    let field = |name: &str, kernel: &toml::Value, field: &str| -> Result<String> {
        let value = kernel.get(field).and_then(toml::Value::as_str);
        Ok(value.with_context(|| format!("kernel {name} has no {field}"))?.to_owned())
    };
    table
        .iter()
        .map(|(name, kernel)| {
            let (suite, package) = (field(name, kernel, "suite")?, field(name, kernel, "package")?);
            Ok(Kernel { name: name.clone(), suite, package })
        })
        .collect()
}

/// Where everything lies that is fetched once. To get newer kernels, remove it.
fn store() -> PathBuf {
    root().join(".tools/vm")
}

impl Kernel {
    fn image(&self) -> PathBuf {
        store().join(&self.name).join("vmlinuz")
    }

    /// Its release, if it is here already.
    pub fn release(&self) -> Option<String> {
        let release = fs::read_to_string(store().join(&self.name).join("release")).ok()?;
        self.image().exists().then_some(release)
    }

    /// Fetches it unless it is here; where it lies.
    ///
    /// # Errors
    /// When Debian cannot be reached or does not have it.
    pub fn fetch(&self) -> Result<PathBuf> {
        if self.release().is_none() {
            eprintln!("x: fetching Linux {} from Debian {} (about half a minute)", self.name, self.suite);
            let archive = Archive::open(&self.suite)?;
            let newest = archive.depends(&self.package)?;
            let release = newest.strip_prefix("linux-image-").context("not a kernel's package")?;
            fs::create_dir_all(store().join(&self.name))?;
            archive.file(&newest, &format!("./boot/vmlinuz-{release}"), &self.image())?;
            fs::write(store().join(&self.name).join("release"), release)?;
        }
        Ok(self.image())
    }
}

/// Fetches a shell and its tools, static, unless it is here; where it lies.
///
/// # Errors
/// When Debian cannot be reached or does not have it.
pub fn busybox() -> Result<PathBuf> {
    let busybox = store().join("busybox");
    if !busybox.exists() {
        Archive::open("trixie")?.file("busybox-static", "./usr/bin/busybox", &busybox)?;
    }
    Ok(busybox)
}

/// One release of Debian, read by an apt with directories of its own: it verifies signatures, and the
/// host's lists, packages and state stay as they are.
struct Archive {
    directory: PathBuf,
}

impl Archive {
    fn open(suite: &str) -> Result<Self> {
        let archive = Self { directory: store().join("apt").join(suite) };
        let directory = &archive.directory;
        for made in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(made))?;
        }
        let options = "arch=amd64 target=Packages lang=none \
                       signed-by=/usr/share/keyrings/debian-archive-keyring.gpg";
        let sources = format!(
            "deb [{options}] http://deb.debian.org/debian {suite} main\n\
             deb [{options}] http://deb.debian.org/debian-security {suite}-security main\n"
        );
        fs::write(directory.join("sources.list"), sources)?;
        // Nothing is installed as far as this apt knows.
        fs::write(directory.join("status"), "")?;
        let path = directory.display();
        let configuration = format!(
            "Dir::Etc::SourceList \"{path}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\n\
             Dir::Etc::Preferences \"/dev/null\";\nDir::Etc::PreferencesParts \"/dev/null\";\n\
             Dir::State \"{path}\";\nDir::State::Lists \"{path}/lists\";\n\
             Dir::State::Status \"{path}/status\";\n\
             Dir::Cache \"{path}\";\nDir::Cache::Archives \"{path}/archives\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"root\";\nAPT::Get::List-Cleanup \"true\";\n"
        );
        fs::write(directory.join("apt.conf"), configuration)?;
        process::run(archive.apt("apt-get").args(["update", "--quiet", "--error-on=any"]))?;
        Ok(archive)
    }

    /// A program of apt's that talks on standard error.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf")).current_dir(&self.directory);
        command.stdout(std::io::stderr());
        command
    }

    /// The one package that `package` depends on.
    fn depends(&self, package: &str) -> Result<String> {
        let output = self
            .apt("apt-cache")
            .args(["depends", "--no-recommends", "--no-suggests", package])
            .stdout(Stdio::piped())
            .output()
            .context("cannot start apt-cache")?;
        ensure!(output.status.success(), "apt-cache depends {package}: {}", output.status);
        let text = String::from_utf8(output.stdout)?;
        let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let name = names.next().with_context(|| format!("{package} depends on nothing"))?;
        Ok(name.to_owned())
    }

    /// Downloads a package and writes one file of it to `to`.
    fn file(&self, package: &str, path: &str, to: &Path) -> Result<()> {
        process::run(self.apt("apt-get").args(["download", "--quiet", package]))?;
        let prefix = format!("{package}_");
        let downloaded = fs::read_dir(&self.directory)?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .with_context(|| format!("apt-get downloaded no {package}"))?
            .path();
        let mut unpacked = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&downloaded)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start dpkg-deb")?;
        // The rest of the package is not unpacked: tar closes the pipe on the first match, and
        // dpkg-deb, whose whole input apt has verified, ends by that.
        let partial = to.with_extension("partial");
        let status = Command::new("tar")
            .args(["--extract", "--to-stdout", "--occurrence=1", path])
            .stdin(unpacked.stdout.take().context("it is piped")?)
            .stdout(File::create(&partial)?)
            .status()
            .context("cannot start tar")?;
        drop(unpacked.kill());
        unpacked.wait()?;
        if !status.success() || fs::metadata(&partial)?.len() == 0 {
            bail!("there is no {path} in {}", downloaded.display());
        }
        fs::rename(&partial, to)?;
        fs::remove_file(&downloaded)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_kernels_are_well_formed() {
        let kernels = parse(include_str!("../../../tests/kernels.toml")).unwrap();
        assert!(kernels.iter().any(|kernel| kernel.name == "6.12-rt"), "{kernels:?}");
    }

    #[test]
    fn only_the_last_table_is_written() {
        let text = "[kernel]\n# kept\n[instructions]\nold = { \"6.1\" = 1 }\n";
        let instructions = vec![("a".into(), vec![("6.1".into(), 7), ("6.12".into(), 8)])];
        assert_eq!(
            recorded(text, &instructions).unwrap(),
            "[kernel]\n# kept\n[instructions]\na = { \"6.1\" = 7, \"6.12\" = 8 }\n"
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = parse("[kernel]\n\"6.1\" = { suite = \"bookworm\" }\n").unwrap_err();
        assert_eq!(error.to_string(), "kernel 6.1 has no package");
        assert_eq!(parse("").unwrap_err().to_string(), "has no table [kernel]");
    }
}
