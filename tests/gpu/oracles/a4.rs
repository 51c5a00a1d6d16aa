//! Activations in NVFP4 under every policy of scales: models against the oracle, layers against the CPU reference.
//!
//! Whole models have a yardstick for two policies. The others are compared layer by layer, where the reference does the
//! same with the same streams: what is left is BF16, and the codes that it flips.

use std::collections::BTreeMap;

use tilekiln::engine::LanguageModel;
use tilekiln::models::dsv4::forward::Forward;
use tilekiln::models::dsv4::reference::{
    self, Activation, IndexFormat, KvFormat, LinearRounding, Matrix, Op, Options, Reference, RouterWeight, ScaleSource,
};
use tilekiln::quant::TensorScale;

use super::{Check, Oracle, Seen, cosine, layers_within, relative, with_numerics};
use crate::context::{Context, Failure};

/// Comparisons of each layer, by name.
pub const LAYERS: [(&str, Check); 4] = [
    ("a4 with a scale a tensor, each layer", per_tensor),
    ("a4 with one scale for all, each layer", fixed),
    ("a4 with scales of warming up, each layer", warmup),
    ("a4 with the router weight before w2, each layer", weight_before_w2),
];

pub fn per_token(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    whole_model(context, oracle, ScaleSource::PerToken, "logits_a4_per_token")
}

pub fn checkpoint(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    whole_model(context, oracle, ScaleSource::Checkpoint, "logits_a4_checkpoint")
}

fn whole_model(context: &mut Context, oracle: &Oracle, source: ScaleSource, name: &str) -> Result<usize, Failure> {
    let numerics = Options { activation: Activation::A4(source), ..Options::default() };
    let mut forward = oracle.forward(context, &with_numerics(numerics))?;
    let logits = forward.logits(0, &oracle.tokens)?;
    let [a16, exact] = [oracle.expected("logits")?, oracle.expected(name)?];
    let yardstick = cosine(oracle.expected(&format!("{name}_bf16_linears"))?, exact);
    let (ours, cost, oracles_cost) = (cosine(&logits, exact), cosine(&logits, a16), cosine(exact, a16));
    println!(
        "        {name}: cosine {ours:.3}, the oracle's in bf16 {yardstick:.3}; against a16 {cost:.2}, the oracle's \
         {oracles_cost:.2}"
    );
    if !logits.iter().all(|value| value.is_finite()) {
        return Err(format!("{name}: logits that are not finite").into());
    }
    if ours < yardstick - 0.03 {
        return Err(format!("{name}: cosine {ours:.3}, expected at least {:.3}", yardstick - 0.03).into());
    }
    let counters = forward.read_counters()?;
    if counters.is_empty() {
        return Err("no op has counted its blocks".to_string().into());
    }
    let warned = counters.iter().filter(|(_, counters)| counters.warning().is_some());
    let warned: Vec<String> = warned.map(|(op, counters)| format!("{op}: {:?}", counters.warning())).collect();
    let is_static = source == ScaleSource::Checkpoint;
    let in_attention = warned.iter().filter(|warning| warning.contains("attn")).count();
    if is_static == (in_attention == 0) {
        return Err(format!("warnings of attention under {source:?}: {warned:?}").into());
    }
    Ok(1)
}

fn per_tensor(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    each_layer(context, oracle, a4(ScaleSource::PerTensor))
}

fn warmup(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    each_layer(context, oracle, a4(ScaleSource::Warmup))
}

fn weight_before_w2(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    each_layer(context, oracle, Options { router_weight: RouterWeight::BeforeW2, ..a4(ScaleSource::PerToken) })
}

/// With the scale of the largest activation that any op meets in a16.
fn fixed(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    let loaded = oracle.weights()?;
    let mut reference = Reference::new(&loaded.weights, &loaded.config, Options::default())?;
    Seen::by(&mut reference, &oracle.tokens)?;
    let largest = reference.activations().entries().map(|(_, entry)| entry.amax).fold(0.0, f32::max);
    // Twice as large, because roundings of earlier layers move what later ones meet.
    let scale = TensorScale::from_amax(2.0 * largest).map_err(|error| error.to_string())?;
    each_layer(context, oracle, a4(ScaleSource::Fixed(scale)))
}

fn a4(source: ScaleSource) -> Options {
    Options { activation: Activation::A4(source), ..Options::default() }
}

