//! Text to problems: `nvfp4 4096x8192 m64`, `moe nvfp4 256 top6 4096x2048 m16`, `hc f32 24x16384 m64`.

use super::stream_mix::STREAMS;
use super::{Activations, Convert, Dense, Epilogue, MoeBlock, Output, Problem, StreamMix};
use crate::quant::{WeightFormat, a8};

/// A text that is no problem, or asks for what a format cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseProblemError {
    /// A word that belongs to no form of a problem.
    #[error("expected a problem such as `nvfp4 4096x8192 m64`, found `{text}` (at `{word}`)")]
    Word {
        /// The whole text.
        text: String,
        /// The word that was not understood.
        word: String,
    },
    /// A shape that is zero, or too large to index.
    #[error("expected n, k and m from 1 to 1048576, found {what} = {value}")]
    Size {
        /// Which of the dimensions.
        what: &'static str,
        /// Its value.
        value: u32,
    },
    /// A `k` that leaves a block of scales in part.
    #[error("{format} holds k in multiples of {multiple}, found k = {k}")]
    K {
        /// The format asked for.
        format: WeightFormat,
        /// What it needs.
        multiple: u32,
        /// What was asked.
        k: u32,
    },
    /// SwiGLU needs a gate row for each up row.
    #[error("swiglu needs n in multiples of 16 (8 gate rows beside 8 up rows), found n = {n}")]
    SwiGluRows {
        /// What was asked.
        n: u32,
    },
    /// Activations that no kernel takes yet.
    #[error("{found} activations are unsupported so far, on FP4 tensor cores too, expected a16 or a8")]
    Activations {
        /// What was asked.
        found: String,
    },
    /// FP8 activations with weights that no FP8 tensor core multiplies.
    #[error("a8 activations need nvfp4, mxfp4 or fp8 weights, found {found}")]
    Fp8Weights {
        /// What was asked.
        found: WeightFormat,
    },
    /// A hyper-connection of another form than four streams and the values that mix them.
    #[error("expected 24 or 4 rows and four streams in multiples of 64, found {n}x{k}")]
    Streams {
        /// Rows of the weight.
        n: u32,
        /// All streams together.
        k: u32,
    },
    /// More slots or local experts than experts.
    #[error("expected at most {experts} of {experts} experts, found {what} = {value}")]
    Experts {
        /// All experts.
        experts: u32,
        /// Which of the counts.
        what: &'static str,
        /// Its value.
        value: u32,
    },
}

/// Parses `text`; a problem without `m` is for one token.
pub(super) fn problem(text: &str) -> Result<Problem, ParseProblemError> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let refuse = |word: &str| ParseProblemError::Word { text: text.to_string(), word: word.to_string() };
    if let Some(found) = words.iter().find(|&&word| word == "a4") {
        return Err(ParseProblemError::Activations { found: found.to_string() });
    }
    if let Some(second) = repeated(&words) {
        return Err(refuse(second));
    }
    let problem = match words.first() {
        None => return Err(refuse("")),
        Some(&"moe") => moe(&words[1..], refuse)?,
        Some(&"quantise") => convert(&words[1..], refuse)?,
        Some(&"hc") => stream_mix(&words[1..], refuse)?,
        Some(_) => dense(&words, refuse)?,
    };
    validate(&problem)?;
    Ok(problem)
}

