//! Attention of one layer: sliding window, compressed entries, sinks (2.4, 2.7 to 2.9).

use crate::models::dsv4::{Config, LayerKind, weights};

use super::compressor::{Compressor, Entries, Purpose};
use super::hyper::inverse_rms;
use super::indexer::Indexer;
use super::linear::{Linear, checked};
use super::matrix::{add_scaled, dot};
use super::pass::{Pass, rms_norm};
use super::rope::{Rope, rotate, rotate_back};
use super::rounding::store_key;
use super::{Matrix, Options, ReferenceError};

/// Keys and values are one vector, which all heads share.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    sink: Vec<f32>,
    wq_a: Linear,
    q_norm: Vec<f32>,
    wq_b: Linear,
    wkv: Linear,
    kv_norm: Vec<f32>,
    wo_a: Linear,
    wo_b: Linear,
    compressor: Option<Compressor>,
    indexer: Option<Indexer>,
    rope: Rope,
    head_dim: usize,
    groups: usize,
    window: usize,
}

/// What one sequence leaves behind in one layer.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerCache {
    /// Keys of the latest positions, `[.., head_dim]`: at most a window of them between passes.
    keys: Vec<f32>,
    entries: Entries,
    index_keys: Entries,
}

impl Attention {
    pub(super) fn new(
        name: &str,
        source: &weights::Attention<'_>,
        (config, kind): (&Config, LayerKind),
        options: &Options,
    ) -> Result<Self, ReferenceError> {
        let [hidden, heads, head_dim, rank, o_rank, groups] =
            [config.hidden, config.heads, config.head_dim, config.q_rank, config.o_rank, config.o_groups]
                .map(|size| size as usize);
        let (compressor, indexer) = (format!("{name}.compressor"), format!("{name}.indexer"));
        let needs = |is_there: bool, name: &String| {
            is_there.then_some(()).ok_or_else(|| ReferenceError::Part { name: name.clone(), kind })
        };
        needs(kind == LayerKind::Swa || source.compressor.is_some(), &compressor)?;
        needs(kind != LayerKind::Csa || source.indexer.is_some(), &indexer)?;
        let new_compressor = |source| Compressor::new(&compressor, source, (config, kind), Purpose::Attention);
        Ok(Self {
            sink: checked(format!("{name}.attn_sink"), &source.sink, heads)?,
            wq_a: Linear::new(&source.wq_a, [rank, hidden])?,
            q_norm: checked(format!("{name}.q_norm"), &source.q_norm, rank)?,
            wq_b: Linear::new(&source.wq_b, [heads * head_dim, rank])?,
            wkv: Linear::new(&source.wkv, [head_dim, hidden])?,
            kv_norm: checked(format!("{name}.kv_norm"), &source.kv_norm, head_dim)?,
            wo_a: Linear::new(&source.wo_a, [groups * o_rank, heads * head_dim / groups])?,
            wo_b: Linear::new(&source.wo_b, [hidden, groups * o_rank])?,
            compressor: source.compressor.as_ref().map(new_compressor).transpose()?,
            indexer: source.indexer.as_ref().map(|it| Indexer::new(&indexer, it, config, options)).transpose()?,
            rope: Rope::new(config, kind),
            head_dim,
            groups,
            window: config.window as usize,
        })
    }

