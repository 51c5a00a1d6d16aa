//! The one PTX wrapper with dozens of operands, written out for the width that a kernel uses.

use std::fmt::Write;

/// `wgmma_generated(d, a, tokens)`: d += a * b for 64 rows in registers and `tokens` columns in shared memory.
///
/// `d` has `tokens / 2` floats a thread. `tokens` is a multiple of 8 from 8 to 256.
pub(super) fn wrapper(tokens: u32) -> String {
    let sums = tokens / 2;
    let registers: Vec<String> = (0..sums).map(|i| format!("%{i}")).collect();
    let operands: Vec<String> = (0..sums).map(|i| format!("\"+f\"(d[{i}])")).collect();
    let [a0, a1, a2, a3, descriptor] = [0, 1, 2, 3, 4].map(|i| sums + i);
    let registers = lines_of_eight(&registers).join(", \"\n      \"");
    let operands = lines_of_eight(&operands).join(",\n        ");
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

fn lines_of_eight(items: &[String]) -> Vec<String> {
    items.chunks(8).map(|line| line.join(", ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_is_named_once_in_each_list() {
        for tokens in [8, 16, 64, 256] {
            let text = wrapper(tokens);
            for i in 0..tokens / 2 {
                assert_eq!(text.matches(&format!("(d[{i}])")).count(), 1, "n{tokens} d[{i}]");
                let operand = format!("%{i}");
                let uses = text.split([',', '{', '}', '"', ' ']);
                assert_eq!(uses.filter(|word| *word == operand).count(), 1, "n{tokens} {operand}");
            }
            assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        }
    }
}
