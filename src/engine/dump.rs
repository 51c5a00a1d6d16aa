//! The values that a run computed, as safetensors files that other tools read too.
//!
//! A dump is a folder: `step-0000/layer-003.safetensors` has what layer 3 computed in the first step, and
//! `step-0000/model.safetensors` what stands before and behind the layers. A tensor is called like the op that wrote it
//! (`attn.wq_b`), `[tokens, columns]` in f32; an op that runs again in the same layer and step gets `@2`. The order in
//! which ops ran is kept in the file's metadata, so a comparison finds the first that went wrong.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Writes a dump. What was recorded since the last step is lost without [`DumpWriter::end_step`].
pub struct DumpWriter {
    folder: PathBuf,
    step: u32,
    /// Tensors of this step by layer, in the order of the ops. `None` stands before and behind the layers.
    files: BTreeMap<Option<u32>, Vec<Tensor>>,
}

/// A named tensor of f32 values, or of what converts to them.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The op's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// A dump that cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    /// Tensors of two runs in one folder would look like one run.
    #[error("expected no files in `{folder}`, found some")]
    Occupied {
        /// The folder.
        folder: String,
    },
    /// The system refuses.
    #[error("expected to {act} `{path}`, found: {reason}")]
    File {
        /// `read` or `write`.
        act: &'static str,
        /// The file.
        path: String,
        /// In the system's words.
        reason: String,
    },
    /// No safetensors file, or a truncated one.
    #[error("expected a safetensors file at `{path}`, found: {reason}")]
    Format {
        /// The file.
        path: String,
        /// In the parser's words.
        reason: String,
    },
    /// Codes that are no values without their scales.
    #[error("expected a tensor of numbers, found `{tensor}` in {dtype} in `{path}`")]
    Dtype {
        /// The file.
        path: String,
        /// The tensor.
        tensor: String,
        /// What it holds.
        dtype: String,
    },
}

impl DumpWriter {
    /// A dump in `folder`, which is made.
    ///
    /// # Errors
    /// [`DumpError::Occupied`] if there are files in it; what the system refuses.
    pub fn create(folder: &Path) -> Result<Self, DumpError> {
        std::fs::create_dir_all(folder).map_err(|error| file_error("write", folder, &error))?;
        let mut entries = std::fs::read_dir(folder).map_err(|error| file_error("read", folder, &error))?;
        if entries.next().is_some() {
            return Err(DumpError::Occupied { folder: folder.display().to_string() });
        }
        Ok(Self { folder: folder.to_path_buf(), step: 0, files: BTreeMap::new() })
    }

    /// Keeps the output of `op` in `layer`: rows of `columns` values.
    pub fn record(&mut self, layer: Option<u32>, op: &str, columns: usize, values: &[f32]) {
        let tensors = self.files.entry(layer).or_default();
        let is_same = |tensor: &&Tensor| tensor.name.split('@').next() == Some(op);
        let name = match tensors.iter().filter(is_same).count() {
            0 => op.to_string(),
            before => format!("{op}@{}", before + 1),
        };
        let shape = vec![values.len().checked_div(columns).unwrap_or(0), columns];
        tensors.push(Tensor { name, shape, values: values.to_vec() });
    }

    /// Writes what was kept, and begins the next step.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn end_step(&mut self) -> Result<(), DumpError> {
        let folder = self.folder.join(format!("step-{:04}", self.step));
        self.step += 1;
        let files = std::mem::take(&mut self.files);
        if !files.is_empty() {
            std::fs::create_dir_all(&folder).map_err(|error| file_error("write", &folder, &error))?;
        }
        for (layer, tensors) in &files {
            let name = layer.map_or("model".to_string(), |layer| format!("layer-{layer:03}"));
            write_tensors(&folder.join(name + ".safetensors"), tensors)?;
        }
        Ok(())
    }
}

/// Writes `tensors` in f32, beside first and then in place, so that no reader finds half a file.
///
/// # Errors
/// [`DumpError::File`] for what the system refuses.
pub fn write_tensors(path: &Path, tensors: &[Tensor]) -> Result<(), DumpError> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|tensor| tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let refused = |error: &dyn std::fmt::Display| DumpError::File {
        act: "write",
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (tensor, bytes) in tensors.iter().zip(&bytes) {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map_err(|error| refused(&error))?;
        views.push((tensor.name.as_str(), view));
    }
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let order = serde_json::to_string(&names).map_err(|error| refused(&error))?;
    let metadata = HashMap::from([(ORDER.to_string(), order)]);
    let whole = safetensors::serialize(views, Some(metadata)).map_err(|error| refused(&error))?;
    replace_file(path, &whole).map_err(|error| refused(&error))
}

/// Writes a file beside and renames it into place: whoever reads it, or kills this, never has half of it.
///
/// # Errors
/// What the system refuses.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A result is as readable as any file that the user writes, not private like a temporary one.
    let readable = std::fs::Permissions::from_mode(0o666);
    // The error's own words would name the temporary file.
    let unnamed = |error: io::Error| io::Error::from(error.kind());
    let mut beside = tempfile::Builder::new().permissions(readable).tempfile_in(folder).map_err(unnamed)?;
    io::Write::write_all(&mut beside, bytes)?;
    beside.persist(path)?;
    Ok(())
}

