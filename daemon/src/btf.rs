//! Reads BTF, the kernel's description of its own types: where a field lies, what a tracepoint
//! passes.
//!
//! Format: `Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`. Not a general BTF library: it
//! knows structs, unions and function prototypes, because that is what offsets and tracepoints
//! need. Input is not trusted: every index is checked, chains and nesting are followed to a limit,
//! time and memory are linear in the input (at most [`MAX_BYTES`]).

use std::collections::HashMap;

/// Input beyond this is refused; a distribution kernel's BTF is 4 to 8 MB.
pub const MAX_BYTES: usize = 64 << 20;
/// Nesting of anonymous structs, and length of chains of typedefs and qualifiers.
const MAX_DEPTH: usize = 32;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Why BTF cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// More than [`MAX_BYTES`].
    #[error("{0} bytes of BTF, more than {MAX_BYTES}")]
    TooLarge(usize),
    /// Not BTF, or of a machine with another byte order.
    #[error("not BTF of this machine: magic {0:#06x}")]
    Magic(u16),
    /// A part lies outside the input.
    #[error("BTF is damaged: {0}")]
    Damaged(&'static str),
    /// There is no such struct.
    #[error("the kernel has no struct {0}")]
    NoStruct(String),
    /// There is no such member.
    #[error("struct {0} has no member {1}")]
    NoMember(String, String),
    /// There is no such tracepoint.
    #[error("the kernel has no tracepoint {0}")]
    NoTracepoint(String),
}

/// Where a member lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// From the start of the outermost struct, bits.
    pub bit_offset: u32,
    /// Width of a bit field, 0 of anything else.
    pub bits: u32,
}

/// Parsed BTF. Borrows nothing; about 16 bytes for each type and the input.
pub struct Btf {
    data: Vec<u8>,
    strings: std::ops::Range<usize>,
    /// `types[id]`: where the type's record begins; 0 is void.
    types: Vec<u32>,
    /// Structs by name; a name can stand for several.
    structs: HashMap<u32, Vec<u32>>,
    /// Typedefs `btf_trace_*` by name offset.
    traces: HashMap<String, u32>,
}

struct Type {
    name: u32,
    kind: u32,
    len: usize,
    kind_flag: bool,
    /// Size, or the type it refers to.
    to: u32,
    /// Where what follows the common part begins.
    rest: usize,
}

impl Btf {
    /// Parses the contents of `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    /// When it is not BTF, too large or damaged.
    pub fn parse(data: &[u8]) -> Result<Self, BtfError> {
        if data.len() > MAX_BYTES {
            return Err(BtfError::TooLarge(data.len()));
        }
        let magic = data.get(..2).ok_or(BtfError::Damaged("shorter than its header"))?;
        let magic = u16::from_ne_bytes([magic[0], magic[1]]);
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let word = |at: usize| word(data, at).ok_or(BtfError::Damaged("shorter than its header"));
        let header = word(4)? as usize;
        let section = |offset: usize, len: usize| -> Result<std::ops::Range<usize>, BtfError> {
            let begin = header.checked_add(word(offset)? as usize);
            let end = begin.and_then(|begin| begin.checked_add(word(len).ok()? as usize));
            match (begin, end) {
                (Some(begin), Some(end)) if end <= data.len() => Ok(begin..end),
                _ => Err(BtfError::Damaged("a section lies outside")),
            }
        };
        let types = section(8, 12)?;
        let strings = section(16, 20)?;
        let mut btf = Self {
            data: data.to_vec(),
            strings,
            types: vec![0],
            structs: HashMap::new(),
            traces: HashMap::new(),
        };
        btf.index(types)?;
        Ok(btf)
    }

