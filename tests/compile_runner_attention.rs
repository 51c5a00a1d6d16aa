//! The runner's attention kernels compile in every size that is run, for Hopper and for Ampere: no spills, nothing on
//! the stack, and no more shared memory than a block may have. The table shows what each needs.

use tilekiln::arch::ArchSpec;
use tilekiln::codegen::{self, Source, Value};
use tilekiln::environment;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::kernels::runner::{
    AttendShape, CompressShape, Compressed, Connection, Element, EntryRounding, IndexShape, Op, StoreShape, attend,
    attend_combine, compress, index_score, store_step, top_k,
};

#[test]
fn attention_kernels_compile_without_spills() {
    let cache = KernelCache::new(environment::cache_dir().join("kernels"));
    let jit = Jit::new(Search::from_environment(), cache);
    for name in ["sm90a", "sm80"] {
        let arch = ArchSpec::named(name).unwrap();
        let kernels: Vec<(Op, Source)> = kernels_for(arch)
            .into_iter()
            .map(|op| {
                let source = codegen::render(&op.kernel, arch, &arch.targets[0]).unwrap();
                (op, source)
            })
            .collect();
        let sources: Vec<Source> = kernels.iter().map(|(_, source)| source.clone()).collect();
        let mut faults = Vec::new();
        for (compiled, (op, _)) in jit.compile_all(&sources, 2).into_iter().zip(&kernels) {
            let at = format!("{name} {} {} {:?}", op.kernel.template, words(op), op.grid);
            match compiled {
                Ok((cubin, _)) => {
                    let needs = &cubin.resources;
                    let (registers, smem) = (needs.registers, op.smem_bytes + needs.static_smem_bytes);
                    println!("{registers:>4} registers {smem:>7} bytes {:>5} threads  {at}", op.threads);
                    if !needs.is_clean() || registers * op.threads > arch.registers_per_sm || smem > arch.smem_per_block
                    {
                        faults.push(format!("{at}: {needs:?}"));
                    }
                }
                Err(error) => faults.push(format!("{at}: {error}")),
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

/// The values of a kernel, as `name=value`.
fn words(op: &Op) -> String {
    let words = op.kernel.values["op"].iter().map(|(name, value)| match value {
        Value::Number(number) => format!("{name}={number}"),
        Value::Word(word) => format!("{name}={word}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Every kernel of the small and wide test models and of both real ones, for decoding and for long prompts.
fn kernels_for(arch: &ArchSpec) -> Vec<Op> {
    let mut ops = Vec::new();
    for model in MODELS {
        let Model { heads, head_dim, rope_dim, window, top_k: most, index_dim } = model;
        for compressed in
            [Compressed::None, Compressed::Listed { ratio: 4, top_k: most }, Compressed::All { ratio: 128 }]
        {
            let shape = AttendShape { heads, head_dim, rope_dim, norm_epsilon: 1e-6, window, compressed };
            ops.push(attend(&shape, arch, 1, 10, Some(&CONNECTION)));
            ops.extend([(1, 10), (64, 2), (33, 1), (8192, 1)].map(|(m, splits)| attend(&shape, arch, m, splits, None)));
            ops.push(attend_combine(&shape, arch, 1, None));
        }
        let entries = |head_dim, ratio, series, rounding| CompressShape { head_dim, rope_dim, ratio, series, rounding };
        let (csa, hca) =
            (entries(head_dim, 4, 2, EntryRounding::FakeFp8), entries(head_dim, 128, 1, EntryRounding::Bf16));
        let index = entries(index_dim, 4, 2, EntryRounding::HadamardMxfp4);
        ops.extend([csa, hca, index].iter().map(|shape| compress(shape, 33)));
        for (state, index_state) in [(None, None), (Some(&hca), None), (Some(&csa), Some(&index))] {
            let (state, index_state) = (state.map(Into::into), index_state.map(Into::into));
            let store = StoreShape { head_dim, window, state, index_state };
            let compressed = Compressed::None;
            let shape = AttendShape { heads, head_dim, rope_dim, norm_epsilon: 1e-6, window, compressed };
            ops.extend([store_step(&store, 33), attend_combine(&shape, arch, 33, Some(&store))]);
        }
        let shape = IndexShape { heads: 64, head_dim: index_dim, ratio: 4, top_k: most };
        ops.extend([1, 64, 8192].map(|m| index_score(&shape, m, 2048)));
        ops.extend([1, 8192].map(|m| top_k(&shape, m)));
    }
    ops
}

/// Whose matrices are balanced.
const CONNECTION: Connection = Connection {
    hidden: 4096,
    element: Element::F32,
    is_head: false,
    norm_epsilon: 1e-6,
    hc_epsilon: 1e-6,
    sinkhorn_rounds: 20,
};

/// Sizes of a model.
#[derive(Clone, Copy)]
struct Model {
    heads: u32,
    head_dim: u32,
    rope_dim: u32,
    window: u32,
    top_k: u32,
    index_dim: u32,
}

/// The small and the wide test model, Flash and Pro.
const MODELS: [Model; 4] = [
    Model { heads: 4, head_dim: 64, rope_dim: 16, window: 16, top_k: 8, index_dim: 32 },
    Model { heads: 4, head_dim: 512, rope_dim: 64, window: 32, top_k: 8, index_dim: 128 },
    Model { heads: 64, head_dim: 512, rope_dim: 64, window: 128, top_k: 512, index_dim: 128 },
    Model { heads: 128, head_dim: 512, rope_dim: 64, window: 128, top_k: 1024, index_dim: 128 },
];
