//! FP8 operands: the very operations of `lib/format_a8.cuh`, executed on packed bytes, against `unpack_operand`, and
//! those of `lib/format_a8_bf16.cuh` against the operands of `a16`; what rounding NVFP4 weights costs; and tokens in
//! the order of operands.

use tilekiln::check;
use tilekiln::quant::a8::{self, K_AT};
use tilekiln::quant::{
    Activations, PackedWeights, RowOrder, SourceMatrix, WeightFormat, bf16, e2m1, e4m3, fp8, nvfp4, pack_for,
    quantize_weights, unpack_operand,
};

/// PTX `prmt` without the sign mode, which the kernels mask away.
fn select_bytes(low: u32, high: u32, selector: u32) -> u32 {
    let bytes = u64::from(high) << 32 | u64::from(low);
    (0..4).fold(0, |word, i| {
        let nibble = selector >> (4 * i) & 0xF;
        assert!(nibble < 8, "a nibble with bit 3 would spread a sign");
        word | ((bytes >> (8 * nibble) & 0xFF) as u32) << (8 * i)
    })
}

/// `look_up` of `lib/format_a8.cuh`.
fn look_up(word: u32, upper: [u32; 2], lower: [u32; 2]) -> [u32; 2] {
    let low = word & 0x7777_7777;
    let high = low >> 16;
    // The device's prmt reads the lower half of its selector only.
    let picked = |table: [u32; 2], word: u32| select_bytes(table[0], table[1], word & 0xFFFF);
    let u = select_bytes(picked(upper, low), picked(upper, high), 0x7531);
    let l = select_bytes(picked(lower, low), picked(lower, high), 0x6420);
    [word & 0x8080_8080 | u, word << 4 & 0x8080_8080 | l]
}

fn table_of_e5m3(byte: u8) -> [u32; 2] {
    let scale = f32::from_bits((u32::from(byte) << 20).wrapping_add(105 << 23));
    let code = |i: u8| u32::from(e4m3::encode(e2m1::decode(i) * scale * (1.0 / 6.0)));
    [0, 4].map(|first| (0..4).fold(0, |word, i| word | code(first + i as u8) << (8 * i)))
}

fn table_of_exponent(byte: u8) -> [u32; 2] {
    let of = |factor: u32, at_247: u32| {
        u32::from(byte).wrapping_mul(factor).wrapping_add(at_247.wrapping_sub(247u32.wrapping_mul(factor)))
    };
    [of(0x0808_0800, 0x3C38_3000), of(0x0808_0808, 0x4C48_4440)]
}

/// Registers of one lane for one step of 32 k: rows g, g + 8, g, g + 8.
fn decode(packed: &PackedWeights, row: usize, c: usize, k: usize) -> [u32; 4] {
    let layout = packed.layout;
    let slab = layout.slab_offset(row, k, layout.slabs(packed.k));
    let first = slab + layout.code_position(row, k + 2 * c).byte / 16 * 16;
    let words: Vec<u32> =
        packed.bytes[first..first + 16].chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if layout.format() == WeightFormat::Fp8 {
        let sorted = |first: usize, selector| select_bytes(words[first], words[first + 1], selector);
        return [sorted(0, 0x3715), sorted(0, 0x2604), sorted(2, 0x3715), sorted(2, 0x2604)];
    }
    let scales = |k: usize| [row, row + 8].map(|row| packed.scale(row, k).unwrap());
    let half = |h: usize| {
        let tables = scales(k + 16 * h).map(match layout.format() {
            WeightFormat::Nvfp4 => table_of_e5m3,
            _ => table_of_exponent,
        });
        look_up(words[k % 64 / 16 + h], tables[0], tables[1])
    };
    let [first, second] = [half(0), half(1)];
    [first[0], first[1], second[0], second[1]]
}

/// Decodes all of `packed` as lanes do, and compares with `unpack_operand` through the order of tokens.
fn check(packed: &PackedWeights) {
    let layout = packed.layout;
    let (rows, row_k) = (layout.padded_rows(packed.n), layout.padded_k(packed.k));
    for (tile, g, c) in (0..rows / 16 * 32).map(|idx| (idx / 32, idx / 4 % 8, idx % 4)) {
        for k in (0..row_k).step_by(32) {
            let row = tile * 16 + g;
            for (register, word) in decode(packed, row, c, k).into_iter().enumerate() {
                let row = row + register % 2 * 8;
                for (i, byte) in word.to_le_bytes().into_iter().enumerate() {
                    let k = k + register / 2 * 16 + K_AT[4 * c + i];
                    let factor = match (layout.format(), packed.scale(row, k)) {
                        (WeightFormat::Fp8, Some(0)) => 0.0,
                        (WeightFormat::Fp8, Some(scale)) => 2f32.powi(i32::from(scale) - 247),
                        _ => 1.0,
                    };
                    let (found, expected) = (e4m3::decode(byte) * factor, unpack_operand(packed, row, k));
                    assert_eq!(found.to_bits(), expected.to_bits(), "{layout} row {row} k {k}");
                }
            }
        }
    }
}

