//! Suites: the problems that an architecture's results are judged by, taken from the models' own lists of ops.
//!
//! `hopper` has every dense GEMM of both DeepSeek-V4 models on one rank in 4-bit formats, their FP8 and BF16 matrices
//! at few tokens, the shapes that other engines were measured at, and both blocks of experts, of MXFP4 with 8-bit
//! activations too. What no parser of ours takes is left out, and comes in by itself once it is taken.

use super::CliError;
use crate::models::{self, Checkpoint, Op, Shard};
use crate::problem::{Dense, MoeBlock, Problem};
use crate::quant::WeightFormat;

/// An op of a suite and the tokens that it is measured at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Whose op it is, such as `dsv4 attn.wq_b`.
    pub name: String,
    /// The problem, with any `m`.
    pub problem: Problem,
    /// Numbers of tokens, ascending.
    pub tokens: &'static [u32],
}

/// The members of the suite called `name`, in the order in which they are measured: what is judged first comes first.
///
/// # Errors
/// The sentence of an unknown name.
pub fn members(name: &str) -> Result<Vec<Member>, CliError> {
    match name {
        HOPPER => hopper(),
        _ => Err(CliError::usage(
            format!("expected the name of a suite ({HOPPER}), found `{name}`"),
            "`autotune bench --suite hopper --list` lists its problems",
        )),
    }
}

/// The largest part of `block` whose weights, raw and packed at once, leave room for its tokens in `memory_bytes`.
pub fn fitting(block: &MoeBlock, memory_bytes: u64) -> MoeBlock {
    let mut part = block.clone();
    while part.local_experts > 1 && 2 * part.weight_bytes() > memory_bytes / 10 * 7 {
        part.local_experts /= 2;
    }
    part
}

fn hopper() -> Result<Vec<Member>, CliError> {
    let mut suite = Suite::default();
    let full = ops(Checkpoint::Nvfp4Full)?;
    let shapes: Vec<(String, Dense)> = four_bit_shapes(&full);
    let four_bit = |suite: &mut Suite, format, activations: &str| {
        for (name, shape) in &shapes {
            suite.add(name, &Problem::Dense(Dense { weights: format, ..shape.clone() }), activations, &DENSE_TOKENS);
        }
    };
    four_bit(&mut suite, WeightFormat::Nvfp4, "");
    for (name, op) in &full {
        if let Problem::MoeBlock(block) = op.problem(1) {
            suite.add(name, &Problem::MoeBlock(block), "", &MOE_TOKENS);
        }
    }
    for (name, op) in ops(Checkpoint::Nvfp4)? {
        if let problem @ Problem::Dense(_) = op.problem(1) {
            suite.add(&name, &problem, "", &FEW_TOKENS);
        }
    }
    four_bit(&mut suite, WeightFormat::Mxfp4, "a8");
    let native = ops(Checkpoint::Native)?;
    for activations in ["a8", ""] {
        for (name, op) in &native {
            if let Problem::MoeBlock(block) = op.problem(1) {
                suite.add(name, &Problem::MoeBlock(block), activations, &MOE_TOKENS);
            }
        }
    }
    four_bit(&mut suite, WeightFormat::Nvfp4, "a8");
    four_bit(&mut suite, WeightFormat::Mxfp4, "");
    for format in [WeightFormat::Fp8, WeightFormat::Bf16] {
        for [n, k] in PEER_SHAPES {
            suite.add("peers' shape", &Problem::Dense(Dense::new(format, n, k, 1)), "", &FEW_TOKENS);
        }
    }
    Ok(suite.members)
}

/// Every op of both models on one rank, with the model's name in front.
fn ops(checkpoint: Checkpoint) -> Result<Vec<(String, Op)>, CliError> {
    let mut all = Vec::new();
    for model in models::all() {
        let ops = model.inventory(checkpoint, Shard::default());
        let ops = ops.map_err(|error| CliError::failed(error.to_string(), None))?;
        all.extend(ops.into_iter().map(|op| (format!("{} {}", model.name, op.name), op)));
    }
    Ok(all)
}

/// What a full NVFP4 checkpoint has in NVFP4, the indexer's queries, and the shapes of the peers' file.
fn four_bit_shapes(ops: &[(String, Op)]) -> Vec<(String, Dense)> {
    let mut shapes = Vec::new();
    for (name, op) in ops {
        if let Problem::Dense(dense) = op.problem(1)
            && (dense.weights == WeightFormat::Nvfp4 || name.ends_with(INDEX_Q))
        {
            shapes.push((name.clone(), dense));
        }
    }
    let peers = PEER_SHAPES.map(|[n, k]| ("peers' shape".to_string(), Dense::new(WeightFormat::Nvfp4, n, k, 1)));
    shapes.extend(peers);
    shapes
}

/// Members so far: an op that comes again only adds its name.
#[derive(Default)]
struct Suite {
    members: Vec<Member>,
}

impl Suite {
    fn add(&mut self, name: &str, problem: &Problem, activations: &str, tokens: &'static [u32]) {
        let text = format!("{} {activations}", problem.op());
        let Ok(problem) = text.parse::<Problem>() else { return };
        match self.members.iter_mut().find(|member| member.problem.op() == problem.op()) {
            Some(member) if member.name.split(", ").any(|part| part == name) => {}
            Some(member) => member.name = format!("{}, {name}", member.name),
            None => self.members.push(Member { name: name.to_string(), problem, tokens }),
        }
    }
}

