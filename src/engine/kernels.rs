//! The runner's own kernels, compiled through the cache and loaded before the first step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUstream;

use super::EngineError;
use crate::codegen::{self, Request};
use crate::device::{Geometry, Gpu, Kernel, Value};
use crate::jit::{CameFrom, Jit};
use crate::kernels::runner::Op;

/// Loaded kernels by request.
pub struct Kernels {
    loaded: HashMap<(Request, u32), Loaded>,
    report: KernelsReport,
    can_overlap: bool,
    gpu: Arc<Gpu>,
}

/// A kernel with the number of its parameters, which the driver is asked for once.
#[derive(Clone)]
struct Loaded {
    kernel: Arc<Kernel>,
    n_parameters: usize,
}

/// What was loaded, and how long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KernelsReport {
    /// Distinct kernels.
    pub kernels: usize,
    /// Those that were compiled now; the others came from the cache.
    pub compiled: usize,
    /// All of it.
    pub took: Duration,
}

/// One op, ready to be launched.
#[derive(Clone)]
pub struct BoundOp {
    loaded: Loaded,
    geometry: Geometry,
}

impl Kernels {
    /// None yet.
    pub fn new(gpu: &Arc<Gpu>) -> Self {
        let can_overlap = gpu.spec().arch.capabilities.dependent_launch;
        Self { loaded: HashMap::new(), report: KernelsReport::default(), can_overlap, gpu: gpu.clone() }
    }

    /// Compiles and loads what `ops` launch and is not there yet, on `threads` threads.
    ///
    /// # Errors
    /// [`EngineError`]: a template, NVRTC, or an image that the driver refuses.
    pub fn load<'a>(
        &mut self,
        ops: impl IntoIterator<Item = &'a Op>,
        jit: &Jit,
        threads: usize,
    ) -> Result<(), EngineError> {
        let started = Instant::now();
        let mut wanted: Vec<(Request, u32)> = ops.into_iter().map(|op| (op.kernel.clone(), op.smem_bytes)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|key| !self.loaded.contains_key(key));
        let spec = self.gpu.spec();
        let sources = wanted.iter().map(|(request, _)| codegen::render(request, spec.arch, &spec.target));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        for (key, compiled) in wanted.into_iter().zip(jit.compile_all(&sources, threads)) {
            let (cubin, came_from) = compiled?;
            self.report.compiled += usize::from(came_from == CameFrom::Compilation);
            self.report.kernels += 1;
            let kernel = Kernel::load(&self.gpu, &cubin, key.1)?;
            let n_parameters = kernel.param_sizes()?.len();
            self.loaded.insert(key, Loaded { kernel: Arc::new(kernel), n_parameters });
        }
        self.report.took += started.elapsed();
        Ok(())
    }

    /// What was loaded.
    pub fn report(&self) -> KernelsReport {
        self.report
    }

    /// `op` with its kernel.
    ///
    /// # Panics
    /// If it was not among the ops that were loaded.
    pub fn bind(&self, op: &Op) -> BoundOp {
        let key = (op.kernel.clone(), op.smem_bytes);
        let loaded = self.loaded.get(&key).expect("an op is bound after it was loaded").clone();
        let geometry =
            Geometry { grid: op.grid, threads: op.threads, smem_bytes: op.smem_bytes, is_dependent: self.can_overlap };
        BoundOp { loaded, geometry }
    }
}

impl BoundOp {
    /// Launches the op on `stream`.
    ///
    /// # Safety
    /// `values` are the parameters that the op's doc lists, in its order; addresses among them are valid device memory
    /// of the sizes given there until the launch has ended.
    ///
    /// # Errors
    /// [`EngineError::Parameters`] if there are more or fewer values than parameters, before anything is launched;
    /// [`EngineError`] if the driver refuses.
    pub unsafe fn launch(&self, values: &[Value], stream: CUstream) -> Result<(), EngineError> {
        let Loaded { kernel, n_parameters } = &self.loaded;
        check_count(kernel.entry(), *n_parameters, values.len())?;
        // SAFETY: passed on to the caller; there is a value for each parameter.
        unsafe { kernel.launch_values(&self.geometry, values, stream)? };
        Ok(())
    }
}

/// The driver reads a value for each parameter, whether or not there is one: a missing one would be whatever lies
/// behind the others.
fn check_count(kernel: &str, expected: usize, found: usize) -> Result<(), EngineError> {
    if expected == found {
        return Ok(());
    }
    Err(EngineError::Parameters { kernel: kernel.to_string(), expected, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_too_many_or_too_few_is_a_sentence() {
        assert!(check_count("amax", 5, 5).is_ok());
        let refusal = |found| check_count("amax", 5, found).unwrap_err().to_string();
        assert_eq!(refusal(4), "expected 5 values for the parameters of `amax`, found 4");
        assert_eq!(refusal(6), "expected 5 values for the parameters of `amax`, found 6");
    }
}
