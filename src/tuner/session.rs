//! A run over many problems: what is still to do, what was found, everything saved as it happens.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::ahead::{CompileAhead, Urgency};
use super::bench::Bench;
use super::predict;
use super::search::{Contender, Effort, Found, Search, SearchError, first_field, neighbours};
use crate::arch::GpuSpec;
use crate::dispatch::kernels_hash;
use crate::jit::Jit;
use crate::kernels;
use crate::problem::{Problem, Routing, Tile};
use crate::store::{
    Database, DatabaseError, GpuTrial, Origin, Outcome, Put, Record, RunnerUp, Timing, Toolchain, Trial, WinnerKey,
};

/// An op and the buckets that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Names of the ops that this serves, for people.
    pub name: String,
    /// The problem, with any `m`.
    pub problem: Problem,
    /// Buckets to search.
    pub measured: Vec<u32>,
    /// Buckets that take over the winner of a searched one, and are marked so.
    pub inherited: Vec<u32>,
}

/// What a run is told.
pub struct Settings {
    /// The GPU.
    pub gpu: GpuSpec,
    /// How much is tried for each problem.
    pub effort: Effort,
    /// When the run ends, whatever is left.
    pub deadline: Option<Instant>,
    /// Driver, NVRTC and commit; kernels are filled in for each record.
    pub toolchain: Toolchain,
    /// Routings that blocks of experts are measured under.
    pub routings: Vec<Routing>,
    /// Seed of all data.
    pub seed: u64,
    /// Whether problems with a fresh record are searched anew.
    pub is_forced: bool,
    /// Threads that compile ahead.
    pub compile_threads: usize,
}

/// Something that happened, for whoever shows it.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// A job begins: its place among all, its name.
    Job {
        /// Its place, from 0.
        job_idx: usize,
        /// How many there are.
        jobs: usize,
        /// Its name.
        name: &'a str,
    },
    /// A bucket is searched.
    Searching {
        /// What.
        problem: &'a Problem,
        /// Buckets done, in all jobs.
        done: usize,
        /// Buckets in all jobs.
        of: usize,
    },
    /// A candidate was tried.
    Tried {
        /// What for.
        problem: &'a Problem,
        /// Which.
        tile: &'a Tile,
        /// What became of it.
        outcome: &'a Outcome,
    },
    /// A bucket has a winner.
    Won {
        /// The record.
        record: &'a Record,
        /// What the database made of it.
        put: &'a Put,
    },
    /// A bucket has a fresh record already.
    Fresh {
        /// The record.
        record: &'a Record,
    },
    /// A bucket has no winner: the sentence says why.
    Lost {
        /// What.
        problem: &'a Problem,
        /// Why.
        reason: String,
    },
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Buckets searched.
    pub searched: usize,
    /// Buckets that had a fresh record.
    pub fresh: usize,
    /// Buckets that took over a winner; not those whose own stayed.
    pub inherited: usize,
    /// Buckets without a winner.
    pub lost: usize,
    /// Buckets that the deadline or a signal left over.
    pub left: usize,
    /// Candidates tried.
    pub tried: usize,
    /// Candidates that failed.
    pub failed: usize,
    /// Kernels compiled ahead.
    pub compiled: u32,
    /// Whether a signal, and not the deadline, ended it.
    pub is_interrupted: bool,
}

/// Why a run ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The database refused something.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The GPU is gone, or its worker cannot be started.
    #[error("{0}")]
    Gpu(String),
}

/// One run.
pub struct Session<'a> {
    settings: &'a Settings,
    database: &'a Database,
    should_stop: &'a dyn Fn() -> bool,
    on_progress: &'a mut dyn FnMut(Progress<'_>),
    ahead: CompileAhead,
    summary: Summary,
    done: usize,
    of: usize,
}

impl<'a> Session<'a> {
    /// A run that keeps everything in `database` and ends when `should_stop` says so.
    pub fn new(
        settings: &'a Settings,
        database: &'a Database,
        jit: Arc<Jit>,
        should_stop: &'a dyn Fn() -> bool,
        on_progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        let ahead = CompileAhead::start(jit, settings.gpu.clone(), settings.compile_threads);
        Self { settings, database, should_stop, on_progress, ahead, summary: Summary::default(), done: 0, of: 0 }
    }

