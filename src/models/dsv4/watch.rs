//! Looks on while the reference runs: stops at the first value that is not finite, and keeps what ops gave.

use std::sync::{Arc, Mutex, MutexGuard};

use super::reference::{Matrix, OPS, Observed, Observer, Op};
use crate::engine::dump::{DumpError, DumpWriter};
use crate::engine::{FiniteCheck, NotFinite, Written};

/// What is looked at. Clones look together, so that one may be given to a model and the other kept.
#[derive(Clone, Default)]
pub struct Watch {
    eyes: Arc<Mutex<Eyes>>,
}

#[derive(Default)]
struct Eyes {
    check: Option<(FiniteCheck, CheckAt)>,
    dump: Option<DumpWriter>,
    /// Rows of the last output.
    rows: usize,
}

/// Which outputs are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckAt {
    /// The streams behind each layer, and what stands before the first and behind the last.
    Layers,
    /// Every op.
    Ops,
}

impl Watch {
    /// Looks at the outputs of `check`, and keeps all of them in `dump`.
    pub fn new(check: Option<CheckAt>, dump: Option<DumpWriter>) -> Self {
        let check = check.map(|at| (FiniteCheck::default(), at));
        Self { eyes: Arc::new(Mutex::new(Eyes { check, dump, rows: 0 })) }
    }

    /// Writes what ops gave since the last step.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn end_step(&self) -> Result<(), DumpError> {
        self.eyes().dump.as_mut().map_or(Ok(()), DumpWriter::end_step)
    }

    /// Keeps and checks what an op wrote.
    ///
    /// # Errors
    /// [`NotFinite`] for the first value that is not, where it is looked for.
    pub fn saw(&self, written: Written<'_>) -> Result<(), NotFinite> {
        let Written { layer, op, columns, values, .. } = written;
        let mut eyes = self.eyes();
        eyes.rows = values.len().checked_div(columns).unwrap_or(0);
        // First kept, then checked: what stopped a run is what a dump is wanted for.
        if let Some(dump) = &mut eyes.dump {
            dump.record(layer, op, columns, values);
        }
        let Some((check, at)) = &mut eyes.check else { return Ok(()) };
        if *at == CheckAt::Layers && layer.is_some() && op != STREAMS {
            return Ok(());
        }
        check.look(written)
    }

    /// Which outputs are checked; all of them where nothing is said.
    pub(super) fn checks(&self) -> CheckAt {
        self.eyes().check.as_ref().map_or(CheckAt::Ops, |(_, at)| *at)
    }

    fn eyes(&self) -> MutexGuard<'_, Eyes> {
        self.eyes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn keep(&self, layer: usize, name: &str, columns: usize, values: &[f32]) {
        if let Some(dump) = &mut self.eyes().dump {
            dump.record(Some(layer as u32), name, columns, values);
        }
    }
}

impl Observer for Watch {
    fn output(&mut self, op: Op, first_position: usize, output: &Matrix) -> Observed {
        let layer = op.layer.map(|layer| layer as u32);
        let inputs = inputs(op.name, layer, self.checks());
        let Matrix { columns, values, .. } = output;
        let written =
            Written { layer, op: op.name, inputs: &inputs, first_token: first_position, columns: *columns, values };
        Ok(self.saw(written)?)
    }

    fn experts(&mut self, layer: usize, experts: &mut [u32]) {
        let values: Vec<f32> = experts.iter().map(|&expert| expert as f32).collect();
        // They are chosen behind the gate, which has a row a token.
        let tokens = self.eyes().rows.max(1);
        self.keep(layer, "ffn.route.experts", values.len() / tokens, &values);
    }

    fn picks(&mut self, layer: usize, picks: &mut [Vec<u32>]) {
        let columns = picks.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |row: &Vec<u32>| {
            let nothing = std::iter::repeat_n(NO_PICK, columns - row.len());
            row.iter().map(|&pick| pick as f32).chain(nothing).collect::<Vec<f32>>()
        };
        let values: Vec<f32> = picks.iter().flat_map(padded).collect();
        self.keep(layer, "attn.indexer.picks", columns, &values);
    }
}

/// The ops that `op` of `layer` reads, as far as they were looked at. A layer reads the streams of the one before it,
/// the first the embedding.
fn inputs(op: &str, layer: Option<u32>, at: CheckAt) -> Vec<(Option<u32>, &'static str)> {
    let before = match layer {
        Some(0) => (None, "embed"),
        Some(layer) => (Some(layer - 1), STREAMS),
        None => (None, STREAMS),
    };
    if at == CheckAt::Layers && layer.is_some() {
        return vec![before];
    }
    let read = OPS.iter().find(|(name, _)| *name == op).map_or(&[][..], |(_, inputs)| inputs);
    read.iter().map(|&input| if input == STREAMS { before } else { (layer, input) }).collect()
}

const STREAMS: &str = "streams";
/// Behind the last entry that a token chose, where others chose more.
const NO_PICK: f32 = -1.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn output(values: &[f32]) -> Matrix {
        Matrix { rows: 1, columns: values.len(), values: values.to_vec() }
    }

    #[test]
    fn the_first_bad_op_is_named_with_what_it_read() {
        let mut watch = Watch::new(Some(CheckAt::Ops), None);
        let op = |layer, name| Op { layer, name };
        watch.output(op(None, "embed"), 5, &output(&[1.0, -2.0])).unwrap();
        watch.output(op(Some(0), "hc_attn.mix"), 5, &output(&[0.5])).unwrap();
        let error = watch.output(op(Some(0), "hc_attn"), 5, &output(&[0.0, f32::NAN])).unwrap_err().to_string();
        assert_eq!(
            error,
            "expected finite values from `hc_attn` of layer 0, found NaN at token 5, column 1; \
             largest magnitudes of its inputs: `hc_attn.mix` 0.5, `embed` 2"
        );
    }

    #[test]
    fn layers_are_looked_at_where_they_end() {
        let mut watch = Watch::new(Some(CheckAt::Layers), None);
        let op = |layer, name| Op { layer, name };
        watch.output(op(Some(0), "attn.wq_b"), 0, &output(&[f32::NAN])).unwrap();
        watch.output(op(Some(0), "streams"), 0, &output(&[3.0])).unwrap();
        let error = watch.output(op(Some(1), "streams"), 0, &output(&[f32::INFINITY])).unwrap_err().to_string();
        assert!(
            error.ends_with("found inf at token 0, column 0; largest magnitudes of its inputs: `streams` 3"),
            "{error}"
        );
    }
}
