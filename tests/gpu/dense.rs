//! Dense families: every format, tails in m, n and k, groups, SwiGLU, f32; whole spaces on small problems.

use tilekiln::kernels;
use tilekiln::problem::Problem;

use crate::context::{Case, sample};

pub fn cases() -> Vec<Case> {
    let sampled = SAMPLED.iter().map(|text| tiles_of(text, TILES_SAMPLED));
    let whole = WHOLE_SPACES.iter().map(|text| tiles_of(text, usize::MAX));
    sampled.chain(whole).collect()
}

fn tiles_of(text: &'static str, count: usize) -> Case {
    let what = if count == usize::MAX { "every tile" } else { "tiles" };
    Case {
        name: format!("dense {what} of {text}"),
        run: Box::new(move |context| {
            let problem: Problem = text.parse().map_err(|error| format!("{text}: {error}"))?;
            let spec = context.gpu.spec().clone();
            let mut checked = 0;
            for family in kernels::serving(&problem, spec.arch) {
                let tiles = sample(family, &problem, &spec, count);
                // The data has more tokens than the problem: rows beyond m must stay untouched.
                let data = problem.with_m(problem.m() + 3);
                checked += context.check_tiles(&data, &problem, &[], &tiles)?;
            }
            Ok(checked)
        }),
    }
}

const TILES_SAMPLED: usize = 14;

/// Tails: rows that fill no block of 64 or 16, k that fills no slab, tokens that fill no tile.
const SAMPLED: [&str; 62] = [
    "nvfp4 64x64 m1",
    "nvfp4 100x208 m1",
    "nvfp4 72x16 m3",
    "nvfp4 1536x4096 m1",
    "nvfp4 1536x4096 m8",
    "nvfp4 200x1040 m13",
    "nvfp4 199x1040 m16",
    "nvfp4 320x2064 m33",
    "nvfp4 321x528 m70",
    "nvfp4 512x4096 m130",
    "nvfp4 4096x1024 m300",
    "nvfp4 3x256x512 m5",
    "nvfp4 3x200x272 m50",
    "nvfp4 256x1024 swiglu m2",
    "nvfp4 144x1040 swiglu m40",
    "nvfp4 1024x2048 swiglu m260",
    "nvfp4 256x4096 f32 m1",
    "nvfp4 250x4112 f32 m90",
    "mxfp4 100x224 m1",
    "mxfp4 512x4096 m8",
    "mxfp4 320x1056 m37",
    "mxfp4 256x2048 swiglu m129",
    "fp8 130x264 m1",
    "fp8 1536x4096 m8",
    "fp8 300x1000 m20",
    "fp8 2x1024x512 m64",
    "fp8 256x1048 swiglu m70",
    "fp8 512x2048 f32 m200",
    "bf16 100x200 m1",
    "bf16 256x4096 f32 m8",
    "bf16 320x1000 m37",
    "bf16 1024x2048 f32 m260",
    "bf16 2x192x520 m17",
    "bf16 128x1032 swiglu m48",
    "mxfp4 256x1024 m16",
    "fp8 256x2048 m32",
    "nvfp4 512x2048 m64",
    "nvfp4 64x64 a8 m1",
    "nvfp4 100x208 a8 m20",
    "nvfp4 321x528 a8 m70",
    "nvfp4 512x4096 a8 m130",
    "nvfp4 3x200x272 a8 m50",
    "nvfp4 1024x2048 a8 swiglu m260",
    "nvfp4 250x4112 a8 f32 m90",
    "mxfp4 100x224 a8 m3",
    "mxfp4 320x1056 a8 m37",
    "mxfp4 256x2048 a8 swiglu m129",
    "mxfp4 500x3104 a8 f32 m300",
    "mxfp4 1536x4096 a8 m512",
    "fp8 130x272 a8 m1",
    "fp8 300x1008 a8 m20",
    "fp8 2x1024x512 a8 m64",
    "fp8 256x1040 a8 swiglu m70",
    "fp8 512x2048 a8 f32 m200",
    "nvfp4 3000x1040 m1300",
    "mxfp4 4096x1056 swiglu m1100",
    "fp8 2x1500x512 m2900",
    "bf16 3x1000x520 f32 m1500",
    "nvfp4 3000x1040 a8 m1300",
    "mxfp4 4096x1056 a8 swiglu m1100",
    "fp8 2x1500x528 a8 m2900",
    "mxfp4 3x1000x4128 a8 f32 m1500",
];

const WHOLE_SPACES: [&str; 2] = ["nvfp4 256x1024 m8", "nvfp4 384x1024 m300"];