/// Refuses what no kernel can hold.
fn validate(problem: &Problem) -> Result<(), ParseProblemError> {
    let sized = |what, value| match value {
        1..=MAX_SIZE => Ok(()),
        _ => Err(ParseProblemError::Size { what, value }),
    };
    let whole_blocks = |format: WeightFormat, k: u32| match k.is_multiple_of(format.k_multiple()) {
        true => Ok(()),
        false => Err(ParseProblemError::K { format, multiple: format.k_multiple(), k }),
    };
    sized("m", problem.m())?;
    match problem {
        Problem::Dense(dense) => {
            sized("n", dense.n)?;
            sized("k", dense.k)?;
            sized("groups", dense.groups)?;
            whole_blocks(dense.weights, dense.k)?;
            fits_activations(dense.activations, dense.weights, dense.k)?;
            match dense.epilogue {
                Epilogue::SwiGlu if !dense.n.is_multiple_of(16) => Err(ParseProblemError::SwiGluRows { n: dense.n }),
                _ => Ok(()),
            }
        }
        Problem::MoeBlock(block) => {
            sized("hidden", block.hidden)?;
            sized("intermediate", block.intermediate)?;
            sized("experts", block.experts)?;
            sized("top", block.top_k)?;
            whole_blocks(block.weights, block.hidden)?;
            whole_blocks(block.weights, block.intermediate)?;
            fits_activations(block.activations, block.weights, block.hidden)?;
            fits_activations(block.activations, block.weights, block.intermediate)?;
            if !block.intermediate.is_multiple_of(8) {
                return Err(ParseProblemError::SwiGluRows { n: 2 * block.intermediate });
            }
            for (what, value) in [("local experts", block.local_experts), ("top", block.top_k)] {
                if value > block.experts || value == 0 {
                    return Err(ParseProblemError::Experts { experts: block.experts, what, value });
                }
            }
            Ok(())
        }
        Problem::Convert(convert) => {
            sized("k", convert.k)?;
            match convert.k.is_multiple_of(a8::GROUP as u32) {
                true => Ok(()),
                false => Err(ParseProblemError::K { format: convert.to, multiple: a8::GROUP as u32, k: convert.k }),
            }
        }
        Problem::StreamMix(mix) => {
            sized("k", mix.k())?;
            match [24, 4].contains(&mix.n) && mix.hidden.is_multiple_of(64) {
                true => Ok(()),
                false => Err(ParseProblemError::Streams { n: mix.n, k: mix.k() }),
            }
        }
    }
}

/// Refuses for FP8 tokens weights that are no FP8 operands, and k that the order of such tokens does not divide.
fn fits_activations(activations: Activations, weights: WeightFormat, k: u32) -> Result<(), ParseProblemError> {
    let multiple = a8::GROUP as u32;
    match (activations, weights) {
        (Activations::A16, _) => Ok(()),
        (Activations::A8, WeightFormat::Bf16) => Err(ParseProblemError::Fp8Weights { found: weights }),
        (Activations::A8, format) if !k.is_multiple_of(multiple) => Err(ParseProblemError::K { format, multiple, k }),
        (Activations::A8, _) => Ok(()),
    }
}

fn dense(words: &[&str], refuse: impl Fn(&str) -> ParseProblemError) -> Result<Problem, ParseProblemError> {
    let format = words.first().copied().unwrap_or("");
    let weights = WeightFormat::from_name(format).ok_or_else(|| refuse(format))?;
    let shape = words.get(1).copied().unwrap_or("");
    let sizes = sizes(shape).ok_or_else(|| refuse(shape))?;
    let (groups, n, k) = match sizes[..] {
        [n, k] => (1, n, k),
        [groups, n, k] => (groups, n, k),
        _ => return Err(refuse(shape)),
    };
    let mut dense = Dense { groups, ..Dense::new(weights, n, k, 1) };
    for &word in &words[2..] {
        match word {
            "f32" => dense.output = Output::F32,
            "bf16" => dense.output = Output::Bf16,
            "swiglu" => dense.epilogue = Epilogue::SwiGlu,
            "a16" => dense.activations = Activations::A16,
            "a8" => dense.activations = Activations::A8,
            _ => dense.m = prefixed(word, "m").ok_or_else(|| refuse(word))?,
        }
    }
    Ok(Problem::Dense(dense))
}