/// Registers of one lane for one step of 16 k before scales: `pairs_of_nibbles`, or `high_bytes` and `low_bytes`.
fn lifted(packed: &PackedWeights, row: usize, c: usize, k: usize) -> [u32; 4] {
    let layout = packed.layout;
    let position = layout.code_position(row, k + 2 * c).byte;
    let at = layout.slab_offset(row, k, layout.slabs(packed.k)) + position / 16 * 16;
    let word = |i: usize| u32::from_le_bytes(packed.bytes[at + 4 * i..][..4].try_into().unwrap());
    if layout.format() == WeightFormat::Fp8 {
        let high = |word: u32| word & 0x8000_8000 | word >> 4 & 0x07F0_07F0;
        let low = |word: u32| word << 8 & 0x8000_8000 | word << 4 & 0x07F0_07F0;
        let [first, second] = [0, 1].map(|i| word(2 * (k % 32 / 16) + i));
        return [high(first), low(first), high(second), low(second)];
    }
    let word = word(k % 64 / 16);
    [
        word & 0x8000_8000 | word >> 6 & 0x01C0_01C0,
        word << 4 & 0x8000_8000 | word >> 2 & 0x01C0_01C0,
        word << 8 & 0x8000_8000 | word << 2 & 0x01C0_01C0,
        word << 12 & 0x8000_8000 | word << 6 & 0x01C0_01C0,
    ]
}

/// Decodes all of `source` as packed for FP8 to BF16, as lanes do, and compares with the operands of `a16`;
/// `alpha_factor` is `kAlphaFactor`.
fn check_in_bf16(source: &SourceMatrix<'_>, alpha_factor: f32) {
    let [packed, exact] = [Activations::A8, Activations::A16].map(|a| pack_for(a, source, RowOrder::Plain).unwrap());
    assert_eq!(packed.alpha * alpha_factor, exact.alpha);
    let layout = packed.layout;
    let (rows, row_k) = (layout.padded_rows(packed.n), layout.padded_k(packed.k));
    for (tile, g, c) in (0..rows / 16 * 32).map(|idx| (idx / 32, idx / 4 % 8, idx % 4)) {
        for k in (0..row_k).step_by(16) {
            for (register, pair) in lifted(&packed, tile * 16 + g, c, k).into_iter().enumerate() {
                let row = tile * 16 + g + register % 2 * 8;
                let byte = packed.scale(row, k).unwrap();
                let scale = match layout.format() {
                    WeightFormat::Nvfp4 => (u16::from(byte) << 4) + 0x7000,
                    _ => u16::from(byte) << 7,
                };
                for (i, bits) in [pair as u16, (pair >> 16) as u16].into_iter().enumerate() {
                    let k = k + register / 2 * 8 + 2 * c + i;
                    let product = bf16::decode(bits) * bf16::decode(scale);
                    assert_eq!(product.to_bits(), unpack_operand(&exact, row, k).to_bits(), "{layout} row {row} k {k}");
                }
            }
        }
    }
}

#[test]
fn every_format_decodes_to_bf16_too_and_without_an_error() {
    let (n, k) = (127, 272);
    let nibbles: Vec<u8> = (0..n * k / 2).map(|idx| (idx * 37 % 256) as u8).collect();
    let e4m3_scales: Vec<u8> = (0..n * k / 16).map(|idx| (idx / (k / 16)) as u8).collect();
    check_in_bf16(&SourceMatrix::Nvfp4 { n, k, codes: &nibbles, scales: &e4m3_scales }, 128.0 / 6.0);
    let k = 288;
    let nibbles: Vec<u8> = (0..n * k / 2).map(|idx| (idx * 37 % 256) as u8).collect();
    for e_max in [11, 127, 254] {
        let scales: Vec<u8> = (0..n * k / 32).map(|idx| e_max - (idx % 12) as u8).collect();
        check_in_bf16(&SourceMatrix::Mxfp4 { n, k, codes: &nibbles, scales: &scales }, 64.0);
    }
    let codes: Vec<u8> =
        (0..n * k).map(|idx| (idx * 89 % 256) as u8).map(|b| if b & 0x7F == 0x7F { 0 } else { b }).collect();
    check_in_bf16(&SourceMatrix::Fp8 { n, k, codes: &codes, scales: &[120, 131, 122] }, 1.0);
}

