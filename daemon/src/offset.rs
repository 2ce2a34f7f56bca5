//! What the catalog needs to know of a kernel: offsets of fields, tracepoints and their arguments.

use std::path::Path;
use std::{fs, io};

use tickscope_common::catalog::{Attach, FIELDS, Field, HOOKS, IDENTITY_FIELDS, IDENTITY_HOOKS};

use crate::btf::{Btf, BtfError};

/// Where the running kernel describes itself.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Why a kernel's layout cannot be learnt.
#[derive(Debug, thiserror::Error)]
pub enum OffsetError {
    /// The kernel has no BTF.
    #[error(
        "cannot read {path}: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y \
         (distribution kernels since 5.15 are), and /sys must be mounted"
    )]
    Read {
        /// The file.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Its BTF cannot be used.
    #[error("cannot use the kernel's BTF")]
    Btf(#[from] BtfError),
}

/// Everything the catalog asks of one kernel, each found or missing with a reason.
pub struct Facts {
    /// `fields[f]`: [`FIELDS`]`[f]`.
    fields: Vec<Result<Offset, String>>,
    /// Every tracepoint of the catalog and how many arguments it has.
    tracepoints: Vec<(&'static str, Result<usize, String>)>,
}

/// Where a field lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// Bytes from the start of its struct.
    pub bytes: u32,
    /// The bit inside that byte, of a one-bit field; else 0.
    pub mask: u32,
}

impl Facts {
    /// Of the kernel that runs.
    ///
    /// # Errors
    /// When it does not describe itself.
    pub fn of_running_kernel() -> Result<Self, OffsetError> {
        Self::of_file(Path::new(KERNEL_BTF))
    }

    /// Of the kernel that a file describes.
    ///
    /// # Errors
    /// When it cannot be read or is not BTF.
    pub fn of_file(path: &Path) -> Result<Self, OffsetError> {
        let data = fs::read(path)
            .map_err(|source| OffsetError::Read { path: path.display().to_string(), source })?;
        Ok(Self::new(&Btf::parse(&data)?))
    }

    /// Of the kernel that `btf` describes.
    pub fn new(btf: &Btf) -> Self {
        let names = HOOKS.iter().flat_map(|hook| match &hook.attach {
            Attach::Btf(name) => std::slice::from_ref(name),
            Attach::Raw(names) => names,
            Attach::Software(_) => &[],
        });
        Self {
            fields: FIELDS.iter().map(|field| offset(btf, field)).collect(),
            tracepoints: names
                .map(|name| (*name, btf.tracepoint_arguments(name).map_err(|error| error.to_string())))
                .collect(),
        }
    }

    /// Where a field of the catalog lies, or why it is missing.
    ///
    /// # Errors
    /// The reason, for a person.
    pub fn field(&self, path: &str) -> Result<Offset, &str> {
        let index = FIELDS.iter().position(|field| field.path == path);
        match index.map(|index| &self.fields[index]) {
            Some(Ok(offset)) => Ok(*offset),
            Some(Err(reason)) => Err(reason),
            None => Err("not a field of the catalog"),
        }
    }

    /// How many arguments a tracepoint of the catalog has, or why it is missing.
    ///
    /// # Errors
    /// The reason, for a person.
    pub fn tracepoint(&self, name: &str) -> Result<usize, &str> {
        match self.tracepoints.iter().find(|(known, _)| *known == name) {
            Some((_, Ok(arguments))) => Ok(*arguments),
            Some((_, Err(reason))) => Err(reason),
            None => Err("not a tracepoint of the catalog"),
        }
    }

    /// Why a field is missing; `None` when it is there.
    pub fn missing_field(&self, path: &str) -> Option<String> {
        self.field(path).err().map(str::to_owned)
    }

    /// Why a tracepoint is missing; `None` when it is there.
    pub fn missing_tracepoint(&self, name: &str) -> Option<String> {
        self.tracepoint(name).err().map(str::to_owned)
    }

    /// What is missing to tell targets apart; `None` when nothing is.
    pub fn missing_identity(&self) -> Option<String> {
        let fields = IDENTITY_FIELDS.iter().find_map(|path| self.missing_field(path));
        let hooks = HOOKS.iter().filter(|hook| IDENTITY_HOOKS.contains(&hook.program));
        fields.or_else(|| {
            hooks.into_iter().find_map(|hook| match &hook.attach {
                Attach::Btf(name) => self.missing_tracepoint(name),
                _ => None,
            })
        })
    }

    /// Whether `sched_switch` passes the previous task's state (its fourth argument, Linux 6.1).
    pub fn switch_has_state(&self) -> bool {
        self.tracepoint("sched_switch").is_ok_and(|arguments| arguments >= 4)
    }

    /// The globals of the object that carry offsets; those of missing fields stay 0, and the
    /// programs that would read them are not loaded.
    pub fn globals(&self) -> Vec<(&'static str, u32)> {
        let mut globals = Vec::new();
        for (field, offset) in FIELDS.iter().zip(&self.fields) {
            let offset = offset.as_ref().copied().unwrap_or(Offset { bytes: 0, mask: 0 });
            globals.push((field.offset, offset.bytes));
            globals.extend(field.mask.map(|mask| (mask, offset.mask)));
        }
        globals
    }
}

fn offset(btf: &Btf, field: &Field) -> Result<Offset, String> {
    let (name, member) = field.path.split_once('.').ok_or("a path is struct.member")?;
    let found = btf.member(name, member).map_err(|error| error.to_string())?;
    let bytes = found.bit_offset / 8;
    match (field.mask, found.bits) {
        (None, 0) if found.bit_offset % 8 == 0 => Ok(Offset { bytes, mask: 0 }),
        (Some(_), 1) => Ok(Offset { bytes, mask: 1 << (found.bit_offset % 8) }),
        (_, bits) => Err(format!("{} is {bits} bits wide here, not what the programs read", field.path)),
    }
}