    /// Works through `jobs` with `bench`.
    ///
    /// # Errors
    /// [`SessionError`]; what was found before is kept.
    pub fn run(mut self, jobs: &[Job], bench: &mut dyn Bench) -> Result<Summary, SessionError> {
        self.of = jobs.iter().map(|job| job.measured.len() + job.inherited.len()).sum();
        let todo = jobs.iter().map(|job| self.todo(job)).collect::<Result<Vec<_>, _>>()?;
        for (job, todo) in jobs.iter().zip(&todo) {
            self.compile_ahead(job, todo);
        }
        for (job_idx, (job, todo)) in jobs.iter().zip(&todo).enumerate() {
            (self.on_progress)(Progress::Job { job_idx, jobs: jobs.len(), name: &job.name });
            self.run_job(job, todo, bench)?;
        }
        self.summary.compiled = self.ahead.n_compiled();
        self.summary.is_interrupted = (self.should_stop)();
        Ok(self.summary)
    }

    /// Buckets of `job` that have no fresh record.
    fn todo(&mut self, job: &Job) -> Result<Vec<u32>, SessionError> {
        let mut todo = Vec::new();
        for &m in &job.measured {
            let problem = job.problem.with_m(m);
            match self.fresh_record(&problem)? {
                Some(record) if !self.settings.is_forced => {
                    self.summary.fresh += 1;
                    self.done += 1;
                    (self.on_progress)(Progress::Fresh { record: &record });
                }
                _ => todo.push(m),
            }
        }
        Ok(todo)
    }

    /// A measured record of the kernels as they are now, from a search no smaller than this one.
    fn fresh_record(&self, problem: &Problem) -> Result<Option<Record>, SessionError> {
        let key = WinnerKey { layout: problem.layout(), problem, gpu: &self.settings.gpu.identity };
        let Some(record) = self.database.winner(&key)? else { return Ok(None) };
        let has_routings = match problem {
            Problem::MoeBlock(_) => self.settings.routings.iter().all(|routing| record.routings.contains(routing)),
            _ => true,
        };
        let is_fresh = record.origin == Origin::Measured
            && has_routings
            && !self.is_stale(&record)
            && self.settings.effort.is_covered_by(record.tried as usize, problem, &self.settings.gpu);
        Ok(is_fresh.then_some(record))
    }

    fn is_stale(&self, record: &Record) -> bool {
        let kernels = kernels_hash(&record.problem, &record.tile, &self.settings.gpu);
        kernels.as_deref() != Some(record.toolchain.kernels.as_str())
            || record.toolchain.nvrtc != self.settings.toolchain.nvrtc
    }

    /// Queues what the first fields of a job's searches will need, then what their neighbours may.
    fn compile_ahead(&self, job: &Job, todo: &[u32]) {
        for &m in todo {
            let problem = job.problem.with_m(m);
            let ranked = predict::ranked(&problem, &self.settings.gpu);
            let effort = self.settings.effort.on(&problem);
            let first = first_field(&problem, &self.settings.gpu, effort, &[], &ranked);
            enqueue(&self.ahead, self.settings, &problem, Urgency::Planned, &first);
            let near =
                ranked.iter().take(GUESSES).flat_map(|(tile, _)| neighbours(tile, &ranked).take(effort.neighbours));
            let near: Vec<Tile> = near.cloned().collect();
            enqueue(&self.ahead, self.settings, &problem, Urgency::Perhaps, &near);
        }
    }

    fn run_job(&mut self, job: &Job, todo: &[u32], bench: &mut dyn Bench) -> Result<(), SessionError> {
        if let Some(&most) = todo.iter().max()
            && !self.is_over()
        {
            let data = job.problem.with_m(most);
            if let Err(reason) = bench.open(&data) {
                for &m in todo {
                    self.lose(&job.problem.with_m(m), reason.clone());
                }
                return self.inherit(job);
            }
        }
        let mut winners: Vec<Tile> = Vec::new();
        for &m in todo {
            if self.is_over() {
                self.summary.left += 1;
                continue;
            }
            let problem = job.problem.with_m(m);
            (self.on_progress)(Progress::Searching { problem: &problem, done: self.done, of: self.of });
            if let Some(winner) = self.search(&problem, &winners, bench)? {
                winners.retain(|tile| *tile != winner);
                winners.insert(0, winner);
                winners.truncate(2);
            }
            self.done += 1;
        }
        self.inherit(job)
    }