    fn index(&mut self, section: std::ops::Range<usize>) -> Result<(), BtfError> {
        let mut at = section.start;
        while at < section.end {
            let id = self.types.len() as u32;
            self.types.push(at as u32);
            let kind = self.at(at).ok_or(BtfError::Damaged("a type ends early"))?;
            let follows = match kind.kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * kind.len,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * kind.len,
                // Pointers, forward declarations, typedefs, qualifiers, functions, floats, tags.
                KIND_PTR | 7..=12 | 16 | KIND_TYPE_TAG => 0,
                _ => return Err(BtfError::Damaged("a type of unknown kind")),
            };
            at = kind.rest + follows;
            if at > section.end {
                return Err(BtfError::Damaged("a type ends early"));
            }
            if kind.kind == KIND_STRUCT && kind.name != 0 {
                self.structs.entry(kind.name).or_default().push(id);
            }
            if kind.kind == KIND_TYPEDEF
                && let Some(name) = self.string(kind.name)
                && let Some(trace) = name.strip_prefix("btf_trace_")
            {
                let trace = trace.to_owned();
                self.traces.insert(trace, id);
            }
        }
        Ok(())
    }

    fn at(&self, at: usize) -> Option<Type> {
        let info = word(&self.data, at + 4)?;
        Some(Type {
            name: word(&self.data, at)?,
            kind: info >> 24 & 0x1f,
            len: (info & 0xffff) as usize,
            kind_flag: info >> 31 != 0,
            to: word(&self.data, at + 8)?,
            rest: at + 12,
        })
    }

    fn get(&self, id: u32) -> Option<Type> {
        match *self.types.get(id as usize)? {
            0 => None,
            at => self.at(at as usize),
        }
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let strings = &self.data[self.strings.clone()];
        let rest = strings.get(offset as usize..)?;
        let end = rest.iter().take(512).position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }

    /// Where `member` of `struct name` lies; members of anonymous structs and unions inside count
    /// as its own. Of several structs with that name, the first that has the member.
    ///
    /// # Errors
    /// When there is no such struct or member.
    pub fn member(&self, name: &str, member: &str) -> Result<Member, BtfError> {
        // Names are shared, but not always: compare text, not offsets.
        let mut known = false;
        let mut found = None;
        for (offset, ids) in &self.structs {
            if self.string(*offset) != Some(name) {
                continue;
            }
            known = true;
            for id in ids {
                if found.is_none_or(|(first, _)| *id < first)
                    && let Some(member) = self.search(*id, member, 0, &mut 4096)
                {
                    found = Some((*id, member));
                }
            }
        }
        match found {
            Some((_, member)) => Ok(member),
            None if known => Err(BtfError::NoMember(name.into(), member.into())),
            None => Err(BtfError::NoStruct(name.into())),
        }
    }

    /// `steps` bounds the structs visited, because hostile nesting can double at every level.
    fn search(&self, id: u32, name: &str, depth: usize, steps: &mut u32) -> Option<Member> {
        *steps = steps.checked_sub(1)?;
        if depth > MAX_DEPTH {
            return None;
        }
        let of = self.get(self.resolve(id)?)?;
        if of.kind != KIND_STRUCT && of.kind != KIND_UNION {
            return None;
        }
        for index in 0..of.len {
            let at = of.rest + 12 * index;
            let (called, kind, place) =
                (word(&self.data, at)?, word(&self.data, at + 4)?, word(&self.data, at + 8)?);
            let (bit_offset, bits) =
                if of.kind_flag { (place & 0x00ff_ffff, place >> 24) } else { (place, 0) };
            if called == 0 {
                if let Some(inner) = self.search(kind, name, depth + 1, steps) {
                    let bit_offset = bit_offset.checked_add(inner.bit_offset)?;
                    return Some(Member { bit_offset, ..inner });
                }
            } else if self.string(called) == Some(name) {
                return Some(Member { bit_offset, bits });
            }
        }
        None
    }

    /// The type behind typedefs, qualifiers and type tags.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            let of = self.get(id)?;
            match of.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => id = of.to,
                _ => return Some(id),
            }
        }
        None
    }

    /// How many arguments a tracepoint passes to BTF programs.
    ///
    /// From `typedef void (*btf_trace_NAME)(void *, …)`; the first is the tracepoint's own.
    ///
    /// # Errors
    /// When there is no such tracepoint.
    pub fn tracepoint_arguments(&self, name: &str) -> Result<usize, BtfError> {
        let no = || BtfError::NoTracepoint(name.into());
        let typedef = self.traces.get(name).ok_or_else(no)?;
        let pointer = self.get(self.resolve(*typedef).ok_or_else(no)?).ok_or_else(no)?;
        if pointer.kind != KIND_PTR {
            return Err(no());
        }
        let function = self.get(self.resolve(pointer.to).ok_or_else(no)?).ok_or_else(no)?;
        if function.kind != KIND_FUNC_PROTO {
            return Err(no());
        }
        function.len.checked_sub(1).ok_or_else(no)
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
