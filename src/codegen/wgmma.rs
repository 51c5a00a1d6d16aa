//! The PTX wrappers with dozens of operands, written out for the widths that a kernel uses.

use std::fmt::Write;

use super::Widths;

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    Bf16,
    E4m3,
}

/// The wrapper of one width, or of all `widths` with a branch between them.
pub(super) fn wrappers(widths: Widths) -> String {
    if widths.step == widths.most {
        return wrapper(widths.most);
    }
    [4, 1].map(|steps| branching(widths, Element::Bf16, steps)).concat()
}

/// The same for E4M3.
pub(super) fn e4m3_wrappers(widths: Widths) -> String {
    if widths.step == widths.most { e4m3_wrapper(widths.most) } else { branching(widths, Element::E4m3, 4) }
}

/// `wgmma_generated(d, a, tokens)`: d += a * b for 64 rows in registers and `tokens` columns in shared memory.
///
/// `d` has `tokens / 2` floats a thread. `tokens` is a multiple of 8 from 8 to 256.
fn wrapper(tokens: u32) -> String {
    let sums = tokens / 2;
    let registers = registers(sums);
    let operands = operands(sums);
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

/// `wgmma_generated(d, a, tokens, adds)`: as [`wrapper`] for E4M3 and twice the k; without `adds` d = a * b.
fn e4m3_wrapper(tokens: u32) -> String {
    let sums = tokens / 2;
    let registers = registers(sums);
    let operands = operands(sums);
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

/// `wgmma_of_width(d, a, tokens, width)`: four steps of 16 k at one of `widths`, closed as one group. Of E4M3 they are
/// four steps of 32 k, and `wgmma_of_width(d, a, tokens, width, adds)` begins at zero without `adds`. With one of the
/// `steps` it is `wgmma_step_of_width`.
///
/// One statement, so that all widths name the same registers for `d`, and each branch with its own commit: where the
/// branches meet ptxas would close an empty group instead, and the wait for all but one group waits for everything.
fn branching(widths: Widths, element: Element, steps: u32) -> String {
    let sums = widths.most / 2;
    let operands = operands(sums);
    let descriptor = sums + 4 * steps;
    let width = descriptor + 1;
    let fragment = |i| if steps == 1 { format!("\"r\"(a[{i}])") } else { format!("\"r\"(a[{}][{}])", i / 4, i % 4) };
    let fragments: Vec<String> = (0..4 * steps).map(fragment).collect();
    let fragments = lines_of_eight(&fragments).join(",\n        ");
    let mut out = element.head(widths, steps);
    out.push_str("  asm volatile(\n      \"{\\n\"\n      \".reg .pred wider;\\n\"\n");
    if steps == 4 {
        let _ = write!(
            out,
            "      \".reg .b64 step1, step2, step3;\\n\"
      \"add.s64 step1, %{descriptor}, 2;\\n\"
      \"add.s64 step2, %{descriptor}, 4;\\n\"
      \"add.s64 step3, %{descriptor}, 6;\\n\"
"
        );
    }
    if element == Element::E4m3 {
        let adds = width + 1;
        let _ = write!(out, "      \".reg .pred adds;\\n\"\n      \"setp.ne.b32 adds, %{adds}, 0;\\n\"\n");
    }
    let all: Vec<u32> = widths.all().collect();
    branch(&mut out, &all, (sums, steps), element);
    let adds = if element == Element::E4m3 { ", \"r\"(adds)" } else { "" };
    let _ = write!(
        out,
        "      \"done:\\n\"
      \"}}\"
      : {operands}
      : {fragments},
        \"l\"(tokens), \"r\"(width){adds});
}}

"
    );
    out
}

/// A balanced tree of branches over `widths`, the narrower half first.
fn branch(out: &mut String, widths: &[u32], (sums, steps): (u32, u32), element: Element) {
    let descriptor = sums + 4 * steps;
    let [tokens] = widths else {
        let width = descriptor + 1;
        let (narrow, wide) = widths.split_at(widths.len() / 2);
        let (last, next) = (narrow[narrow.len() - 1], wide[0]);
        let _ = write!(out, "      \"setp.gt.s32 wider, %{width}, {last};\\n\"\n      \"@wider bra from{next};\\n\"\n");
        branch(out, narrow, (sums, steps), element);
        let _ = writeln!(out, "      \"from{next}:\\n\"");
        branch(out, wide, (sums, steps), element);
        return;
    };
    for step in 0..steps {
        let a = sums + 4 * step;
        let descriptor = if step == 0 { format!("%{descriptor}") } else { format!("step{step}") };
        let (shape, ending) = match element {
            Element::Bf16 => ("k16.f32.bf16.bf16", "1, 1, 1, 0"),
            Element::E4m3 if step == 0 => ("k32.f32.e4m3.e4m3", "adds, 1, 1"),
            Element::E4m3 => ("k32.f32.e4m3.e4m3", "1, 1, 1"),
        };
        let _ = write!(
            out,
            "      \"wgmma.mma_async.sync.aligned.m64n{tokens}{shape} {{\"
      \"{}}}, \"
      \"{{%{a}, %{}, %{}, %{}}}, {descriptor}, {ending};\\n\"
",
            registers(tokens / 2),
            a + 1,
            a + 2,
            a + 3
        );
    }
    out.push_str("      \"wgmma.commit_group.sync.aligned;\\n\"\n      \"bra done;\\n\"\n");
}

