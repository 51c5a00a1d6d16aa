//! DeepSeek-V4 in plain f32 on the CPU: what the GPU is tested against.
//!
//! It follows the order of the published description: streams, hyper-connections (`hyper`), attention with its
//! compressors and indexer (`attention`, `compressor`, `indexer`), router and experts (`experts`). Nothing is
//! fused and nothing is fast. Each row of each op is computed by itself, so a sequence gives the same bits whether it
//! is fed at once, in chunks or token by token (unless a scale is shared by the tokens of a pass). By default nothing
//! is rounded or quantised; [`Options`] imitate what is.

mod activations;
mod attention;
mod compressor;
mod error;
mod experts;
mod generation;
mod hyper;
mod indexer;
mod linear;
mod matrix;
mod observer;
mod options;
mod pass;
pub(in crate::models::dsv4) mod rope;
mod rounding;

pub use activations::{ActivationEntry, ActivationLog, ActivationWarning};
pub use error::ReferenceError;
pub use generation::ReferenceModel;
pub use matrix::Matrix;
pub use observer::{OPS, Observed, Observer, Op};
pub use options::{Activation, IndexFormat, KvFormat, LinearRounding, Options, RouterWeight, ScaleSource};

use attention::{Attention, LayerCache};
use experts::FeedForward;
use hyper::{HyperConnection, Mix, collect, spread};
use linear::{Linear, checked};
use pass::{Pass, rms_norm};

use super::Config;
use super::weights::{self, Weights};

/// A whole model, dequantised.
#[derive(Clone, Debug)]
pub struct Reference {
    config: Config,
    options: Options,
    embed: Linear,
    layers: Vec<Layer>,
    hc_head: HyperConnection,
    norm: Vec<f32>,
    head: Linear,
    log: ActivationLog,
    warm: Option<ActivationLog>,
}

/// What a sequence leaves behind for its next tokens. After an error it is of no use any more.
#[derive(Clone, Debug)]
pub struct Sequence {
    tokens: usize,
    layers: Vec<LayerCache>,
}

#[derive(Clone, Debug)]
struct Layer {
    hc_attn: HyperConnection,
    attn_norm: Vec<f32>,
    attention: Attention,
    hc_ffn: HyperConnection,
    ffn_norm: Vec<f32>,
    feed_forward: FeedForward,
}

impl Sequence {
    /// Tokens that were fed.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl Reference {
    /// Dequantises `weights`, which may have fewer layers than `config`.
    ///
    /// # Errors
    /// [`ReferenceError`] for a weight that does not fit `config`, and for a scale of the checkpoint that `options`
    /// use and that is missing or unusable.
    pub fn new(weights: &Weights<'_>, config: &Config, options: Options) -> Result<Self, ReferenceError> {
        let table = [config.vocabulary as usize, config.hidden as usize];
        let layer = |(idx, layer)| Layer::new(&format!("layers.{idx}"), layer, config, &options);
        let reference = Self {
            config: config.clone(),
            options,
            embed: Linear::new(&weights.embed, table)?,
            layers: weights.layers.iter().enumerate().map(layer).collect::<Result<_, _>>()?,
            hc_head: HyperConnection::new("hc_head", &weights.hc_head, config, 1)?,
            norm: checked("norm".to_owned(), &weights.norm, config.hidden as usize)?,
            head: Linear::new(&weights.head, table)?,
            log: ActivationLog::default(),
            warm: None,
        };
        if options.activation == Activation::A4(ScaleSource::Checkpoint) {
            for linear in reference.layers.iter().flat_map(Layer::linears).filter(|linear| linear.is_nvfp4) {
                linear.checkpoint_scale()?;
            }
        }
        Ok(reference)
    }

    /// The model's constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is imitated.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What the inputs of NVFP4 linears were like in all passes so far.
    pub fn activations(&self) -> &ActivationLog {
        &self.log
    }

    /// From now on [`ScaleSource::Warmup`] uses the amaxes that were seen so far; what it counted is forgotten.
    pub fn end_warmup(&mut self) {
        self.warm = Some(std::mem::take(&mut self.log));
    }

