//! Activations to NVFP4: who chooses the scale, and what becomes of values that do not fit.
//!
//! For each row with its f32 scale `gs`, all in f32 and in this order: the block scale is
//! `sf = e4m3(amax_block / (6 * gs))`, saturating; if `sf` is zero the 16 codes are 0; otherwise a code is the E2M1
//! nearest to `x / (sf * gs)`, saturating. A value is `e2m1 * sf * gs`.
//!
//! NaN and infinities are never hidden: they take no part in any amax, their codes are 0, and [`Counters`] says how
//! many there were and where the first one stood. The conversion is thereby defined for every input, and the caller
//! decides. A static scale can be wrong by orders of magnitude without a NaN to show for it: they tell that too.

use super::shape::Shape;
use super::{ShapeError, TensorScale, TensorScaleError, WeightFormat, e2m1, e4m3, nvfp4, scales};

/// Who chooses the f32 scale of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ScalePolicy {
    /// Each row from its own amax. No block can saturate.
    #[default]
    PerToken,
    /// All rows from the largest amax among them. No block can saturate.
    PerTensor,
    /// The checkpoint's, from calibration by whoever made it.
    Checkpoint(TensorScale),
    /// From the amax that was seen while warming up.
    Warmup(TensorScale),
    /// Chosen by hand.
    Fixed(TensorScale),
}

impl ScalePolicy {
    /// ModelOpt's `input_scale`, amax / 2688: a multiplier.
    ///
    /// # Errors
    /// [`TensorScaleError`] if it is not finite, above zero and normal.
    pub fn from_modelopt_input_scale(input_scale: f32) -> Result<Self, TensorScaleError> {
        TensorScale::multiplier(input_scale).map(Self::Checkpoint)
    }

    /// The `input_global_scale` of compressed-tensors, 2688 / amax: a divisor.
    ///
    /// # Errors
    /// [`TensorScaleError`] if it, or its reciprocal, is not finite, above zero and normal.
    pub fn from_compressed_tensors_global_scale(input_global_scale: f32) -> Result<Self, TensorScaleError> {
        TensorScale::divisor(input_global_scale).map(Self::Checkpoint)
    }

    /// The scale for activations of at most `amax`.
    ///
    /// # Errors
    /// [`TensorScaleError`] if amax / 2688 is not finite, above zero and normal.
    pub fn warmup(amax: f32) -> Result<Self, TensorScaleError> {
        TensorScale::from_amax(amax).map(Self::Warmup)
    }

    /// This very scale, a multiplier.
    ///
    /// # Errors
    /// [`TensorScaleError`] if it is not finite, above zero and normal.
    pub fn fixed(scale: f32) -> Result<Self, TensorScaleError> {
        TensorScale::multiplier(scale).map(Self::Fixed)
    }
}

/// `per-token`, `per-tensor`, `checkpoint`, `warmup`, `fixed(0.5)`: the words of the command line and of reports.
impl std::fmt::Display for ScalePolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PerToken => f.write_str("per-token"),
            Self::PerTensor => f.write_str("per-tensor"),
            Self::Checkpoint(_) => f.write_str("checkpoint"),
            Self::Warmup(_) => f.write_str("warmup"),
            Self::Fixed(scale) => write!(f, "fixed({scale})"),
        }
    }
}

/// NaN and infinities in an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NonFinite {
    /// How many.
    pub count: u64,
    /// Row and column of the first one in row-major order.
    pub first: Option<(usize, usize)>,
}

impl NonFinite {
    /// Copies `row` to `finite`, each NaN and infinity counted and replaced by 0.
    pub(super) fn replace(&mut self, row_idx: usize, row: &[f32], finite: &mut Vec<f32>) {
        finite.clear();
        for (column, &value) in row.iter().enumerate() {
            if value.is_finite() {
                finite.push(value);
                continue;
            }
            finite.push(0.0);
            self.count += 1;
            self.first.get_or_insert((row_idx, column));
        }
    }
}

/// What a conversion met. Blocks are counted by `amax_block / (6 * gs)`, the block scale before it is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// All blocks of 16.
    pub blocks: u64,
    /// Blocks above 448 ([`SATURATED_ABOVE`], to be exact): their largest values were cut.
    pub saturated_blocks: u64,
    /// Blocks below 2^-6 that are not all zero: E4M3 has fewer than four bits left for their scale, or none.
    pub underflowing_blocks: u64,
    /// Those among them whose scale was rounded to zero, and with it the block.
    pub vanished_blocks: u64,
    /// NaN and infinities.
    pub non_finite: NonFinite,
}

impl Counters {
    /// What a runner should say about the scale, if anything: too small beyond 1 % of saturated blocks, too large
    /// beyond 50 % of underflowing ones. (Large outliers make a few blocks of a token underflow under any policy.)
    pub fn warning(&self) -> Option<ScaleWarning> {
        let share = |blocks: u64| blocks as f64 / self.blocks.max(1) as f64;
        let (saturated, underflowing) = (share(self.saturated_blocks), share(self.underflowing_blocks));
        if saturated > SATURATED_SHARE {
            return Some(ScaleWarning::TooSmall { percent: 100.0 * saturated });
        }
        (underflowing > UNDERFLOWING_SHARE).then_some(ScaleWarning::TooLarge { percent: 100.0 * underflowing })
    }
}

/// A scale that does not fit the activations that it met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScaleWarning {
    /// Values beyond `6 * 448 * scale` were cut.
    TooSmall {
        /// Saturated blocks.
        percent: f64,
    },
    /// Block scales fell below what E4M3 holds well.
    TooLarge {
        /// Underflowing blocks.
        percent: f64,
    },
}

