//! The machine: its GPU, its compiler, its Python, and the folder of compiled kernels.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Access, access, statvfs};

use super::check::Check;
use crate::arch::GpuSpec;
use crate::cli::context::Paths;
use crate::codegen::Source;
use crate::device::{Clocks, DeviceError, Gpu};
use crate::jit::{FoundIn, JitError, KernelCache, Nvrtc, PINNED_VERSION};

/// The driver and GPU number `ordinal`, and how it runs.
pub fn gpu(ordinal: u32) -> Vec<Check> {
    let gpu = match Gpu::open(ordinal) {
        Ok(gpu) => gpu,
        Err(error @ (DeviceError::NoDriver | DeviceError::NoDevice { count: 0, .. })) => {
            return vec![Check::warning("gpu", error.to_string(), error.hint().unwrap_or_default())];
        }
        Err(error) => {
            let hint = error.hint().unwrap_or("`nvidia-smi` shows what the driver says");
            return vec![Check::error("gpu", error.to_string(), hint)];
        }
    };
    let (spec, identity) = (gpu.spec(), &gpu.spec().identity);
    let memory = gpu.memory().map(|(free, total)| format!("{} of {} free", gib(free), gib(total)));
    let memory = memory.unwrap_or_else(|error| error.to_string());
    let says = format!("{ordinal}: {identity} ({}), {memory}, driver {}", spec.target, gpu.driver_version());
    let known = GpuSpec::of_product(&identity.product);
    let check = match known {
        _ if identity.is_mig => {
            let hint = "a slice shares its memory's bandwidth: times are of this slice beside its neighbours";
            Check::warning("gpu", format!("{says}, a MIG slice"), hint)
        }
        None => Check::warning("gpu", says, "no tuning_db/<gpu>/gpu.toml knows it: its rates are the driver's"),
        Some(known) if known.identity != *identity => {
            let hint =
                format!("the packs are of {}: their winners are borrowed until this GPU is tuned", known.identity);
            Check::warning("gpu", says, hint)
        }
        Some(_) => Check::ok("gpu", says),
    };
    vec![check, clocks(identity.product.as_str(), ordinal)]
}

fn clocks(product: &str, ordinal: u32) -> Check {
    let Some(clocks) = Clocks::of(product, ordinal) else {
        return Check::warning(
            "clocks",
            "NVML was not found",
            "records will not say at which clocks they were measured",
        );
    };
    let sample = clocks.sample();
    let says = format!("SM at {} MHz, {} W", sample.sm_mhz, sample.power_milliwatts / 1000);
    match (sample.throttled_by().as_slice(), clocks.is_persistent()) {
        ([], Some(false)) => {
            let hint =
                "the driver is loaded anew for each run, which takes seconds: `nvidia-smi -pm 1` as root keeps it";
            Check::warning("clocks", format!("{says}, not throttled, persistence mode off"), hint)
        }
        ([], _) => Check::ok("clocks", format!("{says}, not throttled")),
        (reasons, _) => {
            let hint = "measure when the GPU is cool and alone; every record keeps its throttle reasons";
            Check::warning("clocks", format!("{says}, throttled: {}", reasons.join(", ")), hint)
        }
    }
}

/// NVRTC, found as a run finds it but never fetched, and its version.
pub fn nvrtc(paths: &Paths, gpu: &GpuSpec) -> (Check, Option<String>) {
    match paths.search.find() {
        Ok(Some((nvrtc, found_in))) => (found(&nvrtc, found_in, gpu), Some(nvrtc.version())),
        Ok(None) if paths.search.is_offline => {
            let error = JitError::NoNvrtc { tried: "`--offline` forbids to fetch it".to_string() };
            (Check::error("nvrtc", error.to_string(), error.hint().unwrap_or_default()), None)
        }
        Ok(None) => {
            let hint = format!("the first compilation fetches {PINNED_VERSION} (47 MB) with pip");
            (Check::warning("nvrtc", "none yet", hint), None)
        }
        Err(error) => (Check::error("nvrtc", error.to_string(), error.hint().unwrap_or_default()), None),
    }
}

