//! The file system that a kernel starts from: a cpio archive in memory, in the "newc" format
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel).

/// A cpio archive that grows file by file.
pub struct Initramfs {
    bytes: Vec<u8>,
    files: u32,
}

impl Initramfs {
    /// With these directories and nothing in them.
    pub fn new(directories: &[&str]) -> Self {
        let mut archive = Self { bytes: Vec::new(), files: 0 };
        for directory in directories {
            archive.entry(directory, 0o040_755, &[]);
        }
        archive
    }

    /// Adds a program, or a file that may as well be executable.
    pub fn add(&mut self, path: &str, content: &[u8]) {
        self.entry(path, 0o100_755, content);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        let name_length = path.len() as u32 + 1;
        // Number of the file, mode, owner, group, links, time, length, four device numbers, length
        // of the name, checksum.
        let fields = [self.files, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    /// Name and content are padded to four bytes.
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_aligned_and_in_its_place() {
        let mut archive = Initramfs::new(&["bin"]);
        archive.add("bin/a", b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // A directory: 110 bytes of header, its name, padding.
        assert_eq!(&bytes[..22], b"07070100000001000041ed");
        assert_eq!(&bytes[110..114], b"bin\0");
        // The file: its length is the seventh number.
        let file = &bytes[116..];
        assert_eq!(&file[..14], b"07070100000002");
        assert_eq!(&file[54..62], b"00000005");
        assert_eq!(&file[110..116], b"bin/a\0");
        assert_eq!(&file[116..124], b"12345\0\0\0");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
