//! Bits: device code against `quant`, and the GPU's reference against the CPU's.

use tilekiln::check;
use tilekiln::device::Buffer;
use tilekiln::kernels::{self, SCAN_RANGE_START};
use tilekiln::problem::Problem;
use tilekiln::quant::{
    self, Activations, ExponentRange, RowOrder, ScalePolicy, SourceMatrix, WeightFormat, bf16, e4m3, fp8, math, mxfp4,
    nvfp4, scales,
};
use tilekiln::tuner::Live;

use crate::context::{Case, Context, Failure, sample};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("bits swiglu", swiglu_bits),
        case("bits quantise nvfp4", |context| quantise_bits(context, WeightFormat::Nvfp4)),
        case("bits quantise fp8", |context| quantise_bits(context, WeightFormat::Fp8)),
        case("bits quantise tiles", quantise_family),
        case("bits reference fp8", rounded_rows_bits),
        case("bits parameters", parameter_sizes),
    ];
    for format in WeightFormat::ALL {
        let name = format!("bits pack {format}");
        cases.push(Case { name, run: Box::new(move |context| pack_bits(context, format)) });
        for activations in [Activations::A16, Activations::A8] {
            let name = format!("bits reference {format} {activations}");
            cases.push(Case { name, run: Box::new(move |context| reference_is_right(context, format, activations)) });
        }
    }
    cases
}

fn case(name: &str, run: fn(&mut Context) -> Result<usize, Failure>) -> Case {
    Case { name: name.to_string(), run: Box::new(run) }
}

/// Elementary functions on values of every size, NaN and infinities among them.
fn swiglu_bits(context: &mut Context) -> Result<usize, Failure> {
    let mut values: Vec<f32> = (0..=u16::MAX).map(bf16::decode).collect();
    values.extend((0..100_000).map(|step| (step as f32 - 50_000.0) * 3.7e-4));
    let up: Vec<f32> = values.iter().rev().copied().collect();
    let (gate_at, up_at) = (context.buffer(&values)?, context.buffer(&up)?);
    let out = Buffer::zeros(&context.gpu, 4 * values.len())?;
    let limit = 10.0f32;
    let mut words = [
        1,
        0,
        0,
        0,
        0,
        gate_at.pointer(),
        up_at.pointer(),
        out.pointer(),
        values.len() as u64,
        u64::from(limit.to_bits()),
    ];
    context.run_tool(&kernels::probe(WeightFormat::Bf16), 64, &mut words)?;
    let found: Vec<f32> = out.download(values.len())?;
    for ((&gate, &up), &found) in values.iter().zip(&up).zip(&found) {
        let expected = math::swiglu(gate, up, limit);
        if found.to_bits() != expected.to_bits() && !(found.is_nan() && expected.is_nan()) {
            return Err(format!("swiglu({gate:e}, {up:e}) is {found:e}, expected {expected:e}").into());
        }
    }
    Ok(values.len())
}

/// A checkpoint matrix with every code, scales over the whole range, zero blocks.
struct Raw {
    codes: Vec<u8>,
    scales: Vec<u8>,
    n: usize,
    k: usize,
}

