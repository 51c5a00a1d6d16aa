//! The interface of a rank that has some of the experts: an offset, foreign slots, slots of nobody, fewer tokens than
//! the bucket. Weights are constant, so that results have a closed form.

use std::sync::Arc;

use tilekiln::codegen;
use tilekiln::device::{Buffer, Kernel};
use tilekiln::dispatch::{Bound, LaunchArgs};
use tilekiln::kernels;
use tilekiln::problem::{Problem, Tile};
use tilekiln::quant::{self, PackedWeights, RowOrder, SourceMatrix, bf16, math};

use crate::context::{Case, Context, Failure};

pub fn cases() -> Vec<Case> {
    let case = |family: &'static str, m: u32| Case {
        name: format!("a rank's experts with {family}, {TOKENS} of {m} tokens"),
        run: Box::new(move |context| run(context, family, m)),
    };
    vec![case("moe_walk", 64), case("moe_mma", 64), case("moe_wgmma", 64), case("moe_wgmma", 512)]
}

fn run(context: &mut Context, family: &str, m: u32) -> Result<usize, Failure> {
    let text = format!("moe nvfp4 {LOCAL}/{EXPERTS} top{TOP_K} {HIDDEN}x{INTERMEDIATE} m{m}");
    let problem: Problem = text.parse().map_err(|error| format!("{error}"))?;
    let spec = context.gpu.spec().clone();
    let families = kernels::serving(&problem, spec.arch);
    let Some(family) = families.into_iter().find(|served| served.name() == family) else { return Ok(0) };
    let rank = Rank::new(context, m as usize)?;
    let tiles = kernels::space(family, &problem, &spec).tiles;
    let spread = tiles.iter().step_by((tiles.len() / TILES).max(1));
    let mut checked = 0;
    for tile in spread {
        let named = |failure: Failure| Failure { reason: format!("{tile}: {}", failure.reason), ..failure };
        rank.check(&bound(context, &problem, tile)?, context, m).map_err(named)?;
        checked += 1;
    }
    Ok(checked)
}

fn bound(context: &Context, problem: &Problem, tile: &Tile) -> Result<Bound, Failure> {
    let spec = context.gpu.spec();
    let plan = kernels::plan(problem, tile, spec).map_err(|error| format!("{tile}: {error}"))?;
    let kernels = plan.launches.iter().map(|launch| -> Result<Arc<Kernel>, Failure> {
        let source = codegen::render(&launch.kernel, spec.arch, &spec.target).map_err(|error| error.to_string())?;
        let (cubin, _) = context.jit.compile(&source).map_err(|error| error.to_string())?;
        Ok(Arc::new(Kernel::load(&context.gpu, &cubin, launch.smem_bytes)?))
    });
    let kernels = kernels.collect::<Result<Vec<_>, _>>()?;
    Ok(Bound::new(problem.clone(), plan, kernels, spec))
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
    result: Buffer,
}

impl Rank {
    fn new(context: &Context, m: usize) -> Result<Self, Failure> {
        let up = ones(2 * INTERMEDIATE, HIDDEN, RowOrder::GateUp)?;
        let down = ones(HIDDEN, INTERMEDIATE, RowOrder::Plain)?;
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
            result: Buffer::new(&context.gpu, 2 * m * HIDDEN)?,
        })
    }

    fn check(&self, bound: &Bound, context: &Context, m: u32) -> Result<(), Failure> {
        let workspace = Buffer::zeros(&context.gpu, bound.workspace_bytes() as usize)?;
        let args = LaunchArgs {
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
            workspace: workspace.pointer(),
            ..LaunchArgs::default()
        };
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
        Ok(())
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

/// Three different experts, of which every fourth token's second is nobody.
fn experts_of(token: usize) -> [i32; TOP_K] {
    let [first, second, third] = [token, token + 3, token + 9].map(|expert| (expert % EXPERTS) as i32);
    [first, if token.is_multiple_of(4) { -1 } else { second }, third]
}

fn scale(expert: usize) -> f32 {
    (expert + 1) as f32 / 4.0
}

/// A matrix of ones as NVFP4: E2M1 code 2 and E4M3 byte 0x38 are both 1.
fn ones(n: usize, k: usize, order: RowOrder) -> Result<PackedWeights, Failure> {
    let source = SourceMatrix::Nvfp4 { n, k, codes: &vec![0x22; n * k / 2], scales: &vec![0x38; n * k / 16] };
    quant::pack(&source, order).map_err(|error| error.to_string().into())
}

const EXPERTS: usize = 16;
const LOCAL: usize = 4;
const OFFSET: usize = 4;
const TOP_K: usize = 3;
const TOKENS: usize = 40;
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 128;
const ACTIVATION: f32 = 1.0 / 256.0;
const ROUTING: [f32; TOP_K] = [0.5, 0.25, 0.75];

/// Tiles of each family that are checked, spread over its space.
const TILES: usize = 8;
