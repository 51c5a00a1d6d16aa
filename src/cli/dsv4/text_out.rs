//! Answers as they grow: each token's text, or its id where there is no tokenizer.

use crate::cli::CliError;
use crate::cli::voice;
use crate::engine::{TextStream, Tokens, TokensError};

/// The texts of all answers, one of which may be shown while it grows.
pub struct TextOut<'a> {
    answers: Vec<Grown<'a>>,
    is_streamed: bool,
    /// Whether a line was begun on standard output and not ended.
    is_mid_line: bool,
}

/// One answer.
struct Grown<'a> {
    text: String,
    stream: Option<TextStream<'a>>,
}

impl<'a> TextOut<'a> {
    /// Nothing yet of `count` answers, written to standard output as they grow if `is_streamed`.
    pub fn new(tokenizer: Option<&'a Tokens>, count: usize, is_streamed: bool) -> Self {
        let grown = || Grown { text: String::new(), stream: tokenizer.map(Tokens::stream) };
        Self { answers: (0..count).map(|_| grown()).collect(), is_streamed, is_mid_line: false }
    }

    /// Adds `token` to answer `answer_idx`.
    pub fn push(&mut self, answer_idx: usize, token: u32) -> Result<(), CliError> {
        let answer = &mut self.answers[answer_idx];
        let piece = match &mut answer.stream {
            Some(stream) => stream.push(token).map_err(failed)?,
            None if self.is_mid_line => format!(" {token}"),
            None => token.to_string(),
        };
        answer.text.push_str(&piece);
        self.show(&piece)
    }

    /// The texts, `None` of answers that are ids only.
    pub fn finish(&mut self) -> Result<Vec<Option<String>>, CliError> {
        let mut texts = Vec::with_capacity(self.answers.len());
        for idx in 0..self.answers.len() {
            let answer = &mut self.answers[idx];
            let Some(stream) = &mut answer.stream else {
                texts.push(None);
                continue;
            };
            let rest = stream.finish().map_err(failed)?;
            answer.text.push_str(&rest);
            texts.push(Some(answer.text.clone()));
            self.show(&rest)?;
        }
        Ok(texts)
    }

    /// Tokens that the tokenizer does not know.
    pub fn unknown(&self) -> usize {
        self.answers.iter().filter_map(|answer| answer.stream.as_ref()).map(TextStream::unknown).sum()
    }

    /// Ends the line that was begun.
    pub fn end_line(&mut self) -> Result<(), CliError> {
        if std::mem::take(&mut self.is_mid_line) { voice::stream("\n") } else { Ok(()) }
    }

    fn show(&mut self, piece: &str) -> Result<(), CliError> {
        if !self.is_streamed || piece.is_empty() {
            return Ok(());
        }
        self.is_mid_line = !piece.ends_with('\n');
        voice::stream(piece)
    }
}

fn failed(error: TokensError) -> CliError {
    CliError::failed(error.to_string(), None)
}