impl Raw {
    fn new(format: WeightFormat, n: usize, k: usize, order: RowOrder) -> Self {
        let mix = |idx: usize| (idx as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        let half_grid = if order == RowOrder::GateUp { 2 * (n / 2).div_ceil(128) } else { n.div_ceil(128) };
        let (code_bytes, scale_count) = match format {
            WeightFormat::Nvfp4 => (n * k / 2, n * k / 16),
            WeightFormat::Mxfp4 => (n * k / 2, n * k / 32),
            WeightFormat::Fp8 => (n * k, half_grid * k.div_ceil(128)),
            WeightFormat::Bf16 => (2 * n * k, 0),
        };
        let mut codes: Vec<u8> = (0..code_bytes).map(|idx| mix(idx) as u8).collect();
        match format {
            // NaN codes are refused before packing.
            WeightFormat::Fp8 => codes.iter_mut().for_each(|code| *code -= u8::from(*code & 0x7F == 0x7F)),
            WeightFormat::Bf16 => codes.iter_mut().skip(1).step_by(2).for_each(|high| *high &= 0xBF),
            // A group of zeros now and then.
            _ => codes.chunks_mut(16).step_by(7).for_each(|group| group.fill(0x80)),
        }
        let scales = (0..scale_count).map(|idx| match format {
            WeightFormat::Nvfp4 => (mix(idx) % 0x7F) as u8,
            _ => 90 + (mix(idx) % 100) as u8,
        });
        Self { scales: scales.collect(), codes, n, k }
    }

    fn source(&self, format: WeightFormat) -> (SourceMatrix<'_>, Vec<u16>) {
        let Self { codes, scales, n, k } = self;
        let values: Vec<u16> = codes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        let (n, k) = (*n, *k);
        let source = match format {
            WeightFormat::Nvfp4 => SourceMatrix::Nvfp4 { n, k, codes, scales },
            WeightFormat::Mxfp4 => SourceMatrix::Mxfp4 { n, k, codes, scales },
            WeightFormat::Fp8 | WeightFormat::Bf16 => SourceMatrix::Fp8 { n, k, codes, scales },
        };
        (source, values)
    }
}

/// The pack kernels against `quant::pack`, and what device code decodes from the result against `unpack_operand`.
fn pack_bits(context: &mut Context, format: WeightFormat) -> Result<usize, Failure> {
    let shapes = [(64, 128), (100, 224), (16, 32), (200, 1056), (320, 512)];
    let orders = [RowOrder::Plain, RowOrder::GateUp];
    let mut checked = 0;
    for ((n, k), activations) in
        shapes.into_iter().flat_map(|shape| [(shape, Activations::A16), (shape, Activations::A8)])
    {
        for order in orders {
            if order == RowOrder::GateUp && n % 16 != 0 {
                continue;
            }
            let mut raw = Raw::new(format, n, k, order);
            if (format, activations) == (WeightFormat::Mxfp4, Activations::A8) {
                // Within the 11 binades that FP8 operands hold.
                raw.scales.iter_mut().for_each(|scale| *scale = 110 + *scale % 12);
            }
            let (source, values) = raw.source(format);
            let source =
                if format == WeightFormat::Bf16 { SourceMatrix::Bf16 { n, k, values: &values } } else { source };
            let expected = quant::pack_for(activations, &source, order)
                .map_err(|error| format!("{format} {activations} {n}x{k}: {error}"))?;
            let packed = pack_on_gpu(context, &raw, order, &expected)?;
            if activations == Activations::A16 {
                show_operands(context, format, &packed, &expected)?;
            }
            checked += expected.bytes.len();
        }
    }
    Ok(checked)
}

fn pack_on_gpu(
    context: &Context,
    raw: &Raw,
    order: RowOrder,
    expected: &quant::PackedWeights,
) -> Result<Buffer, Failure> {
    let (layout, format) = (expected.layout, expected.layout.format());
    let (codes, scales) = (context.buffer(&raw.codes)?, context.buffer(&raw.scales)?);
    let in_use = Buffer::zeros(&context.gpu, raw.scales.len().max(1))?;
    let range = context.buffer(&SCAN_RANGE_START)?;
    let is_gate_up = order == RowOrder::GateUp;
    let half_rows = if is_gate_up { raw.n / 2 } else { 0 };
    let n_blocks = if format == WeightFormat::Bf16 { raw.n * raw.k } else { raw.scales.len() };
    let mut words = [
        codes.pointer(),
        scales.pointer(),
        in_use.pointer(),
        range.pointer(),
        n_blocks as u64,
        raw.n as u64,
        raw.k as u64,
        half_rows as u64,
    ];
    context.run_tool(&kernels::pack_scan(format), 64, &mut words)?;
    let found: Vec<i32> = range.download(4)?;
    if found[2] != 0 {
        return Err(format!("{format} {}x{}: {} faults in a matrix without any", raw.n, raw.k, found[2]).into());
    }
    let range = (found[0] >= 0).then(|| ExponentRange { largest: found[0] as u8, smallest: found[1] as u8 });
    let rebase = quant::rebase(layout, range).map_err(|error| error.to_string())?;
    let packed = Buffer::new(&context.gpu, layout.packed_bytes(raw.n, raw.k))?;
    packed.set_bytes(0xEE)?;
    let units = layout.scales_bytes() + layout.codes_bytes() / 16;
    let blocks = (raw.n.div_ceil(64) * layout.slabs(raw.k) * units).div_ceil(256);
    let mut words = [
        codes.pointer(),
        scales.pointer(),
        in_use.pointer(),
        packed.pointer(),
        raw.n as u64,
        raw.k as u64,
        u64::from(is_gate_up),
        u64::from(rebase.shift as u32),
    ];
    context.run_tool(&kernels::pack(layout), blocks as u32, &mut words)?;
    let found: Vec<u8> = packed.download(expected.bytes.len())?;
    if let Some(at) = found.iter().zip(&expected.bytes).position(|(a, b)| a != b) {
        let (found, expected) = (found[at], expected.bytes[at]);
        return Err(
            format!("{layout} {}x{} {order:?}: byte {at} is {found:#x}, expected {expected:#x}", raw.n, raw.k).into()
        );
    }
    Ok(packed)
}

fn show_operands(
    context: &Context,
    format: WeightFormat,
    packed: &Buffer,
    expected: &quant::PackedWeights,
) -> Result<(), Failure> {
    let layout = expected.layout;
    let (rows, k) = (layout.padded_rows(expected.n), layout.padded_k(expected.k));
    let operands = Buffer::zeros(&context.gpu, 2 * rows * k)?;
    let slabs = layout.slabs(expected.k);
    let mut words = [0, packed.pointer(), operands.pointer(), (rows / 16) as u64, slabs as u64, 0, 0, 0, 0, 0];
    context.run_tool(&kernels::probe(format), 64, &mut words)?;
    let found: Vec<u16> = operands.download(rows * k)?;
    for row in 0..rows {
        for at in 0..k {
            let value = bf16::decode(found[row * k + at]);
            let operand = quant::unpack_operand(expected, row, at);
            // A zero may have either sign.
            if value.to_bits() != operand.to_bits() && !(value == 0.0 && operand == 0.0) {
                return Err(format!("{format}: operand [{row}, {at}] is {value:e}, expected {operand:e}").into());
            }
        }
    }
    Ok(())
}

/// BF16 tokens with zeros, tiny and huge values, NaN and infinities.
fn awkward_tokens(rows: usize, k: usize) -> Vec<u16> {
    let mut x: Vec<u16> = (0..rows * k).map(|idx| (idx as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) as u16).collect();
    for (row, values) in x.chunks_mut(k).enumerate() {
        match row {
            0 => values.fill(0),
            1 => values.iter_mut().for_each(|value| *value &= 0x80FF),
            2 => {}
            3 => values[5..21].fill(0x8000),
            _ => values.iter_mut().for_each(|value| *value = 0x3C00 | *value & 0x83FF),
        }
    }
    x
}

/// What a conversion must give.
struct Converted {
    codes: Vec<u8>,
    block_scales: Vec<u8>,
    row_scales: Vec<u8>,
    non_finite: quant::NonFinite,
}

impl Converted {
    fn of(values: &[f32], [m, k]: [usize; 2], to: WeightFormat, is_tiled: bool) -> Result<Self, String> {
        let bytes = |scales: &[f32]| scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        if to == WeightFormat::Fp8 {
            let made = fp8::quantize_activations(values, m, k).map_err(|error| error.to_string())?;
            let (row_scales, non_finite) = (bytes(&made.row_scales), made.non_finite);
            let codes = quant::a8::in_operand_order(&made.codes);
            return Ok(Self { codes, block_scales: Vec::new(), row_scales, non_finite });
        }
        let made =
            quant::quantize_activations(values, m, k, ScalePolicy::PerToken).map_err(|error| error.to_string())?;
        let block_scales = if is_tiled { made.swizzled_scales() } else { made.scales.clone() };
        let (row_scales, non_finite) = (bytes(&made.row_scales), made.counters.non_finite);
        Ok(Self { codes: made.codes, block_scales, row_scales, non_finite })
    }
}

/// Awkward tokens, a k that fills no tile of scales, m below the bucket.
fn quantise_bits(context: &mut Context, to: WeightFormat) -> Result<usize, Failure> {
    let (rows, k, m) = (140, 208, 131);
    let x = awkward_tokens(rows, k);
    let values: Vec<f32> = x.iter().map(|&bits| bf16::decode(bits)).collect();
    let values = &values[..m * k];
    let is_nvfp4 = to == WeightFormat::Nvfp4;
    let columns = k / 16;
    let tokens = context.buffer(&x)?;
    let device_m = context.buffer(&[m as i32])?;
    for is_tiled in [false, true] {
        if is_tiled && !is_nvfp4 {
            continue;
        }
        let codes = Buffer::new(&context.gpu, rows * k)?;
        let block_scales = Buffer::new(&context.gpu, scales::padded_bytes(256, columns))?;
        let row_scales = Buffer::new(&context.gpu, 4 * rows)?;
        let counters = Buffer::zeros(&context.gpu, 12)?;
        for buffer in [&codes, &block_scales, &row_scales] {
            buffer.set_bytes(0xFF)?;
        }
        let mut words = [
            tokens.pointer(),
            codes.pointer(),
            block_scales.pointer(),
            row_scales.pointer(),
            counters.pointer(),
            device_m.pointer(),
            k as u64,
            rows as u64,
            k as u64,
            u64::from(is_tiled),
        ];
        let problem: Problem = format!("quantise {to} k{k} m{rows}").parse().map_err(|error| format!("{error}"))?;
        let spec = context.gpu.spec().clone();
        let family = kernels::family("quantise").ok_or_else(|| "no family `quantise`".to_string())?;
        // 256 threads: what `run_tool` launches with.
        let tile = family.default_tile(&problem, &spec).with("threads", 256);
        let plan = family.plan(&problem, &tile, &spec);
        let blocks = if is_tiled { 256 } else { rows as u32 };
        context.run_tool(&plan.launches[0].kernel, blocks, &mut words)?;
        let expected = Converted::of(values, [m, k], to, is_tiled)?;
        same("codes", &codes.download::<u8>(expected.codes.len())?, &expected.codes)?;
        same("block scales", &block_scales.download::<u8>(expected.block_scales.len())?, &expected.block_scales)?;
        same("row scales", &row_scales.download::<u8>(4 * m)?, &expected.row_scales)?;
        let (found, non_finite): (Vec<u32>, _) = (counters.download(3)?, expected.non_finite);
        let first = non_finite.first.map_or(0, |(row, column)| !((row * k + column) as u32));
        if u64::from(found[1]) != non_finite.count || found[2] != first {
            return Err(format!("counters are {found:?}, expected {non_finite:?}").into());
        }
    }
    Ok(m * k)
}

fn same(what: &str, found: &[u8], expected: &[u8]) -> Result<(), Failure> {
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!("{what}: byte {at} is {:#x}, expected {:#x}", found[at], expected[at]).into()),
    }
}

