//! Packs to text and back.
//!
//! The text is written by hand-made lines and not by a serialiser: one line for each fact, related numbers side by
//! side, nothing that moves when its neighbour changes. The checksum covers the parsed content as it would be written,
//! so line ends and comments are free and every value counts.

use std::fmt::Write as _;

use serde::Deserialize;
use toml::Value;

use super::super::key::{SCHEMA, first_16};
use super::super::{KeyHash, Record, RunnerUp, Timing, Toolchain, words};
use super::{Pack, PackError};
use crate::arch::GpuIdentity;

/// What to do about a pack that was edited by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edits {
    /// Refuse it.
    Refuse,
    /// Take it as it is.
    Accept,
}

impl Pack {
    /// The pack as it stands in its file: equal packs give equal texts.
    pub fn to_text(&self) -> String {
        let file = PackFile::of(self);
        file.to_text(&file.checksum_of_content())
    }

    /// Reads a pack.
    ///
    /// # Errors
    /// [`PackError`]: no pack, unknown key, another schema, a value that is none, two winners of one problem, edited.
    pub fn parse(text: &str, edits: Edits) -> Result<Self, PackError> {
        let syntax = |error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1;
            PackError::Syntax { line, message: error.message().replace('\n', ", ") }
        };
        // The schema comes first: a pack of the future may have keys that this version does not know.
        let header: Header = toml::from_str(text).map_err(syntax)?;
        if header.schema != Some(Value::Integer(SCHEMA.into())) {
            let found = header.schema.map_or("no schema".to_string(), |schema| format!("schema {schema}"));
            return Err(PackError::OtherSchema { found });
        }
        let file: PackFile = toml::from_str(text).map_err(syntax)?;
        let (expected, found) = (file.checksum_of_content(), file.checksum.clone());
        if edits == Edits::Refuse && expected != found {
            return Err(PackError::EditedByHand { expected, found });
        }
        file.into_pack()
    }
}

/// Drops the digits that a pack does not keep.
pub(super) fn round(record: &mut Record) {
    let Timing { chained_us, unchained_us, half_width_us, relative_l2, .. } = &mut record.timing;
    let times = [chained_us, unchained_us, half_width_us, relative_l2, &mut record.default_us];
    let runners_up = record.runners_up.iter_mut().map(|next| &mut next.chained_us);
    times.into_iter().chain(runners_up).for_each(|value| *value = words::six_digits(*value));
}

