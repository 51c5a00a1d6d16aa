//! A file's bytes without reading them: pages come from the disk, and go back, as they are touched.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// A file mapped for reading.
#[derive(Debug)]
pub(super) struct Map(Mmap);

impl Map {
    /// Maps the file at `path`. It must not be cut off while the map lives; nothing on Linux can forbid that, and the
    /// process would end with SIGBUS.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is private to this type, read only, and gives out nothing but `&[u8]`, for which every bit
        // pattern is valid. Checkpoints are written once; whoever overwrites one in place changes bytes that have been
        // checked already, which can make a result wrong but no reference invalid.
        unsafe { Mmap::map(&file) }.map(Self)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
