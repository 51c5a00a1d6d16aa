//! The tensors of a model directory where they lie: `model.safetensors`, or shards that an index lists, memory-mapped.
//!
//! Opening checks everything that headers can tell, so that a [`Tensor`] is exactly the bytes of its dtype and shape.
//! Bytes are reinterpreted, never cast: an E8M0 scale stays the byte that it is. Values are the business of whoever
//! reads them. Source: the safetensors format as its project documents it.

mod dtype;
mod error;
mod header;
mod map;

pub use dtype::Dtype;
pub use error::FilesError;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use header::Entry;
use map::Map;

/// A directory's tensors, by name.
#[derive(Debug)]
pub struct TensorFiles {
    directory: PathBuf,
    shards: Vec<Shard>,
    /// By name: which shard, and what its header says.
    tensors: BTreeMap<String, (usize, Entry)>,
}

/// One tensor, where it lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// As the file calls it.
    pub name: &'a str,
    /// Name of its file in the directory.
    pub shard: &'a str,
    /// What an element is.
    pub dtype: Dtype,
    /// Elements along each axis; empty for a scalar.
    pub shape: &'a [usize],
    /// The elements, row-major and little-endian; not aligned to anything.
    pub bytes: &'a [u8],
}

#[derive(Debug)]
struct Shard {
    name: String,
    map: Map,
}

impl TensorFiles {
    /// Opens the tensors of `directory`.
    ///
    /// # Errors
    /// [`FilesError`] if there is neither a single file nor an index, a shard is missing or cut off, a header is
    /// broken, tensors overlap, have an unknown dtype or stand in two shards, or the index names what is not there.
    pub fn open(directory: &Path) -> Result<Self, FilesError> {
        let (single, index) = (directory.join(SINGLE), directory.join(INDEX));
        match (single.is_file(), index.is_file()) {
            (false, false) => Err(FilesError::None { directory: directory.to_path_buf() }),
            (true, true) => Err(FilesError::Both { directory: directory.to_path_buf() }),
            (true, false) => Self::open_shards(directory, &[SINGLE.to_string()]),
            (false, true) => Self::open_index(directory, &index),
        }
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.tensors.get_key_value(name).map(|entry| self.tensor(entry))
    }

    /// Every tensor, in the order of their names.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|entry| self.tensor(entry))
    }

    /// Bytes of all tensors, without headers.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|(_, entry)| entry.range.len() as u64).sum()
    }

    /// Names of the files, as the index lists them or in the order of their names.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shards.iter().map(|shard| shard.name.as_str())
    }

    /// Where the files lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn open_index(directory: &Path, index: &Path) -> Result<Self, FilesError> {
        let text = std::fs::read(index).map_err(|error| FilesError::unreadable(INDEX, &error))?;
        let places = header::read_index(INDEX, &text)?;
        let shards: Vec<String> = places.values().cloned().collect::<BTreeSet<String>>().into_iter().collect();
        if let Some(shard) = shards.iter().find(|shard| !is_file_name(shard)) {
            return Err(FilesError::NotAFileName { index: INDEX, shard: shard.clone() });
        }
        let missing: Vec<String> = shards.iter().filter(|shard| !directory.join(shard).is_file()).cloned().collect();
        if !missing.is_empty() {
            return Err(FilesError::MissingShards { index: INDEX, missing, shards: shards.len() });
        }
        let files = Self::open_shards(directory, &shards)?;
        // A tensor that the index forgets is no harm: whoever accounts for all tensors meets it. One that is elsewhere,
        // or nowhere, is: the shards are not those that the index was written for.
        for (tensor, shard) in places {
            match files.get(&tensor) {
                Some(found) if found.shard == shard => {}
                found => {
                    let found = found.map(|found| found.shard.to_string());
                    return Err(FilesError::NotWhereIndexed { index: INDEX, tensor, shard, found });
                }
            }
        }
        Ok(files)
    }

    fn open_shards(directory: &Path, names: &[String]) -> Result<Self, FilesError> {
        let mut files = Self { directory: directory.to_path_buf(), shards: Vec::new(), tensors: BTreeMap::new() };
        for (shard_idx, name) in names.iter().enumerate() {
            let map = Map::open(&directory.join(name)).map_err(|error| FilesError::unreadable(name, &error))?;
            for (tensor, entry) in header::read(name, map.bytes())? {
                if let Some((first, _)) = files.tensors.get(&tensor) {
                    let first = names[*first].clone();
                    return Err(FilesError::Twice { tensor, first, second: name.clone() });
                }
                files.tensors.insert(tensor, (shard_idx, entry));
            }
            files.shards.push(Shard { name: name.clone(), map });
        }
        Ok(files)
    }

    fn tensor<'a>(&'a self, (name, (shard_idx, entry)): (&'a String, &'a (usize, Entry))) -> Tensor<'a> {
        let shard = &self.shards[*shard_idx];
        let bytes = &shard.map.bytes()[entry.range.clone()];
        Tensor { name, shard: &shard.name, dtype: entry.dtype, shape: &entry.shape, bytes }
    }
}

/// An index may only name files of its own directory.
fn is_file_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|last| last == name)
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
