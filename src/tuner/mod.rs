//! Which tile wins: prediction, measurement in a worker process, search, and everything saved as it happens.

mod live;

pub use live::{Live, LiveError, Mode, Sample};