impl ScaleWarning {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "use the per-token policy, or check whether the checkpoint's scale is a multiplier (ModelOpt) or a divisor \
         (compressed-tensors)"
    }
}

impl std::fmt::Display for ScaleWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooSmall { percent } => {
                write!(f, "activation scale too small: {percent:.1} % of blocks saturate and lose their largest values")
            }
            Self::TooLarge { percent } => {
                write!(f, "activation scale too large: {percent:.1} % of blocks underflow and lose precision or vanish")
            }
        }
    }
}

/// Tokens in NVFP4.
#[derive(Clone, Debug, PartialEq)]
pub struct Nvfp4Activations {
    /// Tokens.
    pub m: usize,
    /// Values of a token.
    pub k: usize,
    /// `[m, k / 2]`, low nibble first.
    pub codes: Vec<u8>,
    /// `[m, k / 16]`, E4M3, never NaN, never negative.
    pub scales: Vec<u8>,
    /// `[m]`: multiplies every value of the row; all equal but for [`ScalePolicy::PerToken`].
    pub row_scales: Vec<f32>,
    /// What the conversion met.
    pub counters: Counters,
}

impl Nvfp4Activations {
    /// The values `[m, k]`: `(e2m1 * e4m3) * row_scale`, the first product exact.
    pub fn decode(&self) -> Vec<f32> {
        let value = |idx: usize| {
            let scale = e4m3::decode(self.scales[idx / nvfp4::GROUP]);
            e2m1::decode(e2m1::code_at(&self.codes, idx)) * scale * self.row_scales[idx / self.k]
        };
        (0..self.m * self.k).map(value).collect()
    }

    /// The block scales in the 128x4 layout of [`scales`], padding zero.
    pub fn swizzled_scales(&self) -> Vec<u8> {
        scales::swizzle(&self.scales, self.m, self.k / nvfp4::GROUP)
            .expect("the quantiser made one scale for each block")
    }
}

/// Quantises activations `[m, k]` to NVFP4 under `policy`; the head of this module has the order of operations.
///
/// Dynamic scales are `gs = max(amax, 1e-30) / 2688`, amax over the row or over all rows.
///
/// # Errors
/// [`ShapeError`] if `k` is no multiple of 16 or `x` is not `[m, k]`.
pub fn quantize_activations(
    x: &[f32],
    m: usize,
    k: usize,
    policy: ScalePolicy,
) -> Result<Nvfp4Activations, ShapeError> {
    Shape { rows: m, k }.whole_blocks(WeightFormat::Nvfp4)?.holds("values", m * k, x.len())?;
    let mut counters = Counters { blocks: (m * k / nvfp4::GROUP) as u64, ..Counters::default() };
    let dynamic = |values: &[f32]| nvfp4::amax(values).max(AMAX_FLOOR) / nvfp4::RANGE;
    let shared = match policy {
        ScalePolicy::PerToken => None,
        ScalePolicy::PerTensor => {
            let finite: Vec<f32> = x.iter().copied().filter(|value| value.is_finite()).collect();
            Some(dynamic(&finite))
        }
        ScalePolicy::Checkpoint(scale) | ScalePolicy::Warmup(scale) | ScalePolicy::Fixed(scale) => Some(scale.value()),
    };
    let mut codes = Vec::with_capacity(m * k / 2);
    let mut block_scales = Vec::with_capacity(m * k / nvfp4::GROUP);
    let mut row_scales = Vec::with_capacity(m);
    let mut finite = Vec::with_capacity(k);
    for row in 0..m {
        counters.non_finite.replace(row, &x[row * k..][..k], &mut finite);
        let row_scale = shared.unwrap_or_else(|| dynamic(&finite));
        row_scales.push(row_scale);
        for block in finite.chunks_exact(nvfp4::GROUP) {
            block_scales.push(quantize_block(block, row_scale, &mut codes, &mut counters));
        }
    }
    Ok(Nvfp4Activations { m, k, codes, scales: block_scales, row_scales, counters })
}

/// Appends the codes of one finite block, counts it and gives its scale.
fn quantize_block(block: &[f32], row_scale: f32, codes: &mut Vec<u8>, counters: &mut Counters) -> u8 {
    let amax = nvfp4::amax(block);
    let wanted = amax / (e2m1::MAX * row_scale);
    let scale = e4m3::encode(wanted);
    counters.saturated_blocks += u64::from(wanted > SATURATED_ABOVE);
    counters.underflowing_blocks += u64::from(amax > 0.0 && wanted < e4m3::MIN_NORMAL);
    counters.vanished_blocks += u64::from(amax > 0.0 && scale == 0);
    if scale == 0 {
        codes.extend([0; nvfp4::GROUP / 2]);
        return scale;
    }
    let divisor = e4m3::decode(scale) * row_scale;
    let code = |value: f32| e2m1::encode(value / divisor);
    codes.extend(block.chunks_exact(2).map(|pair| e2m1::pack(code(pair[0]), code(pair[1]))));
    scale
}

/// The least amax that a dynamic scale is made from: far above subnormals, below any activation that matters.
pub const AMAX_FLOOR: f32 = 1e-30;

/// Above this block scale a block counts as saturated: 448 + 2^-12.
///
/// Three roundings lie between an amax and `amax / (6 * (amax / 2688))`, which therefore may exceed 448 by 1e-4. An
/// activation that equals the calibrated amax loses nothing and must not be counted.
pub const SATURATED_ABOVE: f32 = e4m3::MAX + 1.0 / 4096.0;

/// Share of saturated blocks above which the scale is too small.
const SATURATED_SHARE: f64 = 0.01;

/// Share of underflowing blocks above which the scale is too large.
const UNDERFLOWING_SHARE: f64 = 0.5;