/// Every tile of the conversions, through the path that tuning takes.
fn quantise_family(context: &mut Context) -> Result<usize, Failure> {
    let mut checked = 0;
    for text in ["quantise nvfp4 k4096 m5", "quantise fp8 k4096 m5", "quantise nvfp4 k7168 m40"] {
        let problem: Problem = text.parse().map_err(|error| format!("{error}"))?;
        let spec = context.gpu.spec().clone();
        for family in kernels::serving(&problem, spec.arch) {
            let tiles = sample(family, &problem, &spec, usize::MAX);
            let mut live = Live::open(context.gpu.clone(), context.jit.clone(), &problem, &[], 5)?;
            for tile in &tiles {
                live.prepare(0, &problem, tile)?;
                checked += 1;
            }
        }
    }
    Ok(checked)
}

/// What the reference of experts makes of rows is what `quant::fp8` makes of them.
fn rounded_rows_bits(context: &mut Context) -> Result<usize, Failure> {
    let (rows, k) = (9, 336);
    let finite = |bits: u16| if bf16::decode(bits).is_finite() { bits } else { bits & 0x80FF };
    let x: Vec<u16> = awkward_tokens(rows, k).into_iter().map(finite).collect();
    let values: Vec<f32> = x.iter().map(|&bits| bf16::decode(bits)).collect();
    let from = context.buffer(&x)?;
    let (rounded, scales) = (Buffer::new(&context.gpu, 2 * rows * k)?, Buffer::new(&context.gpu, 4 * rows)?);
    let mut words = [from.pointer(), rounded.pointer(), scales.pointer(), rows as u64, k as u64];
    context.run_tool(&kernels::reference_fp8(), 4, &mut words)?;
    let expected = fp8::quantize_activations(&values, rows, k).map_err(|error| error.to_string())?;
    let codes: Vec<u8> =
        rounded.download::<u16>(rows * k)?.into_iter().map(|bits| e4m3::encode(bf16::decode(bits))).collect();
    same("codes", &codes, &expected.codes)?;
    let bytes = |scales: &[f32]| scales.iter().flat_map(|scale| scale.to_le_bytes()).collect::<Vec<u8>>();
    same("scales", &bytes(&scales.download(rows)?), &bytes(&expected.row_scales))?;
    Ok(rows * k)
}

