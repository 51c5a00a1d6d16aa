//! NVRTC itself, loaded from one path.
//!
//! cudarc loads NVRTC by bare name only, so a toolkit on the loader's path would win over the pinned version, and it
//! has no `nvrtcSetFlowCallback`, which is how a compilation is stopped. So the dozen functions are looked up here.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::{Cubin, JitError, Resources, Stop};
use crate::codegen::Source;

/// A loaded NVRTC. Compilations may run in several threads at once.
pub struct Nvrtc {
    functions: Functions,
    path: PathBuf,
    version: (u32, u32),
    architectures: Vec<u32>,
    stop: Stop,
    // Dropped last: the functions live in it.
    _libraries: Vec<Library>,
}

type Program = *mut c_void;

/// Declares the functions that are looked up, with their C signatures (nvrtc.h).
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*);)*) => {
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            fn find(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: each symbol is a function of nvrtc.h with exactly this signature since CUDA 12.8, and the
                    // library outlives the pointers: both are fields of `Nvrtc`.
                    $($field: *unsafe { library.get($symbol) }?,)*
                })
            }
        }
    };
}

functions! {
    version = b"nvrtcVersion": fn(*mut c_int, *mut c_int);
    n_archs = b"nvrtcGetNumSupportedArchs": fn(*mut c_int);
    archs = b"nvrtcGetSupportedArchs": fn(*mut c_int);
    create = b"nvrtcCreateProgram":
        fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    destroy = b"nvrtcDestroyProgram": fn(*mut Program);
    compile = b"nvrtcCompileProgram": fn(Program, c_int, *const *const c_char);
    set_flow_callback = b"nvrtcSetFlowCallback":
        fn(Program, Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int>, *mut c_void);
    log_size = b"nvrtcGetProgramLogSize": fn(Program, *mut usize);
    log = b"nvrtcGetProgramLog": fn(Program, *mut c_char);
    cubin_size = b"nvrtcGetCUBINSize": fn(Program, *mut usize);
    cubin = b"nvrtcGetCUBIN": fn(Program, *mut c_char);
    ptx_size = b"nvrtcGetPTXSize": fn(Program, *mut usize);
    ptx = b"nvrtcGetPTX": fn(Program, *mut c_char);
}

impl Nvrtc {
    /// Loads the library at `path` and, if they lie beside it, its builtins.
    ///
    /// # Errors
    /// [`JitError::NotNvrtc`] if it cannot be loaded or lacks a function.
    pub fn load(path: &Path) -> Result<Self, JitError> {
        let refuse = |found: String| JitError::NotNvrtc { path: path.to_path_buf(), found };
        // A bare name is the loader's to find.
        if path.components().count() > 1 && !path.is_file() {
            let found = if path.is_dir() { "a folder without libnvrtc.so" } else { "nothing" };
            return Err(refuse(found.to_string()));
        }
        let mut libraries = Vec::new();
        // Before 13.1 the library has no RUNPATH and finds its builtins only if they are loaded already.
        for builtins in builtins_beside(path) {
            // SAFETY: NVIDIA's builtins library has no initialisers with preconditions.
            libraries.extend(unsafe { Library::open(Some(&builtins), RTLD_NOW | RTLD_GLOBAL) }.ok());
        }
        // SAFETY: loading NVRTC runs its initialisers, which have no preconditions.
        let library =
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| refuse(said(&error, path)))?;
        let functions = Functions::find(&library).map_err(|error| refuse(said(&error, path)))?;
        libraries.push(library);
        let (mut major, mut minor, mut n_archs) = (0, 0, 0);
        // SAFETY: the arguments are valid pointers to ints, as nvrtc.h asks.
        unsafe {
            check("nvrtcVersion", (functions.version)(&mut major, &mut minor))?;
            check("nvrtcGetNumSupportedArchs", (functions.n_archs)(&mut n_archs))?;
        }
        let mut architectures = vec![0 as c_int; n_archs.max(0) as usize];
        // SAFETY: the buffer holds as many ints as NVRTC has just asked for.
        unsafe { check("nvrtcGetSupportedArchs", (functions.archs)(architectures.as_mut_ptr()))? };
        Ok(Self {
            functions,
            path: path.to_path_buf(),
            version: (major as u32, minor as u32),
            architectures: architectures.into_iter().map(|arch| arch as u32).collect(),
            stop: Stop::default(),
            _libraries: libraries,
        })
    }

    /// `13.2`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// The same NVRTC, whose compilations end when `stop` is due.
    pub(super) fn stopped_by(self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self }
    }

    /// Whether it compiles for `target`, such as `sm_90a`.
    pub fn knows(&self, target: &str) -> bool {
        self.check_target(target).is_ok()
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles `source` to a cubin, and stops after `limit`.
    ///
    /// # Errors
    /// [`JitError`]: an unknown target, a refused text, a limit that passed, a [`Stop`].
    pub fn compile(&self, source: &Source, limit: Duration) -> Result<Cubin, JitError> {
        self.check_target(&source.target)?;
        let program = ProgramHandle::create(self, source)?;
        let options = options(&source.target);
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut end = End { at: Instant::now() + limit, stop: &self.stop, is_late: false, is_stopped: false };
        let started = Instant::now();
        // SAFETY: program and option strings live through the call; the callback gets `end`, which outlives it
        // and which nothing else touches meanwhile.
        let code = unsafe {
            let payload = (&raw mut end).cast();
            check(
                "nvrtcSetFlowCallback",
                (self.functions.set_flow_callback)(program.raw, Some(stop_in_time), payload),
            )?;
            (self.functions.compile)(program.raw, pointers.len() as c_int, pointers.as_ptr())
        };
        let compile_ms = started.elapsed().as_millis() as u32;
        if end.is_stopped {
            return Err(JitError::Stopped(format!("`{}` was compiled", source.entry)));
        }
        if end.is_late {
            return Err(JitError::TimedOut { entry: source.entry.to_string(), limit });
        }
        let log = program.text("nvrtcGetProgramLog", self.functions.log_size, self.functions.log)?;
        let (entry, target) = (source.entry.to_string(), source.target.clone());
        if code != 0 {
            return Err(JitError::Refused { entry, target, log });
        }
        let image = program.bytes("nvrtcGetCUBIN", self.functions.cubin_size, self.functions.cubin)?;
        if image.len() < ELF_HEADER_BYTES {
            return Err(JitError::Empty { entry, target, bytes: image.len() });
        }
        let ptx = program.text("nvrtcGetPTX", self.functions.ptx_size, self.functions.ptx)?;
        let resources = Resources::from_log(&log);
        Ok(Cubin { entry, hash: source.hash.clone(), image, ptx, resources, compile_ms, nvrtc: self.version() })
    }

    /// Refuses a target whose architecture this version does not list.
    fn check_target(&self, target: &str) -> Result<(), JitError> {
        let digits: String = target.chars().filter(char::is_ascii_digit).collect();
        match digits.parse() {
            Ok(arch) if self.architectures.contains(&arch) => Ok(()),
            _ => Err(JitError::TooOld {
                target: target.to_string(),
                version: self.version(),
                known: self.architectures.iter().map(|arch| format!("sm_{arch}")).collect::<Vec<_>>().join(" "),
            }),
        }
    }
}