#[test]
fn every_e4m3_value_is_a_bf16() {
    for byte in (0..=255u8).filter(|byte| byte & 0x7F != 0x7F) {
        // `pair_of_e4m3` of templates/lib/staged_rows.cuh: 2^120 is 0x7B80.
        let lifted = u16::from(byte & 0x80) << 8 | u16::from(byte & 0x7F) << 4;
        let value = bf16::decode(lifted) * bf16::decode(0x7B80);
        assert_eq!(value.to_bits(), e4m3::decode(byte).to_bits(), "{byte:#x}");
        assert_eq!(bf16::decode(bf16::encode(value)).to_bits(), value.to_bits(), "{byte:#x}");
    }
}

#[test]
fn nvfp4_decodes_every_code_under_every_scale() {
    let (n, k) = (127, 80);
    let codes: Vec<u8> =
        (0..n * k / 2).map(|idx| e2m1::pack((2 * idx % 16) as u8, ((2 * idx + 1) % 16) as u8)).collect();
    let scales: Vec<u8> = (0..n * k / 16).map(|idx| (idx / (k / 16)) as u8).collect();
    let source = SourceMatrix::Nvfp4 { n, k, codes: &codes, scales: &scales };
    let packed = pack_for(Activations::A8, &source, RowOrder::Plain).unwrap();
    assert_eq!((packed.alpha, packed.layout.id()), (6.0, "nvfp4-a8@1"));
    check(&packed);
}

#[test]
fn mxfp4_decodes_every_code_under_every_scale_exactly_or_refuses() {
    let k = 96;
    for e_max in [11, 100, 127, 254] {
        let scales: Vec<u8> = (e_max - 11..=e_max).flat_map(|scale| [scale; 3]).collect();
        let n = scales.len() / 3;
        let codes: Vec<u8> = (0..n * k / 2).map(|idx| idx as u8).collect();
        let source = SourceMatrix::Mxfp4 { n, k, codes: &codes, scales: &scales };
        let packed = pack_for(Activations::A8, &source, RowOrder::GateUp);
        assert_eq!(packed.is_ok(), n.is_multiple_of(16));
        let packed = pack_for(Activations::A8, &source, RowOrder::Plain).unwrap();
        check(&packed);
        for (row, at) in (0..n * k).map(|idx| (idx / k, idx % k)) {
            let weight = f64::from(e2m1::decode(e2m1::code_at(&codes, row * k + at)))
                * 2f64.powi(i32::from(scales[row * 3 + at / 32]) - 127);
            assert_eq!(f64::from(unpack_operand(&packed, row, at)) * f64::from(packed.alpha), weight);
        }
    }
    let wide = SourceMatrix::Mxfp4 { n: 2, k: 32, codes: &[0x22; 32], scales: &[100, 112] };
    assert_eq!(
        pack_for(Activations::A8, &wide, RowOrder::Plain).unwrap_err().to_string(),
        "expected the block scales of a tensor within 11 binades, found 12 (2^-27 to 2^-15)"
    );
}

#[test]
fn fp8_codes_are_sorted_by_row() {
    let (n, k) = (200, 272);
    let codes: Vec<u8> =
        (0..n * k).map(|idx| (idx * 89 % 251) as u8).map(|b| if b & 0x7F == 0x7F { 0 } else { b }).collect();
    let scales = [120, 121, 122, 118, 119, 125];
    let source = SourceMatrix::Fp8 { n, k, codes: &codes, scales: &scales };
    check(&pack_for(Activations::A8, &source, RowOrder::Plain).unwrap());
}

/// Normal deviates, the same on every run.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    (0..count).map(|_| ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) as f32).collect()
}

/// Relative L2 error of rounding `e2m1 * scale * prescale` to E4M3.
fn rounding_error(codes: &[u8], scales: &[u8], prescale: f64) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for idx in 0..2 * codes.len() {
        let exact = f64::from(e2m1::decode(e2m1::code_at(codes, idx))) * f64::from(e4m3::decode(scales[idx / 16]));
        let rounded = f64::from(e4m3::decode(e4m3::encode((exact * prescale) as f32))) / prescale;
        error += (rounded - exact).powi(2);
        size += exact.powi(2);
    }
    (error / size).sqrt()
}