    /// Searches one bucket and keeps what was found.
    fn search(
        &mut self,
        problem: &Problem,
        hints: &[Tile],
        bench: &mut dyn Bench,
    ) -> Result<Option<Tile>, SessionError> {
        let settings = self.settings;
        let known_bad = self.known_bad(problem)?;
        let key = WinnerKey { layout: problem.layout(), problem, gpu: &settings.gpu.identity };
        let incumbent = self.database.winner(&key)?.map(|record| record.tile);
        let hints: Vec<Tile> = incumbent.into_iter().chain(hints.iter().cloned()).collect();
        let (stop, deadline) = (self.should_stop, settings.deadline);
        let should_stop = || is_over(stop, deadline);
        let search = Search {
            problem,
            gpu: &settings.gpu,
            effort: settings.effort,
            hints: &hints,
            known_bad: &known_bad,
            should_stop: &should_stop,
            expect: &|urgency, tiles: &[Tile]| enqueue(&self.ahead, settings, problem, urgency, tiles),
        };
        let routings = match problem {
            Problem::MoeBlock(_) => bench.routings().to_vec(),
            _ => Vec::new(),
        };
        let searched = Searched { settings, problem, routings: &routings };
        self.ahead.forget_haste();
        let mut refused = None;
        let (database, mut failed) = (self.database, 0);
        let on_progress = &mut *self.on_progress;
        let mut on_trial = |tile: &Tile, outcome: &Outcome, by_routing: &[f64]| {
            on_progress(Progress::Tried { problem, tile, outcome });
            failed += usize::from(!matches!(outcome, Outcome::Measured(_)));
            for trial in searched.trials(tile, outcome, by_routing) {
                if let Err(error) = database.append_trial(&trial) {
                    refused.get_or_insert(error);
                }
            }
        };
        let found = search.run(bench, &mut on_trial);
        self.summary.failed += failed;
        if let Some(error) = refused {
            return Err(error.into());
        }
        match found {
            Ok(found) => self.keep(problem, found, &routings).map(Some),
            Err(SearchError::Fatal(reason)) => Err(SessionError::Gpu(reason)),
            Err(SearchError::Stopped { .. }) => {
                self.summary.left += 1;
                Ok(None)
            }
            Err(error) => {
                self.lose(problem, error.to_string());
                Ok(None)
            }
        }
    }

    /// Tiles that failed with the very kernels and compiler that they have now, and of an exhaustive search those that
    /// were timed with them. `--force` gives each another chance: a failure may have been the machine's.
    fn known_bad(&self, problem: &Problem) -> Result<HashSet<Tile>, SessionError> {
        if self.settings.is_forced {
            return Ok(HashSet::new());
        }
        let mut trials = self.database.trials_of(&self.settings.gpu.identity, problem)?;
        trials.retain(|trial| {
            trial.toolchain.nvrtc == self.settings.toolchain.nvrtc
                && kernels_hash(problem, &trial.tile, &self.settings.gpu).as_deref() == Some(&trial.toolchain.kernels)
        });
        let fails = |trial: &&Trial| !matches!(trial.outcome, Outcome::Measured(_));
        let mut known: HashSet<Tile> = trials.iter().filter(fails).map(|trial| trial.tile.clone()).collect();
        if self.settings.effort == Effort::EXHAUSTIVE {
            known.extend(self.measured_and_behind(problem, &trials));
        }
        Ok(known)
    }

    /// Tiles that a search of every tile has timed before it was cut short, but for the default and the fastest: those
    /// race again with what is left to try. So a sweep goes on where it stopped.
    fn measured_and_behind(&self, problem: &Problem, trials: &[Trial]) -> Vec<Tile> {
        let mut times: BTreeMap<&Tile, Vec<f64>> = BTreeMap::new();
        for trial in trials {
            if let Outcome::Measured(timing) = &trial.outcome {
                times.entry(&trial.tile).or_default().push(timing.chained_us);
            }
        }
        let wanted = match problem {
            Problem::MoeBlock(_) => self.settings.routings.len(),
            _ => 1,
        };
        let default = kernels::default_tile(problem, &self.settings.gpu);
        times.retain(|tile, times| times.len() >= wanted && Some(*tile) != default.as_ref());
        let mut times: Vec<(&Tile, f64)> =
            times.into_iter().map(|(tile, times)| (tile, times.iter().map(|us| us.ln()).sum())).collect();
        times.sort_by(|a, b| a.1.total_cmp(&b.1));
        times.into_iter().skip(RACE_AGAIN).map(|(tile, _)| tile.clone()).collect()
    }

