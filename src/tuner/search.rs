//! Which tiles are tried, and who wins.
//!
//! Candidates come in the order of the cost model, spread over the space; each is checked, then timed; the best race in
//! interleaved rounds, their neighbours join; and the winner must beat the default by more than noise. Level candidates
//! are told apart by rules and not by luck, so that two runs agree.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::ahead::Urgency;
use super::bench::{Bench, Miss};
use super::live::Mode;
use super::predict;
use super::race::{Times, is_level, survivors};
use crate::arch::GpuSpec;
use crate::kernels;
use crate::problem::{Problem, Tile};
use crate::store::{Outcome, Timing};

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Candidates of the first field, the default among them.
    pub first: usize,
    /// Neighbours of those in front that may join.
    pub neighbours: usize,
    /// How many are in front.
    pub in_front: usize,
    /// Rounds of the final.
    pub rounds: usize,
}

impl Effort {
    /// Two minutes for a model.
    pub const QUICK: Self = Self { first: 9, neighbours: 16, in_front: 2, rounds: 5 };
    /// Ten minutes for a model.
    pub const FULL: Self = Self { first: 40, neighbours: 60, in_front: 4, rounds: 7 };
    /// Every tile.
    pub const EXHAUSTIVE: Self = Self { first: usize::MAX, neighbours: 0, in_front: 1, rounds: 7 };

    /// What is tried for `problem`: of few tokens' experts twice as much as `QUICK`, since their kinds compare badly.
    pub(super) fn on(self, problem: &Problem) -> Self {
        const TWICE: Effort = Effort { first: 20, neighbours: 30, in_front: 3, rounds: 5 };
        match problem {
            Problem::MoeBlock(block) if block.m <= FEW_TOKENS && self.first < TWICE.first => TWICE,
            _ => self,
        }
    }

    /// Places of each kind of kernel in the first field.
    fn of_kind(&self) -> usize {
        (self.first / 8).clamp(1, 5)
    }

    /// Candidates that a search of this effort has tried at least, if there are as many.
    pub(super) fn least_tried(&self) -> usize {
        self.first.saturating_add(self.first / 5)
    }
}

/// One search.
pub struct Search<'a> {
    /// What is asked.
    pub problem: &'a Problem,
    /// Where.
    pub gpu: &'a GpuSpec,
    /// How much.
    pub effort: Effort,
    /// Tiles to try first: winners of other buckets, the incumbent.
    pub hints: &'a [Tile],
    /// Tiles that are known to fail with these very kernels.
    pub known_bad: &'a HashSet<Tile>,
    /// Asked between measurements: whether to end with the best so far.
    pub should_stop: &'a dyn Fn() -> bool,
    /// Told which tiles will be asked for and how soon, so that somebody may compile them meanwhile.
    pub expect: &'a dyn Fn(Urgency, &[Tile]),
}

/// A candidate that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    /// The tile.
    pub tile: Tile,
    /// Its times.
    pub timing: Timing,
    /// Chained median under each routing; one number where there are none.
    pub by_routing_us: Vec<f64>,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The winner.
    pub winner: Contender,
    /// Chained time of the default in the same rounds; of the winner, if the default could not run.
    pub default_us: f64,
    /// The others, best first.
    pub others: Vec<Contender>,
    /// Candidates that were tried, whatever became of them.
    pub tried: usize,
    /// Whether it was ended early.
    pub is_cut_short: bool,
}

/// Why there is no winner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// No family, or no tile of any, serves the problem.
    #[error("no kernel serves `{problem}` on {gpu}: {}", reasons.join("; "))]
    Unserved {
        /// What was asked.
        problem: String,
        /// Where.
        gpu: String,
        /// Each family's sentence.
        reasons: Vec<String>,
    },
    /// Every candidate failed.
    #[error("none of {tried} candidates for `{problem}` gave a right result; the first: {first}")]
    AllFailed {
        /// What was asked.
        problem: String,
        /// How many were tried.
        tried: usize,
        /// What became of the first.
        first: String,
    },
    /// Ended before anything was measured.
    #[error("stopped before a candidate for `{problem}` was measured")]
    Stopped {
        /// What was asked.
        problem: String,
    },
    /// Nobody can measure any more.
    #[error("{0}")]
    Fatal(String),
}