#[test]
fn rounding_nvfp4_weights_stays_within_what_is_stated() {
    let (n, k) = (64, 4096);
    // Rows of one size, and rows of sizes eight binades apart: scales then reach down to 448 / 2^10.
    for spread in [0.0, 8.0] {
        let mut x = normal(n * k, 7);
        for (row, values) in x.chunks_mut(k).enumerate() {
            values.iter_mut().for_each(|value| *value *= 2f32.powf(-spread * row as f32 / n as f32));
        }
        let matrix = quantize_weights(&x, n, k).unwrap();
        let sixth = rounding_error(&matrix.codes, &matrix.scales, 1.0 / 6.0);
        let power = rounding_error(&matrix.codes, &matrix.scales, 1.0 / 8.0);
        println!("spread {spread}: {sixth:.5} with a third, {power:.5} with a power of two");
        assert!(sixth <= a8::NVFP4_ERROR, "{sixth}");
        assert!(power > sixth, "{power} {sixth}");
        // The same through packing.
        let source = SourceMatrix::Nvfp4 { n, k, codes: &matrix.codes, scales: &matrix.scales };
        let packed = pack_for(Activations::A8, &source, RowOrder::Plain).unwrap();
        let exact = nvfp4::decode(n, k, &matrix.codes, &matrix.scales, 1.0).unwrap();
        let (mut error, mut size) = (0.0, 0.0);
        for (idx, &weight) in exact.iter().enumerate() {
            let operand = f64::from(unpack_operand(&packed, idx / k, idx % k)) * f64::from(packed.alpha);
            error += (operand - f64::from(weight)).powi(2);
            size += f64::from(weight).powi(2);
        }
        assert!(((error / size).sqrt() - sixth).abs() < 1e-6);
    }
}

/// A product of FP8 tokens and rounded weights beside the same with exact weights and with exact both.
/// Two roundings to FP8 on the way, of tokens and of hidden rows, cost what one costs twice.
#[test]
fn experts_lose_what_two_roundings_cost() {
    let (hidden, inner, slots) = (256, 192, 4);
    let of = |values: Vec<f32>, k: usize| -> Vec<f32> { values.iter().map(|w| w / (k as f32).sqrt()).collect() };
    let gate_up: Vec<Vec<f32>> = (0..slots).map(|s| of(normal(2 * inner * hidden, 3 + s), hidden)).collect();
    let down: Vec<Vec<f32>> = (0..slots).map(|s| of(normal(hidden * inner, 31 + s), inner)).collect();
    let (mut error, mut size) = (0.0, 0.0);
    for seed in 0..6 {
        let token: Vec<f32> = normal(hidden, 101 + seed).into_iter().map(bf16::round).collect();
        let of =
            |activations| check::moe_block(&token, [&gate_up[..], &down[..]], &[0.4, 0.3, 0.2, 0.6], 10.0, activations);
        for (rounded, exact) in of(Activations::A8).iter().zip(of(Activations::A16)) {
            (error, size) = (error + (rounded - exact).powi(2), size + exact * exact);
        }
    }
    let relative = f64::sqrt(error / size);
    println!("FP8 tokens and hidden rows {relative:.5}");
    assert!((0.025..0.065).contains(&relative), "{relative}");
}

#[test]
fn rounded_weights_add_less_to_a_product_than_fp8_tokens_cost() {
    let (m, n, k) = (8, 64, 2048);
    let tokens = normal(m * k, 11);
    let matrix = quantize_weights(&normal(n * k, 13), n, k).unwrap();
    let made = fp8::quantize_activations(&tokens, m, k).unwrap();
    let source = SourceMatrix::Nvfp4 { n, k, codes: &matrix.codes, scales: &matrix.scales };
    let packed = pack_for(Activations::A8, &source, RowOrder::Plain).unwrap();
    let exact = nvfp4::decode(n, k, &matrix.codes, &matrix.scales, 1.0).unwrap();
    let rounded: Vec<f32> = (0..n * k).map(|idx| unpack_operand(&packed, idx / k, idx % k) * packed.alpha).collect();
    let product = |tokens: &[f32], weights: &[f32]| -> Vec<f64> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        tokens.chunks_exact(k).flat_map(|a| weights.chunks_exact(k).map(move |w| dot(a, w))).collect()
    };
    let error = |found: &[f64], expected: &[f64]| {
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let difference = squares(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        (difference / squares(&mut expected.iter().copied())).sqrt()
    };
    let truth = product(&tokens, &exact);
    let of_tokens = product(&made.decode(), &exact);
    let of_both = product(&made.decode(), &rounded);
    let (tokens_cost, both_cost) = (error(&of_tokens, &truth), error(&of_both, &truth));
    println!("FP8 tokens {tokens_cost:.5}, with rounded weights {both_cost:.5}");
    assert!(error(&of_both, &of_tokens) <= a8::NVFP4_ERROR);
    assert!(tokens_cost < 0.03 && both_cost < tokens_cost + 0.005);
    // The order of operands changes nothing but the order of the sum.
    let codes = a8::in_operand_order(&made.codes);
    for (position, &code) in codes.iter().enumerate().take(64) {
        assert_eq!(code, made.codes[position / 16 * 16 + K_AT[position % 16]]);
    }
}
