//! Text to token ids and back, by a checkpoint's own `tokenizer.json`.
//!
//! Nothing is added to a text: which tokens open a prompt is the model's affair. What comes back is shown as it grows,
//! and one character may be spread over several tokens, so a [`TextStream`] holds back bytes until they are whole.

use std::path::Path;

/// A tokenizer.
pub struct Tokens {
    tokenizer: tokenizers::Tokenizer,
}

/// What can go wrong with a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// Not there, or not one.
    #[error("expected a tokenizer at `{path}`, found: {reason}")]
    Open {
        /// Where.
        path: String,
        /// What was there.
        reason: String,
    },
    /// A text that it cannot cut.
    #[error("expected a text that the tokenizer can cut, found one that it refuses: {reason}")]
    Encode {
        /// In its words.
        reason: String,
    },
    /// Ids that it cannot join.
    #[error("expected tokens that the tokenizer can join, found some that it refuses: {reason}")]
    Decode {
        /// In its words.
        reason: String,
    },
}

impl Tokens {
    /// The tokenizer in the file at `path`.
    ///
    /// # Errors
    /// [`TokensError::Open`] if there is none.
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        let refused = |reason: String| TokensError::Open { path: path.display().to_string(), reason };
        let tokenizer = tokenizers::Tokenizer::from_file(path).map_err(|error| refused(error.to_string()))?;
        Ok(Self { tokenizer })
    }

    /// The ids of `text`, in which the names of special tokens stand for those tokens.
    ///
    /// # Errors
    /// [`TokensError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        let encoding = self.tokenizer.encode_fast(text, false);
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokensError::Encode { reason: error.to_string() })
    }

    /// The id of the token that is written `text`.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }

    /// The text of a growing list of ids.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokens: self, held: Vec::new(), shown: 0, unknown: 0 }
    }

    /// The text of `ids`, those of special tokens included.
    fn decode(&self, ids: &[u32]) -> Result<String, TokensError> {
        self.tokenizer.decode(ids, false).map_err(|error| TokensError::Decode { reason: error.to_string() })
    }
}

/// Text that grows by tokens, given out in whole characters.
pub struct TextStream<'a> {
    tokens: &'a Tokens,
    /// Ids since the last one that ended with a whole character.
    held: Vec<u32>,
    /// Bytes of their text that have been given out.
    shown: usize,
    unknown: usize,
}

impl TextStream<'_> {
    /// The text that is whole once `id` has come: often its own, sometimes none. An id that the tokenizer does not know
    /// is shown as U+FFFD and counted.
    ///
    /// # Errors
    /// [`TokensError::Decode`].
    pub fn push(&mut self, id: u32) -> Result<String, TokensError> {
        if self.tokens.tokenizer.id_to_token(id).is_none() {
            self.unknown += 1;
            return Ok(self.finish()? + REPLACEMENT);
        }
        self.held.push(id);
        let text = self.tokens.decode(&self.held)?;
        // An unfinished character is one U+FFFD at the end. What stands before it does not change with more bytes.
        let whole = text.strip_suffix(REPLACEMENT).unwrap_or(&text);
        let fresh = whole[self.shown..].to_string();
        self.shown = whole.len();
        if whole.len() == text.len() {
            self.held.clear();
            self.shown = 0;
        }
        Ok(fresh)
    }

    /// What was held back; bytes of a character that never became whole are U+FFFD.
    ///
    /// # Errors
    /// [`TokensError::Decode`].
    pub fn finish(&mut self) -> Result<String, TokensError> {
        let (held, shown) = (std::mem::take(&mut self.held), std::mem::take(&mut self.shown));
        if held.is_empty() {
            return Ok(String::new());
        }
        Ok(self.tokens.decode(&held)?[shown..].to_string())
    }

    /// Ids so far that the tokenizer does not know.
    pub fn unknown(&self) -> usize {
        self.unknown
    }
}

const REPLACEMENT: &str = "\u{FFFD}";
