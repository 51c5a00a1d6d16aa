//! DeepSeek-V4, "dsv4": the only place that knows this model.
//!
//! Flash and Pro are one architecture with two [`Config`]s. A layer's attention sees a sliding window, and most layers'
//! compressed keys as well ([`LayerKind`]); its feed-forward part is one shared expert beside many routed ones;
//! hyper-connections mix four residual streams around both. The draft heads (MTP, DSpark) are left out.

mod config;
pub mod config_file;
mod footprint;
pub mod forward;
mod inventory;
pub mod prompt;
pub mod reference;
mod watch;
pub mod weights;

pub use config::{Config, LayerKind, Yarn};
pub use footprint::{Footprint, IndexFormat, KvFormat, Load, floor_us, layers_that_fit};
pub use inventory::{Formats, inventory, inventory_of};
pub use watch::{CheckAt, Watch};

use super::Model;

/// DeepSeek-V4-Flash.
pub const FLASH: Model = Model {
    name: "dsv4",
    aliases: &["dsv4-flash"],
    about: "DeepSeek-V4-Flash: 43 layers of 256 experts, 284 B parameters",
    list_ops: |checkpoint, shard| inventory(&Config::FLASH, checkpoint, shard),
};

/// DeepSeek-V4-Pro.
pub const PRO: Model = Model {
    name: "dsv4-pro",
    aliases: &[],
    about: "DeepSeek-V4-Pro: 61 layers of 384 experts, 1573 B parameters",
    list_ops: |checkpoint, shard| inventory(&Config::PRO, checkpoint, shard),
};
