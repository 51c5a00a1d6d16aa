//! A plan with its kernels loaded: parameters are filled in and launched, in order.

use std::ffi::c_void;
use std::sync::Arc;

use super::{ArgsError, LaunchArgs, Segments};
use crate::arch::GpuSpec;
use crate::device::{DeviceError, Geometry, Kernel, TensorMap, TensorShape};
use crate::kernels::{BoxBase, BoxMap, Param, Plan};
use crate::problem::{Activations, Problem};

/// A problem's plan with loaded kernels. May be shared by threads.
pub struct Bound {
    problem: Problem,
    plan: Plan,
    kernels: Vec<Arc<Kernel>>,
    can_overlap: bool,
}

/// Why a launch did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Arguments that would fault.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The driver refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Bound {
    /// Puts a plan together with one loaded kernel for each of its launches.
    ///
    /// # Panics
    /// If there are not as many kernels as launches.
    pub fn new(problem: Problem, plan: Plan, kernels: Vec<Arc<Kernel>>, gpu: &GpuSpec) -> Self {
        assert_eq!(plan.launches.len(), kernels.len(), "one kernel for each launch");
        Self { problem, plan, kernels, can_overlap: gpu.arch.capabilities.dependent_launch }
    }

    /// What it computes.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Bytes of workspace that [`LaunchArgs::workspace`] must have.
    pub fn workspace_bytes(&self) -> u64 {
        self.plan.workspace_bytes
    }

    /// Launches everything on `stream`, a raw CUstream. May be called while the stream is captured into a graph:
    /// nothing is allocated, compiled or waited for.
    ///
    /// Each launch may start before the one ahead of it has ended, and waits by itself for what that one writes.
    ///
    /// # Safety
    /// The addresses in `args` are valid device memory of the sizes that the problem says, until the launches have
    /// ended. If they are captured, this must outlive the graph: its kernels are unloaded with it.
    ///
    /// # Errors
    /// [`LaunchError`]: arguments that would fault, or the driver's refusal.
    pub unsafe fn launch(&self, args: &LaunchArgs, stream: *mut c_void) -> Result<(), LaunchError> {
        // SAFETY: passed on to the caller.
        unsafe { self.launch_as(args, stream, true) }
    }

    /// As [`Bound::launch`], and says whether launches may overlap the one ahead.
    ///
    /// # Safety
    /// As [`Bound::launch`].
    ///
    /// # Errors
    /// As [`Bound::launch`].
    pub unsafe fn launch_as(
        &self,
        args: &LaunchArgs,
        stream: *mut c_void,
        is_dependent: bool,
    ) -> Result<(), LaunchError> {
        args.validate(&self.problem, &self.plan)?;
        for idx in 0..self.plan.launches.len() {
            // SAFETY: passed on to the caller.
            unsafe { self.launch_one(idx, args, stream, is_dependent)? };
        }
        Ok(())
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Launches one of the plan's launches, for a caller that has something to do between them.
    ///
    /// # Safety
    /// As [`Bound::launch`].
    ///
    /// # Errors
    /// As [`Bound::launch`].
    ///
    /// # Panics
    /// If the plan has no launch `idx`.
    pub unsafe fn launch_one(
        &self,
        idx: usize,
        args: &LaunchArgs,
        stream: *mut c_void,
        is_dependent: bool,
    ) -> Result<(), LaunchError> {
        args.validate(&self.problem, &self.plan)?;
        let (launch, kernel) = (&self.plan.launches[idx], &self.kernels[idx]);
        let mut values = Values::new(args);
        for param in &launch.params {
            values.push(param)?;
        }
        let geometry = Geometry {
            grid: launch.grid,
            threads: launch.threads,
            smem_bytes: launch.smem_bytes,
            is_dependent: is_dependent && self.can_overlap,
        };
        // SAFETY: the family lists the kernel's parameters in its order (a test compares their sizes with what the
        // driver says), and the caller answers for the addresses.
        unsafe { kernel.launch(&geometry, values.pointers(), stream.cast())? };
        Ok(())
    }
}

/// The values of one launch's parameters, on the stack.
struct Values<'a> {
    args: &'a LaunchArgs,
    numbers: [u64; MOST_PARAMS],
    map: TensorMap,
    segments: Segments,
    kinds: [Kind; MOST_PARAMS],
    pointers: [*mut c_void; MOST_PARAMS],
    count: usize,
}

/// Where a parameter's value lies.
#[derive(Clone, Copy)]
enum Kind {
    Number,
    Map,
    Segments,
}

impl<'a> Values<'a> {
    fn new(args: &'a LaunchArgs) -> Self {
        Self {
            args,
            numbers: [0; MOST_PARAMS],
            map: TensorMap { opaque: [0; 16] },
            segments: args.segments,
            kinds: [Kind::Number; MOST_PARAMS],
            pointers: [std::ptr::null_mut(); MOST_PARAMS],
            count: 0,
        }
    }

    fn push(&mut self, param: &Param) -> Result<(), DeviceError> {
        let args = self.args;
        // A 32-bit value is the low half of its 64-bit slot: the hosts that we build for are little-endian.
        let number = match param {
            Param::Operand(operand) => args.pointer(*operand),
            Param::Workspace(offset) => args.workspace + offset,
            Param::Null => 0,
            Param::TokensOnDevice => args.tokens_on_device,
            Param::Tokens => args.tokens.into(),
            Param::ActivationStride => args.activation_stride.into(),
            Param::OutputStride => args.output_stride.into(),
            Param::Long(value) => *value as u64,
            Param::Int(value) => *value as u32 as u64,
            Param::Limit => args.limit.to_bits().into(),
            Param::ExpertOffset => args.expert_offset.into(),
            Param::Segments => {
                self.kinds[self.count] = Kind::Segments;
                0
            }
            Param::Box(map) => {
                self.kinds[self.count] = Kind::Map;
                self.map = encode(map, args)?;
                0
            }
        };
        self.numbers[self.count] = number;
        self.count += 1;
        Ok(())
    }

    fn pointers(&mut self) -> &mut [*mut c_void] {
        for idx in 0..self.count {
            self.pointers[idx] = match self.kinds[idx] {
                Kind::Number => (&raw mut self.numbers[idx]).cast(),
                Kind::Map => (&raw mut self.map).cast(),
                Kind::Segments => (&raw mut self.segments).cast(),
            };
        }
        &mut self.pointers[..self.count]
    }
}

fn encode(map: &BoxMap, args: &LaunchArgs) -> Result<TensorMap, DeviceError> {
    let (pointer, rows, row_stride) = match map.base {
        BoxBase::Activations => (args.activations, args.tokens.into(), args.activation_stride.into()),
        BoxBase::Workspace { offset, rows } => (args.workspace + offset, rows, map.k),
    };
    let element_bytes = match map.element {
        Activations::A16 => 2,
        Activations::A8 => 1,
    };
    TensorShape { element_bytes, k: map.k, rows, groups: map.groups, row_stride, box_rows: map.tokens }.encode(pointer)
}

/// More than any kernel of ours has.
const MOST_PARAMS: usize = 24;
