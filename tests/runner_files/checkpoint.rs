//! An oracle directory in memory, to be spoilt and written elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tilekiln::engine::TensorFiles;
use tilekiln::models::dsv4::config_file::ConfigFile;
use tilekiln::models::dsv4::weights::{LoadOptions, Weights, WeightsError};

/// A directory of `testdata/oracle`.
pub fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/oracle").join(name)
}

/// One tensor: dtype, shape, bytes.
#[derive(Clone)]
pub struct Stored {
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Config and tensors of a directory.
pub struct Checkpoint {
    pub config: Value,
    pub tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    /// What the oracle directory `name` holds.
    pub fn of(name: &str) -> Self {
        let directory = oracle(name);
        let files = TensorFiles::open(&directory).unwrap();
        let stored = files.tensors().map(|tensor| {
            let (dtype, shape, bytes) = (tensor.dtype.name(), tensor.shape.to_vec(), tensor.bytes.to_vec());
            (tensor.name.to_string(), Stored { dtype, shape, bytes })
        });
        let text = std::fs::read_to_string(directory.join("config.json")).unwrap();
        Self { config: serde_json::from_str(&text).unwrap(), tensors: stored.collect() }
    }

    pub fn tensor(&mut self, name: &str) -> &mut Stored {
        self.tensors.get_mut(name).unwrap_or_else(|| panic!("no tensor `{name}`"))
    }

    /// Renames a tensor.
    pub fn rename(&mut self, from: &str, to: &str) {
        let stored = self.tensors.remove(from).unwrap_or_else(|| panic!("no tensor `{from}`"));
        self.tensors.insert(to.to_string(), stored);
    }

    /// Writes an F32 scalar over the tensor called `name`.
    pub fn set_f32(&mut self, name: &str, value: f32) {
        let stored = self.tensor(name);
        assert_eq!((stored.dtype, stored.bytes.len()), ("F32", 4), "{name}");
        stored.bytes = value.to_le_bytes().to_vec();
    }

    /// Writes config.json and one model.safetensors.
    pub fn write(&self) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(directory.path().join("model.safetensors"), file_of(&self.tensors)).unwrap();
        directory
    }

    /// The sentence that a load of it ends with.
    pub fn refusal(&self) -> String {
        self.refusal_with(LoadOptions::default())
    }

    pub fn refusal_with(&self, options: LoadOptions) -> String {
        let directory = self.write();
        match load(directory.path(), options, |_| ()) {
            Ok(()) => panic!("it was loaded"),
            Err(error) => error.to_string(),
        }
    }
}

/// Loads `directory` and gives what `look` sees of it.
pub fn load<T>(
    directory: &Path,
    options: LoadOptions,
    look: impl FnOnce(tilekiln::models::dsv4::weights::Loaded<'_>) -> T,
) -> Result<T, WeightsError> {
    let config = ConfigFile::read(directory)?;
    let files = TensorFiles::open(directory)?;
    Ok(look(Weights::load(&files, &config, options)?))
}

/// A copy of the oracle directory `name`, file by file.
pub fn copy(name: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(oracle(name)).unwrap() {
        let path = entry.unwrap().path();
        // What is copied may be read-only; its bytes are not.
        std::fs::write(directory.path().join(path.file_name().unwrap()), std::fs::read(&path).unwrap()).unwrap();
    }
    directory
}

/// A safetensors file of `tensors`.
pub fn file_of(tensors: &BTreeMap<String, Stored>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, Stored { dtype, shape, bytes }) in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] }));
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file of a header, right or wrong, and data.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}
