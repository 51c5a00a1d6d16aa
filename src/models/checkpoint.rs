//! Which of a model's published forms is served: it decides the weight format of each op.

/// What a checkpoint directory holds. Formats of a real file win over these at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Checkpoint {
    /// As the model's authors published it.
    Native,
    /// Routed experts in NVFP4, everything else native: the public NVFP4 checkpoints.
    Nvfp4,
    /// Projections of attention and shared experts in NVFP4 as well.
    Nvfp4Full,
}

impl Checkpoint {
    /// Every checkpoint, in the order of the enum.
    pub const ALL: [Checkpoint; 3] = [Self::Native, Self::Nvfp4, Self::Nvfp4Full];

    /// The word used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Nvfp4 => "nvfp4",
            Self::Nvfp4Full => "nvfp4_full",
        }
    }
}

impl std::fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Checkpoint {
    type Err = UnknownCheckpoint;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|checkpoint| checkpoint.name() == name)
            .ok_or_else(|| UnknownCheckpoint { name: name.to_string() })
    }
}

/// No checkpoint has that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a checkpoint ({}), found `{name}`", Checkpoint::ALL.map(Checkpoint::name).join(", "))]
pub struct UnknownCheckpoint {
    /// What was asked for.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back_and_nonsense_is_refused() {
        for checkpoint in Checkpoint::ALL {
            assert_eq!(checkpoint.to_string().parse(), Ok(checkpoint));
        }
        let error = "fp6".parse::<Checkpoint>().unwrap_err().to_string();
        assert_eq!(error, "expected a checkpoint (native, nvfp4, nvfp4_full), found `fp6`");
    }
}
