//! The interface of a rank that has some of the experts: an offset, foreign slots, slots of nobody, fewer tokens than
//! the bucket. Weights and the values of a token are constant, so that results have a closed form: FP8 holds them too,
//! and MXFP4 weights without an error. What is not finite in a token is counted.

use tilekiln::device::Buffer;
use tilekiln::dispatch::{Bound, LaunchArgs};
use tilekiln::kernels;
use tilekiln::problem::Problem;
use tilekiln::quant::{Activations, RowOrder, bf16, math};

use crate::context::{Case, Context, Failure, format_for, ones};

pub fn cases() -> Vec<Case> {
    let case = |family: &'static str, activations: Activations, m: u32| Case {
        name: format!("a rank's experts with {family} and {activations}, {TOKENS} of {m} tokens"),
        run: Box::new(move |context| run(context, family, activations, m)),
    };
    let a16 = [("moe_walk", 64), ("moe_staged", 64), ("moe_mma", 64), ("moe_wgmma", 64), ("moe_wgmma", 512)];
    let a8 = [("moe_walk", 64), ("moe_staged", 64), ("moe_wgmma_a8", 64), ("moe_wgmma_a8", 512)];
    let a16 = a16.map(|(family, m)| case(family, Activations::A16, m));
    a16.into_iter().chain(a8.map(|(family, m)| case(family, Activations::A8, m))).collect()
}

fn run(context: &mut Context, family: &str, activations: Activations, m: u32) -> Result<usize, Failure> {
    let format = format_for(activations);
    let text = format!("moe {format} {LOCAL}/{EXPERTS} top{TOP_K} {HIDDEN}x{INTERMEDIATE} {activations} m{m}");
    let problem: Problem = text.parse().map_err(|error| format!("{error}"))?;
    let spec = context.gpu.spec().clone();
    let families = kernels::serving(&problem, spec.arch);
    let Some(family) = families.into_iter().find(|served| served.name() == family) else { return Ok(0) };
    let rank = Rank::new(context, activations, m as usize)?;
    let tiles = kernels::space(family, &problem, &spec).tiles;
    let spread = tiles.iter().step_by((tiles.len() / TILES).max(1));
    let mut checked = 0;
    for tile in spread {
        let named = |failure: Failure| Failure { reason: format!("{tile}: {}", failure.reason), ..failure };
        let bound = context.bound(&problem, tile)?;
        rank.check(&bound, context, m).map_err(named)?;
        if activations == Activations::A8 {
            rank.check_counters(&bound, context, m).map_err(named)?;
        }
        checked += 1;
    }
    Ok(checked)
}

/// What a step of a rank has on the device; behind the tokens there is nonsense that nobody may read.
struct Rank {
    weights: Buffer,
    down_weights: Buffer,
    up_alpha: Buffer,
    down_alpha: Buffer,
    tokens: Buffer,
    experts: Buffer,
    routing: Buffer,
    count: Buffer,
    counters: Buffer,
    result: Buffer,
}

impl Rank {
    fn new(context: &Context, activations: Activations, m: usize) -> Result<Self, Failure> {
        let up = ones(activations, 2 * INTERMEDIATE, HIDDEN, RowOrder::GateUp)?;
        let down = ones(activations, HIDDEN, INTERMEDIATE, RowOrder::Plain)?;
        let scales = || (0..LOCAL).map(|local| scale(OFFSET + local));
        let up_alpha: Vec<f32> = scales().flat_map(|scale| [up.alpha * scale; 2]).collect();
        let down_alpha: Vec<f32> = scales().map(|scale| down.alpha * scale).collect();
        let mut tokens = vec![0x7FC0; m * HIDDEN];
        tokens[..TOKENS * HIDDEN].fill(bf16::encode(ACTIVATION));
        let mut experts = vec![i32::MAX; m * TOP_K];
        (0..TOKENS).for_each(|token| experts[token * TOP_K..][..TOP_K].copy_from_slice(&experts_of(token)));
        Ok(Self {
            weights: context.buffer(&up.bytes.repeat(LOCAL))?,
            down_weights: context.buffer(&down.bytes.repeat(LOCAL))?,
            up_alpha: context.buffer(&up_alpha)?,
            down_alpha: context.buffer(&down_alpha)?,
            tokens: context.buffer(&tokens)?,
            experts: context.buffer(&experts)?,
            routing: context.buffer(&ROUTING.repeat(m))?,
            count: context.buffer(&[TOKENS as i32])?,
            counters: Buffer::zeros(&context.gpu, 24)?,
            result: Buffer::new(&context.gpu, 2 * m * HIDDEN)?,
        })
    }

    /// Arguments of a launch with fewer tokens than the `m` of its bucket.
    fn args(&self, m: u32, workspace: &Buffer) -> LaunchArgs {
        LaunchArgs {
            activations: self.tokens.pointer(),
            activation_stride: HIDDEN as u32,
            weights: self.weights.pointer(),
            down_weights: self.down_weights.pointer(),
            output: self.result.pointer(),
            output_stride: HIDDEN as u32,
            tokens: m,
            tokens_on_device: self.count.pointer(),
            experts: self.experts.pointer(),
            routing: self.routing.pointer(),
            up_alpha: self.up_alpha.pointer(),
            down_alpha: self.down_alpha.pointer(),
            expert_offset: OFFSET as u32,
            counters: self.counters.pointer(),
            workspace: workspace.pointer(),
            ..LaunchArgs::default()
        }
    }

