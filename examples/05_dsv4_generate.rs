//! DeepSeek-V4 through the library: `cargo run --release --example 05_dsv4_generate [MODEL_DIR]`.
//!
//! Loads a checkpoint, feeds a prompt of token ids and samples greedily. On a GPU the tuned kernels run, every decode
//! step as one graph; without one the f32 reference does. The default model is a tiny one with random weights, so its
//! answer means nothing, but it is the same on both.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tilekiln::device::Gpu;
use tilekiln::dispatch::PrepareOptions;
use tilekiln::engine::{LanguageModel, Sampling, TensorFiles};
use tilekiln::models::dsv4::config_file::ConfigFile;
use tilekiln::models::dsv4::forward::{Forward, ForwardOptions};
use tilekiln::models::dsv4::reference::{Options, Reference, ReferenceModel};
use tilekiln::models::dsv4::weights::{LoadOptions, Weights};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "testdata/oracle/small-nvfp4".to_string());
    let directory = PathBuf::from(directory);
    let files = TensorFiles::open(&directory)?;
    let config = ConfigFile::read(&directory)?;
    // Every tensor of the files is used or known to be unused, every weight is found, or this fails with the list.
    let loaded = Weights::load(&files, &config, LoadOptions::default())?;
    println!(
        "{}: {} tensors, {} layers",
        directory.display(),
        loaded.ledger.entries.len(),
        loaded.weights.layers.len()
    );
    loaded.warnings.iter().for_each(|warning| println!("  {warning}"));

    let prompt: Vec<u32> = (0..24).map(|idx| 7 * idx % loaded.config.vocabulary).collect();
    if Gpu::count() == 0 {
        println!("no GPU at hand: the f32 reference answers");
        let reference = Reference::new(&loaded.weights, &loaded.config, Options::default())?;
        return answer(&mut ReferenceModel::new(reference, 1, CONTEXT, Box::new(())), &prompt);
    }
    let gpu = Arc::new(Gpu::open(0)?);
    let options = ForwardOptions { context: CONTEXT, ..ForwardOptions::default() };
    let model = (&loaded.config, &loaded.weights);
    let mut forward = Forward::load(&gpu, model, &options, &PrepareOptions::from_environment(), &mut ())?;
    println!("{}", forward.report().prepared);
    answer(&mut forward, &prompt)
}

/// The likeliest token behind everything so far, over and over: the same calls on a GPU and on the CPU.
fn answer<M: LanguageModel>(model: &mut M, prompt: &[u32]) -> Result<(), Box<dyn Error>>
where
    M::Error: 'static,
{
    let mut answer = model.prefill(&[(0, prompt)], &Sampling::default())?;
    let started = Instant::now();
    while answer.len() < ANSWER_TOKENS {
        answer.extend(model.decode(&[0], &Sampling::default())?);
    }
    let rate = (ANSWER_TOKENS - 1) as f64 / started.elapsed().as_secs_f64();
    println!("{answer:?}\n{rate:.0} tokens/s");
    Ok(())
}

const ANSWER_TOKENS: usize = 32;
const CONTEXT: u32 = 256;
