//! The store on its hot path and at start: key and hash, lookup, a snapshot of 2,000 winners.
//!
//! `cargo bench --bench store`. Goals: a lookup below 100 ns, the snapshot below 2 ms.

#[path = "../tests/store_samples/mod.rs"]
mod store_samples;

use std::collections::HashMap;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use store_samples::{gpu, problem, record, records, tile, trial};
use tilekiln::arch::GpuSpec;
use tilekiln::models::{self, Checkpoint, Shard};
use tilekiln::problem::{BUCKETS, Problem, Tile};
use tilekiln::store::{Current, Database, Edits, Entry, KeyHash, Lookup, Pack, Snapshot, WinnerKey};

fn keys(c: &mut Criterion) {
    let (problem, gpu) = (problem("nvfp4 4096x8192 m64"), gpu("h100"));
    let key = WinnerKey { layout: "nvfp4@2", problem: &problem, gpu: &gpu };
    c.bench_function("key text and hash", |b| b.iter(|| black_box(&key).hash()));
}

fn lookups(c: &mut Criterion) {
    let records = records(2000);
    let lookup = Lookup::new(records.iter().map(Entry::of));
    let hashes: Vec<KeyHash> = records.iter().map(|record| WinnerKey::of(record).hash()).collect();
    let mut idx = 0;
    c.bench_function("lookup, one of 2,000 by key", |b| {
        b.iter(|| {
            idx = (idx + 577) % hashes.len();
            lookup.get(black_box(&hashes[idx])).map(|entry| &*entry.tile)
        })
    });

    // A runner's lookup is in the map that `dispatch::Prepared` has: problems to what is launched.
    let ops = models::named("dsv4").unwrap().inventory(Checkpoint::Nvfp4, Shard { tp: 1, ep: 1 }).unwrap();
    let all = ops.iter().flat_map(|op| BUCKETS.into_iter().map(|m| op.problem(m)));
    let prepared: HashMap<Problem, usize> = all.enumerate().map(|(idx, problem)| (problem, idx)).collect();
    let problems: Vec<Problem> = prepared.keys().cloned().collect();
    c.bench_function("lookup of a runner, by problem", |b| {
        b.iter(|| {
            idx = (idx + 77) % problems.len();
            prepared.get(black_box(&problems[idx])).copied()
        })
    });

    let absent = record("nvfp4 64x64 m8192", "h200-sxm", 1, 1.0);
    let arch = GpuSpec::named("h200-sxm").map(|spec| spec.arch).unwrap();
    let (default, kernels) = (tile(0), |_: &Problem, _: &Tile| None);
    let current = Current { nvrtc: Some("13.2"), kernels: &kernels, is_valid: &|_, _| true };
    c.bench_function("lookup, down the ladder to a borrowed winner", |b| {
        b.iter(|| lookup.find(black_box(&WinnerKey::of(&absent)), arch, &current, &default).how)
    });
}

fn files(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners.snapshot");
    let records = records(2000);
    Snapshot::of(&records).write(&path).unwrap();
    c.bench_function("snapshot of 2,000 winners, load", |b| b.iter(|| Snapshot::load(&path).unwrap()));
    c.bench_function("snapshot of 2,000 winners, make", |b| b.iter(|| Snapshot::of(&records)));

    let pack = Pack::new(gpu("h100"), "dsv4-flash", "nvfp4", records[..280].to_vec()).unwrap().to_text();
    c.bench_function("pack of 280 winners, read", |b| b.iter(|| Pack::parse(&pack, Edits::Refuse).unwrap()));
}

fn database(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners");
    let (database, _) = Database::open(&path).unwrap();
    let mut seed = 0;
    c.bench_function("trial, appended and acknowledged", |b| {
        let next = || {
            seed += 1;
            trial("nvfp4 4096x8192 m64", seed % 5000, seed)
        };
        b.iter_batched(next, |trial| database.append_trial(&trial).unwrap(), BatchSize::SmallInput)
    });
    database.close().unwrap();
    c.bench_function("database of 5,000 trials, open", |b| b.iter(|| Database::open(&path).unwrap().0.close()));
}

criterion_group!(benches, keys, lookups, files, database);
criterion_main!(benches);
