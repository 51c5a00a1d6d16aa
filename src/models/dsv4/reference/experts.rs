//! Router, routed experts and shared expert (2.10, 2.11).

use crate::models::dsv4::{Config, weights};
use crate::quant::math;

use super::linear::{Linear, checked};
use super::matrix::add_scaled;
use super::pass::{Input, Pass};
use super::{Matrix, ReferenceError, RouterWeight};

/// The feed-forward part of one layer.
#[derive(Clone, Debug)]
pub(super) struct FeedForward {
    gate: Linear,
    choice: weights::Choice,
    experts: Vec<Expert>,
    shared: Expert,
    top_k: usize,
}

#[derive(Clone, Debug)]
struct Expert {
    w1: Linear,
    w3: Linear,
    w2: Linear,
}

/// Which experts a token goes to, a slot each, token-major.
struct Route {
    experts: Vec<u32>,
    /// `[m, top_k]`.
    weights: Matrix,
}

impl FeedForward {
    pub(super) fn new(name: &str, source: &weights::FeedForward<'_>, config: &Config) -> Result<Self, ReferenceError> {
        let (experts, top_k) = (config.experts as usize, config.top_k as usize);
        let sized = |name: String, expected: usize, found: usize| {
            let (expected, found_shape) = (vec![expected], vec![found]);
            let is_right = expected == found_shape;
            is_right.then_some(()).ok_or(ReferenceError::Weight { name, expected, found: found_shape })
        };
        sized(format!("{name}.experts"), experts, source.experts.len())?;
        match &source.choice {
            weights::Choice::Score(bias) => {
                checked(format!("{name}.gate.bias"), bias, experts)?;
            }
            weights::Choice::Hash(table) => {
                sized(format!("{name}.gate.tid2eid"), config.vocabulary as usize * top_k, table.len())?;
            }
        }
        let expert = |source| Expert::new(source, config);
        Ok(Self {
            gate: Linear::new(&source.gate, [experts, config.hidden as usize])?,
            choice: source.choice.clone(),
            experts: source.experts.iter().map(expert).collect::<Result<_, _>>()?,
            shared: Expert::new(&source.shared, config)?,
            top_k,
        })
    }

