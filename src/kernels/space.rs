//! The tiles of a problem: axes times rules. A refusal keeps its rule's name and sentence.

use std::collections::BTreeMap;

use super::Family;
use crate::arch::GpuSpec;
use crate::codegen::Value;
use crate::problem::{BUCKETS, Problem, Tile};

/// One freedom of a tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Name of the number in a tile.
    pub name: &'static str,
    /// The values that are tried.
    pub values: Vec<u32>,
}

impl Axis {
    /// The axis `name` with these values.
    pub fn new(name: &'static str, values: impl Into<Vec<u32>>) -> Self {
        Self { name, values: values.into() }
    }
}

/// A physical reason why a tile cannot be.
pub struct Rule {
    /// One word.
    pub name: &'static str,
    /// The sentence of a tile that breaks it.
    pub check: fn(&Tile, &Problem, &GpuSpec) -> Result<(), String>,
}

/// A tile that a rule refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {reason}")]
pub struct Rejection {
    /// Name of the rule.
    pub rule: &'static str,
    /// Its sentence.
    pub reason: String,
}

impl Rejection {
    pub(super) fn unknown_family(tile: &Tile) -> Self {
        let names: Vec<&str> = super::FAMILIES.iter().map(|family| family.name()).collect();
        let reason = format!("expected one of {}, found `{}`", names.join(", "), tile.family());
        Self { rule: "family", reason }
    }
}

/// All tiles of one family for one problem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Tiles that passed every rule, in the order of the axes.
    pub tiles: Vec<Tile>,
    /// For each rule that refused: how many tiles, and the sentence of the first.
    pub rejected: BTreeMap<&'static str, (usize, String)>,
}

/// Enumerates the space of `family` for `problem` on `gpu`.
pub fn space(family: &dyn Family, problem: &Problem, gpu: &GpuSpec) -> Space {
    let mut space = Space::default();
    let axes = family.axes(problem, gpu.arch);
    let mut idx = vec![0; axes.len()];
    loop {
        let tile = Tile::new(family.name(), axes.iter().zip(&idx).map(|(axis, &i)| (axis.name, axis.values[i])));
        match check_rules(family, problem, &tile, gpu) {
            Ok(()) => space.tiles.push(tile),
            Err(Rejection { rule, reason }) => space.rejected.entry(rule).or_insert((0, reason)).0 += 1,
        }
        // The last axis turns fastest, as in an odometer.
        let Some(axis) = (0..axes.len()).rev().find(|&axis| idx[axis] + 1 < axes[axis].values.len()) else {
            return space;
        };
        idx[axis] += 1;
        idx[axis + 1..].fill(0);
    }
}

/// The first of `preferred` that passes the rules, or else the first tile of the space that does.
///
/// # Panics
/// If the space is empty: every family has tiles for what it serves, on every GPU that is known (a test asks each).
pub(super) fn first_that_fits(family: &dyn Family, preferred: &[Tile], problem: &Problem, gpu: &GpuSpec) -> Tile {
    let fits = |tile: &&Tile| check(family, problem, tile, gpu).is_ok();
    let tile = preferred.iter().find(fits).cloned();
    tile.or_else(|| space(family, problem, gpu).tiles.into_iter().next())
        .unwrap_or_else(|| panic!("`{}` serves `{problem}` and has no tile for it on {}", family.name(), gpu.name))
}

/// Checks that `tile` has exactly the numbers of its family's axes, each with a value that it has in some bucket, and
/// passes its rules.
pub(super) fn check(family: &dyn Family, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Result<(), Rejection> {
    let axes = family.axes(problem, gpu.arch);
    let names_expected: Vec<&str> = axes.iter().map(|axis| axis.name).collect();
    let is_known = |(name, _): (&str, u32)| names_expected.contains(&name);
    if tile.numbers().count() != axes.len() || !tile.numbers().all(is_known) {
        let reason = format!("{} has the numbers {}, found `{tile}`", family.name(), names_expected.join(", "));
        return Err(Rejection { rule: "axes", reason });
    }
    let stranger = tile.numbers().find(|number| !is_value(&axes, *number));
    // A tile that won another bucket may stand outside of this one's axes, but not outside of everybody's.
    let is_anybodys = |number| BUCKETS.iter().any(|&m| is_value(&family.axes(&problem.with_m(m), gpu.arch), number));
    if let Some((name, value)) = stranger.filter(|number| !is_anybodys(*number)) {
        let reason = format!("{} never has {name} = {value}", family.name());
        return Err(Rejection { rule: "axes", reason });
    }
    check_rules(family, problem, tile, gpu)
}

fn is_value(axes: &[Axis], (name, value): (&str, u32)) -> bool {
    axes.iter().any(|axis| axis.name == name && axis.values.contains(&value))
}

fn check_rules(family: &dyn Family, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Result<(), Rejection> {
    family
        .rules()
        .iter()
        .try_for_each(|rule| (rule.check)(tile, problem, gpu).map_err(|reason| Rejection { rule: rule.name, reason }))
}

/// The number `name` of a tile whose names [`check`] has compared with the axes.
pub(super) fn number(tile: &Tile, name: &str) -> u32 {
    tile.number(name).expect("`check` has compared the tile's numbers with its family's axes")
}

/// The numbers called `names` for a template's `tile`, with an id of just these: tiles that differ in others share a
/// text.
pub(super) fn tile_values(tile: &Tile, names: &[&'static str]) -> BTreeMap<&'static str, Value> {
    let numbers = names.iter().map(|&name| (name, number(tile, name)));
    let id = Tile::new(tile.family(), numbers.clone()).to_string();
    numbers.map(|(name, value)| (name, value.into())).chain([("id", id.into())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{default_tile, plan};

    #[test]
    fn what_no_kernel_could_do_is_refused() {
        let gpu = GpuSpec::named("h100").unwrap();
        let problem: Problem = "nvfp4 4096x4096 m1".parse().unwrap();
        let tile = default_tile(&problem, gpu).unwrap();
        assert!(plan(&problem, &tile, gpu).is_ok());
        let refused = plan(&problem, &tile.with("row_tiles", 3), gpu).unwrap_err();
        assert_eq!(refused.to_string(), "axes: dense_mma never has row_tiles = 3");
        let many: Problem = "moe nvfp4 8192 top6 64x64 m64".parse().unwrap();
        let refusals = crate::kernels::refusals(&many, gpu.arch).join("; ");
        assert!(refusals.contains("the schedule of 8192 experts needs"), "{refusals}");
        // One that won fewer tokens may serve more.
        let more = problem.with_m(8);
        assert!(plan(&more, &tile.with("tokens", 1), gpu).is_ok());
    }
}
