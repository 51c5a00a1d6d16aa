//! Token ids on the command line, and in files.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::cli::CliError;

/// The ids that `text` lists, or those in the file that it names: a JSON list, or safetensors with `input_ids`.
///
/// # Errors
/// The sentence of what is neither, and of an empty list.
pub fn read(text: &str) -> Result<Vec<u32>, CliError> {
    let is_list = text.contains(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || c == ',' || c.is_whitespace());
    let ids = if is_list { parse(text)? } else { read_file(Path::new(text))? };
    if ids.is_empty() {
        return Err(mistake(format!("expected at least one token id, found none in `{text}`")));
    }
    Ok(ids)
}

fn parse(text: &str) -> Result<Vec<u32>, CliError> {
    let id = |word: &str| {
        let word = word.trim();
        word.parse().map_err(|_| mistake(format!("expected token ids such as 1,2,3, found `{word}` in `{text}`")))
    };
    text.trim_end_matches([',', ' ']).split(',').map(id).collect()
}

fn read_file(path: &Path) -> Result<Vec<u32>, CliError> {
    let bytes = std::fs::read(path).map_err(|error| {
        let found = if error.kind() == std::io::ErrorKind::NotFound { "nothing".into() } else { error.to_string() };
        mistake(format!("expected token ids, or a file of them at `{}`, found {found}", path.display()))
    })?;
    if path.extension().is_some_and(|ending| ending == "safetensors") {
        return tensor(path, &bytes);
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| mistake(format!("expected a JSON list of token ids in `{}`, found: {error}", path.display())))
}

/// `input_ids` of a safetensors file, of any shape: ids are taken in row-major order.
fn tensor(path: &Path, bytes: &[u8]) -> Result<Vec<u32>, CliError> {
    let of_file = |found: String| mistake(format!("expected {INPUT_IDS} in `{}`, found {found}", path.display()));
    let file = SafeTensors::deserialize(bytes).map_err(|error| of_file(format!("no safetensors file: {error}")))?;
    let view = file.tensor(INPUT_IDS).map_err(|_| of_file(format!("{:?}", file.names())))?;
    let data = view.data();
    let ids: Vec<i64> = match view.dtype() {
        Dtype::I64 => data.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes).into()).collect(),
        other => return Err(of_file(format!("them in {other:?}, not I64 or I32"))),
    };
    ids.into_iter().map(|id| u32::try_from(id).map_err(|_| of_file(format!("the id {id}")))).collect()
}

fn mistake(sentence: String) -> CliError {
    CliError::usage(sentence, "give ids as 1,2,3, as a JSON list in a file, or as safetensors with I64 input_ids")
}

const INPUT_IDS: &str = "input_ids";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_files_are_read() {
        assert_eq!(read("1,2,3").unwrap(), [1, 2, 3]);
        assert_eq!(read(" 7, 8,").unwrap(), [7, 8]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.json");
        std::fs::write(&path, "[5, 6]").unwrap();
        assert_eq!(read(path.to_str().unwrap()).unwrap(), [5, 6]);
    }

    #[test]
    fn what_is_no_id_is_named() {
        let sentence = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(
            sentence("1,99999999999"),
            "expected token ids such as 1,2,3, found `99999999999` in `1,99999999999`"
        );
        assert_eq!(sentence("1,,2"), "expected token ids such as 1,2,3, found `` in `1,,2`");
        assert_eq!(sentence("none.json"), "expected token ids, or a file of them at `none.json`, found nothing");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.json");
        for (text, found) in [("[-1]", "integer `-1`"), ("[]", "found none in"), ("{}", "invalid type: map")] {
            std::fs::write(&path, text).unwrap();
            let sentence = sentence(path.to_str().unwrap());
            assert!(sentence.contains(found), "{sentence}");
        }
    }
}
