//! Packed weights, read the way a kernel reads them: lane by lane, by shifts and masks, one bf16 multiplication.
//!
//! [`operands`] is that kernel in miniature and knows nothing of the library's position arithmetic. Its products must
//! be the operands that `unpack_operand` promises, and `operand * alpha` the weights that `decode` defines.

use tilekiln::quant::{
    PackError, PackedWeights, RowOrder, SourceMatrix, WeightFormat, e2m1, fp8, mxfp4, nvfp4, pack, rebase_of,
    unpack_operand,
};

/// The MMA operands `[padded n, padded k]` of a packed matrix.
fn operands(packed: &PackedWeights) -> Vec<f32> {
    let format = packed.layout.format();
    let (chunk_k, chunks, codes_bytes, scale_k, scales_bytes) = match format {
        WeightFormat::Nvfp4 => (64, 1, 2048, 16, 256),
        WeightFormat::Mxfp4 => (64, 1, 2048, 32, 128),
        WeightFormat::Fp8 => (32, 4, 8192, 128, 64),
        WeightFormat::Bf16 => (16, 4, 8192, 64, 0),
    };
    let slab_k = chunk_k * chunks;
    let (rows, row_k) = (packed.n.div_ceil(64) * 64, packed.k.div_ceil(slab_k) * slab_k);
    let slabs = row_k / slab_k;
    assert_eq!(packed.bytes.len(), rows / 64 * slabs * (codes_bytes + scales_bytes));
    let mut operands = vec![f32::NAN; rows * row_k];
    for (slab_idx, slab) in packed.bytes.chunks_exact(codes_bytes + scales_bytes).enumerate() {
        let (codes, scales) = slab.split_at(codes_bytes);
        for (lane_idx, lane_bytes) in codes.chunks_exact(16).enumerate() {
            let (tile, chunk, lane) = (lane_idx / 32 / chunks, lane_idx / 32 % chunks, lane_idx % 32);
            let (g, c) = (lane / 4, lane % 4);
            let words: Vec<u32> =
                lane_bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
            for step in 0..chunk_k / 16 {
                for register in 0..4 {
                    let upper = register % 2;
                    let k = chunk * chunk_k + step * 16 + 2 * c + 8 * (register / 2);
                    let groups = slab_k / scale_k;
                    let scale = scales.get(((tile * 8 + g) * groups + k / scale_k) * 2 + upper).copied();
                    let fragment = lifted(format, &words, step, register);
                    let row = slab_idx / slabs * 64 + tile * 16 + g + 8 * upper;
                    let place = row * row_k + slab_idx % slabs * slab_k + k;
                    operands[place] = product(format, fragment as u16, scale);
                    operands[place + 1] = product(format, (fragment >> 16) as u16, scale);
                }
            }
        }
    }
    operands
}

/// Two codes as bf16 in one register: exponent and mantissa bits moved into place, not yet scaled.
fn lifted(format: WeightFormat, words: &[u32], step: usize, register: usize) -> u32 {
    match format {
        WeightFormat::Nvfp4 | WeightFormat::Mxfp4 => {
            let word = words[step];
            match register {
                0 => word & 0x81C0_81C0,
                1 => word << 3 & 0x81C0_81C0,
                2 => word << 1 & 0x8000_8000 | word << 6 & 0x01C0_01C0,
                _ => word << 2 & 0x8000_8000 | word >> 3 & 0x01C0_01C0,
            }
        }
        WeightFormat::Fp8 => {
            let word = words[2 * step + register / 2];
            match register % 2 {
                0 => word & 0x87F0_87F0,
                _ => word << 4 & 0x80F0_80F0 | word >> 4 & 0x0700_0700,
            }
        }
        WeightFormat::Bf16 => words[register],
    }
}

/// One bf16 times the bf16 that a scale byte stands for; the product must need no rounding.
fn product(format: WeightFormat, lifted: u16, scale: Option<u8>) -> f32 {
    let value = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
    let exact = match (format, scale) {
        (WeightFormat::Nvfp4, Some(byte)) => value(lifted) * value((u16::from(byte) << 4) + 0x7000),
        (_, Some(byte)) => value(lifted) * value(u16::from(byte) << 7),
        (_, None) => value(lifted),
    };
    assert_eq!(f64::from(exact as f32), exact);
    assert_eq!((exact as f32).to_bits() & 0xFFFF, 0, "{exact:e} is no bf16");
    exact as f32
}

