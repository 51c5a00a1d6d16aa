//! The packs that travel inside the binary.

use include_dir::{Dir, File, include_dir};

use super::{Edits, Pack, PackError};
use crate::arch::{ArchSpec, GpuSpec};

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
    let files = PACK_DIR.get_dir(&gpu.name).into_iter().flat_map(Dir::files);
    files.filter(|file| is_pack(file)).map(move |file| {
        let text = String::from_utf8_lossy(file.contents());
        let pack = Pack::parse(&text, Edits::Refuse).and_then(|pack| match *pack.gpu() == gpu.identity {
            true => Ok(pack),
            false => Err(PackError::OtherGpu { expected: gpu.identity.to_string(), found: pack.gpu().to_string() }),
        });
        Embedded { name: file.path().display().to_string(), pack }
    })
}

/// `gpu.toml` lies beside the packs and is none.
fn is_pack(file: &File<'_>) -> bool {
    let path = file.path();
    path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("gpu.toml")
}

static PACK_DIR: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/tuning_db");

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
    fn gpu_facts_are_no_packs() {
        let folder = PACK_DIR.get_dir("h100-sxm").unwrap();
        assert!(folder.files().any(|file| !is_pack(file)), "gpu.toml should lie here");
        assert!(embedded().all(|embedded| !embedded.name.ends_with("gpu.toml")));
    }
}