/// As much as any version has.
#[derive(Deserialize)]
struct Header {
    schema: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PackFile {
    #[serde(rename = "schema")]
    _schema: u16,
    model: String,
    checkpoint: String,
    checksum: String,
    gpu: PackGpu,
    #[serde(default, rename = "winner")]
    winners: Vec<Winner>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PackGpu {
    product: String,
    sm_count: u32,
    l2_bytes: u64,
    memory_bus_bits: u32,
    power_limit_watts: u32,
    is_mig: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Winner {
    problem: String,
    layout: String,
    tile: String,
    numerics: String,
    origin: String,
    chained_us: f64,
    default_us: f64,
    /// By how much the winner beats the default, for the reader: `1.153` is 15.3 %.
    margin: f64,
    unchained_us: f64,
    half_width_us: f64,
    rounds: u32,
    is_warm: bool,
    sm_clock_mhz: u32,
    throttle_reasons: u64,
    relative_l2: f64,
    tried: u32,
    runners_up: Vec<(String, f64)>,
    routings: Vec<String>,
    driver: String,
    nvrtc: String,
    kernels: String,
    commit: String,
    written_at: u64,
}

impl PackFile {
    fn of(pack: &Pack) -> Self {
        let GpuIdentity { product, sm_count, l2_bytes, memory_bus_bits, power_limit_watts, is_mig } = pack.gpu.clone();
        Self {
            _schema: SCHEMA,
            model: pack.model.clone(),
            checkpoint: pack.checkpoint.clone(),
            checksum: String::new(),
            gpu: PackGpu { product, sm_count, l2_bytes, memory_bus_bits, power_limit_watts, is_mig },
            winners: pack.records.iter().map(Winner::of).collect(),
        }
    }

    fn into_pack(self) -> Result<Pack, PackError> {
        let PackGpu { product, sm_count, l2_bytes, memory_bus_bits, power_limit_watts, is_mig } = self.gpu;
        let gpu = GpuIdentity { product, sm_count, l2_bytes, memory_bus_bits, power_limit_watts, is_mig };
        let records = self.winners.into_iter().map(|winner| winner.into_record(&gpu)).collect::<Result<_, _>>()?;
        Pack::new(gpu, &self.model, &self.checkpoint, records)
    }

    /// 32 hex digits of the text that this content makes, the checksum's own line left empty.
    fn checksum_of_content(&self) -> String {
        KeyHash(first_16(&blake3::hash(self.to_text("").as_bytes()))).to_string()
    }

    fn to_text(&self, checksum: &str) -> String {
        let mut text = String::from("# Written by `autotune export`: times are measured, not typed.\n");
        let PackGpu { product, sm_count, l2_bytes, memory_bus_bits, power_limit_watts, is_mig } = &self.gpu;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "schema = {SCHEMA}\nmodel = {}\ncheckpoint = {}\nchecksum = {}\n\n\
             [gpu]\nproduct = {}\nsm_count = {sm_count}\nl2_bytes = {l2_bytes}\nmemory_bus_bits = {memory_bus_bits}\n\
             power_limit_watts = {power_limit_watts}\nis_mig = {is_mig}\n",
            quoted(&self.model),
            quoted(&self.checkpoint),
            quoted(checksum),
            quoted(product),
        );
        for winner in &self.winners {
            winner.write(&mut text);
        }
        text
    }
}

impl Winner {
    fn of(record: &Record) -> Self {
        let Timing { chained_us, unchained_us, half_width_us, rounds, .. } = record.timing;
        let Timing { is_warm, sm_clock_mhz, throttle_reasons, relative_l2, .. } = record.timing;
        let Toolchain { driver, nvrtc, kernels, commit } = record.toolchain.clone();
        Self {
            problem: record.problem.to_string(),
            layout: record.layout.clone(),
            tile: record.tile.to_string(),
            numerics: record.numerics.clone(),
            origin: record.origin.to_string(),
            chained_us,
            default_us: record.default_us,
            margin: (record.default_us / chained_us * 1e3).round() / 1e3,
            unchained_us,
            half_width_us,
            rounds,
            is_warm,
            sm_clock_mhz,
            throttle_reasons,
            relative_l2,
            tried: record.tried,
            runners_up: record.runners_up.iter().map(|next| (next.tile.to_string(), next.chained_us)).collect(),
            routings: record.routings.iter().map(words::routing).collect(),
            driver,
            nvrtc,
            kernels,
            commit,
            written_at: record.written_at,
        }
    }

    fn into_record(self, gpu: &GpuIdentity) -> Result<Record, PackError> {
        let value = |expected, found: &str| {
            let (problem, found) = (self.problem.clone(), found.to_string());
            PackError::Value { problem, expected, found }
        };
        let tile = |text: &str| text.parse().map_err(|_| value("a tile", text));
        let runner_up = |(text, us): &(String, f64)| Ok(RunnerUp { tile: tile(text)?, chained_us: *us });
        // Nothing could ever beat a time that is none.
        if !(self.chained_us.is_finite() && self.chained_us > 0.0) {
            return Err(value("a time above 0 us", &self.chained_us.to_string()));
        }
        let routing = |text: &String| words::parse_routing(text).ok_or_else(|| value("a routing", text));
        Ok(Record {
            problem: self.problem.parse().map_err(|_| value("a problem", &self.problem))?,
            gpu: gpu.clone(),
            tile: tile(&self.tile)?,
            origin: words::parse_origin(&self.origin).ok_or_else(|| value("an origin", &self.origin))?,
            runners_up: self.runners_up.iter().map(runner_up).collect::<Result<_, PackError>>()?,
            routings: self.routings.iter().map(routing).collect::<Result<_, PackError>>()?,
            layout: self.layout,
            numerics: self.numerics,
            timing: Timing {
                chained_us: self.chained_us,
                unchained_us: self.unchained_us,
                half_width_us: self.half_width_us,
                rounds: self.rounds,
                is_warm: self.is_warm,
                sm_clock_mhz: self.sm_clock_mhz,
                throttle_reasons: self.throttle_reasons,
                relative_l2: self.relative_l2,
            },
            default_us: self.default_us,
            tried: self.tried,
            toolchain: Toolchain { driver: self.driver, nvrtc: self.nvrtc, kernels: self.kernels, commit: self.commit },
            written_at: self.written_at,
        })
    }

    fn write(&self, text: &mut String) {
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name} = {value}");
        };
        line("\n[[winner]]\nproblem", quoted(&self.problem));
        line("layout", quoted(&self.layout));
        line("tile", quoted(&self.tile));
        line("numerics", quoted(&self.numerics));
        line("origin", quoted(&self.origin));
        line("chained_us", number(self.chained_us));
        line("default_us", number(self.default_us));
        line("margin", number(self.margin));
        line("unchained_us", number(self.unchained_us));
        line("half_width_us", number(self.half_width_us));
        line("rounds", self.rounds.to_string());
        line("is_warm", self.is_warm.to_string());
        line("sm_clock_mhz", self.sm_clock_mhz.to_string());
        line("throttle_reasons", self.throttle_reasons.to_string());
        line("relative_l2", number(self.relative_l2));
        line("tried", self.tried.to_string());
        let runners_up = self.runners_up.iter().map(|(tile, us)| format!("[{}, {}]", quoted(tile), number(*us)));
        line("runners_up", listed(runners_up));
        line("routings", listed(self.routings.iter().map(|routing| quoted(routing))));
        line("driver", quoted(&self.driver));
        line("nvrtc", quoted(&self.nvrtc));
        line("kernels", quoted(&self.kernels));
        line("commit", quoted(&self.commit));
        line("written_at", self.written_at.to_string());
    }
}

/// `[]`, or one item a line.
fn listed(items: impl Iterator<Item = String>) -> String {
    let lines: String = items.map(|item| format!("    {item},\n")).collect();
    if lines.is_empty() { "[]".to_string() } else { format!("[\n{lines}]") }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_string()).to_string()
}

fn number(value: f64) -> String {
    Value::Float(value).to_string()
}
