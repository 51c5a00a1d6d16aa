//! Decode steps as graphs against the same launches in a row, and a step that its observer ended against a whole one.

use tilekiln::engine::{EngineError, LanguageModel, Observer, OpId, Sampling, View};
use tilekiln::models::dsv4::forward::ForwardOptions;

use super::{Oracle, argmax, options};
use crate::context::{Context, Failure};

pub fn graphs(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    let prompt = &oracle.tokens[..90];
    let greedy = Sampling::default();
    let mut forward = oracle.forward(context, &options())?;
    let mut answer = forward.prefill(&[(0, prompt)], &greedy)?;
    for _ in 0..60 {
        answer.extend(forward.decode(&[0], &greedy)?);
    }
    forward.release(0);
    // The same tokens, fed one by one, without a graph.
    let vocabulary = forward.limits().vocabulary as usize;
    let logits = forward.logits(0, prompt)?;
    let mut expected = vec![argmax(&logits[logits.len() - vocabulary..]) as u32];
    for token in &answer[..60] {
        expected.push(argmax(&forward.logits(0, &[*token])?) as u32);
    }
    if expected != answer {
        return Err(format!("graphs sampled {answer:?}, logits say {expected:?}").into());
    }
    Ok(answer.len())
}

/// Every branch reads and writes what it would in a row: the same tokens, and behind them the same logits to the bit,
/// in which all caches have a say.
pub fn branches(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    const STEPS: usize = 40;
    let greedy = Sampling::default();
    let several = ForwardOptions { sequences: 16, ..options() };
    let (mut graph, mut row) = (oracle.forward(context, &several)?, oracle.forward(context, &several)?);
    // Buckets that are full, and one that is not; beyond the tokens at which a window and an entry of 128 end.
    for count in [1, 3, 16] {
        let slots: Vec<u32> = (0..count).collect();
        let prompts: Vec<(u32, &[u32])> =
            slots.iter().map(|&slot| (slot, &oracle.tokens[slot as usize..][..100 + slot as usize])).collect();
        if graph.prefill(&prompts, &greedy)? != row.prefill(&prompts, &greedy)? {
            return Err(format!("{count} prompts: other tokens at the second time").into());
        }
        let mut launches = Launches(0);
        for step in 0..STEPS {
            let by_graph = graph.decode(&slots, &greedy)?;
            let in_row = row.observed_decode(&slots, &greedy, &mut launches)?;
            if by_graph != in_row {
                return Err(format!("{count} sequences, step {step}: graph {by_graph:?}, row {in_row:?}").into());
            }
        }
        if launches.0 < STEPS * graph.config().layers() as usize {
            return Err(format!("{count} sequences: an observer saw {} launches in {STEPS} steps", launches.0).into());
        }
        for &slot in &slots {
            // A window, entries and picks of all steps have a say in these.
            let rest = &oracle.tokens[..20];
            let (by_graph, in_row) = (graph.logits(slot, rest)?, row.logits(slot, rest)?);
            let other = by_graph.iter().zip(&in_row).position(|(a, b)| a.to_bits() != b.to_bits());
            if let Some(idx) = other {
                return Err(format!("{count} sequences: logit {idx} of {slot} differs behind {STEPS} steps").into());
            }
            graph.release(slot);
            row.release(slot);
        }
    }
    Ok(3 * STEPS)
}

/// Counts what it is told.
struct Launches(usize);

impl Observer for Launches {
    fn launched(&mut self, _: OpId, _: &[View]) -> Result<(), EngineError> {
        self.0 += 1;
        Ok(())
    }
}

/// A step that its observer ends behind the last launch counts as not made, though the arrays on the device have moved
/// on.
pub fn interrupted(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    let greedy = Sampling::default();
    let (mut whole, mut cut) = (oracle.forward(context, &options())?, oracle.forward(context, &options())?);
    let prompt = [(0, &oracle.tokens[..50])];
    let mut answers = [whole.prefill(&prompt, &greedy)?, cut.prefill(&prompt, &greedy)?];
    for step in 0..8 {
        if step % 3 == 2 && cut.observed_decode(&[0], &greedy, &mut Ends).is_ok() {
            return Err("an observer's error did not end the step".to_string().into());
        }
        answers[0].extend(whole.decode(&[0], &greedy)?);
        answers[1].extend(cut.decode(&[0], &greedy)?);
    }
    match answers[0] == answers[1] {
        true => Ok(answers[0].len()),
        false => Err(format!("expected {:?}, with steps that ended early {:?}", answers[0], answers[1]).into()),
    }
}

/// Ends a step behind its last launch.
struct Ends;

impl Observer for Ends {
    fn launched(&mut self, op: OpId, _: &[View]) -> Result<(), EngineError> {
        if op.name == "advance" { Err(EngineError::Observer("enough".into())) } else { Ok(()) }
    }
}
