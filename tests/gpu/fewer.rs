//! Dense launches that have fewer tokens than the bucket that they were planned for, as a prompt's last ones have.
//! Weights are ones and a token's values are equal, so that results have a closed form.

use tilekiln::device::Buffer;
use tilekiln::dispatch::{Bound, LaunchArgs, Segments};
use tilekiln::kernels;
use tilekiln::problem::Problem;
use tilekiln::quant::{Activations, RowOrder, bf16};

use crate::context::{Case, Context, Failure, format_for, ones, sample};

pub fn cases() -> Vec<Case> {
    let case = |activations: Activations, m: u32| Case {
        name: format!("dense with {activations}, fewer than {m} tokens"),
        run: Box::new(move |context| run(context, activations, m)),
    };
    [16, 64, 2048].into_iter().flat_map(|m| [Activations::A16, Activations::A8].map(|act| case(act, m))).collect()
}

fn run(context: &mut Context, activations: Activations, m: u32) -> Result<usize, Failure> {
    let text = format!("{} {N}x{K} {activations} m{m}", format_for(activations));
    let problem: Problem = text.parse().map_err(|error| format!("{error}"))?;
    let spec = context.gpu.spec().clone();
    let step = Step::new(context, activations, m as usize)?;
    let mut checked = 0;
    for family in kernels::serving(&problem, spec.arch) {
        let tiles = sample(family, &problem, &spec, TILES);
        context.compile_ahead(&problem, &tiles)?;
        for tile in &tiles {
            let named =
                |failure: Failure| Failure { reason: format!("`{text}` {tile}: {}", failure.reason), ..failure };
            let bound = context.bound(&problem, tile)?;
            // The last two end within the first tile of tokens, and far before the last tiles of a block.
            for tokens in [m - 1, m / 2 + 1, m / 4, 1, 0] {
                step.check(context, &bound, m, tokens).map_err(named)?;
                checked += 1;
            }
        }
    }
    Ok(checked)
}

struct Step {
    weights: Buffer,
    alpha: f32,
    tokens: Buffer,
    row_scales: Buffer,
    count: Buffer,
    result: Buffer,
}

impl Step {
    fn new(context: &Context, activations: Activations, m: usize) -> Result<Self, Failure> {
        let weights = ones(activations, N, K, RowOrder::Plain)?;
        let values = || (0..m).map(value);
        let (tokens, row_scales) = match activations {
            Activations::A16 => {
                let rows: Vec<u16> = values().flat_map(|value| [bf16::encode(value); K]).collect();
                (context.buffer(&rows)?, context.buffer(&[0.0f32])?)
            }
            // 0x38 is 1: what distinguishes tokens are their scales.
            Activations::A8 => {
                (context.buffer(&vec![0x38u8; m * K])?, context.buffer(&values().collect::<Vec<f32>>())?)
            }
        };
        Ok(Self {
            weights: context.buffer(&weights.bytes)?,
            alpha: weights.alpha,
            tokens,
            row_scales,
            count: Buffer::zeros(&context.gpu, 4)?,
            result: Buffer::new(&context.gpu, 2 * m * N)?,
        })
    }

    /// Rows of tokens are right, all others are as they were.
    fn check(&self, context: &Context, bound: &Bound, m: u32, tokens: u32) -> Result<(), Failure> {
        let workspace = Buffer::zeros(&context.gpu, bound.workspace_bytes() as usize)?;
        self.count.upload(&[tokens as i32])?;
        self.result.set_bytes(0xFF)?;
        let args = LaunchArgs {
            activations: self.tokens.pointer(),
            activation_stride: K as u32,
            row_scales: self.row_scales.pointer(),
            weights: self.weights.pointer(),
            output: self.result.pointer(),
            output_stride: N as u32,
            tokens: m,
            tokens_on_device: self.count.pointer(),
            segments: Segments::uniform(self.alpha),
            workspace: workspace.pointer(),
            ..LaunchArgs::default()
        };
        // SAFETY: every buffer has the size that the problem says and outlives the wait.
        unsafe { bound.launch(&args, context.stream.raw().cast()) }.map_err(|error| error.to_string())?;
        context.stream.synchronize()?;
        let found: Vec<u16> = self.result.download(m as usize * N)?;
        for (token, row) in found.chunks(N).enumerate() {
            let is_there = token < tokens as usize;
            let expected = if is_there { bf16::encode(K as f32 * value(token)) } else { 0xFFFF };
            if let Some((column, bits)) = row.iter().enumerate().find(|(_, bits)| **bits != expected) {
                let of = format!("{tokens} of {m} tokens");
                return Err(format!("{of}: [{token}, {column}] is {bits:#x}, expected {expected:#x}").into());
            }
        }
        Ok(())
    }
}

/// What each value of a token is; exact in BF16, and so is `K` times as much.
fn value(token: usize) -> f32 {
    (token % 251) as f32
}

/// Rows that fill no block, and enough of them for a family that walks over tiles.
const N: usize = 2090;
const K: usize = 512;

/// Tiles of each family, spread over its space.
const TILES: usize = 6;
