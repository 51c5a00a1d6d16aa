//! Blocks of experts: all experts' weights, routing tables that take turns, one workspace for all candidates.

use std::collections::BTreeSet;

use super::dense::{LIMIT, POISON};
use super::routing::{RoutingTable, SortedSlots, TABLES, table_seed};
use super::tools::{Toolbox, Value};
use super::weights::{RawWeights, WARM_L2S};
use super::{Candidate, LiveError, Mode, launch_with};
use crate::check::{Comparison, Path};
use crate::device::{Buffer, DevicePointer};
use crate::dispatch::LaunchArgs;
use crate::kernels::{self, FillKind};
use crate::problem::{Activations, MoeBlock, Output, Routing};
use crate::quant::{WeightFormat, bf16};

pub(super) struct MoeSubject {
    block: MoeBlock,
    up: Buffer,
    down: Buffer,
    up_alpha: Buffer,
    down_alpha: Buffer,
    tokens: Buffer,
    /// Of conversions to FP8: nothing here is not finite, and nobody reads them.
    counters: Buffer,
    output: Buffer,
    workspace: Buffer,
    tables: Vec<Table>,
    /// References are for the first table of each routing.
    references: Vec<(usize, Buffer)>,
    is_warm: bool,
}

/// A routing table on the device.
struct Table {
    experts: Buffer,
    weights: Buffer,
}

/// Both weight matrices as a checkpoint holds them, with the true alphas.
struct RawExperts {
    up: RawWeights,
    down: RawWeights,
    up_alphas: Vec<f32>,
    down_alphas: Vec<f32>,
}

impl MoeSubject {
    pub fn new(tools: &mut Toolbox, block: &MoeBlock, routings: &[Routing], seed: u64) -> Result<Self, LiveError> {
        let raw = RawExperts::random(tools, block, seed)?;
        let (up, up_factor) = raw.up.pack(tools, block.activations)?;
        let (down, down_factor) = raw.down.pack(tools, block.activations)?;
        let scaled = |alphas: &[f32], factor: f32| -> Vec<f32> { alphas.iter().map(|alpha| alpha * factor).collect() };
        let elements = block.m as usize * block.hidden as usize;
        let tokens = Buffer::new(&tools.gpu, 2 * elements)?;
        tools.fill(&tokens, elements, FillKind::Bf16, [0, 0], seed ^ 0xA)?;
        if block.activations == Activations::A8 {
            vary_sizes(tools, &tokens, block)?;
        }
        let mut subject = Self {
            block: block.clone(),
            up,
            down,
            up_alpha: Buffer::of(&tools.gpu, &scaled(&raw.up_alphas, up_factor))?,
            down_alpha: Buffer::of(&tools.gpu, &scaled(&raw.down_alphas, down_factor))?,
            tokens,
            counters: Buffer::zeros(&tools.gpu, 24)?,
            output: Buffer::new(&tools.gpu, 2 * elements)?,
            workspace: Buffer::zeros(&tools.gpu, most_workspace_bytes(block))?,
            tables: Vec::new(),
            references: Vec::new(),
            is_warm: false,
        };
        let expert_bytes = (subject.up.bytes() + subject.down.bytes()) / block.local_experts as usize;
        for (routing_idx, &routing) in routings.iter().enumerate() {
            // With few tokens a second launch would find the first one's experts in L2.
            let mut used = BTreeSet::new();
            for turn in 0..TABLES {
                let table = RoutingTable::new(block, routing, table_seed(seed, routing_idx, turn));
                if turn == 0 {
                    let reference = subject.make_reference(tools, &raw, &table)?;
                    subject.references.push((subject.tables.len(), reference));
                }
                let is_local = |expert: &i32| u32::try_from(*expert).is_ok_and(|expert| expert < block.local_experts);
                used.extend(table.experts.iter().copied().filter(is_local));
                let experts = Buffer::of(&tools.gpu, &table.experts)?;
                subject.tables.push(Table { experts, weights: Buffer::of(&tools.gpu, &table.weights)? });
            }
            let l2_bytes = tools.gpu.spec().identity.l2_bytes as usize;
            subject.is_warm |= used.len() * expert_bytes < WARM_L2S * l2_bytes;
        }
        Ok(subject)
    }

