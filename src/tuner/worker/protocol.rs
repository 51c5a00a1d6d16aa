//! Frames between parent and child: `[length u32][version u16][JSON]`, little-endian.

use std::io::{self, Read, Write};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::arch::GpuIdentity;
use crate::problem::{Problem, Routing, Tile};
use crate::store::Outcome;
use crate::tuner::{ChainLink, Mode, Sample};

/// What the parent asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Make the data of this op.
    Open { problem: Problem, routings: Vec<Routing>, seed: u64 },
    /// Compile, load and check this tile as candidate `id`.
    Prepare { id: u32, problem: Problem, tile: Tile },
    /// Time candidate `id` once.
    Replay { id: u32, mode: Mode, routing_idx: usize },
    /// Forget candidate `id`.
    Release { id: u32 },
    /// Time a pure read of this many bytes in a chain of dependent launches, and without overlap.
    Ceiling { bytes: u64 },
    /// Time a layer of launches that read what others of them wrote.
    Chain { links: Vec<ChainLink>, seed: u64 },
    /// Run a kernel that misbehaves.
    Sabotage(Sabotage),
}

/// How a kernel misbehaves, for tests of recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sabotage {
    /// It writes where nothing is.
    Fault,
    /// It never ends.
    Hang,
    /// The process ends at once.
    Crash,
}

/// What the child answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The first frame: the GPU is open.
    Ready(GpuReport),
    /// The first frame: it could not be opened.
    NotReady { reason: String, hint: Option<String> },
    /// The data is there.
    Opened { is_warm: bool },
    /// The candidate is right; so long it took until its kernels were compiled and loaded.
    Prepared { relative_l2: f64, loading: Duration },
    /// One replay.
    Sampled(Sample),
    /// Times of a pure read or of a layer, microseconds: chained and not.
    Timed { chained_us: f64, unchained_us: f64 },
    /// Done.
    Done,
    /// The request failed. After a lost context the process is of no more use.
    Failed { outcome: Outcome, is_lost: bool },
    /// Still alive.
    Heartbeat,
}

/// The GPU as the child sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuReport {
    /// Who it is.
    pub identity: GpuIdentity,
    /// Driver version.
    pub driver: String,
    /// Device memory, bytes: all, and free.
    pub memory: (u64, u64),
}

/// Writes one frame.
pub(super) fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let mut frame = Vec::with_capacity(body.len() + 6);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&VERSION.to_le_bytes());
    frame.extend_from_slice(&body);
    to.write_all(&frame)?;
    to.flush()
}

/// Reads one frame.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut head = [0; 6];
    from.read_exact(&mut head)?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let version = u16::from_le_bytes([head[4], head[5]]);
    let refuse = |sentence: String| io::Error::new(io::ErrorKind::InvalidData, sentence);
    if version != VERSION {
        return Err(refuse(format!("expected frames of version {VERSION}, found {version}")));
    }
    if length > LONGEST {
        return Err(refuse(format!("expected a frame of at most {LONGEST} bytes, found {length}")));
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    serde_json::from_slice(&body).map_err(|error| refuse(error.to_string()))
}

/// Changes with any change to the messages: parent and child are the same binary, or should be.
const VERSION: u16 = 3;

/// No message of ours comes near.
const LONGEST: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_sent() {
        let messages = [
            Request::Open { problem: "nvfp4 64x64 m8".parse().unwrap(), routings: vec![Routing::Zipf(1.0)], seed: 7 },
            Request::Prepare {
                id: 3,
                problem: "fp8 64x64".parse().unwrap(),
                tile: "dense_mma tokens=8".parse().unwrap(),
            },
            Request::Sabotage(Sabotage::Hang),
        ];
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| send(&mut bytes, message).unwrap());
        let mut from = &bytes[..];
        for message in &messages {
            assert_eq!(&receive::<Request>(&mut from).unwrap(), message);
        }
        assert_eq!(receive::<Request>(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn foreign_frames_are_refused() {
        let mut bytes = Vec::new();
        send(&mut bytes, &Reply::Done).unwrap();
        bytes[4] = 9;
        let error = receive::<Reply>(&mut &bytes[..]).unwrap_err().to_string();
        assert_eq!(error, "expected frames of version 3, found 9");
        bytes[3] = 0xFF;
        bytes[4] = 3;
        assert!(receive::<Reply>(&mut &bytes[..]).unwrap_err().to_string().starts_with("expected a frame of at most"));
    }
}
