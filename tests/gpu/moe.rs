//! Blocks of experts: uniform, skewed and one-set routing, ranks with a part of the experts, tails; whole spaces.

use tilekiln::kernels;
use tilekiln::problem::{Problem, Routing};

use crate::context::{Case, sample};

pub fn cases() -> Vec<Case> {
    let sampled = SAMPLED.iter().map(|text| tiles_of(text, TILES_SAMPLED));
    let whole = WHOLE_SPACES.iter().map(|text| tiles_of(text, usize::MAX));
    sampled.chain(whole).collect()
}

fn tiles_of(text: &'static str, count: usize) -> Case {
    let what = if count == usize::MAX { "every tile" } else { "tiles" };
    Case {
        name: format!("{what} of {text}"),
        run: Box::new(move |context| {
            let problem: Problem = text.parse().map_err(|error| format!("{text}: {error}"))?;
            let spec = context.gpu.spec().clone();
            let mut checked = 0;
            for family in kernels::serving(&problem, spec.arch) {
                let tiles = sample(family, &problem, &spec, count);
                checked += context.check_tiles(&problem, &problem, &ROUTINGS, &tiles)?;
            }
            Ok(checked)
        }),
    }
}

const ROUTINGS: [Routing; 3] = [Routing::Uniform, Routing::Zipf(1.0), Routing::OneSet];

const TILES_SAMPLED: usize = 10;

const SAMPLED: [&str; 16] = [
    "moe nvfp4 8/8 top2 128x64 m1",
    "moe nvfp4 8/8 top6 256x128 m3",
    "moe nvfp4 16/16 top6 512x256 m17",
    "moe nvfp4 16/16 top6 512x256 m64",
    "moe nvfp4 16/16 top6 528x272 m100",
    "moe nvfp4 4/16 top6 512x256 m1",
    "moe nvfp4 4/16 top6 512x256 m30",
    "moe nvfp4 32/32 top6 1024x512 m700",
    "moe mxfp4 8/8 top6 256x128 m2",
    "moe mxfp4 16/16 top6 544x288 m60",
    "moe mxfp4 4/16 top4 512x256 m300",
    "moe fp8 8/8 top2 264x136 m4",
    "moe fp8 16/16 top6 512x256 m90",
    "moe bf16 8/8 top2 136x72 m5",
    "moe bf16 16/16 top6 512x256 m90",
    "moe nvfp4 256/256 top6 512x256 m40",
];

const WHOLE_SPACES: [&str; 3] =
    ["moe nvfp4 8/8 top6 512x512 m3", "moe nvfp4 8/8 top6 512x512 m40", "moe nvfp4 4/4 top2 512x512 m300"];
