//! Big-endian fields in byte slices, for both wire formats.

use crate::book::Side;

/// Codes of the sides.
pub const SIDES: [(u8, Side); 2] = [(b'B', Side::Buy), (b'S', Side::Sell)];

/// The code of a value; `table` must hold every value.
pub fn code<T: PartialEq>(table: &[(u8, T)], value: &T) -> u8 {
    let (code, _) = table.iter().find(|(_, known)| known == value).expect("each table holds every value");
    *code
}

/// The value of a code, if there is one.
pub fn decode<T: Copy>(table: &[(u8, T)], code: u8) -> Option<T> {
    table.iter().find(|(known, _)| *known == code).map(|(_, value)| *value)
}

/// Takes fields off the front of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `N` bytes; `None` when fewer are left.
    pub fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next `len` bytes as a slice; `None` when fewer are left.
    pub fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_be_bytes)
    }
}

/// Puts fields one after the other into a fixed buffer of `N` bytes.
///
/// Each format states its largest message as `N`, so its encoders cannot run out of room.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Writer<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Writer<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Writer<N> {
    /// What was written.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Appends bytes.
    pub fn put(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    /// Appends one byte.
    pub fn u8(self, value: u8) -> Self {
        self.put(&[value])
    }

    /// Appends two bytes.
    pub fn u16(self, value: u16) -> Self {
        self.put(&value.to_be_bytes())
    }

    /// Appends four bytes.
    pub fn u32(self, value: u32) -> Self {
        self.put(&value.to_be_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(self, value: u64) -> Self {
        self.put(&value.to_be_bytes())
    }
}
