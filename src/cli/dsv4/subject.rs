//! What `dsv4 bench` measures: random weights in a model's shapes, or a directory's own.

use std::path::Path;

use super::bench_args::{BenchArgs, Synthetic};
use super::session;
use crate::cli::CliError;
use crate::engine::TensorFiles;
use crate::models::Checkpoint;
use crate::models::dsv4::config_file::ConfigFile;
use crate::models::dsv4::weights::{LoadOptions, Weights};
use crate::models::dsv4::{Config, Formats};
use crate::quant::WeightFormat;

/// What is measured: a model, and how it is called in the report.
pub struct Subject {
    /// What it is called.
    pub name: String,
    /// Form of its checkpoint.
    pub form: String,
    /// The architecture.
    pub config: Config,
    /// Formats of its weights.
    pub formats: Formats,
    /// Where its weights are from; `None` if they are random.
    pub files: Option<(TensorFiles, ConfigFile)>,
}

impl Subject {
    /// What `args` name.
    ///
    /// # Errors
    /// A directory that is refused, a form that there is not, more layers or tokens than the model has.
    pub fn of(args: &BenchArgs) -> Result<Self, CliError> {
        let subject = match (args.synthetic, &args.model_dir) {
            (Some(Synthetic::Pro), _) => synthetic("synthetic pro", Config::PRO, args)?,
            (Some(Synthetic::Flash), _) | (None, None) => synthetic("synthetic flash", Config::FLASH, args)?,
            (None, Some(model_dir)) => directory(model_dir)?,
        };
        let (most, tokens) = (subject.config.layers(), subject.config.max_tokens);
        if let Some(layers) = args.layers.filter(|&layers| layers > most) {
            let sentence = format!("expected at most the {most} layers of the model, found --layers {layers}");
            return Err(CliError::usage(sentence, "leave --layers out to run as many as fit"));
        }
        if let Some(context) = args.context.iter().find(|&&context| context > tokens) {
            let sentence = format!("expected a context of at most {tokens} tokens, found {context}");
            return Err(CliError::usage(sentence, "max_position_embeddings is the model's limit"));
        }
        Ok(subject)
    }
}

/// Random weights in the shapes of `config`.
fn synthetic(name: &str, config: Config, args: &BenchArgs) -> Result<Subject, CliError> {
    let form = args.checkpoint.as_deref().unwrap_or("nvfp4");
    let checkpoint: Checkpoint =
        form.parse().map_err(|error| CliError::usage(format!("{error}"), "`dsv4 bench --help` shows examples"))?;
    let formats = Formats::of(checkpoint);
    Ok(Subject { name: name.to_string(), form: checkpoint.to_string(), config, formats, files: None })
}

/// The weights in `model_dir`, in the formats that its first layers have.
fn directory(model_dir: &Path) -> Result<Subject, CliError> {
    let config_file = ConfigFile::read(model_dir).map_err(|error| session::refused(model_dir, &error))?;
    let files = TensorFiles::open(model_dir).map_err(|error| session::refused(model_dir, &error))?;
    let loaded = Weights::load(&files, &config_file, LoadOptions::default())
        .map_err(|error| session::refused(model_dir, &error))?;
    let layers = &loaded.weights.layers;
    let first = &layers[0];
    let indexer = layers.iter().find_map(|layer| layer.attention.indexer.as_ref());
    let formats = Formats {
        attention: first.attention.wq_b.format,
        wo_a: first.attention.wo_a.format,
        index_q: indexer.map_or(WeightFormat::Bf16, |indexer| indexer.wq_b.format),
        shared: first.feed_forward.shared.w1.format,
        experts: first.feed_forward.experts.first().map_or(WeightFormat::Bf16, |expert| expert.w1.format),
    };
    let (name, form) = (model_dir.display().to_string(), config_file.quantization.name().to_string());
    let config = loaded.config.clone();
    Ok(Subject { name, form, config, formats, files: Some((files, config_file)) })
}