/// Each layer as the reference with the same numerics; then whole logits, and what was counted.
fn each_layer(context: &mut Context, oracle: &Oracle, numerics: Options) -> Result<usize, Failure> {
    let loaded = oracle.weights()?;
    let mut reference = Reference::new(&loaded.weights, &loaded.config, numerics)?;
    let mut seen = Seen::by(&mut reference, &oracle.tokens)?;
    let mut forward = oracle.forward(context, &with_numerics(numerics))?;
    let mut rounding = Reference::new(&loaded.weights, &loaded.config, rounded(numerics))?;
    if reference.is_warming_up() {
        // All meet the reference's streams, so that their scales are those of the same activations.
        let limits = limits(&mut rounding, &seen, &oracle.tokens)?;
        layers_within(&mut forward, oracle, &seen, &limits)?;
        reference.end_warmup();
        rounding.end_warmup();
        forward.end_warmup()?;
        seen = Seen::by(&mut reference, &oracle.tokens)?;
        // What was counted so far was counted under other scales.
        forward.read_counters()?;
    }
    let limits = limits(&mut rounding, &seen, &oracle.tokens)?;
    let layers = layers_within(&mut forward, oracle, &seen, &limits)?;
    let ops = counted(&forward, layers)?;
    let logits = forward.logits(0, &oracle.tokens)?;
    let vocabulary = loaded.config.vocabulary as usize;
    if let Some(idx) = logits.iter().position(|value| !value.is_finite()) {
        let (row, column) = (idx / vocabulary, idx % vocabulary);
        return Err(format!("{numerics:?}: row {row} column {column} is {}", logits[idx]).into());
    }
    Ok(layers + ops)
}

/// Reads the counters: every layer has rounded something, nothing was infinite, and none of these scales is too small.
fn counted(forward: &Forward, layers: usize) -> Result<usize, Failure> {
    let counters = forward.read_counters()?;
    if let Some(layer) = (0..layers).find(|layer| counters.iter().all(|(op, _)| op.layer != Some(*layer))) {
        return Err(format!("no op of layer {layer} has counted its blocks").into());
    }
    for (op, counters) in &counters {
        if counters.non_finite.count > 0 || counters.non_finite.first.is_some() {
            return Err(format!("{op}: expected finite inputs, found {:?}", counters.non_finite).into());
        }
        if let Some(warning) = counters.warning() {
            return Err(format!("{op}: expected a scale that fits, found: {warning}").into());
        }
    }
    let again = forward.read_counters()?;
    if !again.is_empty() {
        return Err(format!("expected counters to begin anew once they are read, found {again:?}").into());
    }
    Ok(counters.len())
}

/// The same numerics with what the GPU rounds to BF16 rounded as well.
fn rounded(numerics: Options) -> Options {
    let (kv, index) = (KvFormat::Bf16, IndexFormat::Bf16);
    Options { linear_rounding: LinearRounding::Bf16, kv, index, ..numerics }
}

/// What a layer's error may be: 1.3 times that of the reference which rounds to BF16, on the same streams and choices.
///
/// Every rounding to NVFP4 takes a small difference of its input to the other side of an edge now and then: 0.2 % comes
/// out as the root of 0.2 % of a step, and four of them in a row make a sixth of it. So the limit is measured, not a
/// number.
fn limits(rounding: &mut Reference, seen: &Seen, tokens: &[u32]) -> Result<Vec<f64>, Failure> {
    let mut imposing = Imposing { seen, outputs: BTreeMap::new() };
    let mut sequence = rounding.sequence();
    rounding.forward(&mut sequence, tokens, &mut imposing)?;
    let errors: Vec<f64> = imposing.outputs.iter().map(|(layer, out)| relative(out, &seen.outputs[layer])).collect();
    println!("        the reference in BF16, by layer: {errors:.4?}");
    Ok(errors.into_iter().map(|error| 1.3 * error).collect())
}

/// Makes a reference read the streams and make the choices that another has.
struct Imposing<'a> {
    seen: &'a Seen,
    outputs: BTreeMap<usize, Vec<f32>>,
}

impl reference::Observer for Imposing<'_> {
    fn output(&mut self, op: Op, _: usize, output: &Matrix) -> reference::Observed {
        if let (Some(layer), "streams") = (op.layer, op.name) {
            self.outputs.insert(layer, output.values.clone());
        }
        Ok(())
    }

    fn streams(&mut self, layer: usize, streams: &mut Matrix) {
        streams.values.copy_from_slice(&self.seen.inputs[&layer]);
    }

    fn experts(&mut self, layer: usize, experts: &mut [u32]) {
        experts.copy_from_slice(&self.seen.experts[&layer]);
    }

    fn picks(&mut self, layer: usize, picks: &mut [Vec<u32>]) {
        picks.clone_from_slice(&self.seen.picks[&layer]);
    }
}
