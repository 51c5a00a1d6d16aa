//! The packs that travel inside the binary.

use std::path::Path;

use include_dir::{Dir, File};

use super::{Edits, Pack, PackError};
use crate::arch::{ArchSpec, GpuSpec, TUNING_DB};
use crate::store::TrialLog;

/// A pack of `tuning_db/` and what became of reading it.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Its path in `tuning_db/`, such as `h100-sxm/dsv4-flash-nvfp4.toml`.
    pub name: String,
    /// The pack.
    pub pack: Result<Pack, PackError>,
}

/// Every embedded pack, by GPU and name.
pub fn embedded() -> impl Iterator<Item = Embedded> {
    GpuSpec::all().iter().flat_map(packs_of)
}

/// The embedded packs of GPUs of `arch`: those whose winners may be used there.
pub fn embedded_for(arch: &ArchSpec) -> impl Iterator<Item = Embedded> {
    GpuSpec::all().iter().filter(move |gpu| gpu.arch == arch).flat_map(packs_of)
}

fn packs_of(gpu: &'static GpuSpec) -> impl Iterator<Item = Embedded> {
    let files = TUNING_DB.get_dir(&gpu.name).into_iter().flat_map(Dir::files);
    files.filter(|file| is_pack(file.path())).map(move |file| {
        let text = String::from_utf8_lossy(file.contents());
        let pack = Pack::parse(&text, Edits::Refuse).and_then(|pack| match *pack.gpu() == gpu.identity {
            true => Ok(pack),
            false => Err(PackError::OtherGpu { expected: gpu.identity.to_string(), found: pack.gpu().to_string() }),
        });
        Embedded { name: file.path().display().to_string(), pack }
    })
}

/// The trial logs committed for GPUs of `arch`; one that cannot be read is left out, and a test reads each.
pub fn embedded_logs(arch: &ArchSpec) -> Vec<(&'static GpuSpec, TrialLog)> {
    let of_arch = GpuSpec::all().iter().filter(|gpu| gpu.arch == arch);
    of_arch
        .flat_map(|gpu| logs_of(gpu).filter_map(move |file| Some((gpu, TrialLog::from_bytes(file.contents()).ok()?))))
        .collect()
}

fn logs_of(gpu: &GpuSpec) -> impl Iterator<Item = &'static File<'static>> {
    let files = TUNING_DB.get_dir(&gpu.name).into_iter().flat_map(Dir::files);
    files.filter(|file| is_log(file.path()))
}

/// Whether a file of `tuning_db/` is a trial log, by its name.
pub fn is_log(path: &Path) -> bool {
    path.to_string_lossy().ends_with(LOG_ENDING)
}

/// How the name of a trial log ends.
pub const LOG_ENDING: &str = ".trials.gz";

/// Whether a file of `tuning_db/` is a pack, by its name: `gpu.toml` lies beside the packs and is none.
pub fn is_pack(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("gpu.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_pack_is_whole_and_in_its_folder() {
        for Embedded { name, pack } in embedded() {
            let pack = pack.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(pack.verify(), [], "{name}");
        }
    }

    #[test]
    fn every_embedded_log_is_whole_and_in_its_folder() {
        for gpu in GpuSpec::all() {
            for file in logs_of(gpu) {
                let name = file.path().display();
                let log = TrialLog::from_bytes(file.contents()).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(log.gpu, gpu.identity, "{name}");
            }
        }
    }

    #[test]
    fn gpu_facts_are_no_packs() {
        let folder = TUNING_DB.get_dir("h100-sxm").unwrap();
        assert!(folder.files().any(|file| !is_pack(file.path())), "gpu.toml should lie here");
        assert!(embedded().all(|embedded| !embedded.name.ends_with("gpu.toml")));
    }
}
