//! Residual streams mixed between two sublayers: a token to a warp, or 64 tokens to a block.

use super::runner::{Element, MixTile, mix_kernel};
use super::space::{first_that_fits, number};
use super::{Axis, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::problem::{BUCKETS, Output, Problem, StreamMix, Tile};

/// `templates/hc_mix`.
///
/// With `tokens = 1` a lane keeps its column's weights in registers, and the `warps` of `groups` blocks on a slice take
/// tokens in turn. With `tokens = 64` a block walks its slice with all of them, and there are as many groups of blocks
/// as tokens need.
pub struct HcMix;

impl Family for HcMix {
    fn name(&self) -> &'static str {
        "hc_mix"
    }

    fn serves(&self, problem: &Problem, _: &ArchSpec) -> Result<(), String> {
        match problem {
            Problem::StreamMix(_) => Ok(()),
            other => Err(format!("expected a mix of residual streams, found `{other}`")),
        }
    }

    fn axes(&self, problem: &Problem, _: &ArchSpec) -> Vec<Axis> {
        let hidden = mix_of(problem).hidden;
        let slices: Vec<u32> = SLICES.into_iter().filter(|slice| hidden.is_multiple_of(*slice)).collect();
        let groups: Vec<u32> =
            (0..=BUCKETS[BUCKETS.len() - 1].div_ceil(TOKENS_OF_GROUP).ilog2()).map(|n| 1 << n).collect();
        vec![
            Axis::new("tokens", [1, MANY]),
            Axis::new("slice", slices),
            Axis::new("warps", [1, 2, 3, 4, 5, 8, 16]),
            Axis::new("groups", groups),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let mix = mix_of(problem);
        first_that_fits(self, &[tile(&MixTile::of(mix.m, mix.hidden), 1)], problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, _: &GpuSpec) -> Plan {
        let mix = mix_of(problem);
        let cut = cut(tile);
        let element = match mix.element {
            Output::Bf16 => Element::Bf16,
            Output::F32 => Element::F32,
        };
        Plan::single(Launch {
            kernel: mix_kernel((mix.hidden, mix.n, element), mix.has_post, &cut),
            grid: [mix.hidden / cut.slice, groups(mix, tile), 1],
            threads: cut.warps * 32,
            smem_bytes: 0,
            params: mix_params(mix),
            work: work(mix, tile),
        })
    }

    /// Warps and groups decide who sums, not in which order.
    fn numerics(&self, _: &Problem, tile: &Tile) -> String {
        let MixTile { slice, tokens, .. } = cut(tile);
        format!("hc_mix tokens{tokens} slice{slice}")
    }
}

impl HcMix {
    /// The smallest bucket's cut for any number of tokens, in as many groups of blocks as there are sixteens of them.
    pub(super) fn invariant_tile(mix: &StreamMix) -> Tile {
        tile(&MixTile::of(1, mix.hidden), mix.m.div_ceil(TOKENS_OF_GROUP).next_power_of_two())
    }
}

/// Parts that `tile` leaves each sum of `mix` in: what [`hc_pre`](super::runner::hc_pre_of_parts) must be told.
pub fn mix_splits(mix: &StreamMix, tile: &Tile) -> u32 {
    mix.hidden / number(tile, "slice")
}

/// The parameters of every kernel that mixes streams.
pub(super) fn mix_params(mix: &StreamMix) -> Vec<Param> {
    let operand = |operand| if mix.has_post { Param::Operand(operand) } else { Param::Null };
    vec![
        Param::Operand(Operand::Streams),
        operand(Operand::Activations),
        operand(Operand::MoreActivations),
        operand(Operand::Mixing),
        Param::Operand(Operand::Weights),
        operand(Operand::MixedStreams),
        Param::Operand(Operand::Output),
        Param::TokensOnDevice,
        Param::Tokens,
    ]
}

/// The mix of a problem that `serves` has let through.
pub(super) fn mix_of(problem: &Problem) -> &StreamMix {
    let Problem::StreamMix(mix) = problem else { unreachable!("`serves` has refused other problems") };
    mix
}

fn tile(cut: &MixTile, groups: u32) -> Tile {
    let MixTile { slice, tokens, warps } = *cut;
    Tile::new(HcMix.name(), [("tokens", tokens), ("slice", slice), ("warps", warps), ("groups", groups)])
}

fn cut(tile: &Tile) -> MixTile {
    let [slice, tokens, warps] = ["slice", "tokens", "warps"].map(|name| number(tile, name));
    MixTile { slice, tokens, warps }
}

/// Rows of blocks.
fn groups(mix: &StreamMix, tile: &Tile) -> u32 {
    match number(tile, "tokens") {
        1 => number(tile, "groups"),
        tokens => mix.m.div_ceil(tokens),
    }
}

/// Instructions are counted in the kernel's text, for a warp.
fn work(mix: &StreamMix, tile: &Tile) -> Work {
    let cut = cut(tile);
    let (groups, slices) = (f64::from(groups(mix, tile)), f64::from(mix.hidden / cut.slice));
    let sums = f64::from(mix.n + 1);
    let more_parts = (slices - 1.0) * mix.part_bytes() as f64;
    let memory_bytes = mix.bytes() as f64 + more_parts;
    // Every group of blocks reads all weights.
    let l2_bytes = memory_bytes + (groups - 1.0) * mix.weight_bytes() as f64;
    let token_bytes = f64::from(4 * mix.element.bytes() as u32 + if mix.has_post { 4 } else { 0 });
    let mixing = if mix.has_post { 24.0 } else { 0.0 };
    let (block_issues, bytes_in_flight) = match cut.tokens {
        1 => {
            let tokens = f64::from(mix.m) / groups;
            // Products of four streams, the butterfly, addresses and loads.
            let of_token = 4.0 * sums + mixing + 62.0 + 30.0;
            let of_warp = 4.0 * f64::from(mix.n);
            let warps = f64::from(cut.warps);
            (tokens * of_token + warps * of_warp, 32.0 * (4.0 * of_warp + warps * token_bytes))
        }
        _ => {
            // Per chunk of 32 columns: 64 tokens times 128 values, two tokens to a lane; quads that are mixed and put.
            let products = 4.0 * 8.0 * (2.0 + 4.0 * (2.0 * sums + f64::from(mix.n / 4)));
            let quads = 16.0 * (4.0 * mixing + 45.0);
            (f64::from(cut.slice / 32) * (products + quads), f64::from(cut.warps * 32) * 2.0 * 4.0 * token_bytes)
        }
    };
    Work {
        blocks: slices * groups,
        memory_bytes,
        l2_bytes,
        bytes_in_flight,
        block_issues,
        tail_steps: if cut.tokens == 1 { 1.0 } else { 2.0 },
        registers: registers(mix, &cut),
        is_prefetching: true,
        ..Work::default()
    }
}

/// Registers of a thread: weights and sums of a column, or the bound that the kernel is compiled under.
fn registers(mix: &StreamMix, cut: &MixTile) -> u32 {
    match cut.tokens {
        1 => 4 * mix.n + REGISTERS_BESIDE,
        _ if mix.has_post && mix.element == Output::F32 => 128,
        _ if mix.n == 4 => 104,
        _ => 152,
    }
}

const RULES: [Rule; 3] = [
    Rule { name: "way", check: |tile, _, _| fits_its_way(tile) },
    Rule { name: "smem", check: sums_fit_where_streams_were },
    Rule { name: "idle", check: every_warp_has_a_token },
];

/// What the kernel's two ways are written for.
fn fits_its_way(tile: &Tile) -> Result<(), String> {
    let (MixTile { slice, tokens, warps }, groups) = (cut(tile), number(tile, "groups"));
    match tokens {
        1 if slice == 32 => Ok(()),
        1 => Err(format!("weights in registers are those of one column a lane, 32 a block, not {slice}")),
        _ if warps != 4 => Err(format!("{tokens} tokens are mixed by 4 warps, one for each stream, not {warps}")),
        _ if groups != 1 => Err(format!("groups of {tokens} tokens are as many as there are, not {groups}")),
        _ => Ok(()),
    }
}

/// The kernel's text has both ways, so this holds for either. What it asks for besides is less than a block has anyway:
/// 48,128 bytes of shared memory, and the registers of its launch bounds.
fn sums_fit_where_streams_were(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let (warps, sums) = (cut(tile).warps, mix_of(problem).n + 1);
    if warps * sums <= TOKEN_STRIDE {
        return Ok(());
    }
    let [need, have] = [warps * sums, TOKEN_STRIDE].map(|floats| floats * MANY * 4);
    Err(format!(
        "sums of {warps} warps need {need} B of shared memory, the streams in whose place they stand have {have} B"
    ))
}

fn every_warp_has_a_token(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let (cut, groups, m) = (cut(tile), number(tile, "groups"), mix_of(problem).m);
    match cut.tokens {
        1 if groups * cut.warps <= m => Ok(()),
        1 => Err(format!("{groups} blocks of {} warps on a slice, and {m} tokens", cut.warps)),
        tokens if 4 * m >= tokens => Ok(()),
        tokens => Err(format!("{tokens} tokens a block, and {m} of them")),
    }
}

/// Columns of a block with many tokens; the sevens divide streams of 7168.
pub(super) const SLICES: [u32; 10] = [32, 64, 128, 224, 256, 448, 512, 896, 1024, 2048];

/// Tokens of a block that walks its slice with all of them.
const MANY: u32 = 64;

/// Tokens for which an invariant step has one more group of blocks.
const TOKENS_OF_GROUP: u32 = 16;

/// Sums, a token's values and addresses, beside the weights.
const REGISTERS_BESIDE: u32 = 54;

/// Floats of a token's streams in shared memory: 32 columns of each, and four that keep banks apart.
const TOKEN_STRIDE: u32 = 4 * 32 + 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::runner::{Connection, hc_mix, hc_splits};
    use crate::kernels::{default_tile, plan, space};

    fn h100() -> &'static GpuSpec {
        GpuSpec::named("h100").unwrap()
    }

    fn problem(text: &str) -> Problem {
        text.parse().unwrap()
    }

    /// Every shape of both models, at every bucket and at tokens between buckets.
    fn shapes() -> Vec<StreamMix> {
        let mut shapes = Vec::new();
        for (hidden, n, has_post) in [(4096, 24, true), (4096, 24, false), (7168, 24, true), (7168, 4, true)] {
            for element in [Output::F32, Output::Bf16] {
                let tokens = BUCKETS.into_iter().chain([3, 5, 33, 100, 1000]);
                shapes.extend(tokens.map(|m| StreamMix { element, n, hidden, has_post, m }));
            }
        }
        shapes
    }

    #[test]
    fn a_default_is_the_launch_that_it_was_before_there_were_tiles() {
        for mix in shapes() {
            let connection = Connection {
                hidden: mix.hidden,
                element: if mix.element == Output::F32 { Element::F32 } else { Element::Bf16 },
                is_head: mix.n == 4,
                norm_epsilon: 1e-6,
                hc_epsilon: 1e-6,
                sinkhorn_rounds: 20,
            };
            let (problem, before) = (Problem::StreamMix(mix.clone()), hc_mix(mix.m, &connection, mix.has_post));
            for gpu in GpuSpec::all() {
                let tile = default_tile(&problem, gpu).unwrap();
                let launch = plan(&problem, &tile, gpu).unwrap().launches.remove(0);
                assert_eq!(launch.kernel, before.kernel, "{problem} on {}", gpu.name);
                assert_eq!((launch.grid, launch.threads), (before.grid, before.threads), "{problem} on {}", gpu.name);
                assert_eq!(mix_splits(&mix, &tile), hc_splits(mix.m, mix.hidden), "{problem}");
            }
        }
    }

    #[test]
    fn every_tile_covers_all_columns_and_tokens_once() {
        for mix in shapes() {
            let problem = Problem::StreamMix(mix.clone());
            let tiles = space(&HcMix, &problem, h100()).tiles;
            assert!(tiles.contains(&default_tile(&problem, h100()).unwrap()), "{problem}");
            for tile in tiles {
                let launch = plan(&problem, &tile, h100()).unwrap().launches.remove(0);
                let (cut, [slices, groups, 1]) = (cut(&tile), launch.grid) else { panic!("{tile}") };
                assert_eq!(slices * cut.slice, mix.hidden, "{tile}");
                assert!(cut.tokens == 1 || (groups - 1) * 64 < mix.m && mix.m <= groups * 64, "{problem} {tile}");
                assert!(launch.work.memory_bytes >= problem.bytes() as f64, "{problem} {tile}");
            }
        }
    }

    #[test]
    fn what_the_kernel_was_not_written_for_is_refused() {
        let many = problem("hc f32 24x16384 m8192");
        let default = default_tile(&many, h100()).unwrap();
        assert_eq!(default.to_string(), "hc_mix groups=1 slice=512 tokens=64 warps=4");
        let few = default.with("tokens", 1).with("slice", 32);
        for (problem, tile, sentence) in [
            (&many, default.with("slice", 2048), None),
            (&many, few.with("groups", 512), None),
            (&many, default.with("slice", 448), Some("axes: hc_mix never has slice = 448")),
            (&problem("hc f32 24x28672 m8192"), default.with("slice", 448), None),
            (&many, default.with("warps", 8), Some("way: 64 tokens are mixed by 4 warps, one for each stream, not 8")),
            (&many, default.with("groups", 2), Some("way: groups of 64 tokens are as many as there are, not 2")),
            (
                &many,
                few.with("slice", 64),
                Some("way: weights in registers are those of one column a lane, 32 a block, not 64"),
            ),
            (
                &many,
                few.with("warps", 8),
                Some(
                    "smem: sums of 8 warps need 51200 B of shared memory, the streams in whose place they stand have \
                     33792 B",
                ),
            ),
            (&problem("hc f32 4x16384 m64"), few.with("warps", 16), None),
            (
                &problem("hc f32 24x16384 m8"),
                few.with("groups", 4),
                Some("idle: 4 blocks of 4 warps on a slice, and 8 tokens"),
            ),
            (&problem("hc f32 24x16384 m8"), default.clone(), Some("idle: 64 tokens a block, and 8 of them")),
        ] {
            let found = plan(problem, &tile, h100()).err().map(|rejection| rejection.to_string());
            assert_eq!(found.as_deref(), sentence, "{problem} {tile}");
        }
    }

    #[test]
    fn who_sums_changes_no_bit_and_the_slice_does() {
        let problem = problem("hc f32 24x16384 m64");
        let of = |text: &str| HcMix.numerics(&problem, &text.parse().unwrap());
        let few = of("hc_mix groups=1 slice=32 tokens=1 warps=4");
        assert_eq!(few, of("hc_mix groups=8 slice=32 tokens=1 warps=1"));
        let many = of("hc_mix groups=1 slice=32 tokens=64 warps=4");
        assert_ne!(few, many);
        assert_ne!(many, of("hc_mix groups=1 slice=64 tokens=64 warps=4"));
    }
}
