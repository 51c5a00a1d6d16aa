//! What loading costs: matrices stay in the files. A layer of DeepSeek-V4-Flash in a sparse file,
//! as large as a real one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Map, Value, json};
use tilekiln::engine::TensorFiles;
use tilekiln::models::dsv4::config_file::ConfigFile;
use tilekiln::models::dsv4::weights::{LoadOptions, Weights};

// Sizes of Flash.
const HIDDEN: usize = 4096;
const HEADS: usize = 64;
const HEAD_DIM: usize = 512;
const Q_RANK: usize = 1024;
const GROUPS: usize = 8;
const O_RANK: usize = 1024;
const INTERMEDIATE: usize = 2048;
const EXPERTS: usize = 256;
const VOCABULARY: usize = 129_280;
const TOP_K: usize = 6;

/// Anonymous memory that loading may take, against more than 5 GB of file.
const MOST_BYTES: u64 = 256 << 20;

#[test]
fn matrices_stay_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = write(folder.path());
    assert!(bytes > 5 << 30, "{bytes}");
    let before = anonymous_bytes();
    let files = TensorFiles::open(folder.path()).unwrap();
    let config = ConfigFile::read(folder.path()).unwrap();
    let loaded = Weights::load(&files, &config, LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let taken = anonymous_bytes().saturating_sub(before);
    assert_eq!(loaded.weights.layers[0].feed_forward.experts.len(), EXPERTS);
    println!("{:.2} GB of tensors, {:.1} MB of memory of our own", bytes as f64 / 1e9, taken as f64 / 1e6);
    assert!(taken < MOST_BYTES, "{taken} bytes of anonymous memory for {bytes} bytes of tensors");
}

/// Pages of this process that are no file's.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Names, shapes and places of the tensors.
#[derive(Default)]
struct Layout {
    header: Map<String, Value>,
    end: usize,
    /// Places of scalars that may not be zero.
    scalars: Vec<usize>,
}

impl Layout {
    fn add(&mut self, name: String, dtype: &str, shape: &[usize]) {
        let size = match dtype {
            "F32" => 4,
            "BF16" => 2,
            "I64" => 8,
            _ => 1,
        };
        let end = self.end + size * shape.iter().product::<usize>();
        if dtype == "F32" && shape.is_empty() {
            self.scalars.push(self.end);
        }
        self.header.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [self.end, end] }));
        self.end = end;
    }

    fn fp8(&mut self, name: &str, [n, k]: [usize; 2]) {
        self.add(format!("{name}.weight"), "F8_E4M3", &[n, k]);
        self.add(format!("{name}.scale"), "F8_E8M0", &[n.div_ceil(128), k.div_ceil(128)]);
    }

    fn nvfp4(&mut self, name: &str, [n, k]: [usize; 2]) {
        self.add(format!("{name}.weight"), "U8", &[n, k / 2]);
        self.add(format!("{name}.weight_scale"), "F8_E4M3", &[n, k / 16]);
        self.add(format!("{name}.weight_scale_2"), "F32", &[]);
        self.add(format!("{name}.input_scale"), "F32", &[]);
    }

    fn layer(&mut self) {
        for part in ["attn", "ffn"] {
            self.add(format!("layers.0.{part}_norm.weight"), "BF16", &[HIDDEN]);
            self.add(format!("layers.0.hc_{part}_fn"), "F32", &[24, 4 * HIDDEN]);
            self.add(format!("layers.0.hc_{part}_base"), "F32", &[24]);
            self.add(format!("layers.0.hc_{part}_scale"), "F32", &[3]);
        }
        let attention = |name| format!("layers.0.attn.{name}");
        self.add(attention("attn_sink"), "F32", &[HEADS]);
        self.add(attention("q_norm.weight"), "BF16", &[Q_RANK]);
        self.add(attention("kv_norm.weight"), "BF16", &[HEAD_DIM]);
        let q_rows = HEADS * HEAD_DIM;
        let projections = [("wq_a", [Q_RANK, HIDDEN]), ("wkv", [HEAD_DIM, HIDDEN]), ("wq_b", [q_rows, Q_RANK])];
        let outputs = [("wo_a", [GROUPS * O_RANK, q_rows / GROUPS]), ("wo_b", [HIDDEN, GROUPS * O_RANK])];
        projections.into_iter().chain(outputs).for_each(|(name, shape)| self.fp8(&attention(name), shape));
        self.add("layers.0.ffn.gate.weight".to_string(), "BF16", &[EXPERTS, HIDDEN]);
        self.add("layers.0.ffn.gate.tid2eid".to_string(), "I64", &[VOCABULARY, TOP_K]);
        for (name, shape) in
            [("w1", [INTERMEDIATE, HIDDEN]), ("w3", [INTERMEDIATE, HIDDEN]), ("w2", [HIDDEN, INTERMEDIATE])]
        {
            self.fp8(&format!("layers.0.ffn.shared_experts.{name}"), shape);
            (0..EXPERTS).for_each(|expert| self.nvfp4(&format!("layers.0.ffn.experts.{expert}.{name}"), shape));
        }
    }
}

/// Writes the directory, and gives the bytes of its tensors: zeros that take no room, but for the scalars.
fn write(directory: &Path) -> u64 {
    let mut layout = Layout::default();
    for name in ["embed.weight", "head.weight"] {
        layout.add(name.to_string(), "BF16", &[VOCABULARY, HIDDEN]);
    }
    layout.add("norm.weight".to_string(), "BF16", &[HIDDEN]);
    layout.add("hc_head_fn".to_string(), "F32", &[4, 4 * HIDDEN]);
    layout.add("hc_head_base".to_string(), "F32", &[4]);
    layout.add("hc_head_scale".to_string(), "F32", &[1]);
    layout.layer();
    let header = serde_json::to_vec(&layout.header).unwrap();
    let file = File::create(directory.join("model.safetensors")).unwrap();
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0).unwrap();
    file.write_all_at(&header, 8).unwrap();
    let first = 8 + header.len() as u64;
    file.set_len(first + layout.end as u64).unwrap();
    for place in &layout.scalars {
        file.write_all_at(&0.0125f32.to_le_bytes(), first + *place as u64).unwrap();
    }
    std::fs::write(directory.join("config.json"), config().to_string()).unwrap();
    layout.end as u64
}

/// An oracle's config with the sizes of Flash.
fn config() -> Value {
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/oracle/wide-nvfp4/config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(oracle).unwrap()).unwrap();
    let sizes = json!({
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "moe_intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS, "head_dim": HEAD_DIM, "q_lora_rank": Q_RANK, "n_routed_experts": EXPERTS,
        "num_experts_per_tok": TOP_K, "o_groups": GROUPS, "o_lora_rank": O_RANK, "num_hidden_layers": 1,
        "compress_ratios": [0], "num_hash_layers": 1,
    });
    for (key, value) in sizes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config["quantization_config"]["quantized_layers"] =
        json!({ "layers.0.ffn.experts": { "quant_algo": "NVFP4", "group_size": 16 } });
    config
}