/// What every kernel is compiled with. Bits are defined: no contraction of a multiply and an add that was not written.
fn options(target: &str) -> Vec<CString> {
    let architecture = format!("--gpu-architecture={target}");
    [
        architecture.as_str(),
        "--std=c++17",
        "--fmad=false",
        "--ptxas-options=-v",
        "--minimal",
        "--no-cache",
        "-default-device",
    ]
    .into_iter()
    .map(|option| CString::new(option).expect("an option holds no NUL: a target is letters, digits and `_`"))
    .collect()
}

/// When a compilation is to end, and why it has.
struct End<'a> {
    at: Instant,
    stop: &'a Stop,
    is_late: bool,
    is_stopped: bool,
}

/// NVRTC calls this hundreds of times in a compilation; 1 stops it.
unsafe extern "C" fn stop_in_time(payload: *mut c_void, _: *mut c_void) -> c_int {
    // SAFETY: the payload is the `End` of the one compilation that this callback was set for.
    let end = unsafe { &mut *payload.cast::<End<'_>>() };
    end.is_stopped |= end.stop.is_due();
    end.is_late |= Instant::now() > end.at;
    c_int::from(end.is_stopped || end.is_late)
}

/// The loader's reason, which libloading keeps one level down, without the path that our sentence has already.
fn said(error: &libloading::Error, path: &Path) -> String {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    reason.trim_start_matches(&format!("{}: ", path.display())).to_string()
}

/// A program, destroyed when it goes out of scope.
struct ProgramHandle<'a> {
    raw: Program,
    nvrtc: &'a Nvrtc,
}

impl<'a> ProgramHandle<'a> {
    fn create(nvrtc: &'a Nvrtc, source: &Source) -> Result<Self, JitError> {
        let text = CString::new(source.text.as_str()).expect("templates hold no NUL: they are text files");
        let name = CString::new(format!("{}.cu", source.entry)).expect("a template's name is a folder's name");
        let mut raw = std::ptr::null_mut();
        // SAFETY: both strings live through the call, which copies them; there are no headers.
        let code = unsafe {
            (nvrtc.functions.create)(&mut raw, text.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null())
        };
        check("nvrtcCreateProgram", code)?;
        Ok(Self { raw, nvrtc })
    }

    fn bytes(
        &self,
        call: &'static str,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        fill: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, JitError> {
        let mut bytes = 0;
        // SAFETY: the program is alive and `bytes` a valid pointer.
        check(call, unsafe { size(self.raw, &mut bytes) })?;
        let mut buffer = vec![0u8; bytes];
        if bytes > 0 {
            // SAFETY: the buffer has the size that NVRTC has just named.
            check(call, unsafe { fill(self.raw, buffer.as_mut_ptr().cast()) })?;
        }
        Ok(buffer)
    }

    fn text(
        &self,
        call: &'static str,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        fill: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<String, JitError> {
        let bytes = self.bytes(call, size, fill)?;
        Ok(CStr::from_bytes_until_nul(&bytes)
            .map_or_else(|_| String::from_utf8_lossy(&bytes).into_owned(), |text| text.to_string_lossy().into_owned()))
    }
}

impl Drop for ProgramHandle<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created by this NVRTC and is destroyed once.
        unsafe { (self.nvrtc.functions.destroy)(&mut self.raw) };
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), JitError> {
    match code {
        0 => Ok(()),
        code => Err(JitError::Call { call, code }),
    }
}

/// `libnvrtc-builtins.so.*` in the folder of `path`.
fn builtins_beside(path: &Path) -> Vec<PathBuf> {
    let Some(Ok(entries)) = path.parent().map(std::fs::read_dir) else { return Vec::new() };
    let is_builtins = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc-builtins.so"))
    };
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(is_builtins).collect()
}

const ELF_HEADER_BYTES: usize = 64;
