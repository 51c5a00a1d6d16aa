//! Results as tables: what was measured beside floors, ceilings and other engines, and the block of the README.

mod bench;
mod goals;
mod markdown;
mod peers;
mod readme;
mod regimes;
mod runner;

pub use bench::{BenchMeta, BenchReport, BenchRow, ChainRow, MOST_RATIO, PeerTime};
pub use markdown::table;
pub use peers::{PeerError, PeerRow, Peers};
pub use readme::{Coverage, ReadmeError, readme_block, replace_block};
pub use regimes::{Finding, Standing, regime_table, runner_regime_table, standings};
pub use runner::{CellTimes, OpTime, RunnerCell, RunnerMeta, RunnerReport, StepTime, runner_table};