/// The files of a dump, by their paths inside it; of a single file just that, called by nothing.
///
/// # Errors
/// [`DumpError::File`] if it cannot be listed.
pub fn list(dump: &Path) -> Result<BTreeMap<String, PathBuf>, DumpError> {
    let failed = |path: &Path, error: &io::Error| file_error("read", path, error);
    let about = std::fs::metadata(dump).map_err(|error| failed(dump, &error))?;
    if about.is_file() {
        return Ok(BTreeMap::from([(String::new(), dump.to_path_buf())]));
    }
    let mut found = BTreeMap::new();
    let mut folders = vec![dump.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| failed(&folder, &error))? {
            let path = entry.map_err(|error| failed(&folder, &error))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "safetensors") {
                let inside = path.strip_prefix(dump).unwrap_or(&path).with_extension("");
                found.insert(inside.display().to_string(), path);
            }
        }
    }
    Ok(found)
}

/// The tensors of one file as f32, in the order in which they were computed, or else by name.
///
/// # Errors
/// [`DumpError`] if it is no safetensors file, or holds codes.
pub fn read_tensors(path: &Path) -> Result<Vec<Tensor>, DumpError> {
    let bytes = std::fs::read(path).map_err(|error| file_error("read", path, &error))?;
    let bad = |reason: String| DumpError::Format { path: path.display().to_string(), reason };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| bad(error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| bad(error.to_string()))?;
    let order = metadata.metadata().as_ref().and_then(|metadata| metadata.get(ORDER));
    let order: Vec<String> = order.and_then(|order| serde_json::from_str(order).ok()).unwrap_or_default();

    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let values = numbers(&view).ok_or_else(|| DumpError::Dtype {
            path: path.display().to_string(),
            tensor: name.clone(),
            dtype: format!("{:?}", view.dtype()),
        })?;
        tensors.push(Tensor { name, shape: view.shape().to_vec(), values });
    }
    let place = |name: &str| order.iter().position(|other| other == name).unwrap_or(usize::MAX);
    tensors.sort_by_key(|tensor| (place(&tensor.name), tensor.name.clone()));
    Ok(tensors)
}

/// The values of a tensor; `None` of codes, which have no value without their scales.
fn numbers(view: &TensorView<'_>) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|&bytes| value(bytes)).collect()
    }
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => Some(each(bytes, f32::from_le_bytes)),
        Dtype::F64 => Some(each(bytes, |bytes| f64::from_le_bytes(bytes) as f32)),
        Dtype::BF16 => Some(each(bytes, |bytes| crate::quant::bf16::decode(u16::from_le_bytes(bytes)))),
        Dtype::I64 => Some(each(bytes, |bytes| i64::from_le_bytes(bytes) as f32)),
        Dtype::I32 => Some(each(bytes, |bytes| i32::from_le_bytes(bytes) as f32)),
        _ => None,
    }
}

fn file_error(act: &'static str, path: &Path, error: &io::Error) -> DumpError {
    DumpError::File { act, path: path.display().to_string(), reason: error.to_string() }
}

/// Key of the metadata with the names in the order of the ops.
const ORDER: &str = "order";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut dump = DumpWriter::create(folder.path()).unwrap();
        dump.record(Some(3), "z", 2, &[1.0, 2.0, 3.0, 4.0]);
        dump.record(Some(3), "a", 1, &[f32::NAN]);
        dump.record(Some(3), "z", 1, &[5.0]);
        dump.record(None, "head", 1, &[6.0]);
        dump.end_step().unwrap();
        dump.record(None, "head", 1, &[7.0]);
        dump.end_step().unwrap();

        let files = list(folder.path()).unwrap();
        let names: Vec<&String> = files.keys().collect();
        assert_eq!(names, ["step-0000/layer-003", "step-0000/model", "step-0001/model"]);
        let tensors = read_tensors(&files["step-0000/layer-003"]).unwrap();
        let about: Vec<_> = tensors.iter().map(|tensor| (&*tensor.name, &*tensor.shape)).collect();
        assert_eq!(about, [("z", &[2, 2][..]), ("a", &[1, 1]), ("z@2", &[1, 1])]);
        assert_eq!(tensors[0].values, [1.0, 2.0, 3.0, 4.0]);
        assert!(tensors[1].values[0].is_nan());
    }

    #[test]
    fn two_runs_are_not_mixed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("old"), "").unwrap();
        let error = DumpWriter::create(folder.path()).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("expected no files in `"), "{error}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_told_without_the_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = replace_file(&folder.path().join("none/x"), b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!error.to_string().contains("none"), "{error}");
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write_tensors(&path, &[Tensor { name: "a".into(), shape: vec![4], values: vec![0.0; 4] }]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        let error = read_tensors(&path).unwrap_err().to_string();
        assert!(error.starts_with("expected a safetensors file at `"), "{error}");
    }
}
