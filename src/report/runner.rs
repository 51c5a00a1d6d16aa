//! What `dsv4 bench` writes: a cell for each context and batch, prefill and decode apart, each beside its floor.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Cells and where they come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerReport {
    /// Where, when and with what.
    pub meta: RunnerMeta,
    /// One for each context and batch.
    pub cells: Vec<RunnerCell>,
}

/// Provenance of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerMeta {
    /// The model, and whether its weights are real.
    pub model: String,
    /// Form of the checkpoint.
    pub checkpoint: String,
    /// Product name of the GPU.
    pub gpu: String,
    /// Driver version; empty where nothing was measured.
    pub driver: String,
    /// NVRTC version; empty where nothing was measured.
    pub nvrtc: String,
    /// Commit of tilekiln.
    pub commit: String,
    /// Seconds since 1970.
    pub written_at: u64,
    /// Flags that change what is computed, as on the command line.
    pub numerics: String,
    /// How it was measured.
    pub method: String,
}

/// One context and batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerCell {
    /// Tokens that each sequence has when it is decoded, and that are prefilled.
    pub context: u32,
    /// Sequences of a decode step. A prefill is of one.
    pub batch: u32,
    /// First layers that ran: as many as fit.
    pub layers: u32,
    /// Layers of the model.
    pub model_layers: u32,
    /// Bytes of the weights of those layers, embedding and head included.
    pub weight_bytes: u64,
    /// Bytes of all caches.
    pub cache_bytes: u64,
    /// Floor of the weights' products of the prefill, microseconds.
    pub prefill_floor_us: f64,
    /// Floor of the weights' products of a decode step, microseconds.
    pub decode_floor_us: f64,
    /// What was measured; `None` in a plan.
    pub times: Option<CellTimes>,
}

/// What was measured in a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellTimes {
    /// All tokens of the context, of one sequence.
    pub prefill: StepTime,
    /// One token of each sequence.
    pub decode: StepTime,
}

/// One step, or the steps of one prefill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// Median, microseconds.
    pub us: f64,
    /// Fastest and slowest of the repeats, microseconds.
    pub spread_us: [f64; 2],
    /// Time beyond that of the ops one by one, microseconds: below zero where ops overlap. `None` if not measured.
    pub gaps_us: Option<f64>,
    /// Where the time goes.
    pub ops: Vec<OpTime>,
}

/// All launches of one op in a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpTime {
    /// The op.
    pub op: String,
    /// Launches in a step, all layers together.
    pub launches: u32,
    /// Their time, microseconds.
    pub us: f64,
    /// Their floor, microseconds; `None` of ops without weights.
    pub floor_us: Option<f64>,
}

impl RunnerCell {
    /// Tokens that the prefill gets through in a second.
    pub fn prefill_tokens_per_s(&self) -> Option<f64> {
        self.times.as_ref().map(|times| f64::from(self.context) / times.prefill.us * 1e6)
    }

    /// Tokens that all sequences together get in a second.
    pub fn decode_tokens_per_s(&self) -> Option<f64> {
        self.times.as_ref().map(|times| f64::from(self.batch) / times.decode.us * 1e6)
    }

    /// Share of its floor that the prefill reaches: 1 is the floor.
    pub fn prefill_of_floor(&self) -> Option<f64> {
        self.times.as_ref().map(|times| self.prefill_floor_us / times.prefill.us)
    }

    /// Share of its floor that a decode step reaches: 1 is the floor.
    pub fn decode_of_floor(&self) -> Option<f64> {
        self.times.as_ref().map(|times| self.decode_floor_us / times.decode.us)
    }
}

/// The report with its provenance: a line for each cell, then the ops of each measured one.
pub fn runner_table(report: &RunnerReport) -> String {
    let RunnerMeta { model, checkpoint, gpu, driver, nvrtc, commit, numerics, method, .. } = &report.meta;
    let tools = if driver.is_empty() { String::new() } else { format!(", driver {driver}, NVRTC {nvrtc}") };
    let mut text = format!("{model} ({checkpoint}), {numerics}. {gpu}{tools}, commit {commit}. {method}\n{HEAD}");
    report.cells.iter().for_each(|cell| text.push_str(&line(cell)));
    for cell in &report.cells {
        let Some(times) = &cell.times else { continue };
        for (what, step) in [("prefill", &times.prefill), ("decode", &times.decode)] {
            if !step.ops.is_empty() {
                let _ = write!(text, "\n{what}, context {}, batch {}:\n{OPS_HEAD}", cell.context, cell.batch);
                ops(step, &mut text);
            }
        }
    }
    text
}