fn moe(words: &[&str], refuse: impl Fn(&str) -> ParseProblemError) -> Result<Problem, ParseProblemError> {
    let word = |idx: usize| words.get(idx).copied().unwrap_or("");
    let weights = WeightFormat::from_name(word(0)).ok_or_else(|| refuse(word(0)))?;
    let (local, all) = word(1).split_once('/').unwrap_or((word(1), word(1)));
    let (Ok(local_experts), Ok(experts)) = (local.parse(), all.parse()) else { return Err(refuse(word(1))) };
    let top_k = prefixed(word(2), "top").ok_or_else(|| refuse(word(2)))?;
    let Some([hidden, intermediate]) = sizes(word(3)).and_then(|sizes| <[u32; 2]>::try_from(sizes).ok()) else {
        return Err(refuse(word(3)));
    };
    let (mut activations, mut m) = (Activations::A16, 1);
    for &word in words.iter().skip(4) {
        match word {
            "a16" => activations = Activations::A16,
            "a8" => activations = Activations::A8,
            _ => m = prefixed(word, "m").ok_or_else(|| refuse(word))?,
        }
    }
    Ok(Problem::MoeBlock(MoeBlock { weights, experts, local_experts, top_k, hidden, intermediate, activations, m }))
}

fn convert(words: &[&str], refuse: impl Fn(&str) -> ParseProblemError) -> Result<Problem, ParseProblemError> {
    let word = |idx: usize| words.get(idx).copied().unwrap_or("");
    let to = match WeightFormat::from_name(word(0)) {
        Some(to @ (WeightFormat::Nvfp4 | WeightFormat::Fp8)) => to,
        _ => return Err(refuse(word(0))),
    };
    let k = prefixed(word(1), "k").ok_or_else(|| refuse(word(1)))?;
    let m = match words.get(2) {
        None => 1,
        Some(word) => prefixed(word, "m").ok_or_else(|| refuse(word))?,
    };
    if let Some(word) = words.get(3) {
        return Err(refuse(word));
    }
    Ok(Problem::Convert(Convert { to, k, m }))
}

fn stream_mix(words: &[&str], refuse: impl Fn(&str) -> ParseProblemError) -> Result<Problem, ParseProblemError> {
    let word = |idx: usize| words.get(idx).copied().unwrap_or("");
    let element = match word(0) {
        "f32" => Output::F32,
        "bf16" => Output::Bf16,
        other => return Err(refuse(other)),
    };
    let Some([n, k]) = sizes(word(1)).and_then(|sizes| <[u32; 2]>::try_from(sizes).ok()) else {
        return Err(refuse(word(1)));
    };
    if !k.is_multiple_of(STREAMS) {
        return Err(ParseProblemError::Streams { n, k });
    }
    let mut mix = StreamMix { element, n, hidden: k / STREAMS, has_post: true, m: 1 };
    for &word in words.iter().skip(2) {
        match word {
            "first" => mix.has_post = false,
            _ => mix.m = prefixed(word, "m").ok_or_else(|| refuse(word))?,
        }
    }
    Ok(Problem::StreamMix(mix))
}

/// A word that says anew what another one has said.
fn repeated<'w>(words: &[&'w str]) -> Option<&'w str> {
    let says: [fn(&str) -> bool; 5] = [
        |word| prefixed(word, "m").is_some(),
        |word| ["a8", "a16"].contains(&word),
        |word| ["bf16", "f32"].contains(&word),
        |word| word == "swiglu",
        |word| word == "first",
    ];
    // The first word is the format, or that of a block is the second.
    let details = || words.iter().skip(2).copied();
    says.into_iter().find_map(|says| details().filter(|word| says(word)).nth(1))
}

fn sizes(word: &str) -> Option<Vec<u32>> {
    word.split('x').map(|size| size.parse().ok()).collect()
}

fn prefixed(word: &str, prefix: &str) -> Option<u32> {
    word.strip_prefix(prefix)?.parse().ok()
}