/// Packs, reads as a kernel, and compares with the decoded weights `[n, k]`; gives the packed matrix.
fn check(source: &SourceMatrix<'_>, order: RowOrder, weights: &[f32]) -> PackedWeights {
    let packed = pack(source, order).unwrap();
    let (n, k) = source.shape();
    assert_eq!((packed.n, packed.k, packed.layout.format()), (n, k, source.format()));
    let operands = operands(&packed);
    let row_k = packed.layout.padded_k(k);
    for (idx, &operand) in operands.iter().enumerate() {
        let (row, column) = (idx / row_k, idx % row_k);
        assert_eq!(unpack_operand(&packed, row, column).to_bits(), operand.to_bits(), "row {row} k {column}");
        if row >= n || column >= k {
            assert_eq!(operand.to_bits(), 0, "padding at row {row} k {column}");
            continue;
        }
        let source_row = match order {
            RowOrder::Plain => row,
            RowOrder::GateUp if row % 16 < 8 => 8 * (row / 16) + row % 16,
            RowOrder::GateUp => n / 2 + 8 * (row / 16) + row % 16 - 8,
        };
        let weight = weights[source_row * k + column];
        assert_eq!(operand * packed.alpha, weight, "row {row} k {column}");
        if source.format() != WeightFormat::Bf16 {
            assert!(operand == 0.0 || operand.is_normal(), "row {row} k {column}: {operand:e}");
        }
    }
    packed
}

/// `len` bytes of noise.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// `count` rows of the 16 codes, `times` over.
fn all_codes(count: usize, times: usize) -> Vec<u8> {
    let row: Vec<u8> = (0..8 * times as u8).map(|byte| e2m1::pack(2 * byte, 2 * byte + 1)).collect();
    row.repeat(count)
}

#[test]
fn nvfp4_is_exact_for_every_code_and_scale() {
    let (n, k) = (127, 16);
    let (codes, scales) = (all_codes(n, 1), (0..0x7F).collect::<Vec<u8>>());
    let source = SourceMatrix::Nvfp4 { n, k, codes: &codes, scales: &scales };
    let packed = check(&source, RowOrder::Plain, &nvfp4::decode(n, k, &codes, &scales, 1.0).unwrap());
    assert_eq!(packed.alpha, 128.0);
    for scale_2 in [1.0, 0.001_486_313_3, 3.7e-5, 1_231.871_6] {
        let weights = nvfp4::decode(n, k, &codes, &scales, scale_2).unwrap();
        for (idx, &weight) in weights.iter().enumerate() {
            let operand = unpack_operand(&packed, idx / k, idx % k);
            assert_eq!(operand * packed.alpha * scale_2, weight, "{scale_2} {idx}");
        }
    }
    // Codes under a zero scale are gone, the sign of -0 with them: the kernel's factor for byte 0 is not zero.
    assert!((0..16).all(|k| packed.code(0, k) == 0 && packed.scale(0, k) == Some(0)));
}

#[test]
fn mxfp4_is_exact_for_every_code_and_scale_under_every_largest_scale() {
    let k = 32;
    for e_max in 0..=254u8 {
        let scales: Vec<u8> = (e_max.saturating_sub(125)..=e_max).collect();
        let n = scales.len();
        let codes = all_codes(n, 2);
        let source = SourceMatrix::Mxfp4 { n, k, codes: &codes, scales: &scales };
        let packed = check(&source, RowOrder::Plain, &mxfp4::decode(n, k, &codes, &scales).unwrap());
        let rebase = rebase_of(&source, RowOrder::Plain).unwrap();
        assert_eq!((rebase.e_max, rebase.shift, rebase.alpha), (e_max, 253 - i32::from(e_max), packed.alpha));
        assert_eq!(f64::from(packed.alpha), 2f64.powi(i32::from(e_max) - 127));
    }
}

/// Codes that are finite: 254 of 256, in a row of 1024 so that each stands in each 128x128 block.
fn finite_fp8_codes(len: usize) -> Vec<u8> {
    (0..len).map(|idx| idx as u8).map(|code| if code & 0x7F == 0x7F { 0x7E } else { code }).collect()
}