/// One line of the table of cells.
fn line(cell: &RunnerCell) -> String {
    let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
    let percent = |value: Option<f64>| value.map_or("-".into(), |value| format!("{:.0} %", 100.0 * value));
    let decode = cell.times.as_ref().map(|times| &times.decode);
    format!(
        "| {} | {} | {} of {} | {:.1} | {:.2} | {} | {} | {} | {} | {:.1} | {} | {} |\n",
        cell.context,
        cell.batch,
        cell.layers,
        cell.model_layers,
        cell.weight_bytes as f64 / 1e9,
        cell.cache_bytes as f64 / 1e9,
        number(cell.prefill_tokens_per_s(), 0),
        percent(cell.prefill_of_floor()),
        number(cell.decode_tokens_per_s(), 1),
        number(decode.map(|step| step.us), 1),
        cell.decode_floor_us,
        percent(cell.decode_of_floor()),
        percent(decode.and_then(|step| Some(step.gaps_us? / step.us))),
    )
}

/// The ops of a step, the longest first.
fn ops(step: &StepTime, text: &mut String) {
    let mut ops: Vec<&OpTime> = step.ops.iter().collect();
    ops.sort_by(|a, b| b.us.total_cmp(&a.us));
    for op in ops {
        let floor = op.floor_us.map_or("-".into(), |floor| format!("{floor:.1}"));
        let share = op.floor_us.map_or("-".into(), |floor| format!("{:.0} %", 100.0 * floor / op.us));
        let of_step = 100.0 * op.us / step.us;
        let _ = writeln!(text, "| {} | {} | {:.1} | {of_step:.1} % | {floor} | {share} |", op.op, op.launches, op.us);
    }
}

const HEAD: &str = "
| context | batch | layers | weights GB | caches GB | prefill tokens/s | of floor | decode tokens/s | step us \
| floor us | of floor | gaps |
|---|---|---|---|---|---|---|---|---|---|---|---|
";

const OPS_HEAD: &str = "
| op | launches | us | of step | floor us | of floor |
|---|---|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    fn report(times: Option<CellTimes>) -> RunnerReport {
        let meta = RunnerMeta {
            model: "synthetic flash".into(),
            checkpoint: "nvfp4".into(),
            gpu: "a GPU".into(),
            driver: String::new(),
            nvrtc: String::new(),
            commit: "abc".into(),
            written_at: 0,
            numerics: "a16".into(),
            method: "Planned.".into(),
        };
        let cell = RunnerCell {
            context: 8192,
            batch: 2,
            layers: 20,
            model_layers: 43,
            weight_bytes: 70_000_000_000,
            cache_bytes: 30_000_000,
            prefill_floor_us: 100_000.0,
            decode_floor_us: 2000.0,
            times,
        };
        RunnerReport { meta, cells: vec![cell] }
    }

    #[test]
    fn a_plan_has_no_times() {
        let text = runner_table(&report(None));
        assert!(text.contains("| 8192 | 2 | 20 of 43 | 70.0 | 0.03 | - | - | - | - | 2000.0 | - | - |\n"), "{text}");
    }

    #[test]
    fn shares_are_of_the_floor() {
        let op = |op: &str, us, floor_us| OpTime { op: op.into(), launches: 1, us, floor_us };
        let ops = vec![op("short", 1000.0, None), op("long", 2500.0, Some(2000.0))];
        let decode = StepTime { us: 4000.0, spread_us: [1.0, 2.0], gaps_us: Some(100.0), ops };
        let prefill = StepTime { us: 200_000.0, spread_us: [1.0, 2.0], gaps_us: None, ops: Vec::new() };
        let report = report(Some(CellTimes { prefill, decode }));
        let text = runner_table(&report);
        assert!(text.contains("| 40960 | 50 % | 500.0 | 4000.0 | 2000.0 | 50 % | 2 % |\n"), "{text}");
        let long = text.find("| long | 1 | 2500.0 | 62.5 % | 2000.0 | 80 % |").unwrap();
        assert!(long < text.find("| short | 1 | 1000.0 | 25.0 % | - | - |").unwrap());
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<RunnerReport>(&json).unwrap(), report);
    }
}
