//! Compressors: one entry of several tokens, by a softmax over tokens in each channel apart (2.5).

use crate::models::dsv4::{Config, LayerKind, weights};

use super::linear::{Linear, checked};
use super::pass::{Pass, rms_norm};
use super::rope::{Rope, rotate};
use super::rounding::{store_index, store_key};
use super::{Matrix, ReferenceError};

/// What makes the entries of a layer, or the keys of its indexer.
#[derive(Clone, Debug)]
pub(super) struct Compressor {
    purpose: Purpose,
    wkv: Linear,
    wgate: Linear,
    /// `[ratio, series * head_dim]`.
    ape: Vec<f32>,
    norm: Vec<f32>,
    ratio: usize,
    series: usize,
    head_dim: usize,
    rope: Rope,
}

/// What entries are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Keys and values of attention.
    Attention,
    /// Keys of the indexer.
    Index,
}

/// Entries of one sequence, and the tokens of those to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    /// `[entries, head_dim]`, as the cache holds them.
    pub(super) closed: Vec<f32>,
    /// The latest tokens that an entry to come needs: those of the open window, behind those of the window before it
    /// if series overlap.
    pending: Vec<Pending>,
}

/// What a token gives to its entries, `[series * head_dim]` each.
#[derive(Clone, Debug)]
struct Pending {
    content: Vec<f32>,
    /// With the token's `ape` added.
    gate: Vec<f32>,
}

impl Compressor {
    pub(super) fn new(
        name: &str,
        source: &weights::Compressor<'_>,
        (config, kind): (&Config, LayerKind),
        purpose: Purpose,
    ) -> Result<Self, ReferenceError> {
        let head_dim = match purpose {
            Purpose::Attention => config.head_dim,
            Purpose::Index => config.index_head_dim,
        } as usize;
        let (ratio, series) = (kind.ratio() as usize, kind.series() as usize);
        let shape = [series * head_dim, config.hidden as usize];
        Ok(Self {
            purpose,
            wkv: Linear::new(&source.wkv, shape)?,
            wgate: Linear::new(&source.wgate, shape)?,
            ape: checked(format!("{name}.ape"), &source.ape, ratio * series * head_dim)?,
            norm: checked(format!("{name}.norm"), &source.norm, head_dim)?,
            ratio,
            series,
            head_dim,
            rope: Rope::new(config, kind),
        })
    }

    /// Entries that a token at `position` may see: the one that closes with the token is among them.
    pub(super) fn visible(&self, position: usize) -> usize {
        (position + 1) / self.ratio
    }

    /// Closes every entry whose last token is among those of `x`, `[m, hidden]`.
    pub(super) fn forward(&self, pass: &mut Pass<'_>, entries: &mut Entries, x: &Matrix) -> Result<(), ReferenceError> {
        let [wkv, wgate, closed] = match self.purpose {
            Purpose::Attention => ["attn.compressor.wkv", "attn.compressor.wgate", "attn.compressor"],
            Purpose::Index => {
                ["attn.indexer.compressor.wkv", "attn.indexer.compressor.wgate", "attn.indexer.compressor"]
            }
        };
        let content = pass.linear(wkv, &self.wkv, x)?;
        let gates = pass.linear(wgate, &self.wgate, x)?;
        let before = entries.closed.len();
        for token in 0..x.rows {
            let position = pass.start + token;
            let ape = &self.ape[position % self.ratio * gates.columns..][..gates.columns];
            let gate = gates.row(token).iter().zip(ape).map(|(gate, ape)| gate + ape).collect();
            entries.pending.push(Pending { content: content.row(token).to_vec(), gate });
            if (position + 1).is_multiple_of(self.ratio) {
                let entry = self.close(pass, &entries.pending, position / self.ratio);
                entries.closed.extend(entry);
                let kept = (self.series - 1) * self.ratio;
                entries.pending.drain(..entries.pending.len() - kept);
            }
        }
        let values = entries.closed[before..].to_vec();
        pass.observe(closed, &Matrix { rows: values.len() / self.head_dim, columns: self.head_dim, values })
    }

    /// The entry of window `window`, whose tokens are the last of `pending`.
    fn close(&self, pass: &Pass<'_>, pending: &[Pending], window: usize) -> Vec<f32> {
        // A slot is a token and the series of channels that it gives. The window before gives series A (the first
        // half), this one series B; the first window has none before it.
        let last_series = self.series - 1;
        let first_of_window = pending.len() - self.ratio;
        let series_of = |idx: usize| if idx < first_of_window { 0 } else { last_series };
        let slots = || pending.iter().enumerate().map(|(idx, token)| (series_of(idx) * self.head_dim, token));
        let channel = |channel: usize| {
            let largest = slots().map(|(start, token)| token.gate[start + channel]).fold(f32::NEG_INFINITY, f32::max);
            let (mut sum, mut weighted) = (0.0, 0.0);
            for (start, token) in slots() {
                let weight = (token.gate[start + channel] - largest).exp();
                sum += weight;
                weighted += weight * token.content[start + channel];
            }
            weighted / sum
        };
        let values = (0..self.head_dim).map(channel).collect();
        let mut entry = Matrix { rows: 1, columns: self.head_dim, values };
        rms_norm(&mut entry, &self.norm, pass.config.norm_epsilon);
        rotate(&self.rope.at(window * self.ratio), &mut entry.values);
        match self.purpose {
            Purpose::Attention => store_key(pass.options.kv, pass.config.rope_dim as usize, &mut entry.values),
            Purpose::Index => store_index(pass.options.index, &mut entry.values),
        }
        entry.values
    }
}