/// What `nvrtc` is, and whether it compiles for `gpu`: one without its builtins loads, and fails only then.
fn found(nvrtc: &Nvrtc, found_in: FoundIn, gpu: &GpuSpec) -> Check {
    let (version, path) = (nvrtc.version(), nvrtc.path().display().to_string());
    let how = match found_in {
        FoundIn::Named => "named by --nvrtc or TILEKILN_NVRTC",
        FoundIn::Cache => "the pinned version",
        FoundIn::Loader => "the loader's default",
        FoundIn::CudaHome => "of CUDA_HOME",
        FoundIn::Python => "of Python's packages",
    };
    let says = format!("{version} in {path} ({how})");
    let text = "extern \"C\" __global__ void probe() {}\n".to_string();
    let source = Source { entry: "probe", target: gpu.target.clone(), text, hash: "probe".to_string() };
    match nvrtc.compile(&source, PROBE_LIMIT) {
        Err(error) => Check::error("nvrtc", format!("{says}: {error}"), error.hint().unwrap_or_default()),
        Ok(_) if PINNED_VERSION.strip_prefix(&version).is_some_and(|rest| rest.starts_with('.')) => {
            Check::ok("nvrtc", format!("{says}, compiles for {}", gpu.target))
        }
        Ok(_) => {
            let hint = format!("packs were measured with {PINNED_VERSION}: winners of another minor version are stale");
            Check::warning("nvrtc", says, hint)
        }
    }
}

/// Python and pip, which fetch NVRTC.
pub fn python(is_nvrtc_there: bool) -> Check {
    let mut command = Command::new("python3");
    let out = command.args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
    let missing = match out {
        Ok(out) if out.status.success() => {
            // `pip 25.0 from /usr/lib/python3/dist-packages/pip (python 3.12)`
            return Check::ok("python", String::from_utf8_lossy(&out.stdout).trim().to_string());
        }
        Ok(_) => "python3 has no pip",
        Err(_) => "no python3",
    };
    match is_nvrtc_there {
        true => Check::ok("python", format!("{missing}, and none is needed: NVRTC is there")),
        false => Check::error("python", missing, "python3 and pip fetch NVRTC; or pass `--nvrtc PATH`"),
    }
}

/// The folder of compiled kernels.
pub fn cache(paths: &Paths) -> Check {
    let root = &paths.kernels;
    let there = root.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let says = |what: &str| format!("{}: {what}", root.display());
    if !there.is_dir() {
        let hint = "every kernel is compiled anew in each run: TILEKILN_CACHE names another folder";
        return Check::warning("cache", says(&format!("`{}` is no folder", there.display())), hint);
    }
    if access(there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let hint = "every kernel is compiled anew in each run: TILEKILN_CACHE names a folder that you may write to";
        return Check::warning("cache", says(&format!("`{}` cannot be written", there.display())), hint);
    }
    let libraries = &paths.search.cache;
    let open = [root, libraries].into_iter().find(|folder| mode(folder).is_some_and(|mode| mode & 0o022 != 0));
    if let Some(open) = open {
        let says = format!("others may write to {} (mode {:o})", open.display(), mode(open).unwrap_or_default());
        return Check::error("cache", says, "what lies there runs with your rights: `chmod 700` it, or remove it");
    }
    let free = statvfs(there).map_or(u64::MAX, |space| space.f_bavail.saturating_mul(space.f_frsize));
    let report = KernelCache::new(root).report();
    let mode = mode(root).map_or("not made yet".to_string(), |mode| format!("mode {mode:o}"));
    let says = says(&format!("{mode}, {} kernels, {:.1} MiB, {} free", report.kernels, mib(report.bytes), gib(free)));
    match free < LITTLE_SPACE {
        true => Check::warning("cache", says, "`autotune gc` removes kernels that no record uses"),
        false => Check::ok("cache", says),
    }
}

fn mode(path: &Path) -> Option<u32> {
    Some(path.metadata().ok()?.permissions().mode() & 0o777)
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 20) as f64
}

/// An empty kernel takes a hundredth of this.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// A model's kernels take some 100 MiB.
const LITTLE_SPACE: u64 = 1 << 30;
