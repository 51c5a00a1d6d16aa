//! A model that was opened for a command: where it runs, how large it is, and what there is to say about it afterwards.

mod cpu;
mod gpu;
mod place;

pub use gpu::{failed as gpu_failed, kernels};
use place::{Place, place};

use std::path::Path;

use super::args::{Check, ModelArgs, RunArgs};
use super::numerics_args::{Activation, Experts, Index, Kv, NumericsArgs, RouterWeight, Scale, Streams};
use crate::cli::CliError;
use crate::cli::voice::talk;
use crate::engine::dump::DumpWriter;
use crate::engine::{LanguageModel, TensorFiles};
use crate::models::dsv4::config_file::ConfigFile;
use crate::models::dsv4::reference::{self, Options, ScaleSource};
use crate::models::dsv4::weights::{InputScaleWarning, LoadOptions, Loaded, Unusable, Weights};
use crate::models::dsv4::{CheckAt, Watch};
use crate::quant::TensorScale;

/// A model of which a command knows nothing but this.
pub trait Session: LanguageModel<Error = CliError> {
    /// From now on scales of activations are those that were met so far.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn end_warmup(&mut self) -> Result<(), CliError>;

    /// What should be said about the scales of activations, a sentence each.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn warnings(&self) -> Result<Vec<String>, CliError>;
}

/// How much a command wants to do at a time.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Tokens of the longest sequence.
    pub context: u32,
    /// Sequences at a time.
    pub sequences: u32,
}

/// The directory's config.json, with the flags that it limits.
///
/// # Errors
/// The file's sentence; more layers or tokens than the model has.
pub fn config(model_dir: &Path, run: &RunArgs) -> Result<ConfigFile, CliError> {
    let config = ConfigFile::read(model_dir).map_err(|error| refused(model_dir, &error))?;
    let (layers, tokens) = (config.config.layers(), config.config.max_tokens);
    if let Some(found) = run.layers.filter(|&found| found > layers) {
        let sentence = format!("expected at most the {layers} layers of the model, found --layers {found}");
        return Err(CliError::usage(sentence, "leave --layers out to run all of them"));
    }
    if let Some(found) = run.context.filter(|&found| found > tokens) {
        let sentence = format!("expected a context of at most {tokens} tokens, found --context {found}");
        return Err(CliError::usage(sentence, "max_position_embeddings in config.json is the model's limit"));
    }
    Ok(config)
}

/// Opens the model of `args` where it is to run. Nothing is half-loaded: it can answer, or there is an error.
///
/// # Errors
/// Files that are refused, with everything that is wrong with them; a place that is not there.
pub fn open_model(args: &ModelArgs, config: &ConfigFile, size: Size) -> Result<Box<dyn Session>, CliError> {
    let run = &args.run;
    let numerics = numerics(&run.numerics)?;
    let place = place(run)?;
    if place == Place::Cpu && run.numerics.streams == Streams::Bf16 {
        return Err(CliError::usage(
            "expected `--streams f32` on the CPU, found bf16: the reference keeps streams as they are summed",
            "leave `--streams` out, or run on a GPU",
        ));
    }
    let dump = run.diagnostics.dump.as_deref().map(DumpWriter::create).transpose();
    let dump = dump.map_err(|error| {
        CliError::failed(error.to_string(), Some("name a folder that is empty or not there yet".into()))
    })?;
    let check = run.diagnostics.check.map(|check| match check {
        Check::FiniteLayers => CheckAt::Layers,
        Check::FiniteOps => CheckAt::Ops,
    });
    let watch = (check.is_some() || dump.is_some()).then(|| Watch::new(check, dump));
    let files = TensorFiles::open(&args.model_dir).map_err(|error| refused(&args.model_dir, &error))?;
    let options = LoadOptions { layers: run.layers, experts_as_nvfp4: run.numerics.experts == Experts::Nvfp4 };
    let loaded = Weights::load(&files, config, options).map_err(|error| refused(&args.model_dir, &error))?;
    warn(&loaded, &numerics);
    match place {
        Place::Cpu => cpu::open(&loaded, numerics, size, watch.unwrap_or_default()),
        Place::Gpu => gpu::open(run, &loaded, (numerics, size), watch),
    }
}

/// What is rounded, as the flags say. BF16 means as it is: the reference keeps f32.
pub fn numerics(args: &NumericsArgs) -> Result<Options, CliError> {
    let source = |scale| match scale {
        Scale::PerToken => ScaleSource::PerToken,
        Scale::PerTensor => ScaleSource::PerTensor,
        Scale::Checkpoint => ScaleSource::Checkpoint,
        Scale::Warmup => ScaleSource::Warmup,
        Scale::Fixed(scale) => ScaleSource::Fixed(
            TensorScale::multiplier(scale).expect("the parser of --scale accepts usable scales only"),
        ),
    };
    let scale = args.scale()?;
    Ok(Options {
        activation: match args.activation {
            Activation::A16 => reference::Activation::A16,
            Activation::A4 => reference::Activation::A4(scale.map_or(ScaleSource::PerToken, source)),
        },
        kv: if args.kv == Kv::Fp8 { reference::KvFormat::Fp8 } else { reference::KvFormat::Exact },
        index: if args.index == Index::Mxfp4 { reference::IndexFormat::Mxfp4 } else { reference::IndexFormat::Exact },
        router_weight: match args.router_weight {
            RouterWeight::After => reference::RouterWeight::AfterW2,
            RouterWeight::Before => reference::RouterWeight::BeforeW2,
        },
        ..Options::default()
    })
}

/// Warns of scales that are no numbers in every mode, and of those that clip where they are used.
fn warn(loaded: &Loaded<'_>, numerics: &Options) {
    let is_used = numerics.activation == reference::Activation::A4(ScaleSource::Checkpoint);
    let counts = |warning: &&InputScaleWarning| is_used || matches!(warning.problem, Unusable::NoScale { .. });
    let warnings: Vec<&InputScaleWarning> = loaded.warnings.iter().filter(counts).collect();
    say_warnings(&warnings);
}

/// Says the first few of `warnings`, and how many more there are.
pub fn say_warnings<T: std::fmt::Display>(warnings: &[T]) {
    warnings.iter().take(MOST_WARNINGS).for_each(|warning| talk(&format!("warning: {warning}")));
    if warnings.len() > MOST_WARNINGS {
        talk(&format!("warning: and {} more of this kind", warnings.len() - MOST_WARNINGS));
    }
}

/// The sentence of a directory that is not loaded.
pub fn refused(model_dir: &Path, error: &dyn std::fmt::Display) -> CliError {
    let hint = format!("`dsv4 check --model-dir {}` lists everything that is wrong with it", model_dir.display());
    CliError::failed(format!("{}: {error}", model_dir.display()), Some(hint))
}

const MOST_WARNINGS: usize = 8;