/// Hears of each candidate as it is tried.
pub type OnTrial<'a> = dyn FnMut(&Tile, &Outcome, &[f64]) + 'a;

struct Entrant {
    tile: Tile,
    relative_l2: f64,
    times: Times,
    clocks: Vec<f64>,
    throttle_reasons: u64,
    unchained_us: f64,
}

struct Field<'a, 'b> {
    search: &'a Search<'a>,
    bench: &'a mut dyn Bench,
    on_trial: &'a mut OnTrial<'b>,
    entrants: Vec<Entrant>,
    tried: HashSet<Tile>,
    /// How many of `tried` failed in an earlier run and are not tried now.
    n_bad: usize,
    first_failure: Option<Outcome>,
    is_cut_short: bool,
}

impl Search<'_> {
    /// Searches with `bench`, and tells `on_trial` of every candidate.
    ///
    /// # Errors
    /// [`SearchError`] if nothing was found.
    pub fn run(&self, bench: &mut dyn Bench, on_trial: &mut OnTrial<'_>) -> Result<Found, SearchError> {
        let Self { problem, gpu, effort, hints, known_bad, should_stop, expect } = *self;
        let search = Search { problem, gpu, effort: effort.on(problem), hints, known_bad, should_stop, expect };
        search.run_field(bench, on_trial)
    }

    fn run_field(&self, bench: &mut dyn Bench, on_trial: &mut OnTrial<'_>) -> Result<Found, SearchError> {
        let mut ranked = predict::ranked(self.problem, self.gpu);
        let default = kernels::default_tile(self.problem, self.gpu);
        let Some(default) = default.filter(|_| !ranked.is_empty()) else {
            let reasons = kernels::refusals(self.problem, self.gpu.arch);
            let (problem, gpu) = (self.problem.to_string(), self.gpu.name.clone());
            return Err(SearchError::Unserved { problem, gpu, reasons });
        };
        // What fails with these very kernels counts as tried, and takes nobody's place.
        let (bad, good): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|(tile, _)| self.known_bad.contains(tile));
        ranked = good;
        let mut field = Field {
            search: self,
            bench,
            on_trial,
            entrants: Vec::new(),
            n_bad: bad.len(),
            tried: bad.into_iter().map(|(tile, _)| tile).collect(),
            first_failure: None,
            is_cut_short: false,
        };
        let mut first_field = first_field(self.problem, self.gpu, self.effort, self.hints, &ranked);
        first_field.retain(|tile| !self.known_bad.contains(tile));
        (self.expect)(Urgency::Now, &first_field);
        for tile in first_field {
            let leader = field.leader();
            field.enter(&tile)?;
            if field.leader() != leader {
                (self.expect)(Urgency::Soon, &field.near(&ranked));
            }
        }
        field.race(SHORT_RACE)?;
        field.visit_neighbours(&ranked)?;
        field.fill_up(&ranked)?;
        field.finish(&default)
    }
}

/// The default, the hints, the best few of each kind, then the best that differ from each other, then the best.
pub(super) fn first_field(
    problem: &Problem,
    gpu: &GpuSpec,
    effort: Effort,
    hints: &[Tile],
    ranked: &[(Tile, f64)],
) -> Vec<Tile> {
    let mut chosen: Vec<Tile> = kernels::default_tile(problem, gpu).into_iter().collect();
    let add = |chosen: &mut Vec<Tile>, tile: &Tile| {
        if !chosen.contains(tile) {
            chosen.push(tile.clone());
        }
    };
    let is_valid = |tile: &&Tile| kernels::plan(problem, tile, gpu).is_ok();
    hints.iter().filter(is_valid).for_each(|tile| add(&mut chosen, tile));
    let mut of_kind: HashMap<_, Vec<&Tile>> = HashMap::new();
    for (tile, us) in ranked {
        // A kind far behind gets no place; others get some: the model knows tiles of one kind better than kinds.
        let own = of_kind.entry(kind(tile)).or_default();
        let is_new = own.iter().all(|other| steps_between(tile, other) > 1);
        if own.len() < effort.of_kind() && is_new && *us < 2.0 * ranked[0].1 {
            own.push(tile);
            add(&mut chosen, tile);
        }
    }
    for (tile, _) in ranked {
        if chosen.len() < effort.first && chosen.iter().all(|other| steps_between(tile, other) > 1) {
            chosen.push(tile.clone());
        }
    }
    for (tile, _) in ranked {
        if chosen.len() < effort.first {
            add(&mut chosen, tile);
        }
    }
    chosen
}