    /// A NaN among the values of a token becomes 0 and is counted, with its place.
    fn check_counters(&self, bound: &Bound, context: &Context, m: u32) -> Result<(), Failure> {
        let workspace = Buffer::zeros(&context.gpu, bound.workspace_bytes() as usize)?;
        let place = BAD_TOKEN * HIDDEN + 3;
        self.tokens.upload_at(2 * place, &[0x7FC0u16])?;
        // SAFETY: every buffer has the size that the problem says and outlives the wait.
        unsafe { bound.launch(&self.args(m, &workspace), context.stream.raw().cast()) }
            .map_err(|error| error.to_string())?;
        context.stream.synchronize()?;
        let found: Vec<u32> = self.counters.download(6)?;
        let row: Vec<u16> = self.result.download_at(2 * BAD_TOKEN * HIDDEN, HIDDEN)?;
        self.tokens.upload_at(2 * place, &[bf16::encode(ACTIVATION)])?;
        self.counters.set_bytes(0)?;
        let is_finite = row.iter().all(|&bits| bf16::decode(bits).is_finite());
        match found[..] == [0, 1, !(place as u32), 0, 0, 0] && is_finite {
            true => Ok(()),
            false => Err(format!("counters are {found:?}, expected one at {place}; finite: {is_finite}").into()),
        }
    }

    fn check(&self, bound: &Bound, context: &Context, m: u32) -> Result<(), Failure> {
        let workspace = Buffer::zeros(&context.gpu, bound.workspace_bytes() as usize)?;
        let args = self.args(m, &workspace);
        // Twice: what the first launch leaves in the workspace is what the second begins with.
        for _ in 0..2 {
            self.result.set_bytes(0xFF)?;
            // SAFETY: every buffer has the size that the problem says and outlives the wait.
            unsafe { bound.launch(&args, context.stream.raw().cast()) }.map_err(|error| error.to_string())?;
            context.stream.synchronize()?;
            let found: Vec<u16> = self.result.download(m as usize * HIDDEN)?;
            for (token, row) in found.chunks(HIDDEN).enumerate() {
                if let Some(reason) = row.iter().find_map(|&bits| fault(token, bits)) {
                    return Err(reason.into());
                }
            }
        }
        // The nonsense behind the tokens is not converted, nor are rows of slots that this rank does not have.
        match self.counters.download::<u32>(6)?[..] {
            [0, 0, 0, 0, 0, 0] => Ok(()),
            ref counted => Err(format!("counters are {counted:?}, expected nothing to count").into()),
        }
    }
}

/// What is wrong with an element of `token`'s result.
fn fault(token: usize, bits: u16) -> Option<String> {
    if token >= TOKENS {
        return (bits != 0xFFFF).then(|| format!("row {token}, which is no token, was written"));
    }
    let (expected, found) = (expected(token), bf16::decode(bits));
    // The hidden value is rounded in the closed form too: what is left is one rounding to BF16, of 2^-8 at most.
    let is_right = (found - expected).abs() <= expected.abs() / 200.0;
    (!is_right).then(|| format!("token {token}, experts {:?}: {found}, expected {expected}", experts_of(token)))
}

/// The rank's part of `sum_s routing[s] * I * w * bf16(swiglu(w * H * x, w * H * x))`, with `w` the expert's scale.
fn expected(token: usize) -> f32 {
    let of_slot = |(expert, routing): (i32, f32)| {
        let expert = usize::try_from(expert).ok().filter(|expert| (OFFSET..OFFSET + LOCAL).contains(expert));
        let Some(scale) = expert.map(scale) else { return 0.0 };
        let gate = scale * HIDDEN as f32 * ACTIVATION;
        let hidden = bf16::decode(bf16::encode(math::swiglu(gate, gate, f32::INFINITY)));
        routing * INTERMEDIATE as f32 * scale * hidden
    };
    experts_of(token).into_iter().zip(ROUTING).map(of_slot).sum()
}

/// Three different experts, of which every fourth token's second is nobody. The rank has both first ones of some
/// tokens, `BAD_TOKEN` among them: its values are counted once all the same.
fn experts_of(token: usize) -> [i32; TOP_K] {
    let [first, second, third] = [token, token + 1, token + 9].map(|expert| (expert % EXPERTS) as i32);
    [first, if token.is_multiple_of(4) { -1 } else { second }, third]
}

fn scale(expert: usize) -> f32 {
    (expert + 1) as f32 / 4.0
}

const EXPERTS: usize = 16;
const LOCAL: usize = 4;
const OFFSET: usize = 4;
const TOP_K: usize = 3;
const TOKENS: usize = 40;
const BAD_TOKEN: usize = 5;
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 128;
const ACTIVATION: f32 = 1.0 / 256.0;
const ROUTING: [f32; TOP_K] = [0.5, 0.25, 0.75];

/// Tiles of each family that are checked, spread over its space.
const TILES: usize = 8;
