//! Tiles that give a row the same bits in every bucket: one order of k for all numbers of tokens.

use super::space::space;
use super::{Family, family};
use crate::arch::GpuSpec;
use crate::problem::{BUCKETS, Problem, Tile};

/// The tile for `problem` among those with one `numerics` id for all buckets of its op. `None` where no family has one.
///
/// The `mma.sync` families serve any number of tokens with one order of k, so the id is theirs: the one that the most
/// tokens and a single one have in common, as many ranges of k as that allows. Large buckets pay for it.
pub fn invariant_tile(problem: &Problem, gpu: &GpuSpec) -> Option<Tile> {
    let family = match problem {
        Problem::Dense(_) => family("dense_mma")?,
        Problem::MoeBlock(_) => family("moe_mma")?,
        Problem::Convert(_) => return super::default_tile(problem, gpu),
    };
    family.serves(problem, gpu.arch).ok()?;
    let [few, many] = [BUCKETS[0], BUCKETS[BUCKETS.len() - 1]].map(|m| problem.with_m(m));
    let allowed = ids(family, &many, gpu);
    // What suits one token best is what decode runs at.
    let preferred = family.numerics(&few, &family.default_tile(&few, gpu));
    let of_few = ids(family, &few, gpu);
    let id = std::iter::once(&preferred).chain(&of_few).find(|id| allowed.contains(id))?;
    let tiles = space(family, problem, gpu).tiles;
    let suited = tiles.into_iter().filter(|tile| family.numerics(problem, tile) == *id);
    // As many tokens to a block as there are, then the tile nearest to the family's own choice.
    let default = family.default_tile(problem, gpu);
    let tokens = |tile: &Tile| tile.number("tokens").unwrap_or(0);
    let likeness = |tile: &Tile| tile.numbers().filter(|(name, value)| default.number(name) == Some(*value)).count();
    suited.max_by_key(|tile| (tokens(tile), likeness(tile)))
}

/// Ids of a family's tiles, in the order of the space.
fn ids(family: &dyn Family, problem: &Problem, gpu: &GpuSpec) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for tile in space(family, problem, gpu).tiles {
        let id = family.numerics(problem, &tile);
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_bucket_of_an_op_has_one_id() {
        let gpu = GpuSpec::named("h100").unwrap();
        let ops = ["fp8 1536x4096", "nvfp4 32768x1024", "bf16 256x4096 f32", "fp8 8x1024x4096", "fp8 4096x4096 swiglu"];
        for op in ops.into_iter().chain(["moe nvfp4 256 top6 4096x2048", "moe bf16 8 top2 128x64", "bf16 64x128 f32"]) {
            let mut ids = BTreeSet::new();
            for m in BUCKETS {
                let problem: Problem = format!("{op} m{m}").parse().unwrap();
                let tile = invariant_tile(&problem, gpu).unwrap_or_else(|| panic!("{problem}"));
                assert!(crate::kernels::plan(&problem, &tile, gpu).is_ok(), "{problem} {tile}");
                ids.insert(family(tile.family()).unwrap().numerics(&problem, &tile));
            }
            assert_eq!(ids.len(), 1, "{op}: {ids:?}");
        }
    }
}