    fn keep(&mut self, problem: &Problem, found: Found, routings: &[Routing]) -> Result<Tile, SessionError> {
        self.summary.searched += usize::from(!found.is_cut_short);
        self.summary.tried += found.tried;
        // What was found is kept, but the bucket is not done.
        self.summary.left += usize::from(found.is_cut_short);
        let tile = found.winner.tile.clone();
        let mut record = record(self.settings, problem, &found, routings);
        if found.is_cut_short {
            // It counts as a smaller search, so that the next run of this effort takes the bucket up again.
            let fewer = self.settings.effort.on(problem).least_tried().saturating_sub(1);
            record.tried = record.tried.min(u32::try_from(fewer).unwrap_or(u32::MAX));
        }
        let is_stale = |incumbent: &Record| self.is_stale(incumbent);
        let put = self.database.put_winner(&record, INCUMBENT_BAND, &is_stale)?;
        (self.on_progress)(Progress::Won { record: &record, put: &put });
        Ok(tile)
    }

    fn lose(&mut self, problem: &Problem, reason: String) {
        self.summary.lost += 1;
        self.done += 1;
        (self.on_progress)(Progress::Lost { problem, reason });
    }

    /// Gives the buckets that were not asked for the winner of the nearest one that was, above before below.
    fn inherit(&mut self, job: &Job) -> Result<(), SessionError> {
        let mut measured = Vec::new();
        for &m in &job.measured {
            let problem = job.problem.with_m(m);
            let key = WinnerKey { layout: problem.layout(), problem: &problem, gpu: &self.settings.gpu.identity };
            measured.extend(self.database.winner(&key)?.filter(|record| record.origin == Origin::Measured));
        }
        for &m in &job.inherited {
            self.done += 1;
            let problem = job.problem.with_m(m);
            let Some(record) = inherited(self.settings, &problem, &measured) else { continue };
            let put = self.database.put_winner(&record, INCUMBENT_BAND, &|incumbent| self.is_stale(incumbent))?;
            self.summary.inherited += usize::from(!matches!(put, Put::Kept { .. }));
            (self.on_progress)(Progress::Won { record: &record, put: &put });
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        is_over(self.should_stop, self.settings.deadline)
    }
}

/// Queues the kernels of `tiles`.
fn enqueue(ahead: &CompileAhead, settings: &Settings, problem: &Problem, urgency: Urgency, tiles: &[Tile]) {
    let plans = tiles.iter().filter_map(|tile| kernels::plan(problem, tile, &settings.gpu).ok());
    ahead.enqueue(urgency, plans.flat_map(|plan| plan.kernels().cloned().collect::<Vec<_>>()));
}

fn is_over(should_stop: &dyn Fn() -> bool, deadline: Option<Instant>) -> bool {
    should_stop() || deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

impl Effort {
    /// Whether a search that tried `tried` candidates was no smaller than one with this effort.
    fn is_covered_by(&self, tried: usize, problem: &Problem, gpu: &GpuSpec) -> bool {
        let enough = self.on(problem).least_tried();
        if tried >= enough {
            return true;
        }
        let families = kernels::serving(problem, gpu.arch);
        let all: usize = families.iter().map(|family| kernels::space(*family, problem, gpu).tiles.len()).sum();
        tried >= enough.min(all)
    }
}

/// The record of a tile that was compiled and counted, never run.
pub fn predicted_record(settings: &Settings, problem: &Problem, tile: &Tile, us: f64, default_us: f64) -> Record {
    let timing = Timing {
        chained_us: us,
        unchained_us: us,
        half_width_us: 0.0,
        rounds: 0,
        is_warm: false,
        sm_clock_mhz: 0,
        throttle_reasons: 0,
        relative_l2: 0.0,
    };
    Record { default_us, ..base_record(settings, problem, tile, Origin::Predicted, timing) }
}

fn record(settings: &Settings, problem: &Problem, found: &Found, routings: &[Routing]) -> Record {
    let runner_up = |other: &Contender| RunnerUp { tile: other.tile.clone(), chained_us: other.timing.chained_us };
    let timing = found.winner.timing.clone();
    Record {
        runners_up: found.others.iter().take(RUNNERS_UP).map(runner_up).collect(),
        routings: routings.to_vec(),
        tried: found.tried as u32,
        default_us: found.default_us,
        ..base_record(settings, problem, &found.winner.tile, Origin::Measured, timing)
    }
}

/// The nearest measured winner that is valid for `problem`, with the cost model's time scaled by what it got wrong
/// there.
fn inherited(settings: &Settings, problem: &Problem, measured: &[Record]) -> Option<Record> {
    let mut candidates: Vec<&Record> = measured.iter().collect();
    let (m, distance) = (problem.m(), |record: &Record| record.problem.m().abs_diff(problem.m()));
    candidates.sort_by_key(|record| (record.problem.m() < m, distance(record)));
    let is_valid = |record: &&&Record| kernels::plan(problem, &record.tile, &settings.gpu).is_ok();
    let from = candidates.iter().find(is_valid)?;
    let us = |problem: &Problem| {
        kernels::plan(problem, &from.tile, &settings.gpu).ok().map(|plan| predict::predict(&plan, &settings.gpu))
    };
    let scale = us(problem)? / us(&from.problem)?;
    let timing = Timing {
        chained_us: from.timing.chained_us * scale,
        unchained_us: from.timing.unchained_us * scale,
        half_width_us: 0.0,
        rounds: 0,
        ..from.timing.clone()
    };
    let origin = Origin::Inherited { from_m: from.problem.m() };
    Some(base_record(settings, problem, &from.tile, origin, timing))
}

fn base_record(settings: &Settings, problem: &Problem, tile: &Tile, origin: Origin, timing: Timing) -> Record {
    let numerics = kernels::family(tile.family()).map(|family| family.numerics(problem, tile)).unwrap_or_default();
    Record {
        problem: problem.clone(),
        gpu: settings.gpu.identity.clone(),
        layout: problem.layout().to_string(),
        tile: tile.clone(),
        numerics,
        origin,
        default_us: timing.chained_us,
        timing,
        runners_up: Vec::new(),
        routings: Vec::new(),
        tried: 0,
        toolchain: toolchain(settings, problem, tile),
        written_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    }
}

fn toolchain(settings: &Settings, problem: &Problem, tile: &Tile) -> Toolchain {
    let kernels = kernels_hash(problem, tile, &settings.gpu).unwrap_or_default();
    Toolchain { kernels, ..settings.toolchain.clone() }
}

/// What the trials of one search have in common.
struct Searched<'a> {
    settings: &'a Settings,
    problem: &'a Problem,
    routings: &'a [Routing],
}

impl Searched<'_> {
    /// The trials of one candidate: one for each routing that it was measured under.
    fn trials(&self, tile: &Tile, outcome: &Outcome, by_routing_us: &[f64]) -> Vec<GpuTrial> {
        let trial = |routing, outcome| GpuTrial {
            gpu: self.settings.gpu.identity.clone(),
            trial: Trial {
                problem: self.problem.clone(),
                tile: tile.clone(),
                routing,
                outcome,
                seed: self.settings.seed,
                toolchain: toolchain(self.settings, self.problem, tile),
            },
        };
        match outcome {
            Outcome::Measured(timing) if !self.routings.is_empty() => {
                let of = |(routing, us): (&Routing, &f64)| {
                    trial(Some(*routing), Outcome::Measured(Timing { chained_us: *us, ..timing.clone() }))
                };
                self.routings.iter().zip(by_routing_us).map(of).collect()
            }
            other => vec![trial(self.routings.first().copied(), other.clone())],
        }
    }
}

/// One line about a record, for people: tile, time, share of the floor, gain over the default.
pub fn headline(record: &Record, gpu: &GpuSpec) -> String {
    let floor = record.problem.floor_us(gpu);
    let gain = record.default_us / record.timing.chained_us;
    let gain = if gain > 1.005 { format!(", {gain:.2}x the default") } else { String::new() };
    let Timing { chained_us, .. } = record.timing;
    format!("{chained_us:.2} us, {:.0} % of the floor{gain}: {}", 100.0 * floor / chained_us, record.tile)
}

/// An outcome that is no time, as words for a list of failures.
pub fn failure(tile: &Tile, outcome: &Outcome) -> Option<String> {
    (!matches!(outcome, Outcome::Measured(_))).then(|| format!("{tile}: {outcome}"))
}

/// A measured incumbent stays unless it is beaten by this much: times of one tile move by a few per cent between runs.
pub const INCUMBENT_BAND: f64 = 0.02;

const RUNNERS_UP: usize = 3;

/// As many as a race has at most.
const RACE_AGAIN: usize = 6;

/// Best predicted tiles whose neighbours are compiled when there is nothing else to compile: one of them often leads.
const GUESSES: usize = 2;
