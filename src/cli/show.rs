//! `autotune show`: problems, spaces, winners.

use super::args::{CommonArgs, ShowArgs, ShowWhat};
use super::context::Paths;
use super::table::Table;
use super::voice;
use super::{CliError, Exit, select};
use crate::arch::GpuSpec;
use crate::device::Gpu;
use crate::models::Row;

/// Shows what the words ask for.
pub fn run(common: &CommonArgs, show: &ShowArgs, paths: &Paths) -> Result<Exit, CliError> {
    let gpu = gpu(common)?;
    let _ = paths;
    match show.what {
        ShowWhat::Problems => problems(common, show, &gpu),
        ShowWhat::Space | ShowWhat::Records => Ok(Exit::Done),
    }
}

/// Facts about the GPU that is meant: the named one, the one at hand, or the default.
pub fn gpu(common: &CommonArgs) -> Result<GpuSpec, CliError> {
    if let Some(name) = &common.gpu {
        let unknown = |error: crate::arch::UnknownGpu| {
            CliError::usage(error.to_string(), "tuning_db/ has a folder for each known GPU")
        };
        return Ok(GpuSpec::named(name).map_err(unknown)?.clone());
    }
    match Gpu::open(common.device) {
        Ok(gpu) => Ok(gpu.spec().clone()),
        Err(_) => Ok(GpuSpec::named("h100").map_err(|error| CliError::failed(error.to_string(), None))?.clone()),
    }
}

fn problems(common: &CommonArgs, show: &ShowArgs, gpu: &GpuSpec) -> Result<Exit, CliError> {
    let rows: Vec<Row> = select::ops(&show.subject)?.iter().flat_map(|op| op.rows(gpu)).collect();
    if common.json {
        return voice::json(&rows).map(|()| Exit::Done);
    }
    voice::print(&table(&rows).to_string())?;
    Ok(Exit::Done)
}

fn table(rows: &[Row]) -> Table {
    let mut table =
        Table::new(["name", ">n", ">k", ">groups", ">count", "format", ">m", ">weight bytes", ">bytes", ">floor us"]);
    for row in rows {
        table.row([
            row.name.clone(),
            row.n.to_string(),
            row.k.to_string(),
            row.groups.to_string(),
            row.count.to_string(),
            row.weights.to_string(),
            row.m.to_string(),
            row.weight_bytes.to_string(),
            row.bytes.to_string(),
            format!("{:.2}", row.floor_us),
        ]);
    }
    table
}