    /// Linears whose input may be quantised.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.experts.iter().chain([&self.shared]).flat_map(|expert| [&expert.w1, &expert.w3, &expert.w2])
    }

    /// `x`, `[m, hidden]`, to `[m, hidden]`.
    pub(super) fn forward(&self, pass: &mut Pass<'_>, x: &Matrix) -> Result<Matrix, ReferenceError> {
        let route = self.route(pass, x)?;
        let routed = self.routed(pass, &route, x)?;
        let mut sum = Matrix::zeros(x.rows, x.columns);
        let is_after = pass.options.router_weight == RouterWeight::AfterW2;
        for (slot, &weight) in route.weights.values.iter().enumerate() {
            let factor = if is_after { weight } else { 1.0 };
            add_scaled(sum.row_mut(slot / self.top_k), factor, routed.row(slot));
        }
        let shared = self.shared(pass, x)?;
        add_scaled(&mut sum.values, 1.0, &shared.values);
        pass.observe("ffn", &sum)?;
        Ok(sum)
    }

    /// `score = sqrt(softplus(logit))`; the bias has a say in the choice alone.
    fn route(&self, pass: &mut Pass<'_>, x: &Matrix) -> Result<Route, ReferenceError> {
        let mut scores = pass.linear("ffn.gate", &self.gate, x)?;
        scores.values.iter_mut().for_each(|logit| *logit = softplus(*logit).sqrt());
        let mut experts: Vec<u32> = (0..x.rows).flat_map(|token| self.choose(pass, token, scores.row(token))).collect();
        if let Some(layer) = pass.layer {
            pass.observer.experts(layer, &mut experts);
        }
        let limit = self.experts.len();
        if let Some(slot) = experts.iter().position(|&expert| expert as usize >= limit) {
            let (op, position) = (pass.op("ffn.route"), pass.start + slot / self.top_k);
            return Err(ReferenceError::Imposed { op, position, found: experts[slot], limit });
        }
        let score_of = |(slot, &expert): (usize, &u32)| scores.row(slot / self.top_k)[expert as usize];
        let values = experts.iter().enumerate().map(score_of).collect();
        let mut weights = Matrix { rows: x.rows, columns: self.top_k, values };
        for row in weights.values.chunks_exact_mut(self.top_k) {
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|weight| *weight = *weight / sum * pass.config.routing_scale);
        }
        pass.observe("ffn.route", &weights)?;
        Ok(Route { experts, weights })
    }

    /// The experts of one token: the largest first, ties to the lower one. NaN counts as largest, so that it is chosen
    /// and makes the token's weights NaN.
    fn choose(&self, pass: &Pass<'_>, token: usize, scores: &[f32]) -> Vec<u32> {
        match &self.choice {
            weights::Choice::Hash(table) => {
                let start = pass.tokens[token] as usize * self.top_k;
                // A negative id becomes one beyond the limit, which is refused.
                table[start..][..self.top_k].iter().map(|&expert| expert as u32).collect()
            }
            weights::Choice::Score(bias) => {
                let key = |expert: u32| {
                    let biased = scores[expert as usize] + bias[expert as usize];
                    if biased.is_nan() { f32::INFINITY } else { biased }
                };
                let mut experts: Vec<u32> = (0..scores.len() as u32).collect();
                experts.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
                experts.truncate(self.top_k);
                experts
            }
        }
    }

    /// The output of each slot's expert, `[m * top_k, hidden]`.
    fn routed(&self, pass: &mut Pass<'_>, route: &Route, x: &Matrix) -> Result<Matrix, ReferenceError> {
        let slot_tokens: Vec<usize> = (0..route.experts.len()).map(|slot| slot / self.top_k).collect();
        let x = x.gather(&slot_tokens);
        let gate = self.by_expert(pass, ("ffn.experts.w1", |expert| &expert.w1), &route.experts, &x)?;
        let up = self.by_expert(pass, ("ffn.experts.w3", |expert| &expert.w3), &route.experts, &x)?;
        let mut inner = swiglu(&gate, &up, pass.config.swiglu_limit);
        if pass.options.router_weight == RouterWeight::BeforeW2 {
            for (slot, &weight) in route.weights.values.iter().enumerate() {
                inner.row_mut(slot).iter_mut().for_each(|value| *value *= weight);
            }
        }
        pass.observe("ffn.experts.swiglu", &inner)?;
        self.by_expert(pass, ("ffn.experts.w2", |expert| &expert.w2), &route.experts, &inner)
    }

    /// One projection of every slot, each through its own expert; `input` has a row a slot.
    fn by_expert(
        &self,
        pass: &mut Pass<'_>,
        (name, part): (&'static str, fn(&Expert) -> &Linear),
        experts: &[u32],
        input: &Matrix,
    ) -> Result<Matrix, ReferenceError> {
        let columns = self.experts.first().map_or(0, |expert| part(expert).n);
        let mut output = Matrix::zeros(experts.len(), columns);
        let amax = input.finite_amax();
        for (expert_idx, expert) in self.experts.iter().enumerate() {
            let slots: Vec<usize> = (0..experts.len()).filter(|&slot| experts[slot] as usize == expert_idx).collect();
            if slots.is_empty() {
                continue;
            }
            let rows = input.gather(&slots);
            let result = pass.multiply(name, part(expert), Input { rows: &rows, row_idxs: Some(&slots), amax })?;
            for (row, &slot) in slots.iter().enumerate() {
                output.row_mut(slot).copy_from_slice(result.row(row));
            }
        }
        pass.observe(name, &output)?;
        Ok(output)
    }

    fn shared(&self, pass: &mut Pass<'_>, x: &Matrix) -> Result<Matrix, ReferenceError> {
        let gate = pass.linear("ffn.shared_experts.w1", &self.shared.w1, x)?;
        let up = pass.linear("ffn.shared_experts.w3", &self.shared.w3, x)?;
        let inner = swiglu(&gate, &up, pass.config.swiglu_limit);
        pass.observe("ffn.shared_experts.swiglu", &inner)?;
        pass.linear("ffn.shared_experts.w2", &self.shared.w2, &inner)
    }
}

impl Expert {
    fn new(source: &weights::Expert<'_>, config: &Config) -> Result<Self, ReferenceError> {
        let (hidden, intermediate) = (config.hidden as usize, config.intermediate as usize);
        Ok(Self {
            w1: Linear::new(&source.w1, [intermediate, hidden])?,
            w3: Linear::new(&source.w3, [intermediate, hidden])?,
            w2: Linear::new(&source.w2, [hidden, intermediate])?,
        })
    }
}

fn swiglu(gate: &Matrix, up: &Matrix, limit: f32) -> Matrix {
    let values = gate.values.iter().zip(&up.values).map(|(&gate, &up)| math::swiglu(gate, up, limit)).collect();
    Matrix { values, ..*gate }
}

/// `ln(1 + e^x)`; above 20 it is `x` to the last bit, and `e^x` would overflow in the end.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