impl Element {
    /// Comment and signature of the branching wrapper.
    fn head(self, Widths { step, most }: Widths, steps: u32) -> String {
        let sums = most / 2;
        match self {
            Self::Bf16 if steps == 1 => format!(
                "\
// wgmma.mma_async m64nNk16 and wgmma.commit_group: d += a (64 x 16, BF16, registers) * b (16 x N, BF16, shared memory)
// with N = `width`, a multiple of {step} up to {most}, in the first N / 2 sums.
__device__ __forceinline__ void wgmma_step_of_width(float (&d)[{sums}], const uint32_t (&a)[4], uint64_t tokens,
                                                    int width) {{
"
            ),
            Self::Bf16 => format!(
                "\
// wgmma.mma_async m64nNk16, four of them, and wgmma.commit_group: d += a (64 x 64, BF16, registers) * b
// (64 x N, BF16, shared memory) with N = `width`, a multiple of {step} up to {most}, in the first N / 2 sums.
__device__ __forceinline__ void wgmma_of_width(float (&d)[{sums}], const uint32_t (&a)[4][4], uint64_t tokens,
                                               int width) {{
"
            ),
            Self::E4m3 => format!(
                "\
// wgmma.mma_async m64nNk32, four of them, and wgmma.commit_group: d = a (64 x 128, E4M3, registers) * b
// (128 x N, E4M3, shared memory) + d, or 0 without `adds`, with N = `width`, a multiple of {step} up to {most}, in the
// first N / 2 sums.
__device__ __forceinline__ void wgmma_of_width(float (&d)[{sums}], const uint32_t (&a)[4][4], uint64_t tokens,
                                               int width, int adds) {{
"
            ),
        }
    }
}

fn registers(sums: u32) -> String {
    let registers: Vec<String> = (0..sums).map(|i| format!("%{i}")).collect();
    lines_of_eight(&registers).join(", \"\n      \"")
}

fn operands(sums: u32) -> String {
    let operands: Vec<String> = (0..sums).map(|i| format!("\"+f\"(d[{i}])")).collect();
    lines_of_eight(&operands).join(",\n        ")
}

fn lines_of_eight(items: &[String]) -> Vec<String> {
    items.chunks(8).map(|line| line.join(", ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_is_named_once_in_each_list() {
        let texts = |tokens| [(tokens, wrapper(tokens)), (tokens, e4m3_wrapper(tokens))];
        for (tokens, text) in [8, 16, 64, 256].into_iter().flat_map(texts) {
            for i in 0..tokens / 2 {
                assert_eq!(text.matches(&format!("(d[{i}])")).count(), 1, "n{tokens} d[{i}]");
                let operand = format!("%{i}");
                let uses = text.split([',', '{', '}', '"', ' ', ';']);
                assert_eq!(uses.filter(|word| *word == operand).count(), 1, "n{tokens} {operand}");
            }
            assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        }
    }

    #[test]
    fn a_branch_leads_to_each_width_once() {
        let widths = Widths { step: 16, most: 112 };
        let bf16 = |steps| (branching(widths, Element::Bf16, steps), "k16.f32.bf16", steps as usize);
        for (text, k, steps) in [bf16(4), bf16(1), (e4m3_wrappers(widths), "k32.f32.e4m3", 4)] {
            for tokens in [16, 32, 48, 64, 80, 96, 112] {
                let products = format!(".m64n{tokens}{k}.");
                assert_eq!(text.matches(&products).count(), steps, "n{tokens}");
                // The first is fallen into, the others are jumped to.
                let (labels, jumps) = (format!("\"from{tokens}:"), format!("bra from{tokens};"));
                let expected = usize::from(tokens > 16);
                assert_eq!([labels, jumps].map(|word| text.matches(&word).count()), [expected; 2], "n{tokens}");
            }
            assert_eq!(text.matches("commit_group.sync").count(), 7);
            assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        }
        let both = wrappers(widths);
        assert!(both.contains("void wgmma_of_width(") && both.contains("void wgmma_step_of_width("));
        // Only the first of four steps of E4M3 may begin at zero.
        assert_eq!(e4m3_wrappers(widths).matches(", adds, 1, 1;").count(), 7);
    }
}