/// Tiles of `ranked` one step away from `tile`, the best predicted first.
pub(super) fn neighbours<'r>(tile: &'r Tile, ranked: &'r [(Tile, f64)]) -> impl Iterator<Item = &'r Tile> {
    ranked.iter().map(|(tile, _)| tile).filter(move |other| steps_between(other, tile) == 1)
}

/// What makes a kernel another one than a number does: its family, a ring or none, k shared in memory or in a cluster.
fn kind(tile: &Tile) -> (&str, [bool; 3]) {
    let is_shared = |name| tile.number(name).is_some_and(|blocks| blocks > 1);
    (tile.family(), [tile.number("stages") == Some(1), is_shared("split"), is_shared("cluster")])
}

/// Parameters in which two tiles differ; between families they all do.
fn steps_between(a: &Tile, b: &Tile) -> usize {
    match a.family() == b.family() {
        true => a.numbers().filter(|&(name, value)| b.number(name) != Some(value)).count(),
        false => usize::MAX,
    }
}

impl Field<'_, '_> {
    /// Checks a candidate and times it twice.
    fn enter(&mut self, tile: &Tile) -> Result<(), SearchError> {
        if self.stops() || !self.tried.insert(tile.clone()) {
            return Ok(());
        }
        let n_routings = self.bench.routings().len();
        let relative_l2 = match self.bench.prepare(self.search.problem, tile) {
            Ok(relative_l2) => relative_l2,
            Err(miss) => return self.missed(tile, miss),
        };
        let times = Times::new(n_routings);
        let entrant = Entrant {
            tile: tile.clone(),
            relative_l2,
            times,
            clocks: Vec::new(),
            throttle_reasons: 0,
            unchained_us: 0.0,
        };
        self.entrants.push(entrant);
        let entrant_idx = self.entrants.len() - 1;
        for _ in 0..FIRST_LOOK {
            if !self.time(entrant_idx)? {
                return Ok(());
            }
        }
        self.tell(entrant_idx);
        // Far behind: no more of it, but it stays on record.
        let leader = self.leader_score();
        if self.entrants[entrant_idx].times.score() > FAR_BEHIND * leader {
            self.bench.release(self.search.problem, tile);
        }
        Ok(())
    }