/// The parameters that families list have the sizes that the driver says the kernels have.
fn parameter_sizes(context: &mut Context) -> Result<usize, Failure> {
    use tilekiln::kernels::Param;
    let size_of = |param: &Param| match param {
        Param::Tokens | Param::Int(_) | Param::Limit | Param::ExpertOffset => 4,
        Param::Segments => 32,
        Param::Box(_) => 128,
        _ => 8,
    };
    let mut checked = 0;
    let texts = [
        "nvfp4 256x256 m1",
        "nvfp4 256x256 m64",
        "nvfp4 8192x256 m512",
        "nvfp4 8192x256 a8 m512",
        "nvfp4 256x256 a8 m64",
        "moe nvfp4 8 top2 256x256 m4",
        "moe nvfp4 8 top2 256x256 a8 m4",
        "quantise nvfp4 k256 m1",
        "hc f32 24x512 m1",
        "hc bf16 4x512 first m64",
    ];
    for text in texts {
        let problem: Problem = text.parse().map_err(|error| format!("{error}"))?;
        let spec = context.gpu.spec().clone();
        for family in kernels::serving(&problem, spec.arch) {
            let plan = family.plan(&problem, &family.default_tile(&problem, &spec), &spec);
            for launch in &plan.launches {
                let source =
                    tilekiln::codegen::render(&launch.kernel, spec.arch, &spec.target).map_err(|e| e.to_string())?;
                let (cubin, _) = context.jit.compile(&source).map_err(|error| error.to_string())?;
                let kernel = tilekiln::device::Kernel::load(&context.gpu, &cubin, launch.smem_bytes)?;
                let found = kernel.param_sizes()?;
                let expected: Vec<usize> = launch.params.iter().map(size_of).collect();
                if found != expected {
                    return Err(
                        format!("{}: parameters have {found:?} bytes, listed {expected:?}", kernel.entry()).into()
                    );
                }
                checked += found.len();
            }
        }
    }
    Ok(checked)
}

