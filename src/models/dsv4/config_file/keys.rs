//! The keys of a JSON object, each read as what it must be, with errors that name it.

use serde_json::{Map, Value};

/// A `config.json` that does not describe a model that can be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("expected to read config.json, found: {reason}")]
    Unreadable {
        /// In the system's words.
        reason: String,
    },
    /// No JSON.
    #[error("expected JSON in config.json, found: {reason}")]
    Malformed {
        /// In the parser's words.
        reason: String,
    },
    /// A key that is not there.
    #[error("expected `{key}` in config.json, found no such key")]
    Missing {
        /// The key, with those above it.
        key: String,
    },
    /// A key that holds something else.
    #[error("expected `{key}` in config.json to be {expected}, found {found}")]
    Wrong {
        /// The key, with those above it.
        key: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Numbers that do not fit each other.
    #[error("expected {rule} in config.json")]
    Contradiction {
        /// The rule, and what was found.
        rule: String,
    },
}

/// An object, and where it stands in the file.
pub(super) struct Keys<'a> {
    /// Keys above it with dots behind, such as `rope_scaling.`.
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(path: &str, value: &'a Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(map) => Ok(Self { path: path.to_string(), map }),
            _ => Err(ConfigError::Malformed { reason: format!("{value} where an object should be") }),
        }
    }

    /// True if the key is there and not null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.optional(key).is_some()
    }

    pub(super) fn optional(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Every key with its value.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// A number above zero.
    pub(super) fn u32(&self, key: &str) -> Result<u32, ConfigError> {
        let number = self.count(key)?;
        if number > 0 {
            return Ok(number);
        }
        Err(self.wrong(key, "above 0".to_string(), "0".to_string()))
    }

    /// A number that may be zero.
    pub(super) fn count(&self, key: &str) -> Result<u32, ConfigError> {
        self.number(key, self.value(key)?)
    }

    pub(super) fn optional_u32(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        self.optional(key).map(|value| self.number(key, value)).transpose()
    }

    pub(super) fn counts(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        match self.value(key)? {
            Value::Array(values) => values.iter().map(|value| self.number(key, value)).collect(),
            other => Err(self.wrong(key, "a list of whole numbers".to_string(), other.to_string())),
        }
    }

    /// One number, several, or none if the key is not there.
    pub(super) fn u32s(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        match self.optional(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(_)) => self.counts(key),
            Some(value) => Ok(vec![self.number(key, value)?]),
        }
    }

    pub(super) fn f64(&self, key: &str) -> Result<f64, ConfigError> {
        let value = self.value(key)?;
        value.as_f64().ok_or_else(|| self.wrong(key, "a number".to_string(), value.to_string()))
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str, ConfigError> {
        let value = self.value(key)?;
        value.as_str().ok_or_else(|| self.wrong(key, "a word".to_string(), value.to_string()))
    }

    /// Words, or none if the key is not there.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let wrong = |found: &Value| self.wrong(key, "a list of words".to_string(), found.to_string());
        match self.optional(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                values.iter().map(|value| value.as_str().map(str::to_string).ok_or_else(|| wrong(value))).collect()
            }
            Some(other) => Err(wrong(other)),
        }
    }

    pub(super) fn object(&self, key: &str) -> Result<Keys<'a>, ConfigError> {
        let value = self.value(key)?;
        Keys::new(&format!("{}{key}.", self.path), value)
            .map_err(|_| self.wrong(key, "an object".to_string(), value.to_string()))
    }

    /// Refuses another value than this one, and none.
    pub(super) fn must_be(&self, key: &str, expected: impl Into<Value>) -> Result<(), ConfigError> {
        self.value(key)?;
        self.may_be(key, expected)
    }

    /// Refuses another value than this one; the key may be left out.
    pub(super) fn may_be(&self, key: &str, expected: impl Into<Value>) -> Result<(), ConfigError> {
        let expected = expected.into();
        let is_same = |value: &Value| *value == expected || expected.is_number() && value.as_f64() == expected.as_f64();
        match self.optional(key) {
            Some(value) if !is_same(value) => Err(self.wrong(key, expected.to_string(), value.to_string())),
            _ => Ok(()),
        }
    }

    pub(super) fn wrong(&self, key: &str, expected: String, found: String) -> ConfigError {
        ConfigError::Wrong { key: format!("{}{key}", self.path), expected, found }
    }

    fn value(&self, key: &str) -> Result<&'a Value, ConfigError> {
        self.optional(key).ok_or_else(|| ConfigError::Missing { key: format!("{}{key}", self.path) })
    }

    fn number(&self, key: &str, value: &Value) -> Result<u32, ConfigError> {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| self.wrong(key, "a whole number".to_string(), value.to_string()))
    }
}