    /// One round for one entrant, under each routing. False if it has failed and left the field.
    fn time(&mut self, entrant_idx: usize) -> Result<bool, SearchError> {
        let problem = self.search.problem;
        for routing_idx in 0..self.bench.routings().len().max(1) {
            let entrant = &mut self.entrants[entrant_idx];
            match self.bench.sample(problem, &entrant.tile, Mode::Chained, routing_idx) {
                Ok(sample) => {
                    entrant.times.push(routing_idx, sample.us);
                    entrant.clocks.push(f64::from(sample.sm_clock_mhz));
                    entrant.throttle_reasons |= sample.throttle_reasons;
                }
                Err(miss) => {
                    let tile = self.entrants.remove(entrant_idx).tile;
                    self.missed(&tile, miss)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Interleaved rounds among those who may still win, until each has `rounds`.
    fn race(&mut self, rounds: usize) -> Result<(), SearchError> {
        loop {
            let times: Vec<&Times> = self.entrants.iter().map(|entrant| &entrant.times).collect();
            let stays = survivors(&times);
            let mut in_race: Vec<usize> = (0..stays.len()).filter(|&idx| stays[idx]).collect();
            in_race.sort_by(|&a, &b| self.entrants[a].times.score().total_cmp(&self.entrants[b].times.score()));
            in_race.truncate(MOST_IN_RACE);
            in_race.retain(|&idx| self.entrants[idx].times.rounds() < rounds);
            if in_race.is_empty() || self.stops() {
                return Ok(());
            }
            // From the back, so that one that fails and leaves does not shift the others.
            in_race.sort_unstable_by(|a, b| b.cmp(a));
            for entrant_idx in in_race {
                self.time(entrant_idx)?;
            }
        }
    }

    /// Tiles one step away from those in front, as long as there are new ones and the effort lasts.
    fn visit_neighbours(&mut self, ranked: &[(Tile, f64)]) -> Result<(), SearchError> {
        let mut left = self.search.effort.neighbours;
        while left > 0 && !self.stops() {
            let mut near = self.near(ranked);
            near.truncate(left);
            if near.is_empty() {
                return Ok(());
            }
            let (next, later) = near.split_at(near.len().min(NEIGHBOURS_AT_ONCE));
            // The cores that these few leave idle: any of them may lead, and then its own neighbours are next.
            let beyond = next.iter().flat_map(|tile| self.near_to(tile, ranked).into_iter().take(GUESSES));
            let beyond: Vec<Tile> = beyond.filter(|tile| !near.contains(tile)).collect();
            for (urgency, tiles) in [(Urgency::Soon, &beyond[..]), (Urgency::Soon, later), (Urgency::Now, next)] {
                (self.search.expect)(urgency, tiles);
            }
            left -= next.len();
            for tile in next {
                self.enter(tile)?;
            }
            self.race(SHORT_RACE)?;
        }
        Ok(())
    }

    /// Tiles one step away from those in front that were not tried, as many as a search may visit: of each the best
    /// predicted first, in turn, because the best way of another kind may be a step away from the second.
    fn near(&self, ranked: &[(Tile, f64)]) -> Vec<Tile> {
        let lists: Vec<Vec<Tile>> = self.in_front().iter().map(|tile| self.near_to(tile, ranked)).collect();
        let mut near = Vec::new();
        for place in 0..lists.iter().map(Vec::len).max().unwrap_or(0) {
            for tile in lists.iter().filter_map(|list| list.get(place)) {
                if !near.contains(tile) {
                    near.push(tile.clone());
                }
            }
        }
        near.truncate(self.search.effort.neighbours);
        near
    }

    /// Tiles one step away from `tile` that were not tried, best predicted first.
    fn near_to(&self, tile: &Tile, ranked: &[(Tile, f64)]) -> Vec<Tile> {
        let near: Vec<Tile> = match ranked.iter().any(|(other, _)| other == tile) {
            true => neighbours(tile, ranked).cloned().collect(),
            false => self.around(tile, ranked),
        };
        near.into_iter().filter(|tile| !self.tried.contains(tile)).collect()
    }

    /// The leader, and those behind it whose neighbours are looked at too.
    fn in_front(&self) -> Vec<Tile> {
        let mut entrants: Vec<&Entrant> = self.entrants.iter().collect();
        entrants.sort_by(|a, b| a.times.score().total_cmp(&b.times.score()));
        entrants.iter().take(self.search.effort.in_front).map(|entrant| entrant.tile.clone()).collect()
    }

    /// Tiles one step away from one that won another bucket and is not on this one's axes: its own numbers, each in
    /// turn with the values that the axes have.
    fn around(&self, leader: &Tile, ranked: &[(Tile, f64)]) -> Vec<Tile> {
        let Search { problem, gpu, known_bad, .. } = self.search;
        let of_family = || ranked.iter().map(|(tile, _)| tile).filter(|tile| tile.family() == leader.family());
        let mut near: Vec<(Tile, f64)> = Vec::new();
        for (name, _) in leader.numbers() {
            let values: BTreeSet<u32> = of_family().filter_map(|tile| tile.number(name)).collect();
            for tile in values.into_iter().map(|value| leader.with(name, value)) {
                let plan = kernels::plan(problem, &tile, gpu).ok().filter(|_| !known_bad.contains(&tile));
                near.extend(plan.map(|plan| (tile, predict::predict(&plan, gpu))));
            }
        }
        near.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
        near.into_iter().map(|(tile, _)| tile).collect()
    }

    /// The best predicted that were not tried, until as many were as make a search of this effort.
    fn fill_up(&mut self, ranked: &[(Tile, f64)]) -> Result<(), SearchError> {
        let missing = self.search.effort.least_tried().saturating_sub(self.tried.len());
        let untried = ranked.iter().map(|(tile, _)| tile).filter(|tile| !self.tried.contains(*tile));
        let more: Vec<Tile> = untried.take(missing).cloned().collect();
        if more.is_empty() {
            return Ok(());
        }
        (self.search.expect)(Urgency::Now, &more);
        for tile in &more {
            self.enter(tile)?;
        }
        self.race(SHORT_RACE)
    }

    /// The final: the leaders and the default in the same rounds, then the rules for who is level.
    fn finish(mut self, default: &Tile) -> Result<Found, SearchError> {
        let winner_idx = loop {
            self.race(self.search.effort.rounds)?;
            self.pair(default)?;
            let Some(winner_idx) = self.choose(default) else { return Err(self.nothing()) };
            if self.time_unchained(winner_idx)? {
                break winner_idx;
            }
        };
        let default_us =
            self.entrants.iter().find(|entrant| entrant.tile == *default).map(|entrant| entrant.times.score());
        for entrant_idx in 0..self.entrants.len() {
            if self.entrants[entrant_idx].times.rounds() > FIRST_LOOK {
                self.tell(entrant_idx);
            }
        }
        let mut contenders: Vec<Contender> = (0..self.entrants.len()).map(|idx| self.contender(idx)).collect();
        let winner = contenders.remove(winner_idx);
        contenders.sort_by(|a, b| a.timing.chained_us.total_cmp(&b.timing.chained_us));
        for tile in self.tried.iter() {
            self.bench.release(self.search.problem, tile);
        }
        Ok(Found {
            default_us: default_us.unwrap_or(winner.timing.chained_us),
            winner,
            others: contenders,
            tried: self.tried.len() - if self.is_cut_short { self.n_bad } else { 0 },
            is_cut_short: self.is_cut_short,
        })
    }

    /// Why there is no winner.
    fn nothing(&self) -> SearchError {
        let (problem, tried) = (self.search.problem.to_string(), self.tried.len());
        match &self.first_failure {
            _ if self.is_cut_short => SearchError::Stopped { problem },
            Some(outcome) => SearchError::AllFailed { problem, tried, first: outcome.to_string() },
            None => SearchError::AllFailed { problem, tried, first: "it failed in an earlier run".to_string() },
        }
    }

    /// The default may have dropped out early: the rounds that it lacks are timed in turn with the leader's.
    fn pair(&mut self, default: &Tile) -> Result<(), SearchError> {
        let position = |field: &Self, tile: &Tile| field.entrants.iter().position(|entrant| entrant.tile == *tile);
        let Some(leader) = self.leader().filter(|leader| leader != default) else { return Ok(()) };
        while let Some(idx) = position(self, default) {
            if self.entrants[idx].times.rounds() >= SHORT_RACE || self.stops() || !self.time(idx)? {
                break;
            }
            if let Some(leader_idx) = position(self, &leader) {
                self.time(leader_idx)?;
            }
        }
        Ok(())
    }

    /// Among those level with the leader: the default, or else who needs fewer resources, or else the lower id.
    fn choose(&self, default: &Tile) -> Option<usize> {
        let leader = self.entrants.iter().min_by(|a, b| a.times.score().total_cmp(&b.times.score()))?;
        let level =
            |(_, entrant): &&(usize, &Entrant)| is_level(&entrant.times, &leader.times, entrant.tile == *default);
        let rank = |(_, entrant): &(usize, &Entrant)| {
            let plan = kernels::plan(self.search.problem, &entrant.tile, self.search.gpu).ok();
            let needs = plan.map(|plan| plan.launches.iter().map(|launch| launch.smem_bytes).max().unwrap_or(0));
            (entrant.tile != *default, needs.unwrap_or(u32::MAX), entrant.tile.clone())
        };
        // Two looks are too few to be level with a leader that was raced.
        let rounds = leader.times.rounds();
        let entrants: Vec<(usize, &Entrant)> = self.entrants.iter().enumerate().collect();
        let fair = |entrant: &&(usize, &Entrant)| entrant.1.times.rounds() >= rounds.min(SHORT_RACE);
        entrants.iter().filter(fair).filter(level).min_by_key(|entrant| rank(entrant)).map(|(idx, _)| *idx)
    }

    /// False if it has failed and left the field.
    fn time_unchained(&mut self, entrant_idx: usize) -> Result<bool, SearchError> {
        let tile = self.entrants[entrant_idx].tile.clone();
        let n_routings = self.bench.routings().len();
        let mut times = Times::new(n_routings);
        for _ in 0..SHORT_RACE {
            for routing_idx in 0..n_routings.max(1) {
                match self.bench.sample(self.search.problem, &tile, Mode::Unchained, routing_idx) {
                    Ok(sample) => times.push(routing_idx, sample.us),
                    Err(miss) => {
                        self.entrants.remove(entrant_idx);
                        return self.missed(&tile, miss).map(|()| false);
                    }
                }
            }
        }
        self.entrants[entrant_idx].unchained_us = times.score();
        Ok(true)
    }

    fn missed(&mut self, tile: &Tile, miss: Miss) -> Result<(), SearchError> {
        match miss {
            Miss::Fatal(reason) => Err(SearchError::Fatal(reason)),
            Miss::Candidate(outcome) => {
                (self.on_trial)(tile, &outcome, &[]);
                self.first_failure.get_or_insert(outcome);
                Ok(())
            }
        }
    }

    fn stops(&mut self) -> bool {
        self.is_cut_short |= (self.search.should_stop)();
        self.is_cut_short
    }

    fn leader(&self) -> Option<Tile> {
        let leader = self.entrants.iter().min_by(|a, b| a.times.score().total_cmp(&b.times.score()));
        leader.map(|leader| leader.tile.clone())
    }

    fn leader_score(&self) -> f64 {
        self.entrants.iter().map(|entrant| entrant.times.score()).fold(f64::INFINITY, f64::min)
    }

    fn tell(&mut self, entrant_idx: usize) {
        let contender = self.contender(entrant_idx);
        (self.on_trial)(&contender.tile, &Outcome::Measured(contender.timing), &contender.by_routing_us);
    }

    fn contender(&self, entrant_idx: usize) -> Contender {
        let entrant = &self.entrants[entrant_idx];
        let chained_us = entrant.times.score();
        let timing = Timing {
            chained_us,
            unchained_us: entrant.unchained_us,
            half_width_us: chained_us * entrant.times.relative_half_width(),
            rounds: entrant.times.rounds() as u32,
            is_warm: self.bench.is_warm(),
            sm_clock_mhz: super::race::median(&entrant.clocks) as u32,
            throttle_reasons: entrant.throttle_reasons,
            relative_l2: entrant.relative_l2,
        };
        let routings = self.bench.routings().len().max(1);
        let by_routing_us = (0..routings).map(|routing_idx| entrant.times.median(routing_idx)).collect();
        Contender { tile: entrant.tile.clone(), timing, by_routing_us }
    }
}

/// Rounds when a candidate is first seen.
const FIRST_LOOK: usize = 2;

/// Tokens of a block of experts up to which a candidate is cheap to try.
const FEW_TOKENS: u32 = 64;

/// Rounds before neighbours are looked at, and of the default's pairing.
const SHORT_RACE: usize = 4;

/// A candidate this many times slower than the leader is released at once.
const FAR_BEHIND: f64 = 1.5;

/// More cannot all be within noise of the leader for long.
const MOST_IN_RACE: usize = 6;

const NEIGHBOURS_AT_ONCE: usize = 4;

/// Neighbours of each of these that are compiled before it is known whether it leads.
const GUESSES: usize = 3;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::problem::Routing;
    use crate::tuner::Sample;

    /// A bench on which a tile takes as long as a function says, or fails; it is asked for announced tiles only.
    struct Told<'a, F: Fn(&Tile, Mode) -> Option<f64>> {
        us: F,
        announced: &'a RefCell<HashSet<Tile>>,
        asked: HashSet<Tile>,
    }

    impl<F: Fn(&Tile, Mode) -> Option<f64>> Bench for Told<'_, F> {
        fn routings(&self) -> &[Routing] {
            &[]
        }

        fn open(&mut self, _: &Problem) -> Result<(), String> {
            Ok(())
        }

        fn prepare(&mut self, _: &Problem, tile: &Tile) -> Result<f64, Miss> {
            assert!(self.announced.borrow().contains(tile), "nobody could compile {tile} ahead");
            self.asked.insert(tile.clone());
            Ok(0.0)
        }

        fn sample(&mut self, _: &Problem, tile: &Tile, mode: Mode, _: usize) -> Result<Sample, Miss> {
            let failed = || Miss::Candidate(Outcome::FailedToRun { message: "it was told to".to_string() });
            let us = (self.us)(tile, mode).ok_or_else(failed)?;
            Ok(Sample { us, sm_clock_mhz: 1755, throttle_reasons: 0 })
        }

        fn release(&mut self, _: &Problem, _: &Tile) {}
    }

    fn run<F: Fn(&Tile, Mode) -> Option<f64>>(
        text: &str,
        hints: &[Tile],
        known_bad: &HashSet<Tile>,
        us: F,
    ) -> (Result<Found, SearchError>, HashSet<Tile>) {
        let (problem, gpu): (Problem, _) = (text.parse().unwrap(), GpuSpec::named("h100").unwrap());
        let announced = RefCell::new(HashSet::new());
        let mut bench = Told { us, announced: &announced, asked: HashSet::new() };
        let expect = |urgency: Urgency, tiles: &[Tile]| {
            if urgency == Urgency::Now {
                announced.borrow_mut().extend(tiles.iter().cloned());
            }
        };
        let (effort, should_stop) = (Effort::FULL, || false);
        let search =
            Search { problem: &problem, gpu, effort, hints, known_bad, should_stop: &should_stop, expect: &expect };
        let found = search.run(&mut bench, &mut |_, _, _| {});
        (found, bench.asked)
    }

    fn listed(text: &str) -> Vec<Tile> {
        let ranked = predict::ranked(&text.parse().unwrap(), GpuSpec::named("h100").unwrap());
        ranked.into_iter().map(|(tile, _)| tile).collect()
    }

    #[test]
    fn a_leader_from_another_bucket_has_neighbours_of_its_own() {
        let (small, large) = ("bf16 64x4096 f32 m1", "bf16 64x4096 f32 m8");
        let hint = listed(small).into_iter().find(|tile| tile.number("tokens") == Some(1)).unwrap();
        assert!(!listed(large).contains(&hint), "the hint is on the axes of both");
        let leads = |tile: &Tile| if *tile == hint { 1.0 } else { 2.0 };
        let (found, asked) = run(large, std::slice::from_ref(&hint), &HashSet::new(), |tile, _| Some(leads(tile)));
        let found = found.unwrap();
        assert_eq!(found.winner.tile, hint);
        let near = asked.iter().filter(|tile| steps_between(tile, &hint) == 1 && !listed(large).contains(tile));
        assert!(near.count() >= 4, "{asked:?}");
        assert!(found.tried >= Effort::FULL.least_tried());
    }

    #[test]
    fn what_failed_before_is_not_asked_and_takes_no_place() {
        let text = "nvfp4 4096x4096 m1";
        let all = listed(text);
        let bad: HashSet<Tile> = all.iter().take(40).cloned().collect();
        let (found, asked) = run(text, &all[..2], &bad, |_, _| Some(5.0));
        assert!(asked.is_disjoint(&bad) && asked.len() >= Effort::FULL.first, "{}", asked.len());
        assert_eq!(found.unwrap().tried, asked.len() + bad.len());
        let (none, asked) = run(text, &[], &all.into_iter().collect(), |_, _| Some(5.0));
        assert!(matches!(none, Err(SearchError::AllFailed { .. })) && asked.is_empty(), "{none:?}");
    }

    #[test]
    fn noise_of_the_leader_gives_no_slower_tile_the_place() {
        let (text, gpu) = ("nvfp4 4096x4096 m1", GpuSpec::named("h100").unwrap());
        let problem: Problem = text.parse().unwrap();
        let smem = |tile: &Tile| kernels::plan(&problem, tile, gpu).unwrap().launches[0].smem_bytes;
        let leader = listed(text).into_iter().take(Effort::FULL.first).max_by_key(smem).unwrap();
        let default = kernels::default_tile(&problem, gpu).unwrap();
        assert_ne!(leader, default);
        let turn = std::cell::Cell::new(0);
        let noisy = || {
            turn.set(turn.get() + 1);
            [0.96, 1.0, 1.04][turn.get() % 3]
        };
        let us = |tile: &Tile, _: Mode| match *tile == leader {
            true => Some(noisy()),
            false => Some(if *tile == default { 1.2 } else { 1.035 }),
        };
        let (found, _) = run(text, std::slice::from_ref(&leader), &HashSet::new(), us);
        let winner = found.unwrap().winner;
        assert_eq!(winner.tile, leader);
        assert!(winner.timing.half_width_us > 0.035, "{:?}", winner.timing);
    }

    #[test]
    fn a_winner_that_fails_without_overlap_gives_way() {
        let text = "nvfp4 4096x4096 m1";
        let first = listed(text).swap_remove(0);
        let us = |tile: &Tile, mode| match (*tile == first, mode) {
            (true, Mode::Unchained) => None,
            (is_first, _) => Some(if is_first { 1.0 } else { 2.0 }),
        };
        let (found, _) = run(text, &[], &HashSet::new(), us);
        let found = found.unwrap();
        assert!(found.winner.tile != first && found.winner.timing.unchained_us == 2.0, "{:?}", found.winner);
    }

    #[test]
    fn each_kind_of_kernel_has_places_in_the_first_field() {
        let (problem, gpu) =
            ("moe nvfp4 256 top6 4096x2048 m4".parse::<Problem>().unwrap(), GpuSpec::named("h100").unwrap());
        let ranked = predict::ranked(&problem, gpu);
        let field = first_field(&problem, gpu, Effort::QUICK.on(&problem), &[], &ranked);
        let families = [("moe_walk", false), ("moe_staged", false), ("moe_mma", true), ("moe_mma", false)];
        for (family, is_in_registers) in families.into_iter().chain([("moe_wgmma", false)]) {
            let wanted = (family, [is_in_registers, false, false]);
            assert!(field.iter().any(|tile| kind(tile) == wanted), "{wanted:?}: {field:?}");
        }
        let many = problem.with_m(1024);
        assert!(Effort::QUICK.on(&problem).first > Effort::QUICK.first);
        assert_eq!(Effort::QUICK.on(&many), Effort::QUICK);
        let dense: Problem = "nvfp4 4096x4096 m64".parse().unwrap();
        let field = first_field(&dense, gpu, Effort::FULL, &[], &predict::ranked(&dense, gpu));
        for shared in [[false, false, false], [false, true, false], [false, false, true]] {
            assert!(field.iter().any(|tile| kind(tile) == ("dense_wgmma", shared)), "{shared:?}: {field:?}");
        }
        assert_eq!(Effort::EXHAUSTIVE.on(&problem), Effort::EXHAUSTIVE);
    }
}
