//! Streams, events and CUDA graphs: launches that are recorded once and replayed.

use cudarc::driver::sys::{
    CUevent, CUgraph, CUgraphExec, CUgraphNode, CUresult, CUstream, CUstreamCaptureMode, CUstreamCaptureStatus,
    CUstreamUpdateCaptureDependencies_flags,
};

use super::driver::{check, driver};
use super::{DeviceError, Gpu};

/// A stream of our own, destroyed when it goes out of scope.
pub struct Stream {
    raw: CUstream,
}

// SAFETY: a handle of the driver, which may be used from any thread that has its context current.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream that does not wait for the default stream.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    pub fn new(gpu: &Gpu) -> Result<Self, DeviceError> {
        gpu.make_current()?;
        let mut raw = std::ptr::null_mut();
        driver!(cuStreamCreate(&mut raw, NON_BLOCKING))?;
        Ok(Self { raw })
    }

    /// The CUstream.
    pub fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits for everything in the stream.
    ///
    /// # Errors
    /// [`DeviceError`]: what went wrong in it.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        driver!(cuStreamSynchronize(self.raw))
    }

    /// Records what `launches` puts on this stream as a graph; nothing runs yet.
    ///
    /// # Errors
    /// The error of `launches`, or of the driver when something in it cannot be captured.
    pub fn capture<E: From<DeviceError>>(&self, launches: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        driver!(cuStreamBeginCapture_v2(self.raw, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))?;
        let launched = launches();
        let mut graph: CUgraph = std::ptr::null_mut();
        let ended = driver!(cuStreamEndCapture(self.raw, &mut graph));
        let mut exec: CUgraphExec = std::ptr::null_mut();
        let instantiated = match (&launched, &ended) {
            (Ok(()), Ok(())) => driver!(cuGraphInstantiateWithFlags(&mut exec, graph, 0)),
            _ => Ok(()),
        };
        if !graph.is_null() {
            let _ = driver!(cuGraphDestroy(graph));
        }
        launched?;
        ended?;
        instantiated?;
        Ok(Graph { exec })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = driver!(cuStreamDestroy_v2(self.raw));
    }
}

/// A place in a capture: the launches that the next one waits for. With it launches that were captured one behind the
/// other stand beside each other in the graph. What kind of edge leads from there is the next launch's to say, by
/// [`Geometry::is_dependent`](super::Geometry): the place keeps none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapturePoint {
    nodes: Vec<CUgraphNode>,
}

impl CapturePoint {
    /// Where the capture of `stream` stands.
    ///
    /// # Errors
    /// [`DeviceError`] if the stream is not being captured.
    pub fn of(stream: &Stream) -> Result<Self, DeviceError> {
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut id, mut graph) = (0, std::ptr::null_mut());
        let (mut nodes, mut edges, mut count) = (std::ptr::null(), std::ptr::null(), 0);
        driver!(cuStreamGetCaptureInfo_v3(
            stream.raw,
            &mut status,
            &mut id,
            &mut graph,
            &mut nodes,
            &mut edges,
            &mut count
        ))?;
        if status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE {
            check("cuStreamGetCaptureInfo_v3", CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
        }
        if count == 0 || nodes.is_null() {
            return Ok(Self::default());
        }
        // SAFETY: the driver says that there are `count` handles, which stay until the stream's next call.
        Ok(Self { nodes: unsafe { std::slice::from_raw_parts(nodes, count) }.to_vec() })
    }

    /// The next launch of `stream` waits for this place alone.
    ///
    /// # Errors
    /// [`DeviceError`] if the stream is not being captured.
    pub fn resume(&self, stream: &Stream) -> Result<(), DeviceError> {
        self.update(stream, CUstreamUpdateCaptureDependencies_flags::CU_STREAM_SET_CAPTURE_DEPENDENCIES)
    }

    /// The next launch of `stream` waits for this place too.
    ///
    /// # Errors
    /// [`DeviceError`] if the stream is not being captured.
    pub fn join(&self, stream: &Stream) -> Result<(), DeviceError> {
        self.update(stream, CUstreamUpdateCaptureDependencies_flags::CU_STREAM_ADD_CAPTURE_DEPENDENCIES)
    }

    fn update(&self, stream: &Stream, how: CUstreamUpdateCaptureDependencies_flags) -> Result<(), DeviceError> {
        let mut nodes = self.nodes.clone();
        driver!(cuStreamUpdateCaptureDependencies_v2(
            stream.raw,
            nodes.as_mut_ptr(),
            std::ptr::null(),
            nodes.len(),
            how as u32
        ))
    }
}

/// A recorded sequence of launches.
pub struct Graph {
    exec: CUgraphExec,
}

// SAFETY: a handle of the driver; replays are ordered by the stream that they are launched on.
unsafe impl Send for Graph {}

impl Graph {
    /// Runs the launches on `stream`.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    pub fn launch(&self, stream: &Stream) -> Result<(), DeviceError> {
        driver!(cuGraphLaunch(self.exec, stream.raw))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = driver!(cuGraphExecDestroy(self.exec));
    }
}

/// A point in time on a stream.
pub struct Event {
    raw: CUevent,
}

// SAFETY: a handle of the driver, which may be used from any thread that has its context current.
unsafe impl Send for Event {}

impl Event {
    /// A new event that keeps time.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    pub fn new(gpu: &Gpu) -> Result<Self, DeviceError> {
        gpu.make_current()?;
        let mut raw = std::ptr::null_mut();
        driver!(cuEventCreate(&mut raw, 0))?;
        Ok(Self { raw })
    }

    /// Marks this point in `stream`.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    pub fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        driver!(cuEventRecord(self.raw, stream.raw))
    }

    /// Microseconds from `earlier` to this event. Waits for this one.
    ///
    /// # Errors
    /// [`DeviceError`]: what went wrong before it.
    pub fn microseconds_since(&self, earlier: &Event) -> Result<f64, DeviceError> {
        driver!(cuEventSynchronize(self.raw))?;
        let mut milliseconds = 0.0;
        driver!(cuEventElapsedTime_v2(&mut milliseconds, earlier.raw, self.raw))?;
        Ok(f64::from(milliseconds) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = driver!(cuEventDestroy_v2(self.raw));
    }
}

/// CU_STREAM_NON_BLOCKING.
const NON_BLOCKING: u32 = 1;
