//! Renders one kernel: `cargo run --example 01_render -- "nvfp4 4096x8192 m16" [--text]`.
//!
//! Neither a GPU nor NVRTC is needed. A rendered kernel is one self-contained text, known by its hash; everything that
//! was filled in stands in its `Config`.

use std::error::Error;

use tilekiln::arch::GpuSpec;
use tilekiln::codegen::{self, Source};
use tilekiln::kernels;
use tilekiln::problem::Problem;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let is_whole = words.iter().any(|word| word == "--text");
    let text = words.iter().find(|word| !word.starts_with("--"));
    let problem: Problem = text.map_or("nvfp4 4096x8192 m16", String::as_str).parse()?;
    let gpu = GpuSpec::named("h100")?;

    let tile = kernels::default_tile(&problem, gpu).ok_or("no family serves the problem")?;
    let plan = kernels::plan(&problem, &tile, gpu)?;
    for launch in &plan.launches {
        let source = codegen::render(&launch.kernel, gpu.arch, &gpu.target)?;
        if is_whole {
            println!("{}", source.text);
            continue;
        }
        println!("{problem} on {}: {tile}", gpu.identity.product);
        println!("  templates/{}/kernel.cu for {}", launch.kernel.template, source.target);
        println!("  {} lines, {} bytes, hash {}", source.text.lines().count(), source.text.len(), source.hash);
        println!("  grid {:?}, {} threads, {} B of shared memory", launch.grid, launch.threads, launch.smem_bytes);
        println!("{}\n", config(&source));
    }
    Ok(())
}

/// The numbers that were filled in: the lines of the kernel's `struct Config`.
fn config(source: &Source) -> String {
    let from_config = source.text.lines().skip_while(|line| !line.starts_with("struct Config"));
    let mut lines: Vec<&str> = from_config.take_while(|line| !line.starts_with('}')).collect();
    lines.push("};");
    lines.join("\n")
}