/// Scales of moderate size for `raw`, and its weights as f32: two groups of `n` rows, in FP8 with a grid each.
fn moderate(format: WeightFormat, raw: &Raw, [n, k]: [usize; 2]) -> Result<(Vec<u8>, Vec<f32>), String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let grids: Vec<u8> = match format {
        WeightFormat::Fp8 => (118..122).collect(),
        WeightFormat::Mxfp4 => raw.scales.iter().map(|scale| 110 + scale % 12).collect(),
        WeightFormat::Nvfp4 => raw.scales.iter().map(|scale| 0x28 + scale % 0x20).collect(),
        WeightFormat::Bf16 => Vec::new(),
    };
    let weights = match format {
        WeightFormat::Nvfp4 => nvfp4::decode(2 * n, k, &raw.codes, &grids, 1.0).map_err(|error| words(&error))?,
        WeightFormat::Mxfp4 => mxfp4::decode(2 * n, k, &raw.codes, &grids).map_err(|error| words(&error))?,
        WeightFormat::Fp8 => {
            let group = |g: usize| fp8::decode(n, k, &raw.codes[g * n * k..][..n * k], &grids[g * 2..][..2]);
            [group(0).map_err(|error| words(&error))?, group(1).map_err(|error| words(&error))?].concat()
        }
        WeightFormat::Bf16 => {
            raw.codes.chunks_exact(2).map(|b| bf16::decode(u16::from_le_bytes([b[0], b[1]]))).collect()
        }
    };
    Ok((grids, weights))
}

