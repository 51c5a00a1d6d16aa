//! Which tile wins: prediction, measurement in a worker process, search, and everything saved as it happens.

mod ahead;
mod bench;
mod calibration;
mod live;
mod predict;
mod race;
mod search;
mod session;
mod worker;

pub use ahead::{CompileAhead, Urgency};
pub use bench::{Bench, Miss, Predicted, Replay};
pub use calibration::{Calibration, Correlation, calibration};
pub use live::{ChainLink, Live, LiveError, Mode, Sample, touched_experts};
pub use predict::{Bound, bound, predict, predict_compiled, rank_correlation, ranked};
pub use race::median_and_half_width;
pub use search::{Contender, Effort, Found, OnTrial, Search, SearchError};
pub use session::{
    INCUMBENT_BAND, Job, Progress, Session, SessionError, Settings, Summary, failure, headline, predicted_record,
};
pub use worker::{
    GpuReport, Sabotage, ServeError, ServeOptions, Spent, Worker, WorkerBench, WorkerCommand, WorkerError, serve,
};
