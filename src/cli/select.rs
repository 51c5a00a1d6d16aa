//! From words to problems: which ops, which buckets.

use super::CliError;
use super::args::{EffortArg, ProblemArgs};
use super::subject_args::{DEFAULT_CHECKPOINT, SubjectArgs};
use super::suite::{self, Member};
use crate::models::{self, Checkpoint, Op, Shard};
use crate::problem::{BUCKETS, Problem, bucket_of};
use crate::tuner::Job;

/// Buckets that a quick run measures; the others inherit.
pub const QUICK_BUCKETS: [u32; 7] = [1, 4, 16, 64, 256, 1024, 4096];

/// The ops of the model that `subject` names.
pub fn ops(subject: &SubjectArgs) -> Result<Vec<Op>, CliError> {
    let name = subject.model.as_deref().unwrap_or(DEFAULT_MODEL);
    let usage = |sentence: String| CliError::usage(sentence, "`autotune show problems --help` shows examples");
    let model = models::named(name).map_err(|error| usage(error.to_string()))?;
    let checkpoint: Checkpoint = subject.checkpoint.parse().map_err(|error| usage(format!("{error}")))?;
    let shard = Shard { tp: subject.tp, ep: subject.ep };
    let mut ops = model.inventory(checkpoint, shard).map_err(|error| usage(error.to_string()))?;
    if let Some(text) = &subject.only {
        let names: Vec<&str> = ops.iter().map(|op| op.name).collect();
        let none = usage(format!("expected a part of an op's name ({}), found `{text}`", names.join(", ")));
        ops.retain(|op| op.name.contains(text.as_str()));
        if ops.is_empty() {
            return Err(none);
        }
    }
    Ok(ops)
}

/// The problems that `--problem` names, at the buckets of `--m`, or of the problem itself.
pub fn problems(subject: &SubjectArgs) -> Result<Vec<Problem>, CliError> {
    parsed(&subject.problems, &subject.tokens)
}

fn parsed(texts: &[String], tokens: &[u32]) -> Result<Vec<Problem>, CliError> {
    let tokens = buckets(tokens)?;
    let mut problems = Vec::new();
    for text in texts {
        let problem: Problem = text.parse().map_err(|error| {
            let hint = "`autotune show problems --model dsv4` lists the problems of a model";
            CliError::usage(format!("{error}"), hint)
        })?;
        let own = [bucket(problem.m())?];
        let wanted = if tokens.is_empty() { &own[..] } else { &tokens };
        problems.extend(wanted.iter().map(|&m| problem.with_m(m)));
    }
    Ok(problems)
}

/// The problems that `args` names: one, at its own bucket or at those of `--m`.
pub fn problems_of(args: &ProblemArgs) -> Result<Vec<Problem>, CliError> {
    let text = args.problem.clone().unwrap_or_else(|| args.words.join(" "));
    parsed(&[text], &args.tokens)
}

/// Every bucket of every op that `subject` names, each problem once, with the names of its ops.
pub fn buckets_of(subject: &SubjectArgs) -> Result<Vec<(String, Problem)>, CliError> {
    let of = |job: Job| job.measured.into_iter().map(move |m| (job.name.clone(), job.problem.with_m(m)));
    Ok(jobs(subject, EffortArg::Full)?.into_iter().flat_map(of).collect())
}

/// Whether `subject` leaves open what is meant.
pub fn is_everything(subject: &SubjectArgs) -> bool {
    let SubjectArgs { model, checkpoint, tp, ep, problems, suite, tokens, only } = subject;
    let is_plain = (checkpoint.as_str(), *tp, *ep) == (DEFAULT_CHECKPOINT, 1, 1);
    is_plain && model.is_none() && suite.is_none() && only.is_none() && problems.is_empty() && tokens.is_empty()
}