    /// NVFP4 linears whose input may be quantised.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        [&self.wq_a, &self.wq_b, &self.wkv, &self.wo_b].into_iter()
    }

    /// `x`, `[m, hidden]`, to `[m, hidden]`.
    pub(super) fn forward(
        &self,
        pass: &mut Pass<'_>,
        cache: &mut LayerCache,
        x: &Matrix,
    ) -> Result<Matrix, ReferenceError> {
        let compressed_query = self.compressed_query(pass, x)?;
        let query = self.query(pass, &compressed_query)?;
        let keys = self.keys(pass, x)?;
        cache.keys.extend(&keys.values);

        let picks = match (&self.compressor, &self.indexer) {
            (Some(compressor), indexer) => {
                compressor.forward(pass, &mut cache.entries, x)?;
                match indexer {
                    Some(indexer) => indexer.pick(pass, &mut cache.index_keys, x, &compressed_query)?,
                    None => {
                        (pass.start..).take(x.rows).map(|it| (0..compressor.visible(it) as u32).collect()).collect()
                    }
                }
            }
            (None, _) => vec![Vec::new(); x.rows],
        };
        let mut heads = self.core(&query, cache, &picks);
        self.for_each_head(pass.start, &mut heads, rotate_back);
        pass.observe("attn.core", &heads)?;
        let surplus = (cache.keys.len() / self.head_dim).saturating_sub(self.window);
        cache.keys.drain(..surplus * self.head_dim);

        let inner = pass.grouped_linear("attn.wo_a", &self.wo_a, &heads, self.groups)?;
        pass.linear("attn.wo_b", &self.wo_b, &inner)
    }

    fn compressed_query(&self, pass: &mut Pass<'_>, x: &Matrix) -> Result<Matrix, ReferenceError> {
        let mut compressed = pass.linear("attn.wq_a", &self.wq_a, x)?;
        rms_norm(&mut compressed, &self.q_norm, pass.config.norm_epsilon);
        pass.observe("attn.q_norm", &compressed)?;
        Ok(compressed)
    }

    /// Heads normalised one by one, without weights, and rotated.
    fn query(&self, pass: &mut Pass<'_>, compressed: &Matrix) -> Result<Matrix, ReferenceError> {
        let mut query = pass.linear("attn.wq_b", &self.wq_b, compressed)?;
        let epsilon = pass.config.norm_epsilon;
        self.for_each_head(pass.start, &mut query, |turn, head| {
            let inverse = inverse_rms(head, epsilon);
            head.iter_mut().for_each(|value| *value *= inverse);
            rotate(turn, head);
        });
        pass.observe("attn.q", &query)?;
        Ok(query)
    }

    /// As the cache holds them.
    fn keys(&self, pass: &mut Pass<'_>, x: &Matrix) -> Result<Matrix, ReferenceError> {
        let mut keys = pass.linear("attn.wkv", &self.wkv, x)?;
        rms_norm(&mut keys, &self.kv_norm, pass.config.norm_epsilon);
        let (format, rope_dim) = (pass.options.kv, pass.config.rope_dim as usize);
        self.for_each_head(pass.start, &mut keys, |turn, head| {
            rotate(turn, head);
            store_key(format, rope_dim, head);
        });
        pass.observe("attn.kv", &keys)?;
        Ok(keys)
    }

    fn for_each_head(&self, start: usize, rows: &mut Matrix, change: impl Fn(&super::rope::Turn, &mut [f32])) {
        for token in 0..rows.rows {
            let turn = self.rope.at(start + token);
            rows.row_mut(token).chunks_exact_mut(self.head_dim).for_each(|head| change(&turn, head));
        }
    }

    /// Softmax over the window, the picked entries and the sink, of which the sink has no value.
    ///
    /// The cache already holds the keys of the whole pass: the last one belongs to the last row of `query`.
    fn core(&self, query: &Matrix, cache: &LayerCache, picks: &[Vec<u32>]) -> Matrix {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let cached = cache.keys.len() / self.head_dim;
        let mut out = Matrix::zeros(query.rows, query.columns);
        let seen = self.window + picks.iter().map(Vec::len).max().unwrap_or(0);
        out.write_rows(2 * seen * query.values.len(), |token, row| {
            let end = cached - (query.rows - 1 - token);
            let window = end.saturating_sub(self.window)..end;
            let keys: Vec<&[f32]> = window
                .map(|idx| &cache.keys[idx * self.head_dim..][..self.head_dim])
                .chain(
                    picks[token].iter().map(|&w| &cache.entries.closed[w as usize * self.head_dim..][..self.head_dim]),
                )
                .collect();
            let heads = query.row(token).chunks_exact(self.head_dim).zip(&self.sink);
            for (out, (head, &sink)) in row.chunks_exact_mut(self.head_dim).zip(heads) {
                let scores: Vec<f32> = keys.iter().map(|key| dot(head, key) * scale).collect();
                let largest = scores.iter().copied().fold(sink, f32::max);
                let mut sum = (sink - largest).exp();
                for (score, key) in scores.iter().zip(&keys) {
                    let weight = (score - largest).exp();
                    sum += weight;
                    add_scaled(out, weight, key);
                }
                out.iter_mut().for_each(|value| *value /= sum);
            }
        });
        out
    }
}
