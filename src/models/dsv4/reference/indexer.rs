//! The lightning indexer of CSA layers: which compressed entries a token sees (2.6).

use crate::models::dsv4::{Config, LayerKind, weights};

use super::compressor::{Compressor, Entries, Purpose};
use super::linear::Linear;
use super::matrix::dot;
use super::pass::Pass;
use super::rope::{Rope, rotate};
use super::rounding::store_index;
use super::{IndexFormat, Matrix, Options, ReferenceError};

/// Scores entries by keys of its own, which are much shorter than those of attention.
#[derive(Clone, Debug)]
pub(super) struct Indexer {
    wq_b: Linear,
    weights_proj: Linear,
    compressor: Compressor,
    rope: Rope,
    heads: usize,
    head_dim: usize,
    top_k: usize,
}

impl Indexer {
    pub(super) fn new(
        name: &str,
        source: &weights::Indexer<'_>,
        config: &Config,
        options: &Options,
    ) -> Result<Self, ReferenceError> {
        let (heads, head_dim) = (config.index_heads as usize, config.index_head_dim as usize);
        if options.index == IndexFormat::Mxfp4 && !head_dim.is_power_of_two() {
            return Err(ReferenceError::Hadamard { found: head_dim });
        }
        let compressor = format!("{name}.compressor");
        Ok(Self {
            wq_b: Linear::new(&source.wq_b, [heads * head_dim, config.q_rank as usize])?,
            weights_proj: Linear::new(&source.weights_proj, [heads, config.hidden as usize])?,
            compressor: Compressor::new(&compressor, &source.compressor, (config, LayerKind::Csa), Purpose::Index)?,
            rope: Rope::new(config, LayerKind::Csa),
            heads,
            head_dim,
            top_k: config.index_top_k as usize,
        })
    }

    /// The entries that each token sees, ascending; `x` is `[m, hidden]`, `compressed_query` `[m, q_rank]`.
    pub(super) fn pick(
        &self,
        pass: &mut Pass<'_>,
        keys: &mut Entries,
        x: &Matrix,
        compressed_query: &Matrix,
    ) -> Result<Vec<Vec<u32>>, ReferenceError> {
        self.compressor.forward(pass, keys, x)?;
        let mut query = pass.linear("attn.indexer.wq_b", &self.wq_b, compressed_query)?;
        for (token, row) in query.values.chunks_exact_mut(self.heads * self.head_dim).enumerate() {
            let turn = self.rope.at(pass.start + token);
            for head in row.chunks_exact_mut(self.head_dim) {
                rotate(&turn, head);
                store_index(pass.options.index, head);
            }
        }
        pass.observe("attn.indexer.q", &query)?;
        let mut head_weights = pass.linear("attn.indexer.weights_proj", &self.weights_proj, x)?;
        let scale = 1.0 / ((self.head_dim * self.heads) as f32).sqrt();
        head_weights.values.iter_mut().for_each(|weight| *weight *= scale);

        let scores = self.scores(pass.start, &query, &head_weights, &keys.closed);
        pass.observe("attn.indexer.scores", &scores)?;
        let mut picks = Vec::with_capacity(x.rows);
        for token in 0..x.rows {
            let visible = self.compressor.visible(pass.start + token);
            picks.push(self.largest(pass, token, &scores.row(token)[..visible])?);
        }
        if let Some(layer) = pass.layer {
            pass.observer.picks(layer, &mut picks);
        }
        self.refuse_invisible(pass, &picks)?;
        Ok(picks)
    }

    /// `score[w] = sum_h weight_h * relu(q_h . key_w)`, `[m, entries]`; 0 for entries that are not visible yet.
    fn scores(&self, start: usize, query: &Matrix, head_weights: &Matrix, keys: &[f32]) -> Matrix {
        let mut scores = Matrix::zeros(query.rows, keys.len() / self.head_dim);
        scores.write_rows(query.values.len() * scores.columns, |token, row| {
            let visible = self.compressor.visible(start + token);
            for (score, key) in row[..visible].iter_mut().zip(keys.chunks_exact(self.head_dim)) {
                for (head, weight) in query.row(token).chunks_exact(self.head_dim).zip(head_weights.row(token)) {
                    let product = dot(head, key);
                    // A comparison that is false for NaN, so that one stays.
                    *score += weight * if product < 0.0 { 0.0 } else { product };
                }
            }
        });
        scores
    }

    /// The `top_k` largest, ties to the lower entry.
    fn largest(&self, pass: &Pass<'_>, token: usize, scores: &[f32]) -> Result<Vec<u32>, ReferenceError> {
        // Entries that NaN did or did not choose look like any others: here it would be lost.
        if let Some(column) = scores.iter().position(|score| !score.is_finite()) {
            let (op, position) = (pass.op("attn.indexer.scores"), pass.start + token);
            return Err(ReferenceError::NotFinite { op, position, column, value: scores[column] });
        }
        let mut entries: Vec<u32> = (0..scores.len() as u32).collect();
        entries.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
        entries.truncate(self.top_k);
        entries.sort_unstable();
        Ok(entries)
    }

    fn refuse_invisible(&self, pass: &Pass<'_>, picks: &[Vec<u32>]) -> Result<(), ReferenceError> {
        for (token, entries) in picks.iter().enumerate() {
            let (position, limit) = (pass.start + token, self.compressor.visible(pass.start + token));
            if let Some(&found) = entries.iter().find(|&&entry| entry as usize >= limit) {
                let op = pass.op("attn.indexer.scores");
                return Err(ReferenceError::Imposed { op, position, found, limit });
            }
        }
        Ok(())
    }
}
