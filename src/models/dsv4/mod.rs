//! DeepSeek-V4, "dsv4": the only place that knows this model.
//!
//! Flash and Pro are one architecture with two [`Config`]s. A layer's attention sees a sliding window, and most layers'
//! compressed keys as well ([`LayerKind`]); its feed-forward part is one shared expert beside many routed ones;
//! hyper-connections mix four residual streams around both. The draft heads (MTP, DSpark) are left out.

mod config;

pub use config::{Config, LayerKind, Yarn};
