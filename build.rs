//! Records the commit that a binary was built from, and rebuilds when an embedded file comes or goes.

use std::process::Command;

fn main() {
    for embedded in ["templates", "tuning_db"] {
        println!("cargo:rerun-if-changed={embedded}");
    }
    // Where git keeps them, which in a linked worktree is not `.git/`. A path that is not there would never be clean.
    for file in ["HEAD", "index"].into_iter().filter_map(|file| git(&["rev-parse", "--git-path", file])) {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=TILEKILN_COMMIT");
    let commit = std::env::var("TILEKILN_COMMIT").ok().or_else(commit_of_checkout);
    println!("cargo:rustc-env=TILEKILN_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

/// `<12 hex digits>`, with `-dirty` when tracked files differ from the commit.
fn commit_of_checkout() -> Option<String> {
    let hash = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if is_dirty { format!("{hash}-dirty") } else { hash })
}

/// What git says, if there is a git and a checkout. It must not touch the index, or the next build begins anew.
fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").arg("--no-optional-locks").args(args).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_string())
}