    /// Whether the experts that one routing's tables use fit into L2 more or less.
    pub fn is_warm(&self) -> bool {
        self.is_warm
    }

    pub fn judged_by(&self) -> (Output, Path) {
        let (k, hidden) = (self.block.hidden.max(self.block.intermediate), self.block.intermediate);
        let path = match self.block.activations {
            Activations::A16 => Path::Hidden { k, hidden, largest_weight: kernels::random_largest(self.block.weights) },
            Activations::A8 => Path::HiddenFp8 { is_rounded: self.block.weights == WeightFormat::Nvfp4, hidden },
        };
        (Output::Bf16, path)
    }

    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// Checksum of the result as it stands.
    pub fn checksum(&mut self, tools: &mut Toolbox, m: u32) -> Result<u64, LiveError> {
        let hidden = self.block.hidden as usize;
        let both = [(self.output.pointer(), hidden), (self.references[0].1.pointer(), hidden)];
        Ok(tools.compare(Output::Bf16, both, m, self.block.hidden)?.checksum)
    }

    fn make_reference(&self, tools: &mut Toolbox, raw: &RawExperts, table: &RoutingTable) -> Result<Buffer, LiveError> {
        let block = &self.block;
        let sorted = table.sorted(block);
        let rows = sorted.token_of.len();
        let (hidden, inner) = (block.hidden as usize, block.intermediate as usize);
        let gpu = tools.gpu.clone();
        let (token_of, tiles) = (Buffer::of(&gpu, &sorted.token_of)?, Buffer::of(&gpu, &sorted.tiles)?);
        let (position_of, weights) = (Buffer::of(&gpu, &sorted.position_of)?, Buffer::of(&gpu, &table.weights)?);
        let sums = Buffer::new(&gpu, 4 * rows * 2 * inner)?;
        let inner_rows = Buffer::new(&gpu, 2 * rows * inner)?;
        let parts = Buffer::new(&gpu, 4 * rows * hidden)?;
        let result = Buffer::new(&gpu, 4 * block.m as usize * hidden)?;
        let tokens = Operand::of(tools, block, &self.tokens, [block.m as usize, hidden])?;
        raw.multiply(tools, true, &tokens, [&token_of, &tiles, &sums], &sorted)?;
        let step = |step: i32, from: &Buffer, to: [&Buffer; 2], rows: usize, columns: usize| {
            [
                Value::Int(step),
                from.into(),
                (&position_of).into(),
                (&weights).into(),
                if step == 0 { to[0].into() } else { Value::Pointer(0) },
                if step == 0 { Value::Pointer(0) } else { to[1].into() },
                Value::Int(rows as i32),
                Value::Int(columns as i32),
                Value::Int(block.top_k as i32),
                Value::Double(f64::from(LIMIT)),
            ]
        };
        let reference_moe = kernels::reference_moe();
        tools.run(&reference_moe, [2048, 1, 1], &step(0, &sums, [&inner_rows, &result], rows, inner))?;
        let inner_rows = Operand::of(tools, block, &inner_rows, [rows, inner])?;
        raw.multiply(tools, false, &inner_rows, [&token_of, &tiles, &parts], &sorted)?;
        tools.run(&reference_moe, [2048, 1, 1], &step(1, &parts, [&parts, &result], block.m as usize, hidden))?;
        tools.stream.synchronize()?;
        Ok(result)
    }

    /// Arguments of launch `idx` for `m` tokens: the tables of a routing take turns.
    pub fn args(&self, m: u32, idx: u32, routing_idx: usize) -> LaunchArgs {
        let turn = u64::from(idx) % TABLES;
        self.args_of(m, routing_idx * TABLES as usize + turn as usize)
    }