const MAX_SIZE: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_parse_are_inverse() {
        for text in [
            "nvfp4 4096x8192 m64",
            "fp8 8x1024x4096 m1",
            "bf16 129280x4096 f32 m16",
            "nvfp4 4096x4096 swiglu m8192",
            "mxfp4 8x1024x4096 a8 f32 m64",
            "moe nvfp4 256/256 top6 4096x2048 m16",
            "moe mxfp4 32/256 top6 4096x2048 m1",
            "moe mxfp4 256/256 top6 4096x2048 a8 m4096",
            "quantise nvfp4 k4096 m32",
            "hc f32 24x16384 m64",
            "hc bf16 24x28672 first m1",
            "hc f32 4x16384 m8192",
        ] {
            assert_eq!(text.parse::<Problem>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn defaults_may_be_left_out() {
        assert_eq!("nvfp4 64x64".parse::<Problem>().unwrap().to_string(), "nvfp4 64x64 m1");
        let block: Problem = "moe nvfp4 8 top2 128x64".parse().unwrap();
        assert_eq!(block.to_string(), "moe nvfp4 8/8 top2 128x64 m1");
        assert_eq!("hc bf16 4x512".parse::<Problem>().unwrap().to_string(), "hc bf16 4x512 m1");
    }

    #[test]
    fn each_refusal_names_what_was_found() {
        for (text, sentence) in [
            ("", "expected a problem such as `nvfp4 4096x8192 m64`, found `` (at ``)"),
            ("int8 4x4", "expected a problem such as `nvfp4 4096x8192 m64`, found `int8 4x4` (at `int8`)"),
            ("nvfp4 4096", "expected a problem such as `nvfp4 4096x8192 m64`, found `nvfp4 4096` (at `4096`)"),
            ("nvfp4 64x40", "nvfp4 holds k in multiples of 16, found k = 40"),
            ("mxfp4 64x48", "mxfp4 holds k in multiples of 32, found k = 48"),
            ("nvfp4 0x64", "expected n, k and m from 1 to 1048576, found n = 0"),
            ("nvfp4 64x64 m0", "expected n, k and m from 1 to 1048576, found m = 0"),
            ("nvfp4 24x64 swiglu", "swiglu needs n in multiples of 16 (8 gate rows beside 8 up rows), found n = 24"),
            ("nvfp4 64x64 a4 m1", "a4 activations are unsupported so far, on FP4 tensor cores too, expected a16 or a8"),
            ("moe bf16 4 top2 64x64 a8", "a8 activations need nvfp4, mxfp4 or fp8 weights, found bf16"),
            ("moe fp8 4 top2 64x24 a8", "fp8 holds k in multiples of 16, found k = 24"),
            ("bf16 64x64 a8", "a8 activations need nvfp4, mxfp4 or fp8 weights, found bf16"),
            ("fp8 64x24 a8", "fp8 holds k in multiples of 16, found k = 24"),
            (
                "quantise nvfp4 k64 m1 f32",
                "expected a problem such as `nvfp4 4096x8192 m64`, found `quantise nvfp4 k64 m1 f32` (at `f32`)",
            ),
            ("hc fp8 24x16384", "expected a problem such as `nvfp4 4096x8192 m64`, found `hc fp8 24x16384` (at `fp8`)"),
            ("hc f32 20x16384", "expected 24 or 4 rows and four streams in multiples of 64, found 20x16384"),
            ("hc f32 24x4098", "expected 24 or 4 rows and four streams in multiples of 64, found 24x4098"),
            ("hc f32 24x128", "expected 24 or 4 rows and four streams in multiples of 64, found 24x128"),
            (
                "hc f32 24x512 first m4 first",
                "expected a problem such as `nvfp4 4096x8192 m64`, found `hc f32 24x512 first m4 first` (at `first`)",
            ),
            ("hc f32 24x0", "expected n, k and m from 1 to 1048576, found k = 0"),
            (
                "nvfp4 64x64 m4 m8",
                "expected a problem such as `nvfp4 4096x8192 m64`, found `nvfp4 64x64 m4 m8` (at `m8`)",
            ),
            (
                "moe nvfp4 4 top2 64x64 a8 m4 a16",
                "expected a problem such as `nvfp4 4096x8192 m64`, found `moe nvfp4 4 top2 64x64 a8 m4 a16` (at `a16`)",
            ),
            ("moe nvfp4 4 top6 64x64", "expected at most 4 of 4 experts, found top = 6"),
        ] {
            assert_eq!(text.parse::<Problem>().unwrap_err().to_string(), sentence, "{text}");
        }
    }
}
