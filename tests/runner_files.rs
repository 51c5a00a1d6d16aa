//! A model directory to weights: every oracle directory is loaded whole, and every way to spoil one has its sentence.

use std::path::{Path, PathBuf};

use tilekiln::engine::TensorFiles;
use tilekiln::models::dsv4::config_file::ConfigFile;
use tilekiln::models::dsv4::weights::{LoadOptions, Weights};

const ORACLES: [&str; 7] = [
    "small-bf16",
    "small-native",
    "small-nvfp4",
    "small-nvfp4_full",
    "small-nvfp4_ct",
    "wide-nvfp4",
    "wide-nvfp4_full",
];

#[test]
fn every_oracle_is_loaded_and_accounted_for() {
    for name in ORACLES {
        let directory = oracle(name);
        let files = TensorFiles::open(&directory).unwrap();
        let config = ConfigFile::read(&directory).unwrap();
        let loaded = Weights::load(&files, &config, LoadOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(loaded.ledger.entries.len(), files.tensors().len(), "{name}");
        assert_eq!(loaded.ledger.used().count(), files.tensors().len(), "{name}");
        println!("{name} {}", loaded.warnings.len());
        for warning in loaded.warnings.iter().take(30) {
            println!("{warning}");
        }
    }
}

fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/oracle").join(name)
}
