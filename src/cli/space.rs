//! `autotune show space`: the axes and rules of each family, and what the rules leave.

use std::fmt;

use serde::Serialize;

use super::args::CommonArgs;
use super::subject_args::SubjectArgs;
use super::table::Table;
use super::voice::answer;
use super::{CliError, Exit, context, select};
use crate::arch::GpuSpec;
use crate::kernels::{self, Family};
use crate::problem::Problem;

/// Shows the space of each problem: of one in full, of several as a table.
pub fn run(common: &CommonArgs, subject: &SubjectArgs) -> Result<Exit, CliError> {
    let gpu = context::spec(common)?;
    let problems = select::buckets_of(subject)?;
    let spaces = problems.iter().map(|(op, problem)| ProblemSpace::of(op, problem, &gpu)).collect();
    answer(common.json, &Spaces { gpu: gpu.name.clone(), arch: gpu.arch.name.clone(), spaces })?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct Spaces {
    gpu: String,
    arch: String,
    spaces: Vec<ProblemSpace>,
}

/// The spaces of one problem.
#[derive(Serialize)]
pub struct ProblemSpace {
    op: String,
    problem: String,
    /// Families that serve it.
    families: Vec<FamilySpace>,
    /// Families that do not, each with its sentence.
    not_served_by: Vec<String>,
}

/// What one family has for a problem.
#[derive(Serialize)]
struct FamilySpace {
    family: &'static str,
    /// Tiles that the axes span.
    tiles: usize,
    /// Tiles that every rule lets pass.
    passing: usize,
    axes: Vec<AxisValues>,
    rules: Vec<Refusals>,
}

#[derive(Serialize)]
struct AxisValues {
    name: &'static str,
    values: Vec<u32>,
}

/// What one rule has refused.
#[derive(Serialize)]
struct Refusals {
    name: &'static str,
    tiles: usize,
    /// The sentence of the first.
    first: Option<String>,
}

impl ProblemSpace {
    /// The space of `problem`, which serves `op`.
    pub fn of(op: &str, problem: &Problem, gpu: &GpuSpec) -> Self {
        let serving = kernels::serving(problem, gpu.arch);
        Self {
            op: op.to_string(),
            problem: problem.to_string(),
            families: serving.into_iter().map(|family| FamilySpace::of(family, problem, gpu)).collect(),
            not_served_by: kernels::refusals(problem, gpu.arch),
        }
    }
}

impl FamilySpace {
    fn of(family: &'static dyn Family, problem: &Problem, gpu: &GpuSpec) -> Self {
        let (axes, space) = (family.axes(problem, gpu.arch), kernels::space(family, problem, gpu));
        let refusals = |name: &'static str| match space.rejected.get(name) {
            Some((tiles, first)) => Refusals { name, tiles: *tiles, first: Some(first.clone()) },
            None => Refusals { name, tiles: 0, first: None },
        };
        Self {
            family: family.name(),
            tiles: axes.iter().map(|axis| axis.values.len()).product(),
            passing: space.tiles.len(),
            axes: axes.into_iter().map(|axis| AxisValues { name: axis.name, values: axis.values }).collect(),
            rules: family.rules().iter().map(|rule| refusals(rule.name)).collect(),
        }
    }

    fn refused(&self) -> impl Iterator<Item = &Refusals> {
        self.rules.iter().filter(|rule| rule.tiles > 0)
    }
}

impl fmt::Display for Spaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpu, arch, spaces } = self;
        if let [space] = &spaces[..] {
            return write!(f, "{} on {gpu} ({arch})\n{space}", space.problem);
        }
        let mut table = Table::new(["op", "problem", "family", ">tiles", ">pass", "refused"]);
        for ProblemSpace { op, problem, families, .. } in spaces {
            for family in families {
                let refused: Vec<String> =
                    family.refused().map(|rule| format!("{} {}", rule.name, rule.tiles)).collect();
                table.row([
                    op.clone(),
                    problem.clone(),
                    family.family.to_string(),
                    family.tiles.to_string(),
                    family.passing.to_string(),
                    refused.join(", "),
                ]);
            }
        }
        table.fmt(f)
    }
}

impl fmt::Display for ProblemSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in &self.families {
            writeln!(f, "\n{}: {} of {} tiles pass", family.family, family.passing, family.tiles)?;
            for AxisValues { name, values } in &family.axes {
                let values: Vec<String> = values.iter().map(u32::to_string).collect();
                writeln!(f, "  {name:<12} {}", values.join(" "))?;
            }
            for Refusals { name, tiles, first } in family.rules.iter() {
                let first = first.as_ref().map(|first| format!(": {first}")).unwrap_or_default();
                writeln!(f, "  rule {name:<12} refuses {tiles:>5} tiles{first}")?;
            }
        }
        if !self.not_served_by.is_empty() {
            writeln!(f, "\nnot served by")?;
        }
        self.not_served_by.iter().try_for_each(|reason| writeln!(f, "  {reason}"))
    }
}