/// The projections of one layer of attention in the order of their launches, at `m` tokens, and what each reads: the
/// last layer's result, or the result of an earlier projection by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionChain {
    /// Whose layer it is.
    pub name: String,
    /// The projections.
    pub problems: Vec<Problem>,
    /// For each the place of the one whose result it reads; the first reads the last one's of the layer before.
    pub reads: Vec<usize>,
}

/// The chains of both models for each of `tokens`, with FP8 projections as the public checkpoints have them, and with
/// NVFP4 ones.
pub fn every_attention_chain(tokens: &[u32]) -> Result<Vec<AttentionChain>, CliError> {
    let mut chains = Vec::new();
    for checkpoint in [Checkpoint::Nvfp4, Checkpoint::Nvfp4Full] {
        for &m in tokens {
            chains.extend(attention_chains(checkpoint, m)?);
        }
    }
    Ok(chains)
}

fn attention_chains(checkpoint: Checkpoint, m: u32) -> Result<Vec<AttentionChain>, CliError> {
    let all = ops(checkpoint)?;
    let chain = |model: &models::Model| {
        let op = |name: &str| all.iter().find(|(full, _)| *full == format!("{} {name}", model.name));
        let problems: Option<Vec<Problem>> = CHAIN.iter().map(|(name, _)| Some(op(name)?.1.problem(m))).collect();
        let missing = || CliError::failed(format!("{} has not all of the projections of a layer", model.name), None);
        let (name, reads) = (format!("{} {checkpoint} m{m}", model.name), CHAIN.map(|(_, reads)| reads).to_vec());
        Ok(AttentionChain { name, problems: problems.ok_or_else(missing)?, reads })
    };
    models::all().iter().map(chain).collect()
}

/// The one suite that there is.
pub const HOPPER: &str = "hopper";

const INDEX_Q: &str = "attn.indexer.wq_b";

/// Launches of a layer, and the place of what each reads. Attention itself is left out: `wo_a` reads the queries, which
/// are as wide as its heads.
const CHAIN: [(&str, usize); 5] =
    [("attn.fused_wqa_wkv", 4), ("attn.wq_b", 0), (INDEX_Q, 0), ("attn.wo_a", 1), ("attn.wo_b", 3)];

const DENSE_TOKENS: [u32; 11] = [1, 4, 16, 32, 64, 128, 256, 512, 1024, 4096, 8192];
const MOE_TOKENS: [u32; 10] = [1, 4, 16, 32, 64, 128, 256, 1024, 4096, 8192];
const FEW_TOKENS: [u32; 5] = [1, 4, 16, 32, 64];

/// Shapes of `benches/peers` that are no model's op, and two that stand beside an op with SwiGLU.
const PEER_SHAPES: [[u32; 2]; 4] = [[8192, 8192], [7168, 16384], [4096, 4096], [6144, 7168]];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_has_every_problem_that_is_judged() {
        let members = members("hopper").unwrap();
        let member = |op: &str| members.iter().find(|member| member.problem.op() == op);
        for (op, tokens) in [
            ("nvfp4 1536x4096", 11),
            ("nvfp4 2048x7168", 11),
            ("nvfp4 32768x1024", 11),
            ("nvfp4 65536x1536", 11),
            ("nvfp4 4096x8192", 11),
            ("nvfp4 7168x16384", 11),
            ("nvfp4 4096x4096 swiglu", 11),
            ("nvfp4 6144x7168 swiglu", 11),
            ("nvfp4 4096x2048", 11),
            ("nvfp4 8192x1024", 11),
            ("nvfp4 8192x1536", 11),
            ("nvfp4 8192x8192", 11),
            ("moe nvfp4 256/256 top6 4096x2048", 10),
            ("moe nvfp4 384/384 top6 7168x3072", 10),
            ("moe mxfp4 256/256 top6 4096x2048", 10),
            ("fp8 8x1024x4096", 5),
            ("bf16 129280x4096 f32", 5),
            ("bf16 2624x7168 f32", 5),
            ("bf16 1024x7168 f32", 5),
            ("fp8 8192x8192", 5),
        ] {
            assert_eq!(member(op).map(|member| member.tokens.len()), Some(tokens), "{op}");
        }
        let mut ops: Vec<String> = members.iter().map(|member| member.problem.op()).collect();
        let with_repeats = ops.len();
        ops.sort_unstable();
        ops.dedup();
        assert_eq!(ops.len(), with_repeats);
    }

    #[test]
    fn a_chain_reads_as_much_as_what_it_reads_has() {
        for chain in attention_chains(Checkpoint::Nvfp4Full, 16).unwrap() {
            let columns = |problem: &Problem| match problem {
                Problem::Dense(dense) => (dense.a_columns(), dense.d_columns()),
                _ => unreachable!(),
            };
            for (problem, &from) in chain.problems.iter().zip(&chain.reads) {
                assert!(columns(problem).0 <= columns(&chain.problems[from]).1, "{}: {problem}", chain.name);
            }
        }
    }

    #[test]
    fn a_block_is_cut_until_it_fits() {
        let Ok(Problem::MoeBlock(block)) = "moe nvfp4 384 top6 7168x3072".parse() else { panic!() };
        assert_eq!(fitting(&block, 80 << 30).local_experts, 384);
        assert_eq!(fitting(&block, 24 << 30).local_experts, 192);
    }
}