#[test]
fn fp8_is_exact_for_every_code_and_scale() {
    // All 118 stored bytes under one largest scale, then the ends and the middle under every other.
    let wide: Vec<u8> = (200 - 117..=200).collect();
    let narrow = (0..=254u8).map(|e_max| vec![e_max.saturating_sub(117), e_max, e_max - e_max.min(117) / 2]);
    for scales in std::iter::once(wide).chain(narrow) {
        let e_max = *scales.iter().max().unwrap();
        // Two rows of each block see all 256 codes.
        let (n, k) = (2, 128 * scales.len());
        let mut codes = vec![0; n * k];
        for (idx, code) in finite_fp8_codes(256 * scales.len()).into_iter().enumerate() {
            let (block, row, column) = (idx / 256, idx / 128 % 2, idx % 128);
            codes[row * k + 128 * block + column] = code;
        }
        let source = SourceMatrix::Fp8 { n, k, codes: &codes, scales: &scales };
        let packed = check(&source, RowOrder::Plain, &fp8::decode(n, k, &codes, &scales).unwrap());
        assert_eq!(f64::from(packed.alpha), 2f64.powi(i32::from(e_max) - 127));
    }
}

#[test]
fn bf16_passes_every_finite_value_as_it_is() {
    let values: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7F80 != 0x7F80).collect();
    let (n, k) = (values.len() / 8, 8);
    let weights: Vec<f32> = values.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)).collect();
    let packed = check(&SourceMatrix::Bf16 { n, k, values: &values }, RowOrder::Plain, &weights);
    assert_eq!(packed.alpha, 1.0);
}

/// Shapes with and without tails in both directions, both row orders, noise in all codes and scales.
#[test]
fn every_shape_and_order_reads_back() {
    for (seed, (n, k)) in (1..).zip([(16, 32), (64, 64), (48, 96), (80, 128), (128, 160), (272, 384), (64, 512)]) {
        for order in [RowOrder::Plain, RowOrder::GateUp] {
            let codes = noise(seed, n * k / 2);
            let scales: Vec<u8> = noise(seed + 100, n * k / 16).iter().map(|byte| byte % 0x7F).collect();
            let source = SourceMatrix::Nvfp4 { n, k, codes: &codes, scales: &scales };
            check(&source, order, &nvfp4::decode(n, k, &codes, &scales, 1.0).unwrap());

            let scales: Vec<u8> = noise(seed + 200, n * k / 32).iter().map(|byte| 60 + byte % 126).collect();
            let source = SourceMatrix::Mxfp4 { n, k, codes: &codes, scales: &scales };
            check(&source, order, &mxfp4::decode(n, k, &codes, &scales).unwrap());

            let values: Vec<u16> = noise(seed, n * k).iter().map(|&byte| u16::from(byte) << 6 | 0x15).collect();
            let weights: Vec<f32> = values.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)).collect();
            check(&SourceMatrix::Bf16 { n, k, values: &values }, order, &weights);

            check_fp8(seed, (n, k), order);
        }
    }
}

/// FP8 with the halves decoded apart, so that each has its own grid of blocks.
fn check_fp8(seed: u32, (n, k): (usize, usize), order: RowOrder) {
    let parts = if order == RowOrder::GateUp { 2 } else { 1 };
    let codes: Vec<u8> =
        noise(seed, n * k).into_iter().map(|code| if code & 0x7F == 0x7F { 1 } else { code }).collect();
    let part_scales = (n / parts).div_ceil(128) * k.div_ceil(128);
    let scales: Vec<u8> = noise(seed + 300, parts * part_scales).iter().map(|byte| 70 + byte % 118).collect();
    let part_weights = |part: usize| {
        let codes = &codes[part * n * k / parts..][..n * k / parts];
        fp8::decode(n / parts, k, codes, &scales[part * part_scales..][..part_scales]).unwrap()
    };
    let weights: Vec<f32> = (0..parts).flat_map(part_weights).collect();
    check(&SourceMatrix::Fp8 { n, k, codes: &codes, scales: &scales }, order, &weights);
}

#[test]
fn blocks_without_a_nonzero_code_have_no_say_in_the_shift() {
    let k = 64;
    let mut codes = vec![0x80; 3 * k / 2]; // row 0: 0 and -0
    codes[k / 2..].copy_from_slice(&all_codes(2, 4));
    let scales = [254, 0, 100, 90, 95, 100];
    let source = SourceMatrix::Mxfp4 { n: 3, k, codes: &codes, scales: &scales };
    let packed = check(&source, RowOrder::Plain, &mxfp4::decode(3, k, &codes, &scales).unwrap());
    assert_eq!(rebase_of(&source, RowOrder::Plain).unwrap().e_max, 100);
    assert_eq!([packed.scale(0, 0), packed.scale(0, 32), packed.scale(1, 32)], [Some(0), Some(0), Some(243)]);
    let zeros = SourceMatrix::Mxfp4 { n: 1, k, codes: &[0; 32], scales: &[7, 200] };
    assert_eq!(check(&zeros, RowOrder::Plain, &[0.0; 64]).alpha, 1.0);
}

