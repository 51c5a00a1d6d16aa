//! Who goes to which expert in a measurement: seeded tables, the same on every machine.

use crate::problem::{MoeBlock, Routing};

/// Experts and weights of every slot of every token: `[m, top_k]` each.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RoutingTable {
    pub experts: Vec<i32>,
    pub weights: Vec<f32>,
}

impl RoutingTable {
    /// A table for the block's tokens. Weights are positive and add up to 1.5 for a token, as dsv4's do.
    pub fn new(block: &MoeBlock, routing: Routing, seed: u64) -> Self {
        let mut random = Random(seed);
        let (experts, top_k) = (block.experts as usize, block.top_k as usize);
        let popularity = popularity(experts, routing, &mut random);
        let fixed = draw(&popularity, top_k, &mut random);
        let mut table = Self { experts: Vec::new(), weights: Vec::new() };
        for _ in 0..block.m {
            let chosen = if routing == Routing::OneSet { fixed.clone() } else { draw(&popularity, top_k, &mut random) };
            let scores: Vec<f64> = chosen.iter().map(|_| 0.1 + random.unit()).collect();
            let sum: f64 = scores.iter().sum();
            table.experts.extend(chosen.iter().map(|&expert| expert as i32));
            table.weights.extend(scores.iter().map(|score| (1.5 * score / sum) as f32));
        }
        table
    }

    /// For the reference: slots sorted by expert, and tiles of at most 64 of them.
    pub fn sorted(&self, block: &MoeBlock) -> SortedSlots {
        let mut slots: Vec<i32> = (0..self.experts.len() as i32).collect();
        slots.retain(|&slot| (self.experts[slot as usize] as u32) < block.local_experts);
        slots.sort_by_key(|&slot| self.experts[slot as usize]);
        let mut position_of = vec![-1; self.experts.len()];
        for (position, &slot) in slots.iter().enumerate() {
            position_of[slot as usize] = position as i32;
        }
        let mut tiles = Vec::new();
        let mut begin = 0;
        for run in slots.chunk_by(|&a, &b| self.experts[a as usize] == self.experts[b as usize]) {
            let expert = self.experts[run[0] as usize];
            for (tile_idx, tile) in run.chunks(REFERENCE_TILE).enumerate() {
                tiles.extend([expert, (begin + tile_idx * REFERENCE_TILE) as i32, tile.len() as i32, 0]);
            }
            begin += run.len();
        }
        let token_of = slots.iter().map(|slot| slot / block.top_k as i32).collect();
        SortedSlots { token_of, position_of, tiles }
    }
}

/// Seed of one of the tables that take turns under a routing.
pub(super) fn table_seed(seed: u64, routing_idx: usize, turn: u64) -> u64 {
    seed ^ (routing_idx as u64) << 32 ^ turn << 40
}

/// Local experts that a launch reads for each of `tokens`, the mean over the tables that measurements with `seed` take
/// turns with; `routing` comes with its place among the routings that are measured.
pub fn touched_experts(block: &MoeBlock, routing: (usize, Routing), seed: u64, tokens: &[u32]) -> Vec<f64> {
    let (routing_idx, routing) = routing;
    let most = tokens.iter().copied().max().unwrap_or(1);
    let block = MoeBlock { m: most, ..block.clone() };
    let mut touched = vec![0.0; tokens.len()];
    for turn in 0..TABLES {
        // A table of fewer tokens is the beginning of this one.
        let table = RoutingTable::new(&block, routing, table_seed(seed, routing_idx, turn));
        for (sum, &m) in touched.iter_mut().zip(tokens) {
            let slots = &table.experts[..m as usize * block.top_k as usize];
            let local = slots.iter().filter(|&&expert| (expert as u32) < block.local_experts);
            *sum += local.collect::<std::collections::BTreeSet<_>>().len() as f64 / TABLES as f64;
        }
    }
    touched
}

/// Tables that take turns, for each routing.
pub(super) const TABLES: u64 = 8;

/// Slots in the order of their experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SortedSlots {
    /// Token of each position.
    pub token_of: Vec<i32>,
    /// Position of each slot; -1 for a slot of another rank.
    pub position_of: Vec<i32>,
    /// `[tiles, 4]`: expert, first position, count, 0.
    pub tiles: Vec<i32>,
}