    fn args_of(&self, m: u32, table_idx: usize) -> LaunchArgs {
        let table = &self.tables[table_idx];
        LaunchArgs {
            activations: self.tokens.pointer(),
            activation_stride: self.block.hidden,
            weights: self.up.pointer(),
            down_weights: self.down.pointer(),
            output: self.output.pointer(),
            output_stride: self.block.hidden,
            tokens: m,
            limit: LIMIT,
            experts: table.experts.pointer(),
            routing: table.weights.pointer(),
            up_alpha: self.up_alpha.pointer(),
            down_alpha: self.down_alpha.pointer(),
            counters: self.counters.pointer(),
            workspace: self.workspace.pointer(),
            ..LaunchArgs::default()
        }
    }

    pub fn compare(&mut self, tools: &mut Toolbox, candidate: &Candidate) -> Result<Vec<Comparison>, LiveError> {
        let m = candidate.bound.problem().m();
        let compare = |(table_idx, reference): &(usize, Buffer)| {
            self.output.set_bytes(POISON)?;
            self.workspace.set_bytes(POISON)?;
            launch_with(candidate, self.args_of(m, *table_idx), tools.stream.raw().cast(), Mode::Unchained)?;
            tools.stream.synchronize()?;
            let hidden = self.block.hidden as usize;
            let both = [(self.output.pointer(), hidden), (reference.pointer(), hidden)];
            tools.compare(Output::Bf16, both, m, self.block.hidden)
        };
        self.references.iter().map(compare).collect()
    }
}

impl RawExperts {
    fn random(tools: &mut Toolbox, block: &MoeBlock, seed: u64) -> Result<Self, LiveError> {
        let [experts, hidden, inner] =
            [block.local_experts, block.hidden, block.intermediate].map(|size| size as usize);
        let up = RawWeights::random(tools, block.weights, [experts, 2 * inner, hidden], true, seed ^ 0xB)?;
        let down = RawWeights::random(tools, block.weights, [experts, hidden, inner], false, seed ^ 0xC)?;
        // Gate and up of about 4, so that the clamp at 10 is met; each expert its own, so that a wrong one shows.
        let up_alpha = 7.0 / (hidden as f64 * up.mean_square()).sqrt();
        let down_alpha = 0.1 / (inner as f64 * down.mean_square()).sqrt();
        let own = |expert: usize| 1.0 + 0.05 * (expert % 5) as f64;
        let up_alphas = (0..experts).flat_map(|expert| [up_alpha * own(expert), 0.8 * up_alpha * own(expert)]);
        let down_alphas = (0..experts).map(|expert| down_alpha * own(expert + 2));
        Ok(Self {
            up_alphas: up_alphas.map(|alpha| alpha as f32).collect(),
            down_alphas: down_alphas.map(|alpha| alpha as f32).collect(),
            up,
            down,
        })
    }

    /// The reference product over sorted slots: `[rows of from (gate-up), tiles, to]`.
    fn multiply(
        &self,
        tools: &mut Toolbox,
        is_up: bool,
        from: &Operand,
        [token_of, tiles, to]: [&Buffer; 3],
        sorted: &SortedSlots,
    ) -> Result<(), LiveError> {
        let (raw, alphas, parts) =
            if is_up { (&self.up, &self.up_alphas, 2) } else { (&self.down, &self.down_alphas, 1) };
        let alphas = Buffer::of(&tools.gpu, alphas)?;
        let n_tiles = (sorted.tiles.len() / 4) as u32;
        let values = [
            (&raw.codes).into(),
            (&raw.scales).into(),
            Value::Pointer(from.rows),
            if is_up { token_of.into() } else { Value::Pointer(0) },
            tiles.into(),
            to.into(),
            Value::Long(raw.k as i64),
            Value::Long(raw.n as i64),
            Value::Long(raw.group_code_bytes() as i64),
            Value::Long(raw.group_scale_bytes() as i64),
            Value::Int(0),
            Value::Int(raw.n as i32),
            Value::Int(raw.k as i32),
            Value::Int(raw.half_rows() as i32),
            (&alphas).into(),
            Value::Int(parts),
            Value::Pointer(from.scales()),
        ];
        if n_tiles > 0 {
            tools.run(
                &kernels::reference(raw.format, Activations::A16),
                [(raw.n as u32).div_ceil(64), n_tiles, 1],
                &values,
            )?;
        }
        Ok(tools.stream.synchronize()?)
    }
}

