//! How a problem is cut up: the name of a family and named integers, never an index into a list.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One point of a family's search space. Its [`Display`](std::fmt::Display) is its stable id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tile {
    family: String,
    numbers: BTreeMap<String, u32>,
}

impl Tile {
    /// The tile of `family` with these named numbers.
    pub fn new<'a>(family: &str, numbers: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let numbers = numbers.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        Self { family: family.to_string(), numbers }
    }

    /// The family that understands the numbers.
    pub fn family(&self) -> &str {
        &self.family
    }

    /// The number called `name`.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// Names and numbers, in the order of the names.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, u32)> {
        self.numbers.iter().map(|(name, &value)| (name.as_str(), value))
    }

    /// The same tile with one number changed.
    pub fn with(&self, name: &str, value: u32) -> Self {
        let mut tile = self.clone();
        tile.numbers.insert(name.to_string(), value);
        tile
    }
}

impl std::fmt::Display for Tile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.family)?;
        self.numbers.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl std::str::FromStr for Tile {
    type Err = ParseTileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |word: &str| ParseTileError { text: text.to_string(), word: word.to_string() };
        let mut words = text.split_whitespace();
        let family = words.next().filter(|family| !family.contains('=')).ok_or_else(|| refuse(""))?;
        let mut numbers = BTreeMap::new();
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| refuse(word))?;
            let value = value.parse().map_err(|_| refuse(word))?;
            if name.is_empty() || numbers.insert(name.to_string(), value).is_some() {
                return Err(refuse(word));
            }
        }
        Ok(Self { family: family.to_string(), numbers })
    }
}

impl TryFrom<String> for Tile {
    type Error = ParseTileError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Tile> for String {
    fn from(tile: Tile) -> Self {
        tile.to_string()
    }
}

/// A text that is no tile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a tile such as `dense_mma rows=16 tokens=8`, found `{text}` (at `{word}`)")]
pub struct ParseTileError {
    text: String,
    word: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_parse_are_inverse() {
        let tile = Tile::new("dense_mma", [("tokens", 8), ("rows", 16)]);
        assert_eq!(tile.to_string(), "dense_mma rows=16 tokens=8");
        assert_eq!(tile.to_string().parse(), Ok(tile.clone()));
        let json = serde_json::to_string(&tile).unwrap();
        assert_eq!(serde_json::from_str::<Tile>(&json).unwrap(), tile);
    }

    #[test]
    fn nonsense_is_refused_with_the_word() {
        for (text, word) in [("", ""), ("a=1", ""), ("f rows", "rows"), ("f rows=x", "rows=x"), ("f a=1 a=2", "a=2")] {
            assert_eq!(text.parse::<Tile>().unwrap_err().word, word, "{text}");
        }
    }
}