/// Unnormalised chance of each expert.
fn popularity(experts: usize, routing: Routing, random: &mut Random) -> Vec<f64> {
    match routing {
        Routing::Uniform | Routing::OneSet => vec![1.0; experts],
        Routing::Zipf(s) => {
            let mut order: Vec<usize> = (0..experts).collect();
            for idx in (1..experts).rev() {
                order.swap(idx, (random.unit() * (idx + 1) as f64) as usize);
            }
            let mut popularity = vec![0.0; experts];
            for (rank, expert) in order.into_iter().enumerate() {
                popularity[expert] = ((rank + 1) as f64).powf(-f64::from(s));
            }
            popularity
        }
    }
}

/// Draws `count` distinct experts, one after the other in proportion to their popularity.
fn draw(popularity: &[f64], count: usize, random: &mut Random) -> Vec<usize> {
    let mut left = popularity.to_vec();
    let mut total: f64 = left.iter().sum();
    let mut chosen = Vec::with_capacity(count);
    for _ in 0..count {
        let mut at = random.unit() * total;
        let found = left.iter().position(|chance| {
            at -= chance;
            at < 0.0 && *chance > 0.0
        });
        // Rounding can leave a crumb behind the last expert.
        let expert = found.or_else(|| left.iter().rposition(|chance| *chance > 0.0)).unwrap_or(0);
        total -= left[expert];
        left[expert] = 0.0;
        chosen.push(expert);
    }
    chosen
}

/// splitmix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Rows of a tile of `templates/reference`.
const REFERENCE_TILE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Problem;

    fn block(m: u32) -> MoeBlock {
        let Ok(Problem::MoeBlock(block)) = format!("moe nvfp4 256 top6 4096x2048 m{m}").parse() else { panic!() };
        block
    }

    #[test]
    fn touched_experts_are_near_the_mean_and_fewer_when_skewed() {
        let (block, tokens) = (block(1), [1, 16, 256]);
        let uniform = touched_experts(&block, (0, Routing::Uniform), 1, &tokens);
        for (touched, &m) in uniform.iter().zip(&tokens) {
            let expected = MoeBlock { m, ..block.clone() }.touched_experts();
            assert!((touched / expected - 1.0).abs() < 0.05, "m {m}: {touched}, {expected} expected");
        }
        let zipf = touched_experts(&block, (1, Routing::Zipf(1.0)), 1, &tokens);
        assert!(zipf[0] == 6.0 && zipf[1] < uniform[1] && zipf[2] < uniform[2], "{zipf:?}, {uniform:?}");
    }

    #[test]
    fn slots_of_a_token_are_distinct_and_weights_add_up() {
        for routing in [Routing::Uniform, Routing::Zipf(1.0), Routing::OneSet] {
            let table = RoutingTable::new(&block(512), routing, 7);
            for (experts, weights) in table.experts.chunks(6).zip(table.weights.chunks(6)) {
                let mut sorted = experts.to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), 6, "{routing}");
                assert!((weights.iter().sum::<f32>() - 1.5).abs() < 1e-5);
            }
            assert_eq!(table, RoutingTable::new(&block(512), routing, 7));
            assert_ne!(table, RoutingTable::new(&block(512), routing, 8));
        }
    }

    #[test]
    fn skew_is_what_its_name_says() {
        let touched = |routing| {
            let mut experts = RoutingTable::new(&block(512), routing, 3).experts;
            experts.sort_unstable();
            experts.dedup();
            experts.len()
        };
        assert_eq!(touched(Routing::Uniform), 256);
        assert!(touched(Routing::Zipf(1.0)) < 256);
        assert_eq!(touched(Routing::OneSet), 6);
    }

    #[test]
    fn sorting_keeps_every_local_slot_once() {
        let block = MoeBlock { local_experts: 100, ..block(64) };
        let table = RoutingTable::new(&block, Routing::Uniform, 1);
        let sorted = table.sorted(&block);
        let local = table.experts.iter().filter(|&&expert| expert < 100).count();
        assert_eq!(sorted.token_of.len(), local);
        let covered: i32 = sorted.tiles.chunks(4).map(|tile| tile[2]).sum();
        assert_eq!(covered as usize, local);
        for (slot, &position) in sorted.position_of.iter().enumerate() {
            assert_eq!(position >= 0, table.experts[slot] < 100);
            if position >= 0 {
                assert_eq!(sorted.token_of[position as usize], slot as i32 / 6);
            }
        }
    }
}