/// Rows that the reference multiplies: BF16, or what FP8 keeps of them, with a scale for each.
struct Operand {
    rows: DevicePointer,
    /// Empty for BF16.
    fp8: Option<[Buffer; 2]>,
}

impl Operand {
    /// `rows`, which must outlive this, as `block` multiplies them.
    fn of(tools: &mut Toolbox, block: &MoeBlock, rows: &Buffer, [count, k]: [usize; 2]) -> Result<Self, LiveError> {
        if block.activations == Activations::A16 {
            return Ok(Self { rows: rows.pointer(), fp8: None });
        }
        let (rounded, scales) = (Buffer::new(&tools.gpu, 2 * count * k)?, Buffer::new(&tools.gpu, 4 * count)?);
        let values = [rows.into(), (&rounded).into(), (&scales).into(), Value::Int(count as i32), Value::Int(k as i32)];
        tools.run(&kernels::reference_fp8(), [2048, 1, 1], &values)?;
        Ok(Self { rows: rounded.pointer(), fp8: Some([rounded, scales]) })
    }

    fn scales(&self) -> DevicePointer {
        self.fp8.as_ref().map_or(0, |[_, scales]| scales.pointer())
    }
}

/// Gives neighbouring tokens sizes of their own, so that another token's scale shows.
fn vary_sizes(tools: &Toolbox, tokens: &Buffer, block: &MoeBlock) -> Result<(), LiveError> {
    let hidden = block.hidden as usize;
    tools.stream.synchronize()?;
    let mut values: Vec<u16> = tokens.download(block.m as usize * hidden)?;
    for (token, row) in values.chunks_exact_mut(hidden).enumerate() {
        let size = 0.75 + 0.0625 * (token % 9) as f32;
        row.iter_mut().for_each(|value| *value = bf16::encode(size * bf16::decode(*value)));
    }
    Ok(tokens.upload(&values)?)
}

/// Room for any plan: hidden rows, parts, slots and tiles; tokens and hidden rows in FP8.
fn most_workspace_bytes(block: &MoeBlock) -> usize {
    let slots = block.m as usize * block.top_k as usize;
    let [hidden, inner] = [block.hidden, block.intermediate].map(|size| size as usize);
    let fp8 = match block.activations {
        Activations::A16 => 0,
        Activations::A8 => block.m as usize * hidden + slots * inner,
    };
    let rows = slots * (2 * inner + 4 * hidden) + fp8;
    rows + slots * 64 + block.local_experts as usize * 64 + (1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::GpuSpec;
    use crate::kernels;
    use crate::problem::Problem;

    #[test]
    fn every_plan_has_room() {
        let gpu = GpuSpec::named("h100").unwrap();
        let texts = ["moe nvfp4 8/8 top2 128x64 a8", "moe mxfp4 4/16 top4 512x256 a8", "moe nvfp4 768 top4 128x64"];
        for problem in texts.into_iter().flat_map(|text| [1, 64, 8192].map(|m| format!("{text} m{m}"))) {
            let problem: Problem = problem.parse().unwrap();
            let Problem::MoeBlock(block) = &problem else { unreachable!("these are blocks of experts") };
            for family in kernels::serving(&problem, gpu.arch) {
                for tile in kernels::space(family, &problem, gpu).tiles {
                    let need = kernels::plan(&problem, &tile, gpu).unwrap().workspace_bytes;
                    assert!(need <= most_workspace_bytes(block) as u64, "{problem}: {tile}");
                }
            }
        }
    }
}
