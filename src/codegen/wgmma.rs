//! The one PTX wrapper with dozens of operands, written out for the width that a kernel uses.

use std::fmt::Write;

/// The wrapper that `include` stands for, as a function of the tokens.
pub(super) fn wrapper_of(include: &str) -> Option<fn(u32) -> String> {
    match include {
        "generated/wgmma.cuh" => Some(bf16),
        "generated/wgmma_e4m3.cuh" => Some(e4m3),
        _ => None,
    }
}

/// `wgmma_generated(d, a, tokens)`: d += a * b for 64 rows in registers and `tokens` columns in shared memory.
///
/// `d` has `tokens / 2` floats a thread. `tokens` is a multiple of 8 from 8 to 256.
fn bf16(tokens: u32) -> String {
    let (sums, registers, operands) = lists(tokens);
    let [a0, a1, a2, a3, descriptor] = [0, 1, 2, 3, 4].map(|i| sums + i);
    let mut out = String::new();
    let _ = write!(
        out,
        "// wgmma.mma_async m64n{tokens}k16: d += a (64 x 16, BF16, registers) * b (16 x {tokens}, BF16, shared memory).
__device__ __forceinline__ void wgmma_generated(float (&d)[{sums}], const uint32_t (&a)[4], uint64_t tokens) {{
  asm volatile(
      \"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.bf16.bf16 {{\"
      \"{registers}}}, \"
      \"{{%{a0}, %{a1}, %{a2}, %{a3}}}, %{descriptor}, 1, 1, 1, 0;\"
      : {operands}
      : \"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"l\"(tokens));
}}

"
    );
    out
}

/// `wgmma_generated(d, a, tokens, adds)`: the same for E4M3 and twice the k; without `adds` d = a * b.
fn e4m3(tokens: u32) -> String {
    let (sums, registers, operands) = lists(tokens);
    let [a0, a1, a2, a3, descriptor, adds] = [0, 1, 2, 3, 4, 5].map(|i| sums + i);
    let mut out = String::new();
    let _ = write!(
        out,
        "// wgmma.mma_async m64n{tokens}k32: d = a (64 x 32, E4M3, registers) * b (32 x {tokens}, E4M3, shared memory)
// + d, or 0 without `adds`.
__device__ __forceinline__ void wgmma_generated(float (&d)[{sums}], const uint32_t (&a)[4], uint64_t tokens,
                                                int adds) {{
  asm volatile(
      \"{{\\n\"
      \"  .reg .pred adds;\\n\"
      \"  setp.ne.b32 adds, %{adds}, 0;\\n\"
      \"  wgmma.mma_async.sync.aligned.m64n{tokens}k32.f32.e4m3.e4m3 {{\"
      \"{registers}}}, \"
      \"{{%{a0}, %{a1}, %{a2}, %{a3}}}, %{descriptor}, adds, 1, 1;\\n\"
      \"}}\"
      : {operands}
      : \"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"l\"(tokens), \"r\"(adds));
}}

"
    );
    out
}

/// Floats of a thread, their registers in the text of PTX and the operands behind it.
fn lists(tokens: u32) -> (u32, String, String) {
    let sums = tokens / 2;
    let registers: Vec<String> = (0..sums).map(|i| format!("%{i}")).collect();
    let operands: Vec<String> = (0..sums).map(|i| format!("\"+f\"(d[{i}])")).collect();
    let registers = lines_of_eight(&registers).join(", \"\n      \"");
    (sums, registers, lines_of_eight(&operands).join(",\n        "))
}

fn lines_of_eight(items: &[String]) -> Vec<String> {
    items.chunks(8).map(|line| line.join(", ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_is_named_once_in_each_list() {
        for (tokens, wrapper) in
            [8, 16, 64, 256].into_iter().flat_map(|tokens| [(tokens, bf16 as fn(u32) -> String), (tokens, e4m3)])
        {
            let text = wrapper(tokens);
            for i in 0..tokens / 2 {
                assert_eq!(text.matches(&format!("(d[{i}])")).count(), 1, "n{tokens} d[{i}]");
                let operand = format!("%{i}");
                let uses = text.split([',', '{', '}', '"', ' ', ';']);
                assert_eq!(uses.filter(|word| *word == operand).count(), 1, "n{tokens} {operand}");
            }
            assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        }
    }
}