/// Tokens as the reference takes them, and their values.
fn reference_tokens(activations: Activations, row_scales: &[f32], columns: usize) -> (Vec<u8>, Vec<f32>) {
    let value = |idx: usize| ((idx * 37) % 101) as f32 / 50.0 - 1.0;
    let count = row_scales.len() * columns;
    match activations {
        Activations::A16 => {
            let bits: Vec<u16> = (0..count).map(|idx| bf16::encode(value(idx))).collect();
            let bytes = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            (bytes, bits.into_iter().map(bf16::decode).collect())
        }
        Activations::A8 => {
            let codes: Vec<u8> = (0..count).map(|idx| e4m3::encode(value(idx))).collect();
            let decoded = |(idx, &code): (usize, &u8)| e4m3::decode(code) * row_scales[idx / columns];
            (quant::a8::in_operand_order(&codes), codes.iter().enumerate().map(decoded).collect())
        }
    }
}

/// A candidate that agrees with the GPU's reference also agrees with the CPU's: so the reference is right.
fn reference_is_right(context: &mut Context, format: WeightFormat, activations: Activations) -> Result<usize, Failure> {
    let (groups, n, k, m) = (2, 48, 160, 5);
    let count = groups * n * k;
    let raw = Raw::new(format, groups * n, k, RowOrder::Plain);
    let (grids, weights) = moderate(format, &raw, [n, k])?;
    let alphas = [0.5f32, 0.25, 2.0, 1.0];
    let row_scales: Vec<f32> = (0..m).map(|token| 0.5 + token as f32).collect();
    let (bytes, decoded) = reference_tokens(activations, &row_scales, groups * k);
    let expected = check::dense(&weights, &decoded, &alphas, [groups, n, k]);
    let (codes, scale_bytes, a) = (context.buffer(&raw.codes)?, context.buffer(&grids)?, context.buffer(&bytes)?);
    let row_scales = context.buffer(&row_scales)?;
    let alpha_buffer = context.buffer(&alphas)?;
    let result = Buffer::zeros(&context.gpu, 4 * m * groups * n)?;
    let spec = context.gpu.spec().clone();
    let source = tilekiln::codegen::render(&kernels::reference(format, activations), spec.arch, &spec.target)
        .map_err(|e| e.to_string())?;
    let (cubin, _) = context.jit.compile(&source).map_err(|error| error.to_string())?;
    let kernel = tilekiln::device::Kernel::load(&context.gpu, &cubin, 0)?;
    let mut words = [
        codes.pointer(),
        scale_bytes.pointer(),
        a.pointer(),
        0,
        0,
        result.pointer(),
        (groups * k) as u64,
        (groups * n) as u64,
        (raw.codes.len() / groups) as u64,
        (grids.len() / groups) as u64,
        m as u64,
        n as u64,
        k as u64,
        0,
        alpha_buffer.pointer(),
        2,
        if activations == Activations::A8 { row_scales.pointer() } else { 0 },
    ];
    let mut pointers: Vec<_> = words.iter_mut().map(|word| (word as *mut u64).cast()).collect();
    let geometry = tilekiln::device::Geometry {
        grid: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, groups as u32],
        threads: 256,
        smem_bytes: 0,
        is_dependent: false,
    };
    // SAFETY: the values are those that `kernels::reference` documents, and the buffers outlive the wait below.
    unsafe { kernel.launch(&geometry, &mut pointers, context.stream.raw())? };
    context.stream.synchronize()?;
    let found: Vec<f32> = result.download(expected.len())?;
    for (idx, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
        // f32 keeps 2^-24 of a sum; the CPU's f64 sum may differ from the GPU's in its last bits.
        if (f64::from(found) - expected).abs() > 1e-7 * expected.abs() + 1e-300 + 1e-12 * count as f64 * expected.abs()
        {
            return Err(format!("{format}: element {idx} is {found:e}, expected {expected:e}").into());
        }
    }
    Ok(expected.len())
}
