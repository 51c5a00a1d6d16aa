//! Blocks of experts: uniform, skewed and one-set routing, ranks with a part of the experts, tails, counts around the
//! widths of a tile; large parts of spaces.

use tilekiln::kernels;
use tilekiln::problem::{Activations, Problem, Routing, Tile};

use crate::context::{Case, sample};

pub fn cases() -> Vec<Case> {
    let sampled = SAMPLED.iter().map(|text| tiles_of(text, TILES_SAMPLED));
    let many = MANY_TILES.iter().map(|text| tiles_of(text, TILES_OF_MANY));
    sampled.chain(many).chain([widths(Activations::A16), widths(Activations::A8)]).collect()
}

/// Counts on both sides of every width, the same for each expert that is touched; a tile of any widths gives the same
/// bits.
fn widths(activations: Activations) -> Case {
    Case {
        name: format!("widths of tiles around the counts of experts, {activations}"),
        run: Box::new(move |context| {
            let spec = context.gpu.spec().clone();
            let mut checked = 0;
            for m in COUNTS {
                let text = format!("moe nvfp4 8/8 top2 256x128 {activations} m{m}");
                let problem: Problem = text.parse().map_err(|error| format!("{text}: {error}"))?;
                let numbers = WIDTHS.map(|numbers| AXES.into_iter().zip(numbers));
                let tiles = numbers.map(|numbers| match activations {
                    Activations::A16 => Tile::new("moe_wgmma", numbers),
                    Activations::A8 => Tile::new("moe_wgmma_a8", numbers.chain([("promote", 0), ("part_bytes", 4)])),
                });
                let fits = |tile: &Tile| kernels::plan(&problem, tile, &spec).is_ok();
                let tiles: Vec<Tile> = tiles.into_iter().filter(fits).collect();
                checked += context.check_tiles(&problem, &problem, &ROUTINGS, &tiles)?;
                context.check_agreement(&problem, &ROUTINGS, &tiles)?;
            }
            Ok(checked)
        }),
    }
}

fn tiles_of(text: &'static str, count: usize) -> Case {
    let what = if count == TILES_SAMPLED { "tiles" } else { "many tiles" };
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

const SAMPLED: [&str; 26] = [
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
    // More experts than the schedule has threads, and as many slots a token as a walk takes.
    "moe nvfp4 768/768 top4 128x64 m128",
    "moe nvfp4 32/32 top32 128x64 m2",
    "moe mxfp4 8/8 top2 128x64 a8 m1",
    "moe mxfp4 16/16 top6 544x288 a8 m37",
    "moe mxfp4 4/16 top4 512x256 a8 m300",
    "moe mxfp4 32/32 top6 1024x2048 a8 m700",
    "moe nvfp4 8/8 top6 256x128 a8 m1",
    "moe nvfp4 16/16 top6 528x272 a8 m100",
    "moe fp8 8/8 top2 272x144 a8 m4",
    "moe fp8 16/16 top6 512x256 a8 m90",
];

const MANY_TILES: [&str; 5] = [
    "moe nvfp4 8/8 top6 512x512 m3",
    "moe nvfp4 8/8 top6 512x512 m40",
    "moe nvfp4 4/4 top2 512x512 m300",
    "moe nvfp4 8/8 top6 1024x512 a8 m37",
    "moe mxfp4 4/4 top2 1024x512 a8 m300",
];

/// At most so many of each family.
const TILES_OF_MANY: usize = 200;

/// Tokens, which with one set of experts for all of them are the rows of each.
const COUNTS: [u32; 12] = [16, 17, 32, 33, 64, 65, 96, 129, 192, 225, 256, 257];

/// One width, several, as many as there may be; one piece of work a block, and several.
const WIDTHS: [[u32; 9]; 8] = [
    [1, 16, 16, 1, 128, 3, 64, 0, 0],
    [2, 64, 64, 1, 128, 3, 64, 0, 0],
    [1, 32, 48, 8, 256, 3, 64, 1, 3],
    [2, 96, 64, 8, 128, 4, 64, 1, 0],
    [4, 32, 48, 8, 256, 3, 64, 1, 0],
    [3, 128, 128, 8, 128, 3, 128, 1, 0],
    [2, 256, 192, 8, 128, 3, 128, 1, 0],
    [2, 192, 256, 8, 128, 3, 128, 0, 3],
];

const AXES: [&str; 9] =
    ["consumers", "up_tokens", "down_tokens", "widths", "block_k", "stages", "producers", "persistent", "signal"];