/// What a tuning run works through.
pub fn jobs(subject: &SubjectArgs, effort: EffortArg) -> Result<Vec<Job>, CliError> {
    if let Some(suite) = &subject.suite {
        return suite_jobs(suite, subject);
    }
    let asked = buckets(&subject.tokens)?;
    let (measured, inherited): (Vec<u32>, Vec<u32>) = match effort {
        _ if !asked.is_empty() => (asked, Vec::new()),
        EffortArg::Quick => BUCKETS.into_iter().partition(|m| QUICK_BUCKETS.contains(m)),
        EffortArg::Full | EffortArg::Exhaustive => (BUCKETS.to_vec(), Vec::new()),
    };
    let mut jobs: Vec<Job> = Vec::new();
    let mut add = |name: String, problem: Problem, measured: &[u32], inherited: &[u32]| {
        // Two ops of one shape are one job.
        match jobs.iter_mut().find(|job| job.problem.op() == problem.op()) {
            Some(job) => {
                if !job.name.split(", ").any(|part| part == name) {
                    job.name = format!("{}, {name}", job.name);
                }
                job.measured.extend(measured);
                job.measured.sort_unstable();
                job.measured.dedup();
            }
            None => {
                let (measured, inherited) = (measured.to_vec(), inherited.to_vec());
                jobs.push(Job { name, problem, measured, inherited });
            }
        }
    };
    if subject.problems.is_empty() {
        for op in ops(subject)? {
            add(op.name.to_string(), op.problem(1), &measured, &inherited);
        }
    } else {
        for problem in problems(subject)? {
            add(problem.op(), problem.clone(), &[problem.m()], &[]);
        }
    }
    Ok(jobs)
}

/// The members of a suite that `--only` and `--m` let through.
fn suite_jobs(name: &str, subject: &SubjectArgs) -> Result<Vec<Job>, CliError> {
    let asked = buckets(&subject.tokens)?;
    let mut jobs = Vec::new();
    for Member { name, problem, tokens } in suite::members(name)? {
        let text = format!("{name} {}", problem.op());
        let is_named = subject.only.as_ref().is_none_or(|only| only.split(',').any(|part| text.contains(part.trim())));
        let measured: Vec<u32> = tokens.iter().copied().filter(|m| asked.is_empty() || asked.contains(m)).collect();
        if is_named && !measured.is_empty() {
            jobs.push(Job { name, problem, measured, inherited: Vec::new() });
        }
    }
    if jobs.is_empty() {
        let only = subject.only.as_deref().unwrap_or_default();
        let sentence = format!("expected part of a problem of the suite for `--only`, found `{only}`");
        return Err(CliError::usage(sentence, "`autotune bench --suite hopper --list` lists its problems"));
    }
    Ok(jobs)
}

/// Numbers of tokens as buckets, ascending, each once.
pub fn buckets(tokens: &[u32]) -> Result<Vec<u32>, CliError> {
    let mut buckets = tokens.iter().map(|&m| bucket(m)).collect::<Result<Vec<u32>, CliError>>()?;
    buckets.sort_unstable();
    buckets.dedup();
    Ok(buckets)
}

fn bucket(m: u32) -> Result<u32, CliError> {
    let most = BUCKETS[BUCKETS.len() - 1];
    bucket_of(m).filter(|_| m > 0).ok_or_else(|| {
        CliError::usage(
            format!("expected 1 to {most} tokens, found {m}"),
            "a longer step is cut into chunks by the runner",
        )
    })
}

/// What is tuned if nothing is said.
pub const DEFAULT_MODEL: &str = "dsv4";

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> SubjectArgs {
        SubjectArgs {
            model: None,
            checkpoint: "nvfp4".to_string(),
            tp: 1,
            ep: 1,
            problems: Vec::new(),
            suite: None,
            tokens: Vec::new(),
            only: None,
        }
    }

    #[test]
    fn a_quick_run_measures_seven_buckets_and_the_others_inherit() {
        let jobs = jobs(&subject(), EffortArg::Quick).unwrap();
        assert_eq!(jobs.len(), 15);
        for job in &jobs {
            assert_eq!((job.measured.len(), job.inherited.len()), (7, 7), "{}", job.name);
        }
    }

    #[test]
    fn tokens_round_up_and_problems_of_one_op_are_one_job() {
        let subject =
            SubjectArgs { problems: vec!["nvfp4 64x64 m3".to_string(), "nvfp4 64x64 m64".to_string()], ..subject() };
        let jobs = jobs(&subject, EffortArg::Full).unwrap();
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs[0].measured, [4, 64]);
        let subject = SubjectArgs { tokens: vec![9000], ..subject };
        let error = problems(&subject).unwrap_err();
        assert_eq!(error.to_string(), "expected 1 to 8192 tokens, found 9000");
    }
}