#[test]
fn what_cannot_be_packed_is_named() {
    let plain = |source: SourceMatrix<'_>| pack(&source, RowOrder::Plain).unwrap_err().to_string();
    let ones = |len: usize| vec![0x11; len];

    let mut scales = vec![0x38; 8];
    scales[5] = 0xFF;
    let source = SourceMatrix::Nvfp4 { n: 2, k: 64, codes: &ones(64), scales: &scales };
    assert_eq!(plain(source), "expected finite e4m3 weight scales, found NaN (0xff) in row 1, block 1");
    scales[5] = 0xB8;
    let source = SourceMatrix::Nvfp4 { n: 2, k: 64, codes: &ones(64), scales: &scales };
    assert_eq!(plain(source), "expected e4m3 weight scales without a sign, found 0xb8 in row 1, block 1");

    let source = SourceMatrix::Mxfp4 { n: 2, k: 64, codes: &ones(64), scales: &[1, 2, 3, 255] };
    assert_eq!(plain(source), "expected ue8m0 weight scales below 255, found NaN (0xff) in scale row 1, column 1");
    let source = SourceMatrix::Mxfp4 { n: 2, k: 64, codes: &ones(64), scales: &[150, 24, 130, 140] };
    assert_eq!(plain(source), "expected the block scales of a tensor within 125 binades, found 126 (2^-103 to 2^23)");

    let mut codes = ones(2 * 256);
    let source = SourceMatrix::Fp8 { n: 2, k: 256, codes: &codes, scales: &[118, 0] };
    assert_eq!(plain(source), "expected the block scales of a tensor within 117 binades, found 118 (2^-127 to 2^-9)");
    codes[256 + 130] = 0x7F;
    let source = SourceMatrix::Fp8 { n: 2, k: 256, codes: &codes, scales: &[1, 1] };
    assert_eq!(plain(source), "expected finite weights, found 0x7f in row 1, k = 130");

    let mut values = vec![0x3F80; 16];
    values[9] = 0xFF80;
    assert_eq!(
        plain(SourceMatrix::Bf16 { n: 2, k: 8, values: &values }),
        "expected finite weights, found 0xff80 in row 1, k = 1"
    );
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let refused = |source: SourceMatrix<'_>, order| matches!(pack(&source, order), Err(PackError::Shape(_)));
    assert!(refused(SourceMatrix::Nvfp4 { n: 1, k: 16, codes: &[0; 8], scales: &[0; 2] }, RowOrder::Plain));
    assert!(refused(SourceMatrix::Nvfp4 { n: 1, k: 24, codes: &[0; 12], scales: &[0; 1] }, RowOrder::Plain));
    assert!(refused(SourceMatrix::Mxfp4 { n: 1, k: 32, codes: &[0; 15], scales: &[0; 1] }, RowOrder::Plain));
    assert!(refused(SourceMatrix::Bf16 { n: 1, k: 8, values: &[0; 7] }, RowOrder::Plain));
    assert!(refused(SourceMatrix::Bf16 { n: 1, k: 4, values: &[0; 4] }, RowOrder::Plain));
    for (n, k) in [(0, 64), (64, 0)] {
        assert!(
            pack(&SourceMatrix::Nvfp4 { n, k, codes: &[], scales: &[] }, RowOrder::Plain).unwrap().bytes.is_empty()
        );
        assert!(pack(&SourceMatrix::Fp8 { n, k, codes: &[], scales: &[] }, RowOrder::Plain).unwrap().bytes.is_empty());
        assert!(pack(&SourceMatrix::Bf16 { n, k, values: &[] }, RowOrder::Plain).unwrap().bytes.is_empty());
    }
    // 144 rows are two blocks of 128; as gate and up of 72 rows they are two blocks as well, as 16 rows one and two.
    let codes = vec![0x38; 144 * 8];
    let fp8 = |n: usize, scales: &'static [u8]| SourceMatrix::Fp8 { n, k: 8, codes: &codes[..n * 8], scales };
    assert!(refused(fp8(144, &[1]), RowOrder::Plain) && pack(&fp8(144, &[1, 1]), RowOrder::Plain).is_ok());
    assert!(refused(fp8(16, &[1]), RowOrder::GateUp) && pack(&fp8(16, &[1, 1]), RowOrder::GateUp).is_ok());
    assert_eq!(
        pack(&fp8(24, &[1, 1]), RowOrder::GateUp).unwrap_err().to_string(),
        "expected gate and up rows in multiples of 8 each, found n = 24 together"
    );
}
