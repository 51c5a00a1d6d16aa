//! The runner's own kernels compile for the sizes of the models and of the oracles: no spills, nothing on the stack.

use std::collections::BTreeMap;

use tilekiln::arch::ArchSpec;
use tilekiln::codegen::{self, Source};
use tilekiln::environment;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::kernels::runner::{
    self, ActivationScale, Balance, Connection, Element, FakeQuantise, Op, QkvNorm, Rotate, RotateKind, Route, SlotRows,
};

#[test]
fn runner_kernels_compile_without_spills() {
    let mut sources: BTreeMap<String, (Source, String)> = BTreeMap::new();
    for name in ["sm90a", "sm80"] {
        let arch = ArchSpec::named(name).unwrap();
        for model in MODELS {
            for op in model.ops() {
                let asked_by = format!("{} for {} on {name}: {:?}", op.kernel.template, model.name, op.kernel.values);
                let source = codegen::render(&op.kernel, arch, &arch.targets[0]);
                let source = source.unwrap_or_else(|error| panic!("{asked_by}: {error}"));
                sources.entry(source.hash.clone()).or_insert((source, asked_by));
            }
        }
    }
    let jit = Jit::new(Search::from_environment(), KernelCache::new(environment::cache_dir().join("kernels")));
    let (sources, asked_by): (Vec<Source>, Vec<String>) = sources.into_values().unzip();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let mut faults = Vec::new();
    for (compiled, asked_by) in jit.compile_all(&sources, cores).into_iter().zip(&asked_by) {
        match compiled {
            Ok((cubin, _)) if cubin.resources.is_clean() => {}
            Ok((cubin, _)) => faults.push(format!("{asked_by}: {:?}", cubin.resources)),
            Err(error) => faults.push(format!("{asked_by}: {error}")),
        }
    }
    println!("{} kernels", sources.len());
    assert!(faults.is_empty(), "{} of {} kernels:\n  {}", faults.len(), sources.len(), faults.join("\n  "));
}

/// Sizes of one model.
struct Model {
    name: &'static str,
    element: Element,
    hidden: u32,
    vocabulary: u32,
    q_rank: u32,
    head_dim: u32,
    rope_dim: u32,
    index_heads: u32,
    index_dim: u32,
    experts: u32,
    top_k: u32,
    /// Columns of activations that are rounded to NVFP4.
    k: u32,
}

impl Model {
    fn ops(&self) -> Vec<Op> {
        [1, 8, 64, 8192].into_iter().flat_map(|m| [self.ops_of_streams(m), self.ops_of_layers(m)]).flatten().collect()
    }

    fn ops_of_streams(&self, m: u32) -> Vec<Op> {
        let [layer, head] = [false, true].map(|is_head| self.connection(is_head));
        vec![
            runner::embed(m, self.vocabulary, &layer),
            runner::hc_mix(m, &layer, false),
            runner::hc_mix(m, &layer, true),
            runner::hc_mix(m, &head, true),
            runner::hc_pre(m, &layer, Balance::Here),
            runner::hc_pre(m, &layer, Balance::Later),
            runner::hc_pre(m, &head, Balance::Here),
            // Behind tuned mixes: all columns in one part, or as many parts as a slice of 32 columns leaves.
            runner::hc_pre_of_parts(m, 1, &layer, Balance::Here),
            runner::hc_pre_of_parts(m, self.hidden / 32, &layer, Balance::Here),
            runner::hc_pre_of_parts(m, 2, &head, Balance::Here),
            runner::gather_rows(m, self.hidden),
            runner::sample(m, self.vocabulary),
            runner::advance(m),
        ]
    }

    fn connection(&self, is_head: bool) -> Connection {
        Connection {
            hidden: self.hidden,
            element: self.element,
            is_head,
            norm_epsilon: 1e-6,
            hc_epsilon: 1e-6,
            sinkhorn_rounds: 20,
        }
    }

    fn ops_of_layers(&self, m: u32) -> Vec<Op> {
        let connection = self.connection(false);
        let qkv = QkvNorm {
            q_rank: self.q_rank,
            head_dim: self.head_dim,
            rope_dim: self.rope_dim,
            norm_epsilon: 1e-6,
            has_fake_fp8: true,
        };
        let index = Rotate {
            heads: self.index_heads,
            dim: self.index_dim,
            rope_dim: self.rope_dim,
            kind: RotateKind::HadamardMxfp4,
        };
        let route = Route { experts: self.experts, top_k: self.top_k, scale: 1.5, hashed_vocabulary: None };
        let rows = SlotRows { top_k: self.top_k, hidden: self.hidden };
        let activations = |scale| FakeQuantise { k: self.k, rows_per_token: self.top_k, scale };
        let mut ops = vec![
            runner::qkv_norm(m, &qkv),
            runner::qkv_norm(m, &QkvNorm { has_fake_fp8: false, ..qkv }),
            runner::rotate(m, &index),
            runner::rotate(m, &Rotate { kind: RotateKind::Plain, ..index }),
            runner::route(m, &route, None),
            runner::route(m.min(16), &route, Some(&connection)),
            runner::route(m, &Route { hashed_vocabulary: Some(self.vocabulary), ..route }, None),
            runner::combine_slots(m, rows),
            runner::expand_rows(m, rows),
            runner::amax(m, &activations(ActivationScale::PerTensor)),
            runner::reset_amax(),
        ];
        let scales = [ActivationScale::PerToken, ActivationScale::PerTensor, ActivationScale::Static];
        ops.extend(scales.map(|scale| runner::fake_quantise(m, &activations(scale))));
        ops.extend([Element::Bf16, Element::F32].map(runner::find_non_finite));
        ops
    }
}

const MODELS: [Model; 5] = [
    Model {
        name: "Flash",
        element: Element::Bf16,
        hidden: 4096,
        vocabulary: 129_280,
        q_rank: 1024,
        head_dim: 512,
        rope_dim: 64,
        index_heads: 64,
        index_dim: 128,
        experts: 256,
        top_k: 6,
        k: 2048,
    },
    Model {
        name: "Pro",
        element: Element::Bf16,
        hidden: 7168,
        vocabulary: 129_280,
        q_rank: 1536,
        head_dim: 512,
        rope_dim: 64,
        index_heads: 64,
        index_dim: 128,
        experts: 384,
        top_k: 6,
        k: 16_384,
    },
    Model {
        name: "Pro with f32 streams",
        element: Element::F32,
        hidden: 7168,
        vocabulary: 129_280,
        q_rank: 1536,
        head_dim: 512,
        rope_dim: 64,
        index_heads: 64,
        index_dim: 128,
        experts: 384,
        top_k: 6,
        k: 7168,
    },
    Model {
        name: "the small oracle",
        element: Element::F32,
        hidden: 128,
        vocabulary: 256,
        q_rank: 64,
        head_dim: 64,
        rope_dim: 16,
        index_heads: 64,
        index_dim: 32,
        experts: 8,
        top_k: 2,
        k: 64,
    },
    Model {
        name: "the wide oracle",
        element: Element::Bf16,
        hidden: 256,
        vocabulary: 512,
        q_rank: 128,
        head_dim: 512,
        rope_dim: 64,
        index_heads: 64,
        index_dim: 128,
        experts: 8,
        top_k: 6,
        k: 64,
    },
];