    /// Whether [`Reference::end_warmup`] is still to come and matters.
    pub fn is_warming_up(&self) -> bool {
        self.options.activation == Activation::A4(ScaleSource::Warmup) && self.warm.is_none()
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> Sequence {
        Sequence { tokens: 0, layers: vec![LayerCache::default(); self.layers.len()] }
    }

    /// Feeds `tokens` behind what `sequence` has, and gives the logits of each of them, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// [`ReferenceError`] for tokens that there are not, a sequence beyond the config's limit, choices by NaN, imposed
    /// choices that there are not, and whatever `observer` ends the pass with.
    pub fn forward(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<Matrix, ReferenceError> {
        self.refuse_tokens(sequence, tokens)?;
        let mut pass = Pass {
            config: &self.config,
            options: &self.options,
            warm: self.warm.as_ref(),
            log: &mut self.log,
            observer,
            tokens,
            start: sequence.tokens,
            layer: None,
        };
        let mut streams = embed(&mut pass, &self.embed)?;
        for (idx, (layer, cache)) in self.layers.iter().zip(&mut sequence.layers).enumerate() {
            pass.layer = Some(idx);
            pass.observer.streams(idx, &mut streams);
            layer.forward(&mut pass, cache, &mut streams)?;
        }
        pass.layer = None;
        sequence.tokens += tokens.len();

        let products = self.hc_head.products(&streams, self.options.linear_rounding);
        pass.observe("hc_head.mix", &products)?;
        let mut x = Matrix::zeros(streams.rows, self.norm.len());
        for token in 0..streams.rows {
            collect(&self.hc_head.head_weights(products.row(token)), streams.row(token), x.row_mut(token));
        }
        pass.observe("hc_head", &x)?;
        rms_norm(&mut x, &self.norm, pass.config.norm_epsilon);
        pass.observe("norm", &x)?;
        pass.linear("head", &self.head, &x)
    }

    fn refuse_tokens(&self, sequence: &Sequence, tokens: &[u32]) -> Result<(), ReferenceError> {
        let vocabulary = self.config.vocabulary;
        if let Some(idx) = tokens.iter().position(|&token| token >= vocabulary) {
            return Err(ReferenceError::Token { token: tokens[idx], position: sequence.tokens + idx, vocabulary });
        }
        let (tokens, limit) = (sequence.tokens + tokens.len(), self.config.max_tokens as usize);
        if tokens > limit {
            return Err(ReferenceError::Context { tokens, limit });
        }
        Ok(())
    }
}

/// Every stream starts as the token's embedding (2.0); `[m, streams * hidden]`.
fn embed(pass: &mut Pass<'_>, table: &Linear) -> Result<Matrix, ReferenceError> {
    let values = pass.tokens.iter().flat_map(|&token| table.row(token as usize)).copied().collect();
    let embedded = Matrix { rows: pass.tokens.len(), columns: table.k, values };
    pass.observe("embed", &embedded)?;
    let streams = pass.config.streams as usize;
    let values = embedded.values.chunks_exact(table.k).flat_map(|row| row.repeat(streams)).collect();
    Ok(Matrix { rows: embedded.rows, columns: streams * table.k, values })
}

impl Layer {
    fn new(
        name: &str,
        source: &weights::Layer<'_>,
        config: &Config,
        options: &Options,
    ) -> Result<Self, ReferenceError> {
        let hidden = config.hidden as usize;
        let attention = Attention::new(&format!("{name}.attn"), &source.attention, (config, source.kind), options)?;
        Ok(Self {
            hc_attn: HyperConnection::new(&format!("{name}.hc_attn"), &source.hc_attn, config, 3)?,
            attn_norm: checked(format!("{name}.attn_norm"), &source.attn_norm, hidden)?,
            attention,
            hc_ffn: HyperConnection::new(&format!("{name}.hc_ffn"), &source.hc_ffn, config, 3)?,
            ffn_norm: checked(format!("{name}.ffn_norm"), &source.ffn_norm, hidden)?,
            feed_forward: FeedForward::new(&format!("{name}.ffn"), &source.feed_forward, config)?,
        })
    }

    /// Linears whose input may be quantised.
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().chain(self.feed_forward.linears())
    }

    /// 2.3: mix, norm, attention, spread; mix, norm, experts, spread.
    fn forward(&self, pass: &mut Pass<'_>, cache: &mut LayerCache, streams: &mut Matrix) -> Result<(), ReferenceError> {
        let (mixes, mut x) = before(pass, ["hc_attn.mix", "hc_attn"], &self.hc_attn, streams)?;
        rms_norm(&mut x, &self.attn_norm, pass.config.norm_epsilon);
        pass.observe("attn_norm", &x)?;
        let y = self.attention.forward(pass, cache, &x)?;
        after(pass, "hc_attn.post", &mixes, (&y, streams))?;

        let (mixes, mut x) = before(pass, ["hc_ffn.mix", "hc_ffn"], &self.hc_ffn, streams)?;
        rms_norm(&mut x, &self.ffn_norm, pass.config.norm_epsilon);
        pass.observe("ffn_norm", &x)?;
        let y = self.feed_forward.forward(pass, &x)?;
        after(pass, "streams", &mixes, (&y, streams))
    }
}

/// The input of a sublayer, `[m, hidden]`, and how each token's streams are mixed around it (2.1).
fn before(
    pass: &mut Pass<'_>,
    [products_name, name]: [&'static str; 2],
    connection: &HyperConnection,
    streams: &Matrix,
) -> Result<(Vec<Mix>, Matrix), ReferenceError> {
    let products = connection.products(streams, pass.options.linear_rounding);
    pass.observe(products_name, &products)?;
    let mixes: Vec<Mix> = (0..streams.rows).map(|token| connection.mix(products.row(token))).collect();
    let mut x = Matrix::zeros(streams.rows, pass.config.hidden as usize);
    for (token, mix) in mixes.iter().enumerate() {
        collect(&mix.pre, streams.row(token), x.row_mut(token));
    }
    pass.observe(name, &x)?;
    Ok((mixes, x))
}

/// The output of a sublayer back into the streams (2.2).
fn after(
    pass: &mut Pass<'_>,
    name: &'static str,
    mixes: &[Mix],
    (y, streams): (&Matrix, &mut Matrix),
) -> Result<(), ReferenceError> {
    for (token, mix) in mixes.iter().enumerate() {
        spread(mix, y.row(token), streams.row_mut(token));
    }
    pass.observe(name, streams)
}
